"""The bad samples that a process has met: counted once each by cause, written down by name, and too many of them stop.

The index finds most of them before the run; what only decoding can find comes with the batches.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from clip_lightning.data.batches import Bad
from clip_lightning.data.layouts.layout import Layout, Problem, causes, num_lost
from clip_lightning.errors import DataError

_FIRST_LOOK = 2_000  # samples after which a share of bad ones is taken at its word


class BadSampleLog:
    """What was bad in one layout."""

    def __init__(self, layout: Layout, max_bad_share: float) -> None:
        """Raises: DataError where the index alone has found a larger share of bad samples than `max_bad_share`."""
        self.layout, self.max_bad_share = layout, max_bad_share
        self.met: dict[int, Bad] = {}
        found = num_lost(layout.problems)
        total = layout.num_samples + found
        if found > max_bad_share * total:
            raise self._too_many(layout.problems, total)

    def note(self, bad: Iterable[Bad], samples_seen: int) -> None:
        """Takes down the bad samples of a batch; `samples_seen` counts what this process has been handed.

        Raises: DataError where they are more than `max_bad_share` of what was seen, or of all there is.
        """
        before = len(self.met)
        for one in bad:
            self.met.setdefault(one.sample_id, one)
        seen = min(self.layout.num_samples, max(samples_seen, _FIRST_LOOK))
        if len(self.met) > before and len(self.met) > self.max_bad_share * seen:
            raise self._too_many([*self.layout.problems, *self.problems()], seen + num_lost(self.layout.problems))

    def problems(self) -> list[Problem]:
        """The bad samples that were met, each once, with the cause that is counted."""
        return [self.layout.name_of(sample_id)._replace(cause=bad.cause) for sample_id, bad in self.met.items()]

    def counts(self, *, with_index: bool) -> Counter[str]:
        """Bad samples by cause; `with_index` adds what the index left out."""
        counts = Counter(bad.cause for bad in self.met.values())
        for problem in self.layout.problems if with_index else ():
            counts[problem.cause] += problem.num
        return +counts

    def write(self, path: Path, *, with_index: bool) -> None:
        """One JSON line per bad sample (shard, name, cause, detail), added to what stands there; complete or not."""
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        rows += [problem._asdict() | {"detail": ""} for problem in (self.layout.problems if with_index else ())]
        rows += [
            problem._asdict() | {"detail": bad.detail}
            for problem, bad in zip(self.problems(), self.met.values(), strict=True)
        ]
        unique = {(row["shard"], row["name"]): row for row in rows}
        if unique:
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in unique.values()), encoding="utf-8")
            temporary.replace(path)

    def _too_many(self, problems: Iterable[Problem], total: int) -> DataError:
        listed = list(problems)
        first = max(listed, key=lambda problem: problem.num)  # the first of the largest losses
        where = f"{first.name} in {first.shard or 'the data'}" if first.name else first.shard
        return DataError(
            f"{num_lost(listed):,} of {total:,} samples are bad ({causes(listed)}; the first is {where}), more than "
            f"data.max_bad_share={self.max_bad_share:g} allows; fix the data, or raise that share."
        )
