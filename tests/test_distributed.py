"""Shares of an evaluation are padded to one length and count each item once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_lightning import distributed


@given(num_items=st.integers(1, 200), world=st.integers(1, 9))
def test_shares_are_equally_long_and_count_each_item_once(num_items: int, world: int) -> None:
    counted: list[int] = []
    lengths = set()
    for rank in range(world):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "rank_and_world", lambda rank=rank: (rank, world))
            items, num_counted = distributed.padded_share(num_items)
        counted += items[:num_counted]
        lengths.add(len(items))
    assert sorted(counted) == list(range(num_items))
    assert len(lengths) == 1
