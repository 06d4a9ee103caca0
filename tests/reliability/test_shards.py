"""What ranks saved in shards is the same state for any number of ranks, and only what is needed of it is read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clip_lightning.reliability.checkpoint import CheckpointFolder, name_of, open_checkpoint
from clip_lightning.reliability.shards import SavedRows, with_rows
from tests.reliability.shards_program import model_and_optimizer, state_of


@pytest.mark.slow
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), data=st.data())
def test_rows_of_pieces_are_the_rows_of_the_whole(sizes: list[int], data: st.DataObject) -> None:
    tensor = torch.arange(sum(sizes) * 2).view(-1, 2)
    saved = SavedRows(tensor.split(sizes))
    start = data.draw(st.integers(0, len(tensor)))
    stop = data.draw(st.integers(start, len(tensor)))
    assert torch.equal(saved.rows(start, stop), tensor[start:stop])
    assert torch.equal(saved.whole(), tensor)
    assert saved.shape == tensor.shape


def test_a_tree_without_shards_is_unchanged() -> None:
    tree = {"a": [torch.ones(2), {"b": 3}], "c": None}
    assert with_rows(tree, []) == tree


def program(root: Path, folder: Path, world: int, size: int, what: str) -> None:
    command = [sys.executable, "-m", "tests.reliability.shards_program", str(world), str(size), str(folder), what]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=root, env=environment, check=True, timeout=120)


def state(folder: Path, number: int) -> Any:
    return open_checkpoint(folder / "checkpoints" / name_of(number)).load("state")


def expected(steps: int) -> Any:
    model, optimizer = model_and_optimizer(0)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((3, 6), 1.0 + step % 2)).sum().backward()
        optimizer.step()
    return state_of(model, optimizer)


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    elif isinstance(a, dict | list):
        assert len(a) == len(b)
        for key in a if isinstance(a, dict) else range(len(a)):
            assert_same(a[key], b[key])
    else:
        assert a == b


@pytest.mark.ci
def test_two_ranks_and_one_resume_from_four(tmp_path: Path, root: Path) -> None:
    program(root, tmp_path, 4, 4, "save")
    assert len(list((tmp_path / "checkpoints" / name_of(1)).glob("*.pt"))) == 4
    assert_same(state(tmp_path, 1), expected(2))
    for world, size in ((4, 2), (2, 2), (1, 1)):
        program(root, tmp_path, world, size, "load")
        number = 100 * world + size
        assert len(list((tmp_path / "checkpoints" / name_of(number)).glob("*.pt"))) == size
        assert_same(state(tmp_path, number), expected(4))
        shutil.rmtree(tmp_path / "checkpoints" / name_of(number))


@pytest.mark.slow
def test_a_damaged_shard_is_reported_and_skipped(tmp_path: Path, root: Path) -> None:
    program(root, tmp_path, 2, 2, "save")
    good = tmp_path / "checkpoints" / name_of(1)
    shutil.copytree(good, bad := tmp_path / "checkpoints" / name_of(2))
    manifest = bad / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"samples_seen": 1', '"samples_seen": 2'))
    (bad / "state.shard-1.pt").unlink()
    said: list[str] = []
    found = CheckpointFolder(good.parent, keep_last=2, notify=said.append).newest()
    assert found is not None
    assert found.samples_seen == 1
    assert "state.shard-1.pt" in said[0]
