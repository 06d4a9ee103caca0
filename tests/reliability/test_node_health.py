"""A machine that is not fit for a run is named before the first step, by every rank alike."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from clip_lightning.reliability.node_health import NodeReport, problems

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "node_health_program.py"


def ask(ailment: str, folder: Path) -> list[str]:
    """What each of the ranks that answered has said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, PROGRAM, ailment, folder], env=environment, check=True, timeout=100)
    return [path.read_text() for path in sorted(folder.glob("rank?"))]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("ailment", "message"),
    [
        ("data", "node n2 (rank 1): the data cannot be read there ([Errno 2] "),
        ("memory", "node n2: /dev/shm has "),
    ],
)
def test_both_ranks_name_the_sick_node(ailment: str, message: str, tmp_path: Path) -> None:
    first, second = ask(ailment, tmp_path)
    assert first == second
    assert first.startswith(message)
    assert len(first.splitlines()) == 1


@pytest.mark.ci
@pytest.mark.parametrize(
    ("ailment", "message"),
    [
        ("silent", "rank 1 of 2 has not reported within 2 s; nodes that have: n1"),
        ("hanging", "rank 1 (node n2) of 2 has not read a sample within 2 s; nodes that have: n1"),
    ],
)
def test_a_rank_that_does_not_come_is_named_by_the_others(ailment: str, message: str, tmp_path: Path) -> None:
    assert ask(ailment, tmp_path) == [message]


@pytest.mark.slow
def test_healthy_nodes_pass(tmp_path: Path) -> None:
    assert [message.split(" in ")[0] for message in ask("nothing", tmp_path)] == ["fit", "fit"]


def test_each_kind_of_trouble_has_its_sentence() -> None:
    now, gib = time.time(), 2**30
    fit = NodeReport("n1", 0, now, 4 * gib, 64 * gib, (78 * gib, 80 * gib), "0123")
    others = [replace(fit, rank=1), replace(fit, node="n2", rank=2), replace(fit, node="n2", rank=3)]
    assert problems([fit, *others]) == []
    taken = replace(fit, node="n3", rank=4, clock=now - 60, gpu_bytes=(10 * gib, 80 * gib), fingerprint="4567")
    small = replace(fit, node="n3", rank=5, clock=now - 60, shared_memory_free=6 * gib)
    cramped = replace(taken, shared_memory_free=6 * gib)
    assert [sentence.split(";")[0] for sentence in problems([fit, *others, cramped, small])] == [
        "node n3: its clock is 60 s behind the other nodes'",
        "node n3: /dev/shm has 6.00 GiB free, and the loader processes of its 2 ranks pass 8.00 GiB through it",
        "node n3 (rank 4): 70.00 GiB of its GPU's 80.00 GiB are taken by another process",
        "node n3 (rank 4): its data is not rank 0's (fingerprint 4567, not 0123)",
    ]
