"""A run that is killed at any moment, on any rank, is resumed by the same command and ends with the same bits."""

from pathlib import Path
from typing import Any

import pytest

from tests.run.kills import CASES, kill_and_resume

# The whole table is `python -m tests.run.kills`.
KILLS = {"one process": 4, "DDP, 3 processes": 2, "FSDP2, 2 processes": 2, "HSDP, 2 x 2 processes": 2}
pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.mark.parametrize(("name", "num_kills"), list(KILLS.items()))
def test_a_run_ends_the_same_however_often_it_is_killed(runner: Any, tmp_path: Path, name: str, num_kills: int) -> None:
    found = kill_and_resume(runner, tmp_path, CASES[name], num_kills, seed=1)
    assert len(found.lost_steps) == num_kills
    assert found.num_runs > 0
