"""Directories of this project's runs as rows. What a directory holds: `clip_lightning/run/directory.py`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from clip_lightning.config import duration, identity
from clip_lightning.config.compose import read
from clip_lightning.config.phases import phases_of
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError
from clip_lightning.records import Record, metric_name, read_records
from clip_lightning.run_folders import run_folders
from clip_lightning.scaling.costs import Cost, of_config, of_models, of_phases

SWEEP = "sweep.json"
_PHASES = {"constant": "trunk", "constant_cooldown": "cooldown", "cosine": "whole"}


def rows_of(path: Path, *, count_flops: bool = True) -> Iterator[dict[str, Any]]:
    """The rows of a run, of a folder of runs, or of a sweep with its cells that never became runs.

    Args: count_flops: whether models that conf/model does not have are counted, each in a process that imports torch.
    Raises: UserError: the path holds no run.
    """
    if (path / SWEEP).exists():
        yield from _cells_of(path, count_flops)
        return
    found = [path] if (path / "config.yaml").exists() else _runs_in(path)
    if not found:
        raise UserError(f"{path} holds no run, which is a folder with config.yaml; name one, or a folder of them")
    for run in found:
        yield row_of(run, count_flops=count_flops)


def _runs_in(path: Path) -> list[Path]:
    if not path.is_dir():
        raise UserError(f"{path} does not exist; name the directory of a run, a folder of runs, or runs/sweeps/NAME")
    return run_folders(path)


def _cells_of(sweep: Path, count_flops: bool) -> Iterator[dict[str, Any]]:
    for cell in _json(sweep / SWEEP)["cells"]:
        run = sweep.parent.parent / cell["run"]
        noted = _json(sweep / "failures" / f"{cell['run']}.json")
        if (run / "config.yaml").exists():
            row = row_of(run, count_flops=count_flops)
            if noted and row["state"] not in ("finished", "running"):
                row |= {"state": "failed", "reason": row["reason"] or noted["reason"]}
        else:
            state = ("failed", noted["reason"]) if noted else ("waiting", "never started")
            row = {"run": cell["run"], "state": state[0], "reason": state[1]}
        yield {**row, "settings": " ".join(cell["settings"])}


def row_of(run: Path, *, count_flops: bool = True) -> dict[str, Any]:
    """One run: what it is, how far it went, what it cost, what was measured at its end.

    Raises: UserError: its config cannot be read.
    """
    config: Config = read(run / "config.yaml")
    return row_from(run, config, identity.science_hash(config), count_flops=count_flops)


def row_from(run: Path, config: Config, science: str, *, count_flops: bool) -> dict[str, Any]:
    """The row of a run whose config has been read. Args: config: or anything with its attributes."""
    status, end, data = (_json(run / name) for name in ("status.json", "summary.json", "data.json"))
    compute, batch = config.compute, config.compute.global_batch
    seen, total = int(status.get("samples_seen", 0)), status.get("total_samples")
    unique = data.get("num_samples")
    row: dict[str, Any] = {
        "run": run.name,
        "state": status.get("status", "waiting"),
        "reason": status.get("reason", ""),
        "model": identity.model_name(config),
        "data": config.data.name,
        "compute": compute.name,
        "science": science,
        "parameters": end.get("parameters"),
        "samples_seen": seen,
        "total_samples": total,
        "unique_samples": min(unique, seen) if unique else None,
        "epochs": seen / unique if unique else None,
        "global_batch": batch,
        "learning_rate": compute.learning_rate,
        "warmup_samples": _samples(compute.warmup, batch, unique, total),
        "schedule": compute.schedule,
        "phase": _PHASES[compute.schedule],
        "optimizer": config.optimizer.name,
        "beta2": config.optimizer.beta2,
        "weight_decay": config.optimizer.weight_decay,
        "precision": compute.precision,
        "seed": compute.seed,
        "seconds": end.get("seconds"),
    }
    if (run / "divergence.jsonl").exists() and row["state"] != "finished":
        row["reason"] = row["reason"] or "the loss diverged; see divergence.jsonl"
    return row | flops(config, _parts(config, run, row, count_flops)) | _metrics(run)


def flops(config: Config, parts: Sequence[tuple[Cost, int]]) -> dict[str, float | str]:
    """FLOPs of a training sample and of the run: of the model (what laws are fitted to), and of the hardware.

    The hardware computes the forward pass again for activation checkpointing and for gradients in pieces.

    Args: parts: the cost of a sample and the number of samples, of the run or of each of its phases, over which the
        FLOPs of a sample are the mean; empty where they were not counted.
    """
    if not parts:
        return {}
    model, batch, cluster = config.model, config.compute.global_batch, config.cluster
    micro_batch = cluster.micro_batch or batch
    times = (cluster.activation_checkpointing == "full") + (micro_batch < batch // (cluster.nodes * cluster.devices))
    of_model, hardware, per_sample = 0.0, 0.0, 0.0
    for cost, samples in parts:
        per_sample = cost.towers(model.vision.locked, model.text.locked) + 6 * batch * cost.embed_dim
        again = times * (cost.image_flops + cost.text_flops)
        of_model += per_sample * samples
        hardware += (per_sample + again + 2 * batch * cost.embed_dim) * samples  # the loss computes its logits twice
    if len(parts) > 1:
        per_sample = of_model / max(1, sum(samples for _, samples in parts))
    return {"flops_per_sample": per_sample, "model_flops": of_model, "hardware_flops": hardware}


def _parts(config: Config, run: Path, row: Mapping[str, Any], count: bool) -> list[tuple[Cost, int]]:
    """The cost of a sample and the samples seen, of each phase; empty where they are not to be counted."""
    seen, total = int(row["samples_seen"]), row["total_samples"]
    if not config.compute.phases:
        cost = _cost(config, run, count)
        return [(cost, seen)] if cost else []
    if not (count and total):
        return []
    unique = _json(run / "data.json").get("num_samples")
    phases = phases_of(config, total_samples=total, epoch_samples=unique)
    costs = of_phases(run / "config.yaml")[-len(phases) :]  # the model's own sizes hold in none of them, or at first
    ends = [*(phase.start for phase in phases[1:]), total]
    return [(cost, max(0, min(seen, end) - phase.start)) for cost, phase, end in zip(costs, phases, ends, strict=True)]


def _cost(config: Config, run: Path, count: bool) -> Cost | None:
    """The carried cost where the run's model has a known name and as many parameters; else counted, or None."""
    name, parameters = config.model.name, _json(run / "summary.json").get("parameters")
    if name != "pair" and config.model.vision.patch_dropout == 0:
        try:
            known = of_models([name])[0] if not count or parameters else None
        except UserError:
            known = None
        if known is not None and parameters in (None, known.parameters):
            return known
    return of_config(run / "config.yaml") if count else None


