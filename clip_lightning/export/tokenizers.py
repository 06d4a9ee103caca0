"""The tokenizer of a run as files that transformers' AutoTokenizer reads.

CLIP's own becomes a CLIPTokenizer: the same merges, without ftfy and without HTML entities, which transformers does not
repair. A trained one becomes a `tokenizer.json` with this project's cleaning as normalizers. Hugging Face's are copied.
"""

import gzip
import json
import re
import string
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, normalizers, processors

from clip_lightning.tokenizer.paper import MERGES_NAME, vocabulary
from clip_lightning.tokenizer.trained import FILE_NAME
from clip_lightning.training.any_model import OpenedModel
from clip_lightning.training.saved_model import TOKENIZER

# What Python's str.split() takes for space; `\s` of the tokenizers library lacks the separators 1C to 1F.
_SPACES = Regex(r"[\s\x1c\x1d\x1e\x1f\x85]+")
_PUNCTUATION = Regex(f"[{re.escape(string.punctuation)}]")
START, END, PAD = "<start>", "<end>", "<pad>"


def write(opened: OpenedModel, folder: Path) -> Any:
    """Writes the files to `folder`, and returns transformers' tokenizer."""
    tokenizer = build(opened)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build(opened: OpenedModel) -> Any:
    """transformers' tokenizer that cuts texts to the model's context and puts its special tokens around them."""
    text = opened.config.text
    context = text.context_length
    if text.tokenizer.kind == "paper":
        return _papers(opened, context)
    if text.tokenizer.kind == "trained":
        return _trained(opened, context)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(text.tokenizer.path, trust_remote_code=False)
    tokenizer.model_max_length = context
    if text.tokenizer.clean == "canonical":
        backend = tokenizer.backend_tokenizer
        first = [normalizers.Replace("_", " "), normalizers.Replace(_PUNCTUATION, ""), normalizers.Lowercase()]
        first += [normalizers.Replace(_SPACES, " "), normalizers.Strip()]
        backend.normalizer = normalizers.Sequence([*first, *([backend.normalizer] if backend.normalizer else [])])
    return tokenizer


def moved_end(opened: OpenedModel) -> int | None:
    """The id that the end token gets in transformers; None where it keeps its own.

    transformers' CLIP reads `eos_token_id: 2` as "the largest id of a text", a mistake of its old files. An end token
    with id 2, as in a trained tokenizer, therefore changes places with the last row of the embedding.
    """
    config: Any = getattr(opened.model.text.encoder, "config", None)
    is_clips = config is not None and config.model_type == "clip_text_model" and opened.config.text.pool == "eot"
    return int(config.vocab_size) - 1 if is_clips and opened.tokenizer.end_id == 2 else None


def _papers(opened: OpenedModel, context: int) -> Any:
    from transformers import CLIPTokenizer

    vocab, merges = vocabulary(opened.config.text.tokenizer)
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocab |= {start: len(vocab), end: len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context)


def _trained(opened: OpenedModel, context: int) -> Any:
    from transformers import PreTrainedTokenizerFast

    assert opened.folder is not None
    content = json.loads((opened.folder / TOKENIZER / FILE_NAME).read_text(encoding="utf-8"))
    if (end := moved_end(opened)) is not None:
        vocab, old = content["model"]["vocab"], opened.tokenizer.end_id
        last = next((token for token, number in vocab.items() if number == end), None)
        vocab[END] = end
        if last is not None:
            vocab[last] = old
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Replace(_SPACES, " "), normalizers.Strip(), normalizers.Lowercase(), normalizers.NFC()]
    )
    ids = {token: backend.token_to_id(token) for token in (START, END)}
    backend.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=list(ids.items()))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=PAD,
        model_max_length=context,
    )


def merges_file(opened: OpenedModel) -> bytes:
    """The merges of CLIP's tokenizer as gzip, for libraries that read OpenAI's own file."""
    assert opened.folder is not None
    found = next(iter((opened.folder / TOKENIZER).glob(f"{MERGES_NAME.removesuffix('.gz')}*")))
    content = found.read_bytes()
    return content if found.suffix == ".gz" else gzip.compress(content)


def special_ids(opened: OpenedModel) -> str:
    """The special tokens as JSON, for the metadata of a graph."""
    own = opened.tokenizer
    return json.dumps({"start": own.start_id, "end": own.end_id, "pad": own.pad_id})
