"""What an evaluation measures: options of `eval` together, and settings that are refused."""

import pytest

from clip_lightning.config import compose
from clip_lightning.errors import UserError


@pytest.mark.slow
def test_several_options_of_eval_add_up() -> None:
    def chosen(*words: str) -> tuple[dict[str, bool], list[str] | None]:
        evaluation = compose.load("train", list(words)).eval
        return evaluation.suites, evaluation.tasks

    assert chosen("eval=[quick,retrieval]") == ({"quick": True, "retrieval": True}, [])
    assert chosen("eval=vtab", "eval.suites.retrieval=true", "eval.tasks=[shape]") == (
        {"vtab": True, "retrieval": True},
        ["shape"],
    )
    assert chosen() == ({}, ["shape", "color", "unseen_combination", "handwritten_digits"])
    with pytest.raises(UserError, match="eval=nix: there is no such option"):
        compose.load("train", ["eval=[quick,nix]"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["eval.root=/nowhere"], r"eval\.root=/nowhere does not exist"),
        (["eval.folders=[/nowhere]"], r"eval\.folders: /nowhere does not exist"),
        (["eval.max_share=0.1", "eval.every=0 samples"], "evaluates at the end alone"),
        (["eval.max_share=1"], "must be 0 or more and below 1"),
    ],
)
def test_what_an_evaluation_cannot_do_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        compose.load("train", words)


def test_an_evaluation_alone_has_no_share_of_a_run() -> None:
    with pytest.raises(UserError, match=r"eval\.max_share=0\.1 has no effect on evaluate\.py"):
        compose.load("evaluate", ["run=.", "eval.max_share=0.1"])
