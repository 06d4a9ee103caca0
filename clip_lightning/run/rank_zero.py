"""What rank 0 of a run does besides training: directory, records, loggers, console, status, summary, figures.

Every rank has one object and calls it in the same places. `RankZero` does the work; `OtherRank`, its base class, waits
until rank 0 has prepared the run, reads the config that rank 0 has written, and does nothing from then on.
"""

import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from pyarrow import Table

from clip_lightning.config import compose, identity
from clip_lightning.config.lengths import (
    Lengths,
    batch_warning,
    flat_loss_warning,
    overfit_warning,
    resolve_lengths,
)
from clip_lightning.config.schema import Config
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.data.order.skip_windows import SkipWindow
from clip_lightning.errors import AgreedError
from clip_lightning.evaluation.prediction_table import write_predictions
from clip_lightning.formatting import count, own_command
from clip_lightning.records import Record
from clip_lightning.reliability import provenance
from clip_lightning.reliability.atomic_files import write_atomically
from clip_lightning.reliability.checkpoint import Checkpoint, CheckpointFolder
from clip_lightning.reliability.preemption import StopSignals, leave_after
from clip_lightning.reliability.run_paths import directory_of, move_aside
from clip_lightning.reliability.status import read_json, write_status
from clip_lightning.run import failure, launch
from clip_lightning.run.console.banner import BannerFacts, banner
from clip_lightning.run.console.progress import Interval, Screen, evaluation_lines, screen
from clip_lightning.run.console.summary import Summary, end_table, last_value
from clip_lightning.run.console.throughput import Costs
from clip_lightning.run.directory import RESTART_PATIENCE, START_CONFIG, RunDirectory, compare_data, compare_science
from clip_lightning.run.divergence import Rollback
from clip_lightning.run.evaluators import FoundTasks, find_tasks
from clip_lightning.run.figures import write_figures
from clip_lightning.run.hardware import device_name, num_visible_gpus, precision_warning, total_peak_flops, uses_gpu
from clip_lightning.run.loggers import Loggers, build_loggers
from clip_lightning.run.outcome import Outcome
from clip_lightning.run.plan.dry_run import dry_run
from clip_lightning.run.plan.preflight import Plan, Preflight, build_datamodule, preflight
from clip_lightning.run.process_rank import rank_of_process
from clip_lightning.run.rank_watch import watch_ranks
from clip_lightning.run.report import write_report
from clip_lightning.run.run_records import RunRecords
from clip_lightning.run.tokenizer import prepare_tokenizer
from clip_lightning.slurm import tasks as slurm_tasks
from clip_lightning.training.saved_model import config_of_resume
from clip_lightning.training.zero_shot_callback import STRIDE


