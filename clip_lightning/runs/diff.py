"""The first thing in which two runs differ, from their files alone: an answer to why one is worse.

Things are compared in the order in which a run meets them: its config, its code, the versions of its packages, its
data, the samples of its first step, its initial weights, and the losses that it logged. A later thing often differs
because an earlier one does.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clip_lightning.config.compose import read
from clip_lightning.config.frozen import tree
from clip_lightning.config.identity import diff, flatten, science
from clip_lightning.errors import UserError
from clip_lightning.formatting import aligned, listed
from clip_lightning.reliability.status import read_json
from clip_lightning.run_folders import CONFIG, FIRST_STEP, PLACES, check_run
from clip_lightning.scaling.runs import complete_records

# Config keys that decide nothing in a run: where it lies, and its checks against an earlier start.
_UNCOMPARED = (*PLACES, "experiment", "allow_changed")
_SHOWN = 8  # ids, files, keys


@dataclass(frozen=True)
class Finding:
    """One thing that was compared.

    Attributes:
        what: its name.
        differs: whether the runs differ in it; None where a run did not record it.
        lines: how, one line each; or where they are equal, what is.
    """

    what: str
    differs: bool | None
    lines: tuple[str, ...]


def compare(a: Path, b: Path) -> list[Finding]:
    """Everything that is compared, in order. Raises: UserError: a folder holds no run."""
    for run in (a, b):
        check_run(run)
    return [Finding(what, *found(a, b)) for what, found in _COMPARISONS.items()]


def show(a: Path, b: Path) -> str:
    """The answer in a sentence, and a row for each thing."""
    findings = compare(a, b)
    first = next((finding for finding in findings if finding.differs), None)
    answer = f"first difference: {first.what}: {first.lines[0]}" if first else "no difference was found"
    words = {True: "differs", False: "equal", None: "unknown"}
    rows = []
    for finding in findings:
        for k, line in enumerate(finding.lines or ("",)):
            rows.append((finding.what if k == 0 else "", words[finding.differs] if k == 0 else "", line))
    return "\n".join([answer, "", f"A  {a}", f"B  {b}", "", aligned(rows)])


Answer = tuple[bool | None, tuple[str, ...]]


def _config(a: Path, b: Path) -> Answer:
    """Keys of the science first: no other key should change a number beyond rounding."""
    trees = [tree(run / CONFIG) for run in (a, b)]
    before, after = ({key: one[key] for key in one if key not in _UNCOMPARED} for one in trees)
    changed = diff(before, after)
    keys = _science_keys(a) | _science_keys(b)
    decides = [line for line in changed if line.split(":")[0] in keys]
    others = [f"{line}  (outside the science)" for line in changed if line.split(":")[0] not in keys]
    return bool(changed), tuple([*decides, *others]) or (f"{len(flatten(before))} keys",)


def _code(a: Path, b: Path) -> Answer:
    heads = [_lines(run / "git.txt") for run in (a, b)]
    if None in heads:
        return None, ("no git.txt",)
    (commit, *files), (other, *other_files) = (head or [""] for head in heads)
    if commit != other:
        return True, (f"{commit} -> {other}",)
    patches = [file.read_bytes() if (file := run / "patch.diff").exists() else b"" for run in (a, b)]
    if patches[0] == patches[1]:
        return False, (commit,)
    named = listed(sorted(_patched(patches[0]) ^ _patched(patches[1]) or {*files, *other_files}), _SHOWN)
    return True, (f"{commit} in both, with other uncommitted changes: compare patch.diff of both ({named})",)


def _versions(a: Path, b: Path) -> Answer:
    return _of_files(a, b, "versions.json")


def _data(a: Path, b: Path) -> Answer:
    return _of_files(a, b, "data.json")


def _first_samples(a: Path, b: Path) -> Answer:
    first = [read_json(run / FIRST_STEP) for run in (a, b)]
    if not all("sample_ids" in one for one in first):
        return None, (f"no {FIRST_STEP}, which newer runs have",)
    ids, others = (one["sample_ids"] for one in first)
    num, other_num = (one["num_samples"] for one in first)
    if first[0]["samples_digest"] == first[1]["samples_digest"]:
        return False, (f"{num} samples, from {listed(ids, _SHOWN)}",)
    for k, (mine, other) in enumerate(zip(ids, others, strict=False), 1):
        if mine != other:
            return True, (f"sample {k} of the first step has id {mine} -> {other}",)
    if num != other_num:
        return True, (f"{num} -> {other_num} samples in the first step, the first {min(len(ids), len(others))} equal",)
    return True, (f"one of the {num} samples of the first step, after the first {len(ids)}, which are equal",)


def _weights(a: Path, b: Path) -> Answer:
    first = [read_json(run / FIRST_STEP).get("weights") for run in (a, b)]
    if not all(first):
        return None, (f"no {FIRST_STEP}, which newer runs have",)
    weights, others = ({} if one is None else one for one in first)
    if changed := diff(weights, others):
        return True, (f"{len(changed)} of {len(weights)} tensors, the first {changed[0].split(':')[0]}",)
    return False, (f"{len(weights)} tensors",)


def _losses(a: Path, b: Path) -> Answer:
    losses, others = _loss(a), _loss(b)
    common = [samples for samples in losses if samples in others]
    if not common:
        return None, ("no step at which both logged a loss",)
    batch = tree(a / CONFIG)["compute"]["global_batch"]
    for samples in common:
        mine, other = losses[samples], others[samples]
        if mine != other and not (math.isnan(mine) and math.isnan(other)):
            at = f"step {samples // batch:,} ({samples:,} samples)"
            return True, (f"{at}: {mine:.6g} -> {other:.6g}, the first that differs of {len(common)} logged steps",)
    return False, (f"{len(common)} logged steps",)


_COMPARISONS: Mapping[str, Callable[[Path, Path], Answer]] = {
    "config": _config,
    "code": _code,
    "versions": _versions,
    "data": _data,
    "first samples": _first_samples,
    "initial weights": _weights,
    "loss": _losses,
}


def _of_files(a: Path, b: Path, name: str) -> Answer:
    before, after = read_json(a / name), read_json(b / name)
    if not (before and after):
        return None, (f"no {name}",)
    changed = diff(before, after)
    return bool(changed), tuple(changed) or (f"{len(flatten(before))} entries",)


def _science_keys(run: Path) -> set[str]:
    """The keys that enter the hash; all, where a config of another version cannot be read."""
    try:
        return set(flatten(science(read(run / CONFIG))))
    except UserError:
        return set(flatten(tree(run / CONFIG)))


def _patched(patch: bytes) -> set[str]:
    heads = (line for line in patch.split(b"\n") if line.startswith(b"diff --git "))
    return {head.split(b" b/")[-1].decode(errors="replace") for head in heads}


def _lines(path: Path) -> list[str] | None:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else None


def _loss(run: Path) -> dict[int, float]:
    """Samples seen -> training loss, in order; the later of two at one place."""
    path = run / "metrics.jsonl"
    records = complete_records(path) if path.exists() else []
    return dict(sorted((one.samples_seen, one.value) for one in records if one.what == "loss" and not one.task))
