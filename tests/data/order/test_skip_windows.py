"""What a run reads after it passed windows over is still a pure function of the samples it has seen."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_lightning.data.order.skip_windows import SkipWindow, positions_of

WINDOWS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=5)


@settings(max_examples=60, deadline=None)
@given(WINDOWS)
def test_a_run_reads_every_position_outside_the_windows_once_and_in_order(pairs: list[tuple[int, int]]) -> None:
    windows = [SkipWindow(0, begin, begin + size) for begin, size in pairs]
    outside = [k for k in range(1000) if not any(begin <= k < end for _, begin, end in windows)]
    found = positions_of(np.arange(500, dtype=np.int64), windows)
    assert found.tolist() == outside[:500]


@settings(max_examples=30, deadline=None)
@given(WINDOWS, st.permutations(range(40)))
def test_each_sample_is_placed_by_itself(pairs: list[tuple[int, int]], order: list[int]) -> None:
    windows = [SkipWindow(0, begin, begin + size) for begin, size in pairs]
    samples = np.array(order, np.int64)
    whole = positions_of(np.arange(40, dtype=np.int64), windows)
    assert (positions_of(samples, windows[::-1]) == whole[samples]).all()
