"""What all tests share: one thread a process, no hub, no logger, and where the real photographs are, if they are."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.runner import SMALL, Runner

for name, value in {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}.items():
    os.environ.setdefault(name, value)

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "cifar10"


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The CIFAR-10 photographs as tars; tests that need them are skipped where they are not."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the CIFAR-10 photographs are not beside this checkout")
    return PHOTOGRAPHS


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with contextlib.closing(Runner(tmp_path_factory.mktemp("printed"))) as runner:
        yield runner


@pytest.fixture(scope="session")
def small() -> list[str]:
    """The settings that `Runner.train` gives every run."""
    return list(SMALL)


def end_process_group() -> list[str]:
    """Destroys the default process group and deletes its variables; returns the names of what there was."""
    found = [name for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK") if name in os.environ]
    for name in found:
        del os.environ[name]
    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
            found.append("the default process group")
    return found


@pytest.fixture
def process_group_of_lightning() -> Iterator[None]:
    """For a test in which a Trainer makes a process group in this process: Lightning leaves it."""
    yield
    end_process_group()


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """With a process group of an earlier test, or its variables, a later one fails or joins it."""
    before = set(os.environ)  # a launcher or a shell may have set some
    yield
    found = [name for name in end_process_group() if name not in before]
    assert not found, f"this test leaves behind: {', '.join(found)}"
