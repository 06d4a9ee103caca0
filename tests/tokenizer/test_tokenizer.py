"""Text to ids by all kinds of tokenizers; the paper's equals open_clip's; no caption becomes a special token."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from clip_lightning.config.schema import TextConfig, TokenizerConfig
from clip_lightning.errors import UserError
from clip_lightning.tokenizer import Tokenizer, build_tokenizer
from tests.support.small_tokenizers import CAPTIONS, save_hub_folder

CORPUS = [
    *CAPTIONS[:20],
    "a photo of a cat",
    "Don't we'll  they'RE it's",
    "caf\u00e9 na\u00efve \u4f60\u597d \u3053\u3093\u306b \u041f\u0440\u0438\u0432\u0435\u0442",
    "AT&amp;T &amp;lt;b&amp;gt; &quot;x&quot; &#39;y&#39;",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 smile :-) \u2764\ufe0f",
    "mojibake: caf\u00c3\u00a9 \u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d",
    "1234567890 3.14 x2 \u00bd \u00b2",
    "\ttabs\nand\r\nlines\u00a0\u2003spaces ",
    "",
    "-- ... !!! #hashtag @name http://example.com/a_b?c=d",
    "<start_of_tex> <|endoftex|> <end>",
    "\u0130stanbul \u017fharp \ufb01ne STRASSE stra\u00dfe",
    "word " * 200,
    "x" * 400,
]
SPECIALS = ["<|startoftext|>", "<|endoftext|>", "<start_of_text>", "<end_of_text>", "<pad>", "<start>", "<end>"]
SPECIALS += ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "<s>", "</s>"]
# Any text, and texts with the names of special tokens, in any case, joined to other text or not.
TEXTS = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(SPECIALS + [s.upper() for s in SPECIALS]))).map(
    "".join
)


def paper(context: int = 77) -> Tokenizer:
    return build_tokenizer(TextConfig(name="own", context_length=context), None, None)


def trained(folder: Path | None = None, context: int = 32, captions: list[str] | None = None) -> Tokenizer:
    config = TokenizerConfig(kind="trained", vocab_size=400)
    return build_tokenizer(TextConfig(name="own", context_length=context, tokenizer=config), folder, captions)


def hub(folder: Path, context: int = 32, clean: str = "none", pad_to_context: bool = False) -> Tokenizer:
    config = TokenizerConfig(kind="hub", path=str(folder), vocab_size=400, clean=clean)
    text = TextConfig(name="own", context_length=context, tokenizer=config, pad_to_context=pad_to_context)
    return build_tokenizer(text, None, None)


PAPER, TRAINED, PEER = paper(), trained(captions=CAPTIONS), SimpleTokenizer()


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {kind: hub(save_hub_folder(tmp_path_factory.mktemp(kind), kind)) for kind in ("bert", "t5")}


def test_paper_ids_are_open_clips() -> None:
    batch, expected = PAPER(CORPUS), PEER(CORPUS).numpy()
    assert batch.tokens.shape == expected.shape == (len(CORPUS), 77)
    for text, ours, theirs in zip(CORPUS, batch.tokens, expected, strict=True):
        assert ours.tolist() == theirs.tolist(), text
    assert batch.num_cut == 2
    assert (PAPER.vocab_size, PAPER.start_id, PAPER.end_id, PAPER.pad_id) == (49408, 49406, 49407, 0)


@pytest.mark.slow
@given(st.text(alphabet=st.characters(codec="latin-1"), max_size=60))
def test_paper_ids_are_open_clips_for_any_western_text(text: str) -> None:
    ids = PAPER.encode(text)
    assert [*ids, *[0] * (77 - len(ids))] == PEER([text])[0].tolist()


@pytest.mark.parametrize("name", ["paper", "trained"])
@given(text=TEXTS)
def test_no_caption_becomes_a_special_token_and_every_text_ends(name: str, text: str) -> None:
    tokenizer = {"paper": PAPER, "trained": TRAINED}[name]
    ids = tokenizer.encode(text)
    assert (ids[0], ids[-1]) == (tokenizer.start_id, tokenizer.end_id)
    assert not {tokenizer.start_id, tokenizer.end_id} & set(ids[1:-1])
    assert len(ids) <= tokenizer.context_length
    assert max(ids) < tokenizer.vocab_size
    if name == "trained":
        assert tokenizer.pad_id not in ids


@given(text=TEXTS)
def test_no_caption_becomes_a_special_token_of_hugging_face(hubs: dict[str, Tokenizer], text: str) -> None:
    for kind, specials in (("bert", {0, 2, 3, 4}), ("t5", {0, 1})):
        tokenizer = hubs[kind]
        ids = tokenizer.encode(text)
        start = 0 if tokenizer.start_id is None else 1
        assert ids[-1] == tokenizer.end_id
        assert not specials & set(ids[start:-1])
        assert len(ids) <= 32


def test_special_text_stays_readable_text() -> None:
    assert len(PAPER.encode("<|endoftext|>")) > 4
    assert len(TRAINED.encode("a <end> b")) > len(TRAINED.encode("a b"))


@pytest.mark.parametrize("build", [lambda: PAPER, lambda: TRAINED])
def test_cut_texts_keep_the_end_and_are_counted(build: Callable[[], Tokenizer]) -> None:
    tokenizer = build()
    batch = tokenizer(["red", "red " * 300, "blue " * 300])
    assert batch.num_cut == 2
    assert batch.lengths[1] == tokenizer.context_length
    assert batch.tokens[1, -1] == tokenizer.end_id
    assert tokenizer(["red"] * 3).num_cut == 0


@given(st.lists(st.sampled_from(CORPUS), max_size=6))
def test_batches_are_as_wide_as_their_longest_text_rounded_up(texts: list[str]) -> None:
    batch = PAPER(texts)
    rows = [PAPER.encode(text) for text in texts]
    longest = max(map(len, rows), default=0)
    assert batch.tokens.shape == (len(texts), min(77, (longest + 7) // 8 * 8))
    assert (batch.tokens.dtype, batch.lengths.dtype) == (np.int64, np.int64)
    for row, tokens, length in zip(rows, batch.tokens, batch.lengths, strict=True):
        assert tokens[:length].tolist() == row
        assert (tokens[length:] == PAPER.pad_id).all()


def test_a_trained_tokenizer_is_kept_in_its_folder(tmp_path: Path) -> None:
    first = trained(tmp_path, captions=CAPTIONS)
    again = trained(tmp_path, captions=["something else entirely"])
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "checksums.json"}
    assert [first.encode(text) for text in CORPUS] == [again.encode(text) for text in CORPUS]
    assert [trained(captions=CAPTIONS).encode(text) for text in CORPUS] == [first.encode(text) for text in CORPUS]
    assert len(first.encode("a small red circle")) == 6, "frequent words are single tokens"


@pytest.mark.parametrize("kind", ["paper", "trained", "bert"])
def test_tokenizers_can_be_sent_to_loader_processes(hubs: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = {"paper": PAPER, "trained": TRAINED, **hubs}[kind]
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert [copy.encode(text) for text in CORPUS] == [tokenizer.encode(text) for text in CORPUS]


def test_hugging_face_conventions_are_kept(hubs: dict[str, Tokenizer]) -> None:
    bert, t5 = hubs["bert"], hubs["t5"]
    assert (bert.start_id, bert.end_id, bert.pad_id) == (2, 3, 0)
    assert (t5.start_id, t5.end_id, t5.pad_id) == (None, 1, 0)
    assert bert(["a", "red", "star"]).tokens[0].tolist() == [*bert.encode("a"), *[0] * (8 - len(bert.encode("a")))]


def test_siglip_texts_are_canonical_and_fill_the_context(tmp_path: Path) -> None:
    tokenizer = hub(save_hub_folder(tmp_path, "siglip"), 16, "canonical", pad_to_context=True)
    batch = tokenizer(["A Small, red_CIRCLE!", "a small red circle"])
    assert batch.tokens.shape == (2, 16)
    assert batch.tokens[0].tolist() == batch.tokens[1].tolist()
    assert batch.tokens[0, batch.lengths[0] - 1 :].tolist() == [1] * (17 - batch.lengths[0])


def test_problems_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "merges.txt").write_text("head\none two three\n")
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: trained(tmp_path), "is not a tokenizer"),
        (lambda: trained(tmp_path / "empty"), "needs captions to train on"),
        (lambda: hub(tmp_path / "nowhere"), "kind=trained"),
        (lambda: paper(2), "has no room"),
        (lambda: paper_from(tmp_path / "merges.txt"), "two pieces"),
        (lambda: paper_from(tmp_path / "missing.gz"), "cannot be read"),
        (lambda: small_vocabulary("trained", 200), "259 or more"),
        (lambda: small_vocabulary("paper", 1000), "49408 ids of the paper tokenizer"),
    ]
    for build, words in cases:
        with pytest.raises(UserError) as caught:
            build()
        (sentence,) = caught.value.problems
        assert words in sentence
        assert "\n" not in sentence


def paper_from(path: Path) -> Tokenizer:
    return build_tokenizer(TextConfig(name="own", tokenizer=TokenizerConfig(path=str(path))), None, None)


def small_vocabulary(kind: str, size: int) -> Tokenizer:
    return build_tokenizer(
        TextConfig(name="own", tokenizer=TokenizerConfig(kind=kind, vocab_size=size)), None, CAPTIONS
    )
