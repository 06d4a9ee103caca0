"""Bad samples: counted once each by cause and written to a file by name; too many of them stop the run.

The index finds most of them before the run; what only decoding can find comes with the batches.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from clip_lightning.data.batches import Bad
from clip_lightning.data.layouts.layout import Layout, Problem, causes, lost_by_cause, num_lost
from clip_lightning.distributed import exchange
from clip_lightning.errors import DataError

_FIRST_LOOK = 2_000  # samples after which the share of bad ones is trusted


class BadSampleLog:
    """What was bad in one layout."""

    def __init__(self, layout: Layout, max_bad_share: float) -> None:
        """Raises: DataError where the index alone has found a larger share of bad samples than `max_bad_share`."""
        self.layout, self.max_bad_share = layout, max_bad_share
        self.met: dict[int, Bad] = {}
        self._elsewhere: dict[int, str] = {}  # causes of those that only other ranks have read
        self._num_exchanged = 0
        self._of_index = lost_by_cause(layout.problems)
        found = self._of_index.total()
        total = layout.num_samples + found
        if found > max_bad_share * total:
            raise self._too_many(layout.problems, total)

    def note(self, bad: Iterable[Bad], samples_seen: int) -> None:
        """Adds the bad samples of a batch; `samples_seen` counts what this process has read.

        Raises: DataError where they are more than `max_bad_share` of what was seen, or of all there is.
        """
        before = len(self.met)
        for one in bad:
            self.met.setdefault(one.sample_id, one)
        seen = min(self.layout.num_samples, max(samples_seen, _FIRST_LOOK))
        if len(self.met) > before and len(self.met) > self.max_bad_share * seen:
            raise self._too_many([*self.layout.problems, *self.problems()], seen + num_lost(self.layout.problems))

    def problems(self) -> list[Problem]:
        """The bad samples that were read, each once, with the cause that is counted."""
        return [self.layout.name_of(sample_id)._replace(cause=bad.cause) for sample_id, bad in self.met.items()]

    @property
    def num_new(self) -> int:
        """Bad samples read since the last exchange."""
        return len(self.met) - self._num_exchanged

    def exchange(self) -> None:
        """Shares what each rank has read since the last exchange; a collective."""
        new = list(self.met.values())[self._num_exchanged :]
        self._num_exchanged = len(self.met)
        for bad in exchange([(bad.sample_id, bad.cause) for bad in new]):
            self._elsewhere.update((sample_id, cause) for sample_id, cause in bad if sample_id not in self.met)

    def counts(self) -> Counter[str]:
        """Distinct bad samples by cause: of the index, of this rank, and of all ranks up to the last exchange."""
        met = {**self._elsewhere, **{sample_id: bad.cause for sample_id, bad in self.met.items()}}
        return +self._of_index + Counter(met.values())

    def _too_many(self, problems: Iterable[Problem], total: int) -> DataError:
        listed = list(problems)
        first = max(listed, key=lambda problem: problem.num)  # the first of the largest losses
        where = f"{first.name} in {first.shard or 'the data'}" if first.name else first.shard
        return DataError(
            f"{num_lost(listed):,} of {total:,} samples are bad ({causes(listed)}; the first is {where}), more than "
            f"data.max_bad_share={self.max_bad_share:g} allows; fix the data, or raise that share."
        )


def write_bad_samples(path: Path, logs: Sequence[BadSampleLog], *, with_index: bool) -> None:
    """Writes a JSON line per bad sample (shard, name, cause, num, hint, detail, found_by), complete or not at all.

    Lines of earlier starts about samples that were read stay; those of the index are written again, one at a time.
    """
    old = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    met = {(row["shard"], row["name"]): row for row in old if row.get("found_by") != "index"}
    for log in logs:
        for problem, bad in zip(log.problems(), log.met.values(), strict=True):
            row = problem._asdict() | {"detail": bad.detail, "found_by": "reading"}
            met[problem.shard, problem.name] = row
    of_index = [log.layout.problems for log in logs] if with_index else []
    if not met and not any(of_index):
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for problem in chain.from_iterable(of_index):
            file.write(json.dumps(problem._asdict() | {"detail": "", "found_by": "index"}) + "\n")
        file.writelines(json.dumps(row) + "\n" for row in met.values())
    temporary.replace(path)
