"""Runs as jobs of a real SLURM cluster of two nodes on this computer; skipped where SLURM is not installed."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from clip_lightning.reliability.checkpoint import CheckpointFolder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "fixtures" / "slurm_cluster.sh"
# One process on each of two nodes, each a CPU.
TWO_NODES = ["cluster=slurm_debug", "cluster.accelerator=cpu", "cluster.strategy=ddp", "cluster.nodes=2"]
TWO_NODES += ["cluster.threads=1", "loss._target_=slow_loss.SlowLoss"]
TEMPLATE = str(ROOT / "slurm" / "train.sbatch")
# What its head requests, for two such nodes.
BY_HAND = [
    "--nodes=2",
    "--ntasks-per-node=1",
    "--cpus-per-task=1",
    "--gpus-per-node=0",
    "--time=20",
    "--signal=USR2@120",
]


class Cluster:
    """A running cluster, and the entry files as a user of it calls them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.control("up")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "tests" / "support"),
            "OMP_NUM_THREADS": "1",
        }

    def control(self, *command: str) -> str:
        return self._output([str(SCRIPT), *command, str(self.folder)])

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | more
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    def train(self, *argv: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "train.py", *argv, **more)

    def submit(self, *argv: str, **more: str) -> str:
        """Number of the job, or of the array of jobs, that a command submits."""
        done = self.train(*argv, **more)
        assert done.returncode == 0, done.stderr
        found = re.search(r"cancel  scancel (\d+)", done.stdout)
        assert found, done.stdout
        return found[1]

    def sbatch(self, *argv: str, **more: str) -> str:
        """Number of a job that is submitted by hand."""
        done = self.run("sbatch", "--parsable", *argv, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """JobState of a job; of an array the state that all of its jobs share, or all of them."""
        shown = self.run("scontrol", "show", "job", job).stdout
        return "+".join(sorted(set(re.findall(r"JobState=(\w+)", shown))))

    def wait(self, job: str, state: str = "COMPLETED", done: Callable[[], bool] | None = None) -> None:
        """Until the job is in a state, or until something else holds."""
        end = time.monotonic() + 400
        while not (done() if done else self.state(job) == state):
            jobs = self.run("scontrol", "show", "job", job).stdout
            assert time.monotonic() < end, jobs
            assert not {"COMPLETED", "FAILED", "TIMEOUT"} & {*self.state(job).split("+")} - {state}, jobs
            time.sleep(0.3)

    @staticmethod
    def _output(command: list[str]) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = subprocess.run([SCRIPT, "missing"], capture_output=True, text=True, check=False)
    if missing.returncode:
        pytest.skip(missing.stdout.strip())
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.control("down")


def run_in(runs: Path) -> Path:
    return (runs / "latest").resolve()


def output(run: Path) -> str:
    return (run / "slurm" / "output.txt").read_text()


def has_saved(run: Path) -> bool:
    """Whether a start after this one resumes: a step is printed before its checkpoint is complete."""
    return CheckpointFolder(run / "checkpoints", keep_last=2).newest() is not None


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = CheckpointFolder(run / "checkpoints", keep_last=2).newest()
    assert checkpoint is not None
    assert checkpoint.samples_seen == 128
    found: dict[str, torch.Tensor] = checkpoint.load("weights")
    return found


def assert_bit_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.fixture(scope="module")
def by_hand(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    """A run of two nodes by slurm/train.sbatch from the checkout, never interrupted."""
    folder = tmp_path_factory.mktemp("by hand")
    job = cluster.sbatch(*BY_HAND, f"--output={folder / 'output.txt'}", TEMPLATE, f"runs={folder}", *small, *TWO_NODES)
    cluster.wait(job)
    return run_in(folder)


def test_the_file_in_the_checkout_trains_on_two_nodes_by_hand(by_hand: Path) -> None:
    printed = (by_hand.parent / "output.txt").read_text()
    assert "on n[1-2], start 1" in printed
    assert "hardware 2 nodes x 1 process on CPU" in printed
    assert re.search(r"status\s+finished", printed)


def test_a_refused_job_reports_the_reason_of_sbatch_and_keeps_its_files(
    cluster: Cluster, tmp_path: Path, small: list[str]
) -> None:
    refused = cluster.train(f"runs={tmp_path}", *small, *TWO_NODES, "cluster.slurm.partition=nope")
    assert refused.returncode == 2
    (sentence,) = refused.stderr.splitlines()
    assert sentence.startswith("sbatch refuses the job (invalid partition specified: nope; ")
    (script,) = tmp_path.glob("*/slurm/train.sbatch")
    assert str(script) in sentence
    # What is submitted will be trained, whatever the working tree has become.
    code = script.parent / "code"
    assert (code / "train.py").read_bytes() == (ROOT / "train.py").read_bytes()
    assert code.resolve() != ROOT
    assert "commit" in (code / "git.txt").read_text()
    # A user's own default fills what the config leaves open.
    refused = cluster.train(f"runs={tmp_path}", *small, *TWO_NODES, SBATCH_PARTITION="nope")
    assert "invalid partition specified: nope" in refused.stderr
    assert not list(tmp_path.glob("*/metrics.jsonl"))


@pytest.mark.ci
def test_a_sweep_of_two_node_runs_is_an_array_of_two_runs_and_four_processes(
    cluster: Cluster, by_hand: Path, tmp_path: Path, small: list[str]
) -> None:
    (tmp_path / "processes").mkdir()
    sweep = ["-m", "hydra/launcher=slurm", f"runs={tmp_path / 'runs'}", "compute.seed=0,1", *small, *TWO_NODES]
    sweep += ["cluster.slurm.array_parallelism=1"]
    job = cluster.submit(*sweep, PROCESSES=str(tmp_path / "processes"))
    assert "ArrayTaskThrottle=1" in cluster.run("scontrol", "show", "job", job).stdout
    again = cluster.train(*sweep).stdout
    assert len(re.findall(rf"job {job}_[01] is \w+ already|is running elsewhere|is finished", again)) == 2, again
    cluster.wait(job)
    runs = {path.parent.parent for path in (tmp_path / "runs").glob("*-*/slurm/config.yaml")}
    assert len({run.resolve() for run in runs}) == 2
    assert len(list((tmp_path / "processes").iterdir())) == 4
    (same,) = [run for run in runs if run.name == by_hand.name]
    assert_bit_equal(weights(same), weights(by_hand))
    assert "2 runs: 2 finished" in cluster.train(*sweep).stdout


@pytest.mark.ci  # 2:30 min: limits are whole minutes, and a job that starts again waits for munge's cred_expire
def test_a_job_that_meets_its_time_limit_starts_again_and_ends_with_the_same_weights(
    cluster: Cluster, by_hand: Path, tmp_path: Path, small: list[str]
) -> None:
    limit = ["cluster.time_limit_minutes=3", "cluster.slurm.signal_seconds=60", "cluster.slurm.requeue=true"]
    argv = [f"runs={tmp_path}", *small, *TWO_NODES, *limit, "logger=wandb", "logger.wandb.mode=offline"]
    job = cluster.submit(*argv, SECONDS_PER_STEP="20")
    cluster.wait(job)
    run = run_in(tmp_path)
    assert run.name == by_hand.name
    printed = output(run)
    assert "saved before the time limit; the job starts again" in printed
    assert "start 2" in printed
    assert "resumed at " in printed
    assert len((run / "starts.jsonl").read_text().splitlines()) >= 2
    assert_bit_equal(weights(run), weights(by_hand))
    own = (run / "wandb_id.txt").read_text().strip()
    ids = {folder.name.rsplit("-", 1)[-1] for folder in (run / "wandb").glob("offline-run-*")}
    assert ids == {own}


@pytest.mark.ci
def test_a_preempted_job_starts_again_and_ends_with_the_same_weights(
    cluster: Cluster, by_hand: Path, tmp_path: Path, small: list[str]
) -> None:
    argv = [f"runs={tmp_path}", *small, *TWO_NODES, "cluster.slurm.requeue=true", "cluster.slurm.partition=low"]
    job = cluster.submit(*argv, SECONDS_PER_STEP="2")
    cluster.wait(job, done=lambda: (tmp_path / "latest").exists() and "sample 32/128" in output(run_in(tmp_path)))
    cluster.sbatch("--nodes=2", "--cpus-per-task=4", "--output=/dev/null", "--wrap=sleep 1")
    cluster.wait(job)
    run = run_in(tmp_path)
    assert "preempted; the job starts again" in output(run)
    assert "resumed at " in output(run)
    assert_bit_equal(weights(run), weights(by_hand))


@pytest.mark.ci
def test_a_job_that_is_cancelled_after_the_warning_does_not_start_again(
    cluster: Cluster, tmp_path: Path, small: list[str]
) -> None:
    job = cluster.submit(f"runs={tmp_path}", *small, *TWO_NODES, "cluster.slurm.requeue=true", SECONDS_PER_STEP="1")
    cluster.wait(job, done=lambda: (tmp_path / "latest").exists() and "sample 32/128" in output(run_in(tmp_path)))
    cluster.run("scancel", "--signal=USR2", job)
    cluster.run("scancel", job)
    cluster.wait(job, "CANCELLED")
    assert "the job starts again" not in output(run_in(tmp_path))
    assert "Restarts=0" in cluster.run("scontrol", "show", "job", job).stdout


@pytest.mark.ci  # 1:30 min: 10 s until SLURM gives a node up, and the same wait
def test_a_job_whose_node_dies_starts_again_and_ends_with_the_same_weights(
    cluster: Cluster, by_hand: Path, tmp_path: Path, small: list[str]
) -> None:
    argv = [f"runs={tmp_path}", *small, *TWO_NODES, "cluster.slurm.requeue=true", "cluster.slurm.submit=false"]
    written = re.search(r"written, not submitted: sbatch (.*)", cluster.train(*argv).stdout)
    assert written
    job = cluster.sbatch(written[1], SECONDS_PER_STEP="2")
    cluster.wait(job, done=lambda: (tmp_path / "latest").exists() and has_saved(run_in(tmp_path)))
    # Another takes its place. n2 itself had better stay away for a minute: SLURM keeps the signal that ended the first
    # start for it, and would deliver it to the second, which has the same number.
    cluster.control("start", "n3")
    cluster.control("kill", "n2")
    cluster.wait(job)
    run = run_in(tmp_path)
    assert "on n[1,3], start 2" in output(run)
    assert (run / "slurm" / "job.txt").read_text().strip() == job
    assert "resumed at " in output(run)
    assert json.loads((run / "status.json").read_text())["status"] == "finished"
    assert_bit_equal(weights(run), weights(by_hand))


# In place of train.py: counts its starts, saves if the second argument is "saves", crashes as often as the first says.
CRASHING = """
import os, pathlib, sys
starts = pathlib.Path("starts.txt")
num = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (num + 1))
if sys.argv[2] == "saves":
    pathlib.Path(os.environ["CLIP_LIGHTNING_SAVED"]).write_text("saved\\n")
sys.exit(1 if num < int(sys.argv[1]) else 0)
"""


@pytest.mark.ci  # 1:30 min: each start waits for munge's cred_expire
def test_crashes_are_requeued_while_starts_save_something_new_and_three_times_without(
    cluster: Cluster, tmp_path: Path
) -> None:
    jobs = {}
    for name, crashes in (("saves", 4), ("loses", 9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").write_text(CRASHING)
        head = [*BY_HAND[1:], "--nodes=1", f"--chdir={tmp_path / name}", f"--output={tmp_path / name / 'output.txt'}"]
        jobs[name] = cluster.sbatch(*head, TEMPLATE, str(crashes), name)
    cluster.wait(jobs["loses"], "FAILED")
    cluster.wait(jobs["saves"])
    assert {name: len((tmp_path / name / "starts.txt").read_text()) for name in jobs} == {"saves": 5, "loses": 3}
    printed = (tmp_path / "loses" / "output.txt").read_text()
    assert printed.count("exit code 1; the job starts again") == 2
    assert "3 starts in a row have saved nothing new" in printed
    assert [path.name for path in tmp_path.glob("*/.saved*")] == []


@pytest.mark.ci
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a node a small /dev/shm")
def test_an_unfit_node_is_named_before_the_first_step(cluster: Cluster, tmp_path: Path, small: list[str]) -> None:
    container = tmp_path / "container"
    shrunk = 'mount -t tmpfs -o size=4k tmpfs /dev/shm; exec "$@"'
    container.write_text(
        "#!/bin/bash\n"
        f'[[ $SLURM_PROCID == 1 ]] && exec unshare --mount bash -c {shlex.quote(shrunk)} - "$@"\n'
        'exec "$@"\n'
    )
    container.chmod(0o755)
    argv = [f"runs={tmp_path / 'runs'}", *small, *TWO_NODES, "cluster.workers=1"]
    job = cluster.submit(*argv, f"cluster.slurm.container=[{container}]")
    (run,) = (tmp_path / "runs").glob("*-*")
    cluster.wait(job, "FAILED")
    (node,) = re.findall(r"node (n[23]): /dev/shm has ", output(run))
    assert json.loads((run / "status.json").read_text())["reason"].startswith(f"node {node}: /dev/shm has ")


@pytest.mark.ci
def test_tasks_that_do_not_match_the_config_are_reported_in_one_sentence(
    cluster: Cluster, tmp_path: Path, small: list[str]
) -> None:
    command = [sys.executable, "train.py", f"runs={tmp_path}", *small, "cluster=ddp", "cluster.accelerator=cpu"]
    done = cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", *command, "cluster.devices=4")
    lines = [line for line in done.stderr.splitlines() if "processes" in line]
    assert len(lines) == 1, done.stderr
    for part in ("SLURM started 2 tasks on 2 nodes (1(x2) on each)", "no GPU is requested", "are 4 processes"):
        assert part in lines[0]
    assert "write cluster.nodes=2 cluster.devices=1 or srun --nodes=1 --ntasks-per-node=4" in lines[0]
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())


def test_without_sbatch_one_sentence_is_printed_and_nothing_trains(tmp_path: Path, small: list[str]) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT / "tests" / "support")}
    command = [sys.executable, "train.py", f"runs={tmp_path / 'runs'}", *small, *TWO_NODES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert "there is no sbatch here" in sentence
    assert not list((tmp_path / "runs").glob("*/metrics.jsonl"))
