"""A whole training on a CPU: open_clip 3.3.0's own command against ours, from tars to zero-shot accuracy.

    python -m experiments.benchmarks.end_to_end --data ../shared/data/cifar10 --json end_to_end.json

Both commands get the same tars, model (a small ViT and the paper's text tower, 77 tokens), beginning rules, batch,
optimizer, schedule and number of samples, no augmentation but the default crop, and bfloat16. One evaluator, ours,
measures both checkpoints on the 10,000 test images (`model/convert/open_clip.py` reads theirs). `time_to_accuracy` is
their seconds over ours, of the whole command from its start to its last checkpoint; it is a comparison only where the
95 % intervals of both accuracies overlap, and the program ends with 1 where they do not.

Each side is set as a user of two cores would: open_clip with amp_bf16 (float32 took 1.5 times as long, --torchcompile
longer, pure_bf16 as long), ours with its presets; one loader process each, for which neither waits.
`--context 16` gives both a model of 16 tokens, so that open_clip pays for less padding.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from torch import nn

from clip_lightning.config import compose
from clip_lightning.config.schema import Config
from clip_lightning.errors import run_command
from clip_lightning.evaluation.tasks import folder_task
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
from clip_lightning.model.clip import CLIP, build_clip
from clip_lightning.model.convert.open_clip import convert
from clip_lightning.reliability.checkpoint import CheckpointFolder
from clip_lightning.tokenizer import build_tokenizer
from clip_lightning.training.saved_model import load_model
from experiments.benchmarks.alternation import Row, parser, report

IMAGE, PATCH, WIDTH, HEADS, LAYERS, TEXT_LAYERS, VOCABULARY = 32, 4, 128, 2, 4, 2, 49408
BATCH, LEARNING_RATE, BETA2, EPS, WEIGHT_DECAY, CLIP_NORM = 128, 1e-3, 0.98, 1e-6, 0.1, 1.0
PER_EPOCH, EPOCHS, PER_QUICK_EPOCH = 390 * BATCH, 5, 160 * BATCH


class Length(NamedTuple):
    """epochs of `samples` each, in batches of BATCH."""

    samples: int
    epochs: int

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.samples * self.epochs // BATCH

    @property
    def warmup(self) -> int:
        """Steps."""
        return self.steps // 20


def our_model(context: int) -> list[str]:
    """The model, on our command line."""
    return [
        "model=pair", "model.name=small_vit", f"model.embed_dim={WIDTH}",
        "model/vision=vit_m16", f"model.vision.image_size={IMAGE}",
        f"model.vision.options={{patch_size:{PATCH},embed_dim:{WIDTH},depth:{LAYERS},num_heads:{HEADS}}}",
        "model/text=laion_512", f"model.text.context_length={context}",
        f"model.text.config.max_position_embeddings={context}", f"model.text.config.hidden_size={WIDTH}",
        f"model.text.config.intermediate_size={4 * WIDTH}", f"model.text.config.num_hidden_layers={TEXT_LAYERS}",
        f"model.text.config.num_attention_heads={HEADS}",
    ]  # fmt: skip


def our_command(data: Path, folder: Path, length: Length, context: int) -> list[str]:
    """`python train.py ...`; evaluates nothing, as theirs."""
    return [
        sys.executable, "train.py", *our_model(context), "data=webdataset", f"data.path={data / 'captions'}",
        f"data.index_folder={folder / 'index'}", "data.validation.num_samples=0", "compute=cpu_minutes",
        f"compute.duration={length.steps} steps", f"compute.warmup={length.warmup} steps",
        f"compute.global_batch={BATCH}", f"compute.learning_rate={LEARNING_RATE}", f"optimizer.beta2={BETA2}",
        f"optimizer.eps={EPS}", f"optimizer.weight_decay={WEIGHT_DECAY}", f"compute.gradient_clip={CLIP_NORM}",
        "cluster.workers=1", "cluster.threads=2", "eval=none", "logger=none", f"runs={folder / 'runs'}",
    ]  # fmt: skip


def their_model(context: int, folder: Path) -> str:
    """The model as open_clip reads it from a folder."""
    vision = {"image_size": IMAGE, "patch_size": PATCH, "width": WIDTH, "layers": LAYERS, "head_width": WIDTH // HEADS}
    text = {"context_length": context, "vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS, "layers": TEXT_LAYERS}
    written = {"model_cfg": {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(written), encoding="utf-8")
    return f"local-dir:{folder}"


def their_command(data: Path, folder: Path, length: Length, context: int) -> list[str]:
    """`python -m open_clip_train.main ...`, by way of `their_main`."""
    shards = sorted((data / "captions").glob("*.tar"))
    return [
        sys.executable, "-m", "experiments.benchmarks.end_to_end", "--open-clip",
        "--model", their_model(context, folder / "model"), "--name", "theirs", "--logs", str(folder),
        "--dataset-type", "webdataset", "--train-data", "::".join(map(str, shards)),
        "--train-num-samples", str(length.samples), "--epochs", str(length.epochs), "--batch-size", str(BATCH),
        "--lr", str(LEARNING_RATE), "--beta1", "0.9", "--beta2", str(BETA2), "--eps", str(EPS),
        "--wd", str(WEIGHT_DECAY), "--warmup", str(length.warmup), "--grad-clip-norm", str(CLIP_NORM),
        "--precision", "amp_bf16", "--device", "cpu", "--workers", "1",
    ]  # fmt: skip


def their_main(arguments: list[str]) -> None:
    """open_clip's command; it was written for webdataset 0.2, and 1.0 puts a mark behind each shard: KeyError 'fname'.

    `pip install open_clip_torch[training]` would bring webdataset 0.2.86; with a newer one the marks are switched off.
    """
    import webdataset
    from open_clip_train import data
    from open_clip_train.main import main

    if not webdataset.__version__.startswith("0."):
        data.tar_file_expander = partial(webdataset.tariterators.tar_file_expander, eof_value=None)
    main(arguments)


def timed(command: list[str], log: Path) -> float:
    """Wall seconds of a command, with as many threads as there are cores."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    begin = time.perf_counter()
    with log.open("w", encoding="utf-8") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        raise SystemExit(f"{' '.join(command)}\nended with {code}:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return time.perf_counter() - begin


def their_clip(model: str, config: Config, checkpoint: Path | None = None) -> CLIP:
    """open_clip's model and weights in ours; strict, so that both have the same parameters."""
    state = open_clip.create_model(model).state_dict()
    if checkpoint is not None:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    ours = build_clip(config.model, config.loss)
    ours.load_state_dict(convert(state))
    return ours.eval()


def num_parameters(model: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def rows(settings: argparse.Namespace, found: list[dict[str, Any]]) -> Iterator[Row]:
    """Runs both sides; `found` gets what is measured beside the time."""
    length = Length(PER_QUICK_EPOCH, 1) if settings.quick else Length(PER_EPOCH, EPOCHS)
    task = folder_task(settings.data / "wds_cifar10")
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), settings.data.resolve()
        seconds = timed(our_command(data, folder, length, settings.context), folder / "ours.log")
        their_seconds = timed(their_command(data, folder, length, settings.context), folder / "theirs.log")
        run = (folder / "runs" / "latest").resolve()
        config = compose.read(run / "config.yaml")
        newest = CheckpointFolder(run / "checkpoints", keep_last=1).newest()
        assert newest is not None, "a finished run keeps its last checkpoint"
        ended = folder / "theirs" / "checkpoints" / f"epoch_{length.epochs}.pt"
        models = {
            "ours": load_model(config, newest),
            "theirs": their_clip(f"local-dir:{folder / 'model'}", config, ended),
        }
        evaluator, tokenizer = ZeroShotEvaluator(task, IMAGE), build_tokenizer(config.model.text, None, None)
        for side, model in models.items():
            top1 = evaluator.run(model, tokenizer, torch.device("cpu"))[0]
            accuracy = {"accuracy": top1.value, "low": top1.low, "high": top1.high, "n": top1.n}
            time_taken = seconds if side == "ours" else their_seconds
            found.append({"name": side, **accuracy, "seconds": time_taken, "parameters": num_parameters(model)})
    note = "; ".join(
        f"{one['name']} {100 * one['accuracy']:.1f} % [{100 * one['low']:.1f}, {100 * one['high']:.1f}] "
        f"in {one['seconds']:.0f} s, {one['parameters']:,} parameters"
        for one in found
    )
    samples = length.samples * length.epochs
    yield Row("time_to_accuracy", samples / seconds, samples / their_seconds, 1, f"{samples:,} samples; {note}")


def main() -> None:
    """Prints and writes the ratio."""
    if sys.argv[1:2] == ["--open-clip"]:
        their_main(sys.argv[2:])
        return
    flags = parser("A whole training on a CPU against open_clip's: time to the same zero-shot accuracy.")
    flags.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"), help="captions/, wds_cifar10/")
    flags.add_argument("--context", type=int, default=77, help="tokens of the model's text tower (default 77)")
    settings = flags.parse_args()
    if not (settings.data / "captions").is_dir():
        raise SystemExit(f"--data={settings.data} has no folder captions/ of tars")
    found: list[dict[str, Any]] = []
    report(rows(settings, found), settings.json, found)
    ours, theirs = found
    if max(ours["low"], theirs["low"]) > min(ours["high"], theirs["high"]):
        raise SystemExit("the intervals of both accuracies lie apart: the times do not compare")


if __name__ == "__main__":
    run_command(main)