class OtherRank:
    """A rank other than 0: the same inputs, no output.

    Attributes:
        config: of this start.
        path: the run's directory.
        data, tasks, lengths, tokenizer: what the run trains on and is measured by.
        checkpoints: the folder of them.
        resume: the checkpoint that the run resumes from; rank 0 sends it to the others.
        about: what a checkpoint's manifest contains of the run.
        costs: FLOPs of samples, for the throughput.
        seconds_before: of earlier starts.
        signals: ask the run to stop.
        loggers: Lightning's, for what other callbacks log; only rank 0's write.
    """

    resume: Checkpoint | None = None
    about: dict[str, object] | None = None
    costs = Costs(lambda texts: 0.0, None)
    seconds_before = 0.0

    def __init__(
        self,
        config: Config,
        path: Path,
        data: ContrastiveDataModule,
        tasks: FoundTasks,
        lengths: Lengths,
    ) -> None:
        self.config, self.path, self.data, self.tasks, self.lengths = config, path, data, tasks, lengths
        self.tokenizer = data.tokenizer = prepare_tokenizer(config, path / "tokenizer", data)
        self.checkpoints = CheckpointFolder(path / "checkpoints", keep_last=config.cluster.keep_last)
        self.signals = StopSignals()
        self.loggers = build_loggers(config, path)

    @classmethod
    def join(cls, path: Path) -> "OtherRank":
        """The rank of a run that rank 0 has prepared in `path`."""
        config = config_of_resume(compose.read(path / START_CONFIG), path)
        data = build_datamodule(config)
        return cls(config, path, data, find_tasks(config.eval), resolve_lengths(config, data.num_samples))

    def say(self, text: str) -> None:
        """Prints lines."""

    def interval(self, interval: Interval, records: list[Record]) -> None:
        """Writes and prints the numbers of an interval."""

    def evaluation(self, records: list[Record]) -> None:
        """Writes and prints the records of an evaluation."""

    def write(self, records: Iterable[Record]) -> None:
        """Writes further numbers."""

    def saved(self) -> None:
        """Reports a checkpoint to slurm/train.sbatch."""

    def is_evaluated(self, samples_seen: int) -> bool:
        """Whether there are records of an evaluation at this place."""
        return False

    def evaluation_stride(self) -> int | None:
        """The decision about `eval.max_share` that is recorded."""
        return None

    def evaluated(self, predictions: Sequence[Table], samples_seen: int) -> None:
        """Writes the predictions on every image that the last evaluation has kept."""

    def rollback(self, rollback: Rollback) -> None:
        """Removes the records after the checkpoint that the run goes back to, and prints why."""

    def skip_windows(self, windows: Sequence[SkipWindow]) -> None:
        """Writes the windows that the run skips, at every start."""

    def end(self, outcome: Outcome) -> int:
        """Writes and prints the summary; returns the exit code.

        It is 0 on ranks other than 0 even when a signal stopped the run: a launcher kills all ranks when one exits
        with an error, and rank 0 may still be writing.
        """
        return 0


