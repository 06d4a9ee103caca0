"""Several ranks give the records of one: each image and each pair counts once, whatever divides whatever."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("rank_program.py")


def test_two_ranks_give_the_records_of_one(tmp_path: Path, root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, PROGRAM, str(tmp_path)], env=environment, check=True, timeout=300)
    alone, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0_of_1", "0_of_2", "1_of_2")
    )
    assert first == second
    assert [record["what"] for record in alone[:3]] == ["acc1", "acc5", "mean_per_class"]
    assert len(alone) == 3 + 3 + 8
    for one, two in zip(alone, first, strict=True):
        if one["what"].startswith("val_loss"):
            one |= {key: pytest.approx(one[key], rel=1e-6) for key in ("value", "low", "high")}
        assert two == one
