"""A run of open_clip as a row: `params.txt` and `checkpoints/results.jsonl`, which its `--save-logs` writes."""

import json
import re
from pathlib import Path
from typing import Any

from clip_lightning.errors import UserError
from clip_lightning.scaling.costs import of_models

_MODEL = re.compile(r"ViT-([SMBLHg]|bigG)-(\d+)(?:-quickgelu)?|RN(50|101)(x\d+)?(?:-quickgelu)?")


def row_of(run: Path) -> dict[str, Any]:
    """One run at its last epoch that was evaluated.

    Raises: UserError: it is not a run of open_clip, or says neither epochs nor the samples of one.
    """
    params = read_params(run / "params.txt")
    path = run / "checkpoints" / "results.jsonl"
    if not path.exists():
        raise UserError(
            f"{path} is missing: open_clip writes it with --save-logs where a --val-data or zero-shot is set"
        )
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    last = max(lines, key=lambda row: float(row.get("epoch", 0)))
    try:
        per_epoch, epochs = int(params["train_num_samples"]), int(params["epochs"])
        batch = int(params["batch_size"]) * int(params["world_size"]) * int(params.get("accum_freq", 1))
    except (KeyError, ValueError) as error:
        raise UserError(f"{run / 'params.txt'} has no number for {error}; open_clip writes one at its start") from error
    epoch = float(last.get("epoch", epochs))
    seen = int(epoch * per_epoch)
    model = model_name(params["model"])
    row: dict[str, Any] = {
        "run": run.name, "state": "finished" if epoch >= epochs else "stopped",
        "reason": "" if epoch >= epochs else f"epoch {epoch:g} of {epochs}",
        "model": model, "data": Path(params.get("train_data", "")).name, "samples_seen": seen,
        "total_samples": per_epoch * epochs, "epochs": epoch, "unique_samples": min(seen, per_epoch),
        "global_batch": batch, "learning_rate": _number(params.get("lr")), "seed": _number(params.get("seed")),
        "warmup_samples": int(params.get("warmup", 0)) * batch, "schedule": params.get("lr_scheduler"),
        "beta2": _number(params.get("beta2")), "weight_decay": _number(params.get("wd")),
        "precision": params.get("precision"),
    }  # fmt: skip
    try:
        cost = of_models([model])[0]
        per_sample = cost.per_sample(batch)
        row |= {"parameters": cost.parameters, "flops_per_sample": per_sample, "model_flops": per_sample * seen}
    except UserError:
        row["reason"] = row["reason"] or f"its FLOPs are not known: no model of conf/model is {params['model']}"
    for name, value in last.items():
        if name not in ("epoch", "num_samples", "clip_val_loss", "val_loss") and isinstance(value, int | float):
            row[name.replace("imagenet-zeroshot-val-", "imagenet/").replace("top", "acc")] = value
    n = last.get("num_samples")
    loss = last.get("clip_val_loss", last.get("val_loss"))
    if loss is not None and n:
        # open_clip averages the loss of its evaluation batches: the candidates of a pair are one batch.
        candidates = int(params.get("batch_size", 0))
        row[f"val_loss_{candidates}"], row[f"val_loss_{candidates}_n"] = loss, int(n)
    return row


def read_params(path: Path) -> dict[str, str]:
    """The lines "name: value" of params.txt. Raises: UserError: it is missing."""
    if not path.exists():
        raise UserError(f"{path} is missing, so its folder is not a run of open_clip; name the folder that has it")
    pairs = (line.partition(": ") for line in path.read_text(encoding="utf-8").splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs if value.strip() not in ("", "None")}


def model_name(name: str) -> str:
    """open_clip's ViT-B-32 -> vit_b32, RN50x4 -> rn50x4; another name as it is."""
    found = _MODEL.fullmatch(name)
    if not found:
        return name
    size, patch, depth, times = found.groups()
    return f"vit_{size.lower()}{patch}" if size else f"rn{depth}{times or ''}"


def _number(text: str | None) -> float | None:
    return float(text) if text else None