class RankZero(OtherRank):
    """Rank 0 of a run, with the run's directory open."""

    def __init__(
        self,
        config: Config,
        argv: Sequence[str],
        found: Preflight,
        directory: RunDirectory,
        shown: Screen,
        begun: float,
    ) -> None:
        """Args.

        argv: the arguments of the command.
        found: what the preflight has built and counted.
        begun: `time.perf_counter()` at the start of the process's work.
        """
        path, lengths = directory.path, found.lengths
        data = found.datamodule.identity
        data["order"] = found.datamodule.order.digest()
        versions = provenance.versions()
        directory.begin(config, commit=provenance.commit(), versions=versions, data=data, argv=argv)
        directory.write_start_config(compose.dump(config))
        checkpoints = CheckpointFolder(
            directory.checkpoints,
            keep_last=config.cluster.keep_last,
            keep_every=lengths.keep_every,
            reach=lengths.rollback_margin,
            notify=shown.say,
        )
        self.resume = checkpoints.newest()
        self._begun_at = self.resume.samples_seen if self.resume else 0
        write_status(path, "running", samples_seen=self._begun_at, total_samples=lengths.total)
        state = f"resumed at {count(self._begun_at)} samples" if self.resume else directory.state
        state = "interrupted" if state == "running" else state
        shown.say("\n".join([_banner(config, argv, found, state, begun), *_warnings(config, found)]))
        super().__init__(config, path, found.datamodule, found.tasks, lengths)
        self.config = config_of_resume(config, path)
        self.checkpoints = checkpoints
        self.about = {
            "science": identity.science(config),
            "data": data,
            "config": identity.redacted(compose.dump(config)),
            "versions": versions,
        }
        self.costs = Costs(found.training_flops, total_peak_flops(config.cluster))
        time_left = leave_after(config.cluster)
        self.signals = StopSignals(None if time_left is None else time_left - (time.perf_counter() - begun))
        self.argv, self.found, self.screen = argv, found, shown
        self._num_restarts, self._is_closed = directory.num_starts - 1, False
        launch.release_ranks(path)
        self.records = RunRecords(config, path, shown.say)
        self.records.resume_at(self._begun_at)
        records = self.records.read()
        self.seconds_before = last_value(records, "seconds") or 0.0
        self._num_skipped = last_value(records, "skipped_steps") or 0.0
        watch_ranks(path, own_command("train", map(identity.redacted, argv)), shown.say)
        self._log = Loggers(self.loggers, path, config, shown.say)

    def say(self, text: str) -> None:
        """Prints lines."""
        self.screen.say(text)

    def interval(self, interval: Interval, records: list[Record]) -> None:
        """Writes and prints the numbers of an interval, and one line where steps were skipped."""
        self.write(records)
        self.screen.interval(interval)
        skipped = next((record.value for record in records if record.what == "skipped_steps"), 0.0)
        if skipped > self._num_skipped:
            new = skipped - self._num_skipped
            self.screen.say(f"skipped {new:.0f} steps: loss or gradient was not finite ({skipped:.0f} so far)")
        self._num_skipped = skipped
        with suppress(OSError):  # on a full disk an old status remains; the checkpoints have the place
            write_status(self.path, "running", samples_seen=interval.samples_seen, total_samples=interval.total_samples)

    def write(self, records: Iterable[Record]) -> None:
        """Writes numbers, and shows them in the loggers."""
        self._log.write(self.records.write(records))

    def evaluation(self, records: list[Record]) -> None:
        """Writes an evaluation and prints a line per task."""
        self.write(records)
        for line in evaluation_lines(records):
            self.screen.say(line)

    def saved(self) -> None:
        """Reports a checkpoint to slurm/train.sbatch."""
        slurm_tasks.note_progress()

    def is_evaluated(self, samples_seen: int) -> bool:
        """Whether there are records of an evaluation at this place: the time it took is written last."""
        return any(
            record.what == "evaluation_seconds" and record.samples_seen == samples_seen
            for record in self.records.read()
        )

    def evaluation_stride(self) -> int | None:
        """The decision about `eval.max_share` that is recorded."""
        found = last_value(self.records.read(), STRIDE)
        return None if found is None else int(found)

    def evaluated(self, predictions: Sequence[Table], samples_seen: int) -> None:
        """Writes the predictions on every image that the last evaluation has kept."""
        if self.config.eval.keep_predictions:
            write_predictions(predictions, self.path, samples_seen=samples_seen)

    def rollback(self, rollback: Rollback) -> None:
        """Removes the records after the checkpoint that the run goes back to, and prints why."""
        self.records.resume_at(rollback.samples_seen)
        self.screen.say(rollback.line)

    def skip_windows(self, windows: Sequence[SkipWindow]) -> None:
        """Writes those without a record yet: a kill may have come between a checkpoint and its record."""
        if windows:
            records = [
                Record(what="skip_windows", value=float(begin), n=end - begin, split="train", samples_seen=samples_seen)
                for samples_seen, begin, end in windows
            ]
            known = {(record.what, record.value, record.n) for record in self.records.read()}
            self.write(record for record in records if (record.what, record.value, record.n) not in known)

    def end(self, outcome: Outcome) -> int:
        """Writes and prints the summary; returns the exit code."""
        records = self.records.read()
        signals, config = self.signals, self.config
        if signals.received and not outcome.is_finished and outcome.samples_seen != self._begun_at:
            slurm_tasks.note_progress(signals.received.name)
        reason = outcome.stopped_by if outcome.is_finished else signals.reason or "training ended early"
        summary = Summary(
            run=self.path.name,
            path=self.path,
            status="finished" if outcome.is_finished else "stopped",
            reason=reason,
            samples=outcome.samples_seen,
            total_samples=self.lengths.total,
            seconds=outcome.seconds,
            parameters=self.found.parameters,
            science=identity.science_hash(config),
            num_devices=config.cluster.nodes * config.cluster.devices,
            gpu=uses_gpu(config.cluster.accelerator),
            restarts=self._num_restarts,
            records=records,
            bad_samples=outcome.bad_samples,
        )
        table = end_table(summary, [identity.redacted(word) for word in self.argv])
        numbers = summary.as_json()
        write_atomically(self.path / "summary.json", json.dumps(numbers, indent=1) + "\n")
        write_atomically(self.path / "summary.txt", table + "\n")
        write_figures(self.path / "figures", records, outcome.shown, outcome.retrieved)
        write_status(self.path, summary.status, summary.reason, samples_seen=outcome.samples_seen)
        write_report(self.path)
        self._log.end(numbers, records)
        self.close()
        losses = [record for record in records if record.what.startswith("val_loss_")]
        warnings = flat_loss_warning(last_value(records, "loss"), config, self.lengths)
        warnings += overfit_warning(losses[-1] if losses else None, self.lengths)
        print("\n".join(["", table, *warnings]))
        return 0 if outcome.is_finished or launch.restarts_on_error() else signals.exit_code

    def close(self) -> None:
        """Writes what is left of the records and releases the terminal; may be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self.records.close()
            self._log.finish()
            self.screen.close()


@contextmanager
def open_run(config: Config, argv: Sequence[str]) -> Iterator[OtherRank | None]:
    """This rank's part of a run, prepared by rank 0; None where there is nothing to train.

    Args:
        config: resolved and checked; ranks other than 0 replace it by the one that rank 0 has written.
        argv: the arguments of the command.

    Raises:
        UserError: the run cannot start; on ranks other than 0 only what rank 0 does not report.
    """
    begun = time.perf_counter()
    path, gpus = directory_of(config, argv), num_visible_gpus(config.cluster.accelerator)
    if rank := rank_of_process():
        prepared = launch.wait_for_rank_zero(path)
        if prepared is None:
            yield None
            return
        slurm_tasks.check_tasks(config.cluster, gpus)
        with failure.noted(prepared, rank), suppress(AgreedError):
            yield OtherRank.join(prepared)
        if slurm_tasks.step():
            # If rank 0 exits first, with its signal's code, srun ends the others, and the job gets the highest code.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    try:
        with launch.rank_zero_first():
            slurm_tasks.check_tasks(config.cluster, gpus)
            if config.dry_run:
                dry_run(config, lambda plan: _banner(config, argv, plan, "dry run", begun))
            if config.dry_run or _is_finished(config, path):
                yield None
                return
            launch.check_launched(config.cluster)
            found = preflight(config if _starts_over(config) else config_of_resume(config, path))
            if _starts_over(config) and (aside := move_aside(path)):
                print(f"the earlier run is kept in {aside}")
            patience = RESTART_PATIENCE if launch.is_restart() else 0.0
            with ExitStack() as opened:
                directory = opened.enter_context(closing(RunDirectory(path, patience)))
                shown = opened.enter_context(closing(screen()))
                opened.enter_context(failure.noted(path, 0))
                yield opened.enter_context(closing(RankZero(config, argv, found, directory, shown, begun)))
    except KeyboardInterrupt:
        print("stopped before training began")
        sys.exit(130)


def _starts_over(config: Config) -> bool:
    return config.fresh and not launch.is_restart()


def _is_finished(config: Config, path: Path) -> bool:
    """Whether the run is finished and is not to start over; prints its summary then."""
    if _starts_over(config) or read_json(path / "status.json").get("status") != "finished":
        return False
    if identity.science(compare_science(path, config)) != identity.science(config):
        return False  # `allow_changed` continues the run as another one
    compare_data(path, build_datamodule(config).identity, config)
    print(f"{path} is finished; fresh=true starts it over\n{(path / 'summary.txt').read_text(encoding='utf-8')}")
    return True


def _warnings(config: Config, found: Preflight) -> list[str]:
    return [
        *found.tasks.warnings,
        *batch_warning(config.compute.global_batch, found.datamodule.num_samples),
        *precision_warning(config.compute, config.cluster.accelerator),
    ]


def _banner(config: Config, argv: Sequence[str], found: Plan, state: str, begun: float) -> str:
    facts = BannerFacts(
        state=state,
        device=device_name(config.cluster.accelerator),
        seconds=time.perf_counter() - begun,
        argv=argv,
    )
    return banner(config, found, facts)
