"""`runs diff` names the one thing in which two runs differ, and of several the first."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clip_lightning.errors import UserError
from clip_lightning.runs.diff import compare, show
from tests.support.run_directories import write_run
from tests.support.runner import Runner
from tests.support.small_data import jpeg, pairs, write_tar

CHANGES: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "config": (("compute.learning_rate=0.003",), {}, "compute.learning_rate: 0.002 -> 0.003"),
    "code": ((), {"code": "commit fff0000"}, "commit abc1234 -> commit fff0000"),
    "versions": ((), {"versions": {"python": "3.11.4", "torch": "2.14.2"}}, "torch: 2.14.1 -> 2.14.2"),
    "data": ((), {"data": {"fingerprint": "ffff", "num_samples": 1000, "order": "a27de125b1b23a9e"}},
             "fingerprint: 8aa08f0de8717210 -> ffff"),
    "first samples": ((), {"sample_ids": (0, 7, *range(2, 16))}, "sample 2 of the first step has id 1 -> 7"),
    "initial weights": ((), {"weights": {"a": "00fe [2]"}}, "1 of 1 tensors, the first a"),
    "loss": ((), {"losses": (3.0, 2.5, 2.26, 2.1, 1.4)}, "step 3 (48 samples): 2.25 -> 2.26"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_the_one_difference_is_named(tmp_path: Path, what: str) -> None:
    settings, changed, line = CHANGES[what]
    a, b = write_run(tmp_path / "x/a"), write_run(tmp_path / "y/b", *settings, **changed)
    findings = compare(a, b)
    assert [finding.what for finding in findings if finding.differs] == [what]
    assert line in next(finding for finding in findings if finding.differs).lines[0]
    assert show(a, b).startswith(f"first difference: {what}: ")


@pytest.mark.slow
def test_of_several_differences_the_first_in_order_is_the_answer(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", **CHANGES["versions"][1], **CHANGES["initial weights"][1], losses=(9.0,) * 5)
    assert [finding.what for finding in compare(a, b) if finding.differs] == ["versions", "initial weights", "loss"]
    assert show(a, b).splitlines()[0] == "first difference: versions: torch: 2.14.1 -> 2.14.2"


@pytest.mark.slow
def test_equal_runs_have_no_difference_and_where_they_lie_is_none(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", "runs=here"), write_run(tmp_path / "b", "runs=there")
    assert show(a, b).startswith("no difference was found")
    assert not any(finding.differs for finding in compare(a, b))


@pytest.mark.slow
def test_keys_outside_the_science_come_after_those_that_decide(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", "cluster.workers=3", "optimizer.beta2=0.5")
    lines = compare(a, b)[0].lines
    assert lines[0].startswith("optimizer.beta2: ")
    assert lines[1].endswith("(outside the science)")


def test_uncommitted_changes_differ_although_the_commit_is_one(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a")
    b = write_run(
        tmp_path / "b", patch="diff --git a/clip_lightning/loss/softmax.py b/clip_lightning/loss/softmax.py\n"
    )
    (finding,) = [finding for finding in compare(a, b) if finding.differs]
    assert finding.what == "code"
    assert "clip_lightning/loss/softmax.py" in finding.lines[0]


@pytest.mark.parametrize(
    ("samples", "line"),
    [
        ((*range(16), 99), "one of the 17 samples of the first step, after the first 16, which are equal"),
        (tuple(range(16)), "17 -> 16 samples in the first step, the first 16 equal"),
    ],
)
def test_first_samples_that_differ_after_those_that_are_kept(
    tmp_path: Path, samples: tuple[int, ...], line: str
) -> None:
    a, b = write_run(tmp_path / "a", sample_ids=tuple(range(17))), write_run(tmp_path / "b", sample_ids=samples)
    assert show(a, b).splitlines()[0] == f"first difference: first samples: {line}"


def test_what_an_older_run_did_not_record_is_unknown(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    for name in ("first_step.json", "versions.json", "git.txt"):
        (a / name).unlink()
    unknown = [finding.what for finding in compare(a, b) if finding.differs is None]
    assert unknown == ["code", "versions", "first samples", "initial weights"]
    with pytest.raises(UserError, match="not the directory of a run"):
        compare(a, tmp_path)


@pytest.mark.ci
def test_runs_that_were_made_to_differ_in_one_thing(runner: Runner, tmp_path: Path) -> None:
    """Trained, not written: a seed, a line of versions.json, one image of the data."""

    def train(name: str, *argv: str) -> Path:
        short = ("compute.duration=2 steps", "data=webdataset", f"data.path={tmp_path}/tar", "compute.global_batch=8")
        runner.train(tmp_path / name, *short, *argv)
        (run,) = [
            path for path in (tmp_path / name).iterdir() if (path / "config.yaml").exists() and not path.is_symlink()
        ]
        return run

    def first_line(a: Path, b: Path) -> str:
        command = [sys.executable, "-m", "clip_lightning.runs", "diff", str(a), str(b)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]

    members = pairs(0, 24)
    write_tar(tmp_path / "tar/0.tar", members)
    first, again, seeded = train("first"), train("again"), train("seeded", "compute.seed=1")
    assert first_line(first, again) == "no difference was found"
    assert first_line(first, seeded) == "first difference: config: compute.seed: 0 -> 1"
    versions = json.loads((again / "versions.json").read_text())
    (again / "versions.json").write_text(json.dumps({**versions, "timm": "0.0"}))
    assert first_line(first, again) == f"first difference: versions: timm: {versions['timm']} -> 0.0"
    write_tar(tmp_path / "tar/0.tar", [(members[0][0], jpeg(0, width=48)), *members[1:]])
    assert first_line(first, train("replaced")).startswith("first difference: data: fingerprint: ")
