"""Which rank a process is inside SLURM, and that tasks which do not match the config are reported before any wait."""

import os
from pathlib import Path

import pytest

from clip_lightning.config.schema import ClusterConfig
from clip_lightning.errors import UserError
from clip_lightning.slurm.environment import environment, first_node
from clip_lightning.slurm.tasks import check_tasks, note_progress, ranks_are_tasks, step

# As srun sets them for the second of two tasks on two nodes (slurm-wlm 22.05).
STEP = {
    "SLURM_JOB_ID": "12345",
    "SLURM_STEP_ID": "0",
    "SLURMD_NODENAME": "n2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_STEP_NODELIST": "n[1-2]",
}


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("SLURM")] + ["RANK", "LOCAL_RANK", "MASTER_PORT"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_task_is_a_rank_for_lightning(inside: pytest.MonkeyPatch) -> None:
    two = ClusterConfig(name="two", nodes=2, devices=1)
    assert ranks_are_tasks(two)
    found = environment(two)
    assert found is not None
    assert (found.global_rank(), found.local_rank(), found.node_rank(), found.world_size()) == (1, 0, 1, 2)
    assert (found.main_address, found.main_port) == ("n1", 22_345)
    check_tasks(two, None)
    inside.delenv("SLURM_STEP_ID")
    assert step() is None


@pytest.mark.parametrize(
    ("nodes", "devices", "gpus", "fix"),
    [
        (1, 8, 8, "write cluster.nodes=2 cluster.devices=1 or srun --nodes=1 --ntasks-per-node=8"),
        (2, 4, None, "write cluster.nodes=2 cluster.devices=1 or srun --nodes=2 --ntasks-per-node=4"),
    ],
)
def test_only_rank_0_reports_tasks_that_do_not_match_the_ranks(
    inside: pytest.MonkeyPatch, nodes: int, devices: int, gpus: int | None, fix: str
) -> None:
    cluster = ClusterConfig(name="other", nodes=nodes, devices=devices)
    with pytest.raises(UserError) as silent:
        check_tasks(cluster, gpus)
    assert silent.value.problems == []
    inside.setenv("SLURM_PROCID", "0")
    with pytest.raises(UserError) as refusal:
        check_tasks(cluster, gpus)
    (sentence,) = refusal.value.problems
    assert sentence.startswith("job 12345: SLURM started 2 tasks on 2 nodes (1(x2) on each), ")
    assert f"cluster.nodes={nodes} x cluster.devices={devices} are 8 processes; {fix}" in sentence


def test_uneven_tasks_per_node_are_refused(inside: pytest.MonkeyPatch) -> None:
    for name, value in (("PROCID", "0"), ("STEP_NUM_TASKS", "16"), ("STEP_TASKS_PER_NODE", "12,4")):
        inside.setenv(f"SLURM_{name}", value)
    sixteen = ClusterConfig(name="sixteen", nodes=2, devices=8)
    with pytest.raises(UserError, match=r"16 tasks on 2 nodes \(12,4 on each\), .*; write srun --nodes=2 --ntasks-per"):
        check_tasks(sixteen, 8)
    inside.setenv("SLURM_STEP_TASKS_PER_NODE", "8(x2)")
    check_tasks(sixteen, 8)


def test_a_run_reports_progress_to_its_batch_script(inside: pytest.MonkeyPatch, tmp_path: Path) -> None:
    note_progress("SIGUSR2")  # no process requests it
    inside.setenv("CLIP_LIGHTNING_SAVED", str(tmp_path / "saved.txt"))
    note_progress("SIGUSR2")
    assert (tmp_path / "saved.txt").read_text() == "SIGUSR2\n"


def test_a_task_that_sees_too_few_gpus_is_refused(inside: pytest.MonkeyPatch) -> None:
    inside.setenv("SLURM_STEP_NUM_TASKS", "16")
    inside.setenv("SLURM_STEP_TASKS_PER_NODE", "8(x2)")
    with pytest.raises(UserError, match=r"a task sees 1 GPUs, .* without --gpus-per-task and --gpu-bind"):
        check_tasks(ClusterConfig(name="sixteen", nodes=2, devices=8), 1)


def test_one_task_of_an_interactive_job_starts_its_own_ranks(inside: pytest.MonkeyPatch) -> None:
    inside.setenv("SLURM_STEP_NUM_TASKS", "1")
    inside.setenv("SLURM_STEP_NUM_NODES", "1")
    eight = ClusterConfig(name="eight", devices=8)
    check_tasks(eight, 8)
    assert not ranks_are_tasks(eight)
    found = environment(eight)
    assert found is not None
    assert not found.creates_processes_externally


def test_a_shell_outside_the_nodes_of_its_allocation_is_refused(inside: pytest.MonkeyPatch) -> None:
    inside.delenv("SLURM_STEP_ID")
    inside.delenv("SLURMD_NODENAME")
    with pytest.raises(UserError, match="on none of its nodes; write srun before it"):
        check_tasks(ClusterConfig(name="one"), None)


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[07-09,12],big1", "gpu07"), ("n1", "n1"), ("a,b[1-2]", "a"), ("r[1,3]c2", "r1")]
)
def test_the_first_name_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
