"""A resume under DDP is bit-equal on three and four ranks, where the order of a sum shows in its bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.parallel.resume_program import CASES


@pytest.mark.ci
@pytest.mark.parametrize("world", [3, pytest.param(4, marks=pytest.mark.ci)])
def test_two_steps_and_two_more_give_the_bits_of_four(tmp_path: Path, world: int) -> None:
    command = [sys.executable, "-m", "tests.parallel.resume_program", str(world), str(tmp_path)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert set(found) == set(CASES)
    for case, (in_one_go, resumed) in found.items():
        unlike = [name for name in in_one_go if not torch.equal(in_one_go[name], resumed[name])]
        assert not unlike, (case, unlike)
