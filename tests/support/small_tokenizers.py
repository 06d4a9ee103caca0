"""Captions and small Hugging Face tokenizers in their real layout."""

from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CAPTIONS = [
    f"A {size} {color} {shape}, drawn on {ground}."
    for size in ("small", "large", "tiny")
    for color in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square", "star", "ring")
    for ground in ("wood", "steel", "glass")
]


def save_hub_folder(folder: Path, kind: str) -> Path:
    """A Hugging Face tokenizer in its real layout, trained on the captions: BERT's or T5's kind."""
    if kind == "bert":
        inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        inner.normalizer = normalizers.BertNormalizer()
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        inner.train_from_iterator(CAPTIONS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
        inner.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        names["mask_token"] = "[MASK]"
    else:
        inner = tokenizers.Tokenizer(models.Unigram())
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        inner.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
        inner.train_from_iterator([caption.lower() for caption in CAPTIONS], trainer)
        inner.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
        names = {"pad_token": "</s>" if kind == "siglip" else "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return folder
