"""What all tests share: one thread a process, no hub, no logger, and where the real photographs are, if they are."""

import contextlib
import os
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
