"""The index of runs gives what the files say, however they have changed since."""

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from clip_lightning.errors import UserError
from clip_lightning.runs.facts import facts_of
from clip_lightning.runs.index import MEMORY, NAME, Index
from clip_lightning.scaling.runs import row_of
from tests.support.run_directories import write_run


def read_status(run: Path) -> dict[str, Any]:
    """Facts that cost nothing to read."""
    return {"run": run.name, **json.loads((run / "status.json").read_text())}


def light_run(folder: Path, name: str, **status: Any) -> Path:
    run = folder / name
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    (run / "status.json").write_text(json.dumps({"state": "finished", **status}))
    return run


def values(index: Index, key: str) -> list[Any]:
    return [row[key] for row in index.select([key])]


def test_only_changed_runs_are_read_again(tmp_path: Path) -> None:
    for k in range(4):
        light_run(tmp_path, f"r{k}", score=k)
    (tmp_path / "notes").mkdir()
    light_run(tmp_path, "r0.old-1")
    (tmp_path / "latest").symlink_to("r3")
    assert Index(tmp_path, read_status).num_read == 4
    assert Index(tmp_path, read_status).num_read == 0
    (tmp_path / "r2/status.json").write_text(json.dumps({"state": "running", "score": 20}))
    light_run(tmp_path, "r9", score=9)
    shutil.rmtree(tmp_path / "r1")
    index = Index(tmp_path, read_status)
    assert index.num_read == 2
    assert values(index, "run") == ["r0", "r2", "r3", "r9"]
    assert values(index, "score") == [0, 20, 3, 9]


def test_a_change_of_equal_size_is_seen(tmp_path: Path) -> None:
    run = light_run(tmp_path, "r", score=1)
    Index(tmp_path, read_status)
    before = (run / "status.json").stat()
    (run / "status.json").write_text((run / "status.json").read_text().replace("1", "2"))
    os.utime(run / "status.json", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert values(Index(tmp_path, read_status), "score") == [2]


def test_what_is_written_while_a_run_is_read_makes_its_entry_stale(tmp_path: Path) -> None:
    run = light_run(tmp_path, "r", score=1)

    def read_while_it_changes(path: Path) -> dict[str, Any]:
        found = read_status(path)
        (run / "status.json").write_text(json.dumps({"state": "finished", "score": 22}))
        return found

    Index(tmp_path, read_while_it_changes)
    index = Index(tmp_path, read_status)
    assert (index.num_read, values(index, "score")) == (1, [22])


def test_a_reading_that_is_interrupted_continues_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(7):
        light_run(tmp_path, f"r{k}", score=k)
    monkeypatch.setattr("clip_lightning.runs.index._SLOW", 2)

    def interrupted(run: Path) -> dict[str, Any]:
        if run.name == "r5":
            raise KeyboardInterrupt
        return read_status(run)

    with pytest.raises(KeyboardInterrupt):
        Index(tmp_path, interrupted)
    assert Index(tmp_path, read_status).num_read == 3  # r0 to r3 are kept; r4 was of the batch that was interrupted


@pytest.mark.parametrize("content", [b"not a database", b""])
def test_a_damaged_index_is_made_again(tmp_path: Path, content: bytes) -> None:
    light_run(tmp_path, "r", score=1)
    Index(tmp_path, read_status).close()
    (tmp_path / NAME).write_bytes(content)
    assert values(Index(tmp_path, read_status), "score") == [1]
    assert Index(tmp_path, read_status).num_read == 0


def test_an_index_of_another_version_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    light_run(tmp_path, "r", score=1)
    Index(tmp_path, read_status).close()
    monkeypatch.setattr("clip_lightning.runs.index.VERSION", 99)
    assert Index(tmp_path, read_status).num_read == 1


def test_a_folder_that_takes_no_file_is_listed(tmp_path: Path) -> None:
    light_run(tmp_path, "r", score=1)
    (tmp_path / NAME).mkdir()  # also for root, who may write everywhere
    assert values(Index(tmp_path, read_status), "score") == [1]


def test_an_index_that_another_user_owns_is_read_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light_run(tmp_path, "r", score=1)
    Index(tmp_path, read_status).close()
    light_run(tmp_path, "s", score=2)
    connect = sqlite3.connect

    def read_only(name: str, timeout: float) -> sqlite3.Connection:
        return connect(name) if name == MEMORY else connect(f"file:{name}?mode=ro", uri=True)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    assert values(Index(tmp_path, read_status), "score") == [1, 2]
    monkeypatch.undo()
    assert Index(tmp_path, read_status).num_read == 1


def test_an_unknown_key_proposes_near_ones(tmp_path: Path) -> None:
    light_run(tmp_path, "r", samples_seen=1)
    index = Index(tmp_path, read_status)
    with pytest.raises(UserError, match="did you mean samples_seen"):
        index.select(["sample_seen"])
    with pytest.raises(UserError, match="there is no such folder"):
        Index(tmp_path / "absent")


def test_facts_hold_scores_and_every_config_key(tmp_path: Path) -> None:
    facts = facts_of(write_run(tmp_path / "r", "compute.seed=7", accuracy=0.75))
    assert facts["model"] == "tiny"
    assert facts["shape/acc1"] == 0.75
    assert facts["compute.seed"] == facts["seed"] == 7
    assert facts["code"] == "commit abc1234"
    assert "runs" not in facts
    assert not any(isinstance(value, dict | list) for value in facts.values())


def test_a_run_that_cannot_be_read_stays_as_a_row(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    (run / "config.yaml").write_text("model: 3\n")
    facts = facts_of(run)
    assert facts["state"] == "unreadable"
    assert facts["reason"]
    assert facts["run"] == "r"


@pytest.mark.slow
def test_facts_equal_those_of_the_typed_config(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", "compute.learning_rate=1e-5", "loss=sigmoid")
    expected = row_of(run, count_flops=False)
    assert {key: value for key, value in facts_of(run).items() if key in expected} == expected
    (run / "metrics.jsonl").unlink()
    assert facts_of(run)["science"] == expected["science"]
