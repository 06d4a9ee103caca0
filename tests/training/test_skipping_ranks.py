"""What is not finite on one rank is skipped by all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.skipping_program import POISONED, STEPS


@pytest.mark.ci
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_no_rank_steps_where_one_gradient_is_not_finite_and_the_run_continues(
    root: Path, tmp_path: Path, strategy: str
) -> None:
    command = [sys.executable, "-m", "tests.training.skipping_program", str(tmp_path), strategy]
    subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True, timeout=300)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for rank in ranks:
        assert rank["num_skipped"] == 1
        assert rank["losses"].isfinite().tolist() == [step != POISONED for step in range(STEPS)]
        for step in range(1, STEPS):
            before, after = rank["states"][step - 1], rank["states"][step]
            unchanged = [torch.equal(value, after[name]) for name, value in before.items()]
            assert all(unchanged) if step == POISONED else not all(unchanged)
    # Running statistics are reduced over ranks, too.
    for one, other in zip(*(rank["states"] for rank in ranks), strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
