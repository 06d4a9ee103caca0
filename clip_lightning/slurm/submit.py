"""Submits runs as jobs of SLURM: one run as one job, a sweep as arrays of jobs with a cap on how many run at once.

A job reads nothing that may change between submission and start: its run's directory gets `slurm/` with

    config.yaml   the resolved config, which the job trains by `train.py --frozen`
    code          a link to the code as it was: `runs/.code/<hash>`, with its commit and uncommitted changes
    train.sbatch  the job's script, rendered from slurm/train.sbatch; `sbatch` takes it by hand as well
    job.txt       number of the newest job
    output.txt    a link to what it prints
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from clip_lightning.config import compose
from clip_lightning.config.schema import Config, SlurmConfig
from clip_lightning.errors import UserError
from clip_lightning.reliability import provenance
from clip_lightning.reliability.atomic_files import write_atomically
from clip_lightning.reliability.lock import is_at_work
from clip_lightning.reliability.run_paths import JOB, SWEEP_VARIABLE, SWEEPS, directory_of, move_aside, point_to
from clip_lightning.reliability.status import read_json, write_status
from clip_lightning.slurm.tasks import in_allocation

TEMPLATE = provenance.ROOT / "slurm" / "train.sbatch"
# Options that the environment of a user or site may give: SBATCH_ACCOUNT and so on.
_USERS_DEFAULTS = ("account", "partition", "qos", "constraint")
# What a job needs of a checkout.
_CODE = ("clip_lightning", "conf", "hydra_plugins", "slurm", "train.py", "evaluate.py", "pyproject.toml")
# Between these two lines the template is rendered, from its first line to its last.
_BEGIN, _END = "# --- resources and command of this job ---\n", "# --- how it runs: the same in every job ---\n"


@dataclass(frozen=True)
class Job:
    """One run that is ready to be submitted. `folder` is `slurm/` in the run's directory."""

    config: Config
    folder: Path

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.folder.parent


