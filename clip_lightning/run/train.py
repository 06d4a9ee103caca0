"""A training run from a checked config to its end table. Only rank 0 makes directories, writes and prints."""

import json
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from clip_lightning.config import compose, identity
from clip_lightning.config.schema import Config
from clip_lightning.evaluation.tasks import warnings_of
from clip_lightning.formatting import count
from clip_lightning.model.attention import choose_attention
from clip_lightning.reliability import provenance
from clip_lightning.reliability.atomic_files import write_atomically
from clip_lightning.reliability.checkpoint import CheckpointFolder
from clip_lightning.reliability.checkpoint_callback import CheckpointCallback
from clip_lightning.reliability.preemption import StopSignals, leave_after
from clip_lightning.reliability.run_paths import directory_of, move_aside
from clip_lightning.reliability.status import read_json, write_status
from clip_lightning.run import failure, launch
from clip_lightning.run.console.banner import BannerFacts, banner
from clip_lightning.run.console.progress import Screen, screen
from clip_lightning.run.console.summary import Summary, end_table, last_value
from clip_lightning.run.console.throughput import Costs
from clip_lightning.run.directory import RESTART_PATIENCE, RunDirectory
from clip_lightning.run.figures import write_figures
from clip_lightning.run.follow import follow
from clip_lightning.run.hardware import device_name, num_visible_gpus, total_peak_flops, uses_gpu
from clip_lightning.run.plan.dry_run import dry_run
from clip_lightning.run.plan.preflight import Plan, Preflight, preflight
from clip_lightning.run.reporter import Reporter
from clip_lightning.run.session import Session, quiet_libraries
from clip_lightning.run.tokenizer import prepare_tokenizer
from clip_lightning.run.tracker import open_tracker
from clip_lightning.slurm.tasks import check_tasks, note_progress
from clip_lightning.training.saved_model import config_of_resume


def train(config: Config, argv: Sequence[str] = ()) -> int:
    """Trains, resumes, or reports a run that is finished; returns the exit code.

    Args:
        config: resolved and checked.
        argv: the arguments of the command that made it.
    Raises: UserError for what the user can mend.
    """
    begun = time.perf_counter()
    quiet_libraries()
    choose_attention(config.compute.precision, uses_gpu(config.cluster.accelerator))
    path, gpus = directory_of(config, argv), num_visible_gpus(config.cluster.accelerator)
    if rank := launch.rank_of_process():
        if (given := launch.directory(path)) is None:  # rank 0 waits until this is heard
            return 0
        check_tasks(config.cluster, gpus)
        with failure.noted(given, rank):
            return follow(config, given)
    try:
        with launch.leading():
            check_tasks(config.cluster, gpus)
            return _start(config, argv, path, begun)
    except KeyboardInterrupt:
        print("left before training began")
        return 130


def _start(config: Config, argv: Sequence[str], path: Path, begun: float) -> int:
    """Rank 0, which finds whether there is anything to train."""
    fresh = config.fresh and not launch.is_restart()
    if read_json(path / "status.json").get("status") == "finished" and not (fresh or config.dry_run):
        print(f"{path} is finished; fresh=true starts it over\n{(path / 'summary.txt').read_text(encoding='utf-8')}")
        return 0
    if config.dry_run:
        return dry_run(config, lambda found: _banner(config, argv, found, "dry run", begun))
    launch.check_launched(config.cluster)
    found = preflight(config if fresh else config_of_resume(config, path))
    if fresh and (aside := move_aside(path)):
        print(f"the earlier run is kept in {aside}")
    patience = RESTART_PATIENCE if launch.is_restart() else 0.0
    with closing(RunDirectory(path, patience)) as directory, closing(screen()) as shown, failure.noted(path, 0):
        return _lead(config, argv, found, directory, shown, begun)


def _lead(
    config: Config, argv: Sequence[str], found: Preflight, directory: RunDirectory, screen: Screen, begun: float
) -> int:
    """Rank 0 of a run whose directory stands."""
    path, pairs, lengths, versions = directory.path, found.datamodule, found.lengths, provenance.versions()
    data = {"fingerprint": pairs.fingerprint, "num_samples": pairs.num_samples}
    directory.begin(config, commit=provenance.commit(), versions=versions, data=data, argv=argv)
    keep = {"keep_last": config.cluster.keep_last, "keep_every": lengths.keep_every, "reach": lengths.rollback_margin}
    folder = CheckpointFolder(directory.checkpoints, **keep, notify=screen.say)
    resume = folder.newest()
    samples_seen = resume.samples_seen if resume else 0
    write_status(path, "running", samples_seen=samples_seen, total_samples=lengths.total)
    state = f"resumed at {count(samples_seen)} samples" if resume else directory.state
    screen.say("\n".join([_banner(config, argv, found, state, begun), *warnings_of(found.tasks)]))
    tokenizer = prepare_tokenizer(config, path / "tokenizer", pairs)
    session = Session(config_of_resume(config, path), path, pairs, lengths, found.tasks, tokenizer)
    about = {"science": identity.science(config), "data": data, "config": compose.dump(config), "versions": versions}
    checkpoint = CheckpointCallback(folder, every=lengths.checkpoint_every, resume=resume, about=about)
    checkpoint.minutes = config.cluster.checkpoint_minutes
    checkpoint.on_saved = note_progress
    costs = Costs(found.training_flops, total_peak_flops(config.cluster))
    time_left = leave_after(config.cluster)
    signals = StopSignals(None if time_left is None else time_left - (time.perf_counter() - begun))
    launch.announce(path)
    with closing(open_tracker(config, path, found.wandb, directory.tracker_id(), screen.say)) as tracker:
        tracker.resume_at(samples_seen)
        seconds_before = last_value(tracker.records(), "seconds") or 0.0
        outcome = session.run(checkpoint, costs, Reporter(path, tracker, screen), signals, seconds_before)
        records = tracker.records()
    if signals.received and not outcome.complete and outcome.samples_seen != samples_seen:
        note_progress(signals.received.name)
    screen.close()
    summary = Summary(
        run=path.name,
        path=path,
        status="finished" if outcome.complete else "stopped",
        reason="" if outcome.complete else signals.reason,
        samples=outcome.samples_seen,
        total_samples=lengths.total,
        seconds=outcome.seconds,
        parameters=found.parameters,
        science=identity.science_hash(config),
        num_devices=config.cluster.nodes * config.cluster.devices,
        gpu=uses_gpu(config.cluster.accelerator),
        restarts=directory.num_starts - 1,
        records=records,
        bad_samples=outcome.bad_samples,
    )
    table = end_table(summary, argv)
    write_atomically(path / "summary.json", json.dumps(summary.as_json(), indent=1) + "\n")
    write_atomically(path / "summary.txt", table + "\n")
    write_figures(path / "figures", records, outcome.shown)
    write_status(path, summary.status, summary.reason, samples_seen=outcome.samples_seen)
    print(f"\n{table}")
    return 0 if outcome.complete or launch.starts_again_on_error() else signals.exit_code


def _banner(config: Config, argv: Sequence[str], found: Plan, state: str, begun: float) -> str:
    facts = BannerFacts(
        run=directory_of(config, argv).name,
        state=state,
        commit=str(provenance.commit()),
        device=device_name(config.cluster.accelerator),
        seconds=time.perf_counter() - begun,
        argv=argv,
    )
    return banner(config, found, facts)
