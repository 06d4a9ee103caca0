"""A training run from a checked config to its end table.

Rank 0 leads: it alone makes directories, writes and prints. The other ranks follow with the same steps.
"""

import json
import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from clip_lightning.config import compose, identity
from clip_lightning.config.schema import Config
from clip_lightning.reliability.checkpoint import CheckpointFolder, write_atomically
from clip_lightning.reliability.checkpoint_callback import CheckpointCallback
from clip_lightning.reliability.preemption import StopSignals, leave_after
from clip_lightning.run import failure, provenance
from clip_lightning.run.card import CardFacts, card, cost_table
from clip_lightning.run.directory import RunDirectory, directory_of, move_aside, write_status
from clip_lightning.run.figures import write_figures
from clip_lightning.run.follow import follow
from clip_lightning.run.hardware import device_name, total_peak_flops, uses_gpu
from clip_lightning.run.meter import Costs
from clip_lightning.run.preflight import Preflight, preflight, prepare_tokenizer
from clip_lightning.run.progress import Screen, count, screen
from clip_lightning.run.reporter import Reporter
from clip_lightning.run.session import Session, quiet_libraries, rank_of_process
from clip_lightning.run.status import read_json
from clip_lightning.run.summary import Summary, end_table, last_value
from clip_lightning.run.tracker import open_tracker

# Tells the ranks that Lightning starts which directory rank 0 has made.
_RUN_VARIABLE = "CLIP_LIGHTNING_RUN"


def train(config: Config, argv: Sequence[str] = ()) -> int:
    """Trains, resumes, or reports a run that is finished; returns the exit code.

    Args:
        config: resolved and checked.
        argv: the arguments of the command that made it.
    Raises: UserError for what the user can mend.
    """
    begun = time.perf_counter()
    quiet_libraries()
    path = directory_of(config)
    if rank := rank_of_process():
        path = Path(os.environ.get(_RUN_VARIABLE, path))
        with failure.noted(path, rank):
            return follow(config, path)
    if read_json(path / "status.json").get("status") == "finished" and not (config.fresh or config.dry_run):
        print(f"{path} is finished; fresh=true starts it over\n{(path / 'summary.txt').read_text(encoding='utf-8')}")
        return 0
    try:
        found = preflight(config)
        if config.dry_run:
            print(_card(config, argv, found, "dry run", begun), cost_table(config, found), sep="\n\n")
            return 0
        if config.fresh and (aside := move_aside(path)):
            print(f"the earlier run is kept in {aside}")
        with closing(RunDirectory(path)) as directory, closing(screen()) as shown, failure.noted(path, 0):
            return _lead(config, argv, found, directory, shown, begun)
    except KeyboardInterrupt:
        print("left before training began")
        return 130


def _lead(
    config: Config, argv: Sequence[str], found: Preflight, directory: RunDirectory, screen: Screen, begun: float
) -> int:
    """Rank 0 of a run whose directory stands."""
    path = directory.path
    data = {"fingerprint": found.datamodule.fingerprint, "num_samples": found.datamodule.num_samples}
    directory.begin(config, commit=provenance.commit(), versions=provenance.versions(), data=data, argv=argv)
    keep_last, reach = config.cluster.keep_last, found.lengths.rollback_margin
    folder = CheckpointFolder(directory.checkpoints, keep_last=keep_last, reach=reach, notify=screen.say)
    resume = folder.newest()
    samples_seen = resume.samples_seen if resume else 0
    write_status(path, "running", samples_seen=samples_seen, total_samples=found.lengths.total)
    state = f"resumed at {count(samples_seen)} samples" if resume else directory.state
    screen.say(_card(config, argv, found, state, begun))
    session = Session(
        config, path, found.datamodule, found.lengths, found.tasks,
        prepare_tokenizer(config, path / "tokenizer", found.datamodule),
    )  # fmt: skip
    about = {"science": identity.science(config), "data": data, "config": compose.dump(config)}
    checkpoint = CheckpointCallback(folder, every=found.lengths.checkpoint_every, resume=resume, about=about)
    costs = Costs(found.training_flops, total_peak_flops(config.cluster))
    time_left = leave_after(config.cluster)
    signals = StopSignals(None if time_left is None else time_left - (time.perf_counter() - begun))
    os.environ[_RUN_VARIABLE] = str(path)
    with closing(open_tracker(config, path, found.wandb, directory.tracker_id(), screen.say)) as tracker:
        tracker.resume_at(samples_seen)
        seconds_before = last_value(tracker.records(), "seconds") or 0.0
        outcome = session.run(checkpoint, costs, Reporter(path, tracker, screen), signals, seconds_before)
        records = tracker.records()
    screen.close()
    summary = Summary(
        run=path.name,
        path=path,
        status="finished" if outcome.complete else "stopped",
        reason="" if outcome.complete else signals.reason,
        samples=outcome.samples_seen,
        total_samples=found.lengths.total,
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
    return 0 if outcome.complete else signals.exit_code


def _card(config: Config, argv: Sequence[str], found: Preflight, state: str, begun: float) -> str:
    facts = CardFacts(
        run=identity.run_name(config),
        state=state,
        commit=str(provenance.commit()),
        device=device_name(config.cluster.accelerator),
        seconds=time.perf_counter() - begun,
        argv=argv,
    )
    return card(config, found, facts)