class Submission:
    """Runs that are submitted together."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._code: dict[Path, Path] = {}

    def add(self, config: Config) -> None:
        """Freezes config and code in the run's directory; prints the reason if there is nothing to submit.

        Raises: UserError if the run is running, or its directory cannot be made.
        """
        run = directory_of(config)
        if read_json(run / "status.json").get("status") == "finished" and not config.fresh:
            print(f"{run} is finished; fresh=true starts it over")
            return
        if (number := _job_of(run)) and (state := self._queued.get(number)):
            print(f"{run.name}: job {number} is {state.lower()} already; cancel it with: scancel {number}")
            return
        if is_at_work(run):
            print(f"{run.name}: a process is running it already")
            return
        if config.fresh and (aside := move_aside(run)):
            print(f"the earlier run is kept in {aside}")
        try:
            (run / "slurm").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"runs={config.runs}: the directory {run} cannot be made ({error.strerror})") from error
        # A job that starts again must not start over, and may start elsewhere.
        config = replace(config, fresh=False, runs=str(run.parent))
        job = Job(config, run / "slurm")
        if run.parent not in self._code:
            self._code[run.parent] = keep_code(run.parent / ".code")
        point_to(self._code[run.parent], job.folder / "code")
        write_atomically(job.folder / "config.yaml", compose.dump(config))
        write_atomically(job.folder / "train.sbatch", render([job], job.folder))
        self.jobs.append(job)

    def submit(self) -> None:
        """Submits each run, or runs with equal requests as one array, and prints how to watch and cancel them.

        Raises: UserError with the reason of sbatch if it refuses.
        """
        alike: dict[str, list[Job]] = {}
        for job in self.jobs:
            alike.setdefault(repr((requests(job.config), job.config.cluster.slurm)), []).append(job)
        for jobs in alike.values():
            script = jobs[0].folder / "train.sbatch"
            if len(jobs) > 1:
                names = "\n".join(job.run.name for job in jobs)
                folder = _sweep_folder(jobs[0]) / "slurm" / hashlib.sha256(names.encode()).hexdigest()[:8]
                folder.mkdir(parents=True, exist_ok=True)
                script = folder / "train.sbatch"
                write_atomically(script, render(jobs, folder))
            if not jobs[0].config.cluster.slurm.submit:
                print(f"written, not submitted: sbatch {shlex.quote(str(script))}")
                continue
            with _noted_as_submitted(jobs):
                number = _sbatch(script, jobs[0].config.cluster.slurm)
            self._submitted(jobs, script, number)

    @cached_property
    def _queued(self) -> dict[str, str]:
        """State of each of this user's jobs that waits or runs, by number.

        Raises: UserError if SLURM does not answer: a waiting run could be submitted twice.
        """
        command = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:  # there is no sbatch either, which is reported
            return {}
        if done.returncode:
            raise UserError(
                f"squeue does not report the waiting jobs ({_reason(done.stderr)}), so that a run might be submitted "
                "twice; repeat the command when it does"
            )
        return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())

    @staticmethod
    def _submitted(jobs: Sequence[Job], script: Path, number: str) -> None:
        for index, job in enumerate(jobs):
            own = f"{number}_{index}" if len(jobs) > 1 else number
            (job.folder / "output.txt").unlink(missing_ok=True)
            point_to(script.with_name(f"{own}.txt"), job.folder / "output.txt")
            write_atomically(job.folder / JOB, own + "\n")
            if read_json(job.run / "status.json").get("status") == "submitted":  # the job may have begun
                write_status(job.run, "submitted", f"job {own}")
            print(f"submitted job {own}  {job.run.name}")
        outputs = jobs[0].folder / "output.txt" if len(jobs) == 1 else f"{jobs[0].run.parent}/*/slurm/output.txt"
        print(f"watch   squeue --job={number}; tail -F {outputs}\ncancel  scancel {number}")


_GATHERED: ContextVar[Submission | None] = ContextVar("gathered", default=None)


def is_submitted(config: Config) -> bool:
    """Whether a run goes to SLURM instead of training here. In an allocation it trains, unless a launcher gathers."""
    return config.cluster.scheduler == "slurm" and not config.dry_run and (_is_gathering() or not in_allocation())


def submit(config: Config) -> int:
    """Submits one run, or hands it to the launcher that gathers a sweep; returns the exit code.

    Raises: UserError where SLURM, or the state of the run's directory, does not allow it.
    """
    gathered = _GATHERED.get()
    submission = gathered or Submission()
    submission.add(config)
    if gathered is None:
        submission.submit()
    return 0


@contextmanager
def gathered() -> Iterator[None]:
    """Runs submitted in its body are submitted together at its end.

    Raises: UserError with the reason of sbatch if it refuses.
    """
    submission = Submission()
    token = _GATHERED.set(submission)
    try:
        yield
    finally:
        _GATHERED.reset(token)
    submission.submit()


def requests(config: Config) -> list[str]:
    """The options of sbatch for a run."""
    cluster, slurm = config.cluster, config.cluster.slurm
    gpus = (
        0 if cluster.accelerator == "cpu" else cluster.devices if slurm.gpus_per_node is None else slurm.gpus_per_node
    )
    wanted: dict[str, object] = {
        "nodes": cluster.nodes,
        "ntasks-per-node": cluster.devices,
        "cpus-per-task": slurm.cpus_per_task or cluster.workers + 1,
        "gpus-per-node": gpus or None,
        "mem": slurm.memory,
        "time": None if cluster.time_limit_minutes is None else _minutes(cluster.time_limit_minutes),
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "signal": f"USR2@{slurm.signal_seconds}",
        "open-mode": "append",
    }
    options = [f"--{name}={value}" for name, value in wanted.items() if value is not None]
    return [*options, "--requeue" if slurm.requeue else "--no-requeue", *slurm.extra]


def render(jobs: Sequence[Job], folder: Path) -> str:
    """The script of one run, or of an array of runs with equal requests; its output goes to `folder`."""
    first = jobs[0].config
    slurm = first.cluster.slurm
    array = len(jobs) > 1
    options = [
        f"--job-name={jobs[0].run.name}" if not array else f"--job-name=sweep-of-{len(jobs)}",
        *([f"--array=0-{len(jobs) - 1}%{slurm.array_parallelism}"] if array else []),
        f"--chdir={_quoted(str(Path.cwd()))}",
        f"--output={_quoted(str(folder / ('%A_%a.txt' if array else '%j.txt')))}",
        *requests(first),
    ]
    python = [*slurm.container, "python" if slurm.container else sys.executable]
    values = {
        "RUNS": _shell_array(str(job.run) for job in jobs),
        "PYTHON": _shell_array(python),
        "SRUN": _shell_array(slurm.srun),
        "REQUEUE": "yes" if slurm.requeue else "no",
    }
    setup = ["setup() {", "    :", *(f"    {line}" for line in slurm.setup), "}"]
    middle = [*(f"#SBATCH {option}" for option in options), *(f"{k}={v}" for k, v in values.items()), *setup]
    text = TEMPLATE.read_text(encoding="utf-8")
    head, tail = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    return text[:head] + "\n".join(middle) + "\n\n" + text[tail:]


def keep_code(store: Path) -> Path:
    """Keeps the code as it is now, once for all jobs that train the same; returns the folder, named by its content.

    Without a user's own settings: they are in the frozen config, and may hold secrets.
    """
    local = provenance.ROOT / provenance.LOCAL
    files = sorted(path for name in _CODE for path in _files(provenance.ROOT / name) if local not in path.parents)
    commit = provenance.commit()
    digest = hashlib.sha256(str(commit).encode())
    for path in files:
        digest.update(f"{path.relative_to(provenance.ROOT)}\0".encode() + path.read_bytes())
    kept = store / digest.hexdigest()[:12]
    if kept.exists():
        return kept
    temporary = store / f".writing-{os.getpid()}"
    for path in files:
        copy = temporary / path.relative_to(provenance.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    provenance.write(commit, temporary)
    try:
        temporary.rename(kept)
    except OSError:  # another submission has kept the same code in the meantime
        shutil.rmtree(temporary)
    return kept


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for child in path.rglob("*") if path.is_dir() else ():
        if child.is_file() and "__pycache__" not in child.parts:
            yield child


def _sbatch(script: Path, slurm: SlurmConfig) -> str:
    """Submits a script; returns the job's number. Raises UserError with sbatch's reason."""
    # Variables of a surrounding job or run must not reach the new job. SBATCH_ACCOUNT and the like are the user's
    # defaults; sbatch reads them before the script, so they are kept only for what the config leaves open.
    ours = ("SLURM_", "SBATCH_", "CLIP_LIGHTNING_")
    default = {"SLURM_CONF", *(f"SBATCH_{name.upper()}" for name in _USERS_DEFAULTS if getattr(slurm, name) is None)}
    kept = {name: value for name, value in os.environ.items() if name in default or not name.startswith(ours)}
    try:
        done = subprocess.run(["sbatch", "--parsable", script], env=kept, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(
            "cluster.scheduler=slurm: there is no sbatch here; submit from a login node, or train here "
            "with cluster=gpu or cluster=ddp"
        ) from error
    if done.returncode:
        reason = _reason(done.stderr)
        raise UserError(f"sbatch refuses the job ({reason}); change cluster.slurm, or {script} and submit it by hand")
    return done.stdout.strip().split(";")[0]


def _reason(printed: str) -> str:
    """The message of a SLURM command, in one line."""
    lines = [re.sub(r"^\w+: (error: )?", "", line) for line in printed.splitlines()]
    return "; ".join(line.strip().rstrip(".") for line in lines if line.strip())


@contextmanager
def _noted_as_submitted(jobs: Sequence[Job]) -> Iterator[None]:
    """Notes runs as submitted before its body, since a job may start at once; as they were where the body fails."""
    files = [job.run / "status.json" for job in jobs]
    before = {file: file.read_text(encoding="utf-8") for file in files if file.exists()}
    for job in jobs:
        write_status(job.run, "submitted", "job")
    try:
        yield
    except UserError:
        for file in files:
            write_atomically(file, before[file]) if file in before else file.unlink()
        raise


def _sweep_folder(job: Job) -> Path:
    """Where the sweep at work keeps its own files."""
    return Path(os.environ.get(SWEEP_VARIABLE, job.run.parent / SWEEPS))


def _job_of(run: Path) -> str:
    """Number of the run's newest job; empty without one."""
    file = run / "slurm" / JOB
    return file.read_text(encoding="utf-8").strip() if file.exists() else ""


def _is_gathering() -> bool:
    return _GATHERED.get() is not None


def _minutes(minutes: float) -> str:
    """SLURM's form of a duration: 1.5 -> "1:30"."""
    seconds = round(60 * minutes)
    return f"{seconds // 60}:{seconds % 60:02d}"


def _quoted(path: str) -> str:
    """A path as #SBATCH takes it."""
    return f'"{path}"' if " " in path else path


def _shell_array(words: Iterator[str] | Sequence[str]) -> str:
    return f"({' '.join(shlex.quote(word) for word in words)})"
