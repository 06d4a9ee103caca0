"""How often test sets are measured, so that evaluation keeps its share of a run."""

from hypothesis import given
from hypothesis import strategies as st

from clip_lightning.training.evaluation_share import EvaluationShare, stride_of


@given(
    seconds=st.floats(0.001, 1e4),
    training=st.floats(0.1, 1e6),
    left=st.integers(0, 50),
    max_share=st.floats(0.001, 0.9),
)
def test_the_stride_is_the_smallest_that_keeps_the_share(
    seconds: float, training: float, left: int, max_share: float
) -> None:
    def share(stride: int) -> float:
        spent = 2 * seconds + left * seconds / stride
        return spent / (spent + training)

    stride = stride_of(seconds, training, left, max_share)
    assert 1 <= stride <= left + 1
    assert stride == left + 1 or share(stride) <= max_share + 1e-9
    assert stride == 1 or share(stride - 1) > max_share - 1e-9


@given(num=st.integers(1, 12), stride=st.integers(1, 7), begin=st.integers(0, 40))
def test_items_are_spread_evenly_over_as_many_evaluations_as_the_stride(num: int, stride: int, begin: int) -> None:
    share = EvaluationShare(0.1, every=10, total=10_000, stride=stride)
    measured = [item for number in range(begin, begin + stride) for item in share.due(range(num), 10 * number)]
    assert sorted(measured) == list(range(num))
    sizes = [len(share.due(range(num), 10 * number)) for number in range(begin, begin + stride)]
    assert max(sizes) - min(sizes) <= 1


def test_without_a_decision_everything_is_measured() -> None:
    assert EvaluationShare(0.1, every=10, total=100).due("abc", 20) == ["a", "b", "c"]


def test_a_share_that_the_first_and_the_last_evaluation_exceed_is_named() -> None:
    share = EvaluationShare(0.01, every=10, total=100)
    share.begin(0)
    share._begun -= 10.0
    line = share.decide(5.0, 10, 0.0)
    assert share.stride == 9
    assert line.endswith(
        "measured again at the end of the run alone; the first and the last evaluation alone take 9.1%"
    )
