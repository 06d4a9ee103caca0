"""A small model, a fixed stream of batches, and training on them; as a program, ranks of one run.

python -m tests.support.small_run WORLD FOLDER [micro_batch]
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from clip_lightning.config import compose
from clip_lightning.config.lengths import Lengths
from clip_lightning.config.schema import (
    ClusterConfig,
    ComputeConfig,
    Config,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
    VisionConfig,
)
from clip_lightning.data.batches import Batch
from clip_lightning.distributed import rank_and_world
from clip_lightning.parallel import strategy
from clip_lightning.parallel.fsdp import full_tensor
from clip_lightning.reliability.checkpoint import CheckpointFolder
from clip_lightning.training.clip_module import ClipModule, StepMetrics

GLOBAL_BATCH, EPOCH, VOCABULARY, CONTEXT, IMAGE_SIZE = 24, 40, 64, 16, 16


def small_config(loss: str = "softmax", **compute: Any) -> Config:
    vision = VisionConfig(
        name="small",
        timm="vit_tiny_patch16_224",
        image_size=IMAGE_SIZE,
        options={"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
    )
    text = TextConfig(
        name="small",
        config={
            "model_type": "clip_text_model",
            "vocab_size": VOCABULARY,
            "max_position_embeddings": CONTEXT,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        context_length=CONTEXT,
    )
    text.tokenizer.vocab_size = VOCABULARY
    sigmoid = {"logit_scale_init": 2.3, "logit_scale_max": None, "logit_bias_init": -10.0}
    settings = {"duration": "20 steps", "learning_rate": 1e-3, "warmup": "4 steps", "precision": "fp32"} | compute
    return Config(
        model=ModelConfig(name="small", embed_dim=16, vision=vision, text=text),
        compute=ComputeConfig(name="small", global_batch=GLOBAL_BATCH, **settings),
        optimizer=OptimizerConfig(beta2=0.98, eps=1e-6, weight_decay=0.2),
        loss=LossConfig(name=loss, chunk=7, **(sigmoid if loss == "sigmoid" else {})),
        cluster=ClusterConfig(name="small", accelerator="cpu"),
    )


def teacher_run(folder: Path) -> Path:
    """The directory of a finished run: another width, other weights, and larger images than the small model's."""
    config = small_config(seed=5)
    config.model.embed_dim, config.model.vision.image_size = 24, 2 * IMAGE_SIZE
    config.data.name, config.data.kind, config.eval.name = "stream", "scenes", "none"
    weights = small_module(config).model.state_dict()
    folder.mkdir()
    (folder / "config.yaml").write_text(compose.dump(config))
    (folder / "status.json").write_text('{"status": "finished"}')
    parts = {"weights": {f"model.{name}": weight for name, weight in weights.items()}}
    assert CheckpointFolder(folder / "checkpoints", keep_last=1).save(480, parts, {})
    return folder


def config_with_batch_norm(group: int, micro_batch: int | None = None) -> Config:
    config = small_config()
    config.model.vision = VisionConfig(
        name="small",
        timm="resnet18",
        image_size=16,
        batch_norm=True,
        options={"channels": [8, 8, 16, 16], "stem_type": "deep", "stem_width": 8},
    )
    config.compute.batch_norm_samples = group
    config.cluster.micro_batch = micro_batch
    return config


def global_batch(step: int) -> Batch:
    """The batch of a step, the same in every process."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(3, CONTEXT + 1, (GLOBAL_BATCH,), generator=generator)
    tokens = torch.randint(3, VOCABULARY, (GLOBAL_BATCH, CONTEXT), generator=generator)
    tokens[:, 0] = 1
    tokens[torch.arange(GLOBAL_BATCH), lengths - 1] = 2
    tokens[torch.arange(CONTEXT) >= lengths[:, None]] = 0
    size = (GLOBAL_BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
    images = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    positions = step * GLOBAL_BATCH + torch.arange(GLOBAL_BATCH)
    return Batch(images, tokens, lengths, sample_ids=positions % EPOCH, positions=positions, num_cut=0)


def share(batch: Batch, rank: int, world: int) -> Batch:
    """What a rank gets of a global batch."""
    size = GLOBAL_BATCH // world
    return Batch(*(tensor[rank * size : (rank + 1) * size] for tensor in batch[:5]), num_cut=0)


class Stream(IterableDataset[Batch]):
    """This rank's batches of the steps from `first` to `last`."""

    def __init__(self, first: int, last: int) -> None:
        self.steps = range(first, last)

    def __iter__(self) -> Iterator[Batch]:
        return (share(global_batch(step), *rank_and_world()) for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)


