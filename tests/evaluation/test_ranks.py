"""Several ranks give the records of one: each image and each pair counts once, whatever the number of ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("rank_program.py")


def test_ranks_give_the_records_of_one_process(tmp_path: Path, root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, PROGRAM, str(tmp_path)], env=environment, check=True, timeout=300)
    alone = json.loads((tmp_path / "0_of_1.json").read_text())
    assert [record["what"] for record in alone[:3]] == ["acc1", "acc5", "mean_per_class"]
    assert len(alone) == 4 + 4 + 4 + 8 + 9 + 8
    assert {record["n"] for record in alone if record["note"]} == {48, 49, 50, 147}  # three of 150 cannot be read
    assert len({record["note"] for record in alone}) == 2
    for world in (2, 3, 4):
        ranks = [json.loads((tmp_path / f"{rank}_of_{world}.json").read_text()) for rank in range(world)]
        assert all(records == ranks[0] for records in ranks)
        for one, several in zip(alone, ranks[0], strict=True):
            if one["what"].startswith("val_loss"):
                one = one | {key: pytest.approx(one[key], rel=1e-6) for key in ("value", "low", "high")}
            assert several == one