def _metrics(run: Path) -> dict[str, float | int | None]:
    """The newest value of everything that was counted over images or pairs, with its n; and the training loss.

    `acc1` is the mean of all tasks' own top-1 accuracies, `acc1_n` the sum of their images.
    """
    path = run / "metrics.jsonl"
    records = complete_records(path) if path.exists() else []
    found: dict[str, float | int | None] = {}
    tasks: dict[str, tuple[float, int]] = {}
    for record in sorted(records, key=lambda one: one.samples_seen):
        if record.what == "loss" and not record.task:
            found["train_loss"] = record.value
        elif record.n is not None and record.value is not None:
            is_loss = record.what.startswith("val_loss_") and not record.weights
            name = record.what if is_loss else metric_name(record)
            found[name], found[f"{name}_n"] = record.value, record.n
            if record.what == "acc1" and not (record.weights or record.variant or record.group):
                tasks[record.task] = record.value, record.n
    if tasks:
        found["acc1"], found["acc1_n"] = fmean(value for value, _ in tasks.values()), sum(n for _, n in tasks.values())
    return found


def complete_records(path: Path) -> list[Record]:
    """The records; a last line that a kill has torn is left out."""
    try:
        return read_records(path)
    except ValueError:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        good = [json.loads(line) for line in lines if line.endswith("\n")]
        names = Record.__dataclass_fields__
        known = [{key: value for key, value in row.items() if key in names} for row in good]
        return [Record(**{**row, "value": float(row["value"])}) for row in known]


def _samples(text: str, batch: int, epoch: int | None, total: int | None) -> int | None:
    try:
        return duration.to_samples(text, global_batch=batch, epoch_samples=epoch, total_samples=total)
    except UserError:
        return None


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