class Recorder(ClipModule):
    """Keeps the numbers of every step and the first step's gradients before clipping."""

    def __init__(self, config: Config, lengths: Lengths | None = None) -> None:
        super().__init__(config, lengths)
        self.steps: list[StepMetrics] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def _clip(self) -> torch.Tensor:
        if not self.gradients:
            gradients = {name: parameter.grad for name, parameter in self.model.named_parameters()}
            self.gradients = {name: full_tensor(g.detach()).clone() for name, g in gradients.items() if g is not None}
        return super()._clip()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self.steps.append(self.last_step)


def small_module(config: Config, num_steps: int = 20) -> Recorder:
    return Recorder(config, Lengths(num_steps * GLOBAL_BATCH, EPOCH))


def fit(module: Recorder, stream: IterableDataset[Batch], strategy: Any = "auto", **trainer: Any) -> Trainer:
    """Trains as a run does."""
    lightning = Trainer(
        accelerator="cpu",
        devices=trainer.pop("devices", 1),
        strategy=strategy,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **trainer,
    )
    lightning.fit(module, DataLoader(stream, batch_size=None))
    return lightning


def check_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """The loss, and all gradients as one vector, to a relative `tolerance`.

    A single tensor, in which float32 towers round more, to three times that, or where it is small (it is 0 for the bias
    of keys) relative to 1 % of the whole gradient.
    """
    gradients = {name: value.double() for name, value in expected.items() if name != "losses"}
    whole = torch.cat([value.flatten() for value in gradients.values()]).norm()
    apart = {name: (found[name].double() - value).norm() for name, value in gradients.items()}
    assert torch.stack(list(apart.values())).norm() < tolerance * whole
    for name, value in gradients.items():
        assert apart[name] < 3 * tolerance * value.norm().clamp(min=0.01 * whole), (name, apart[name], value.norm())
    if "losses" in expected:
        torch.testing.assert_close(found["losses"], expected["losses"], rtol=tolerance, atol=0)


def run_rank(rank: int, world: int, folder: str, cases: list[dict[str, Any]]) -> None:
    """Trains every case under its strategy and saves rank 0's losses, first gradients, last weights and buffers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    results = {}
    for k, case in enumerate(cases):
        config = small_config(case["loss"])
        if "batch_norm_samples" in case:
            config = config_with_batch_norm(case["batch_norm_samples"])
        config.cluster.micro_batch, config.loss.teacher = case["micro_batch"], case.get("teacher")
        config.cluster.strategy, config.cluster.devices = case.get("strategy", "ddp"), world
        config.cluster.shard_size = case.get("shard_size")
        config.compute.ema_decay, config.compute.gradient_clip = case.get("ema_decay"), case.get("gradient_clip")
        config.compute.precision = case.get("precision", "fp32")
        config.model.vision.patch_dropout = config.model.vision.drop_path = case.get("drop", 0.0)
        config.model.text.pad_to_context = case.get("pad_to_context", False)
        config.model.vision.locked = config.model.text.locked = case.get("locked", False)
        spread: Any = strategy.build(config.cluster)
        spread.cluster_environment = _Started(rank, world)
        config.cluster.activation_checkpointing = case.get("activation_checkpointing", "none")
        module = small_module(config)
        fit(module, Stream(0, case.get("num_steps", 1)), spread, devices=world)
        average = module.ema.average if module.ema is not None else {}
        results[str(k)] = {
            "losses": torch.stack([step.loss for step in module.steps]),
            "accuracies": torch.stack([step.accuracy for step in module.steps]),
            **{f"gradient {name}": gradient for name, gradient in module.gradients.items()},
            **{f"buffer {name}": value for name, value in module.model.named_buffers()},
            **{f"weight {name}": full_tensor(value.detach()) for name, value in module.model.named_parameters()},
            **{f"average {name}": full_tensor(value) for name, value in average.items()},
        }
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


class _Started(LightningEnvironment):
    """Ranks that are there already."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        self.set_global_rank(rank)
        self.set_world_size(world)
        self._rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self._rank


if __name__ == "__main__":
    import json

    number, place, given = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    torch.multiprocessing.start_processes(run_rank, (number, place, given), nprocs=number, start_method="fork")
