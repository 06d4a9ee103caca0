"""Windows of the data that a run skips after a rollback from a divergence.

What a run reads stays a pure function: the n-th sample of the run is at position n, moved behind every window that
begins before it. The windows are part of a checkpoint, beside the samples seen.
"""

from collections.abc import Sequence
from typing import NamedTuple

from clip_lightning.data.layouts.layout import Ids


class SkipWindow(NamedTuple):
    """One window.

    Attributes:
        samples_seen: of the run where it leaves its earlier course.
        begin, end: positions, the end not included; whole steps.
    """

    samples_seen: int
    begin: int
    end: int


def positions_of(samples: Ids, windows: Sequence[SkipWindow]) -> Ids:
    """The positions of a run's samples, both counted from 0, int64 [n]; windows may overlap."""
    positions = samples.copy()
    passed = 0
    for _, begin, end in sorted(windows, key=lambda window: window[1:]):
        if end > passed:
            begin = max(begin, passed)
            positions[positions >= begin] += end - begin
            passed = end
    return positions
