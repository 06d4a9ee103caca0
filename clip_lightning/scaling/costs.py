"""FLOPs of a training sample, both towers and the loss, from the table of `python -m clip_lightning.model.flops`.

models.csv is that command's output for all named models (`--csv`), so that planning needs no torch; another model, or
that of a run's config, is counted by the command itself in a process of its own.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path

import pandas as pd

from clip_lightning.errors import UserError

# Dense bfloat16 peak of one device in FLOP/s. Source: NVIDIA's data sheets (SXM versions).
DEVICES = {"h100": 989.4e12, "h200": 989.4e12, "a100": 312e12, "v100": 125e12}
# Forward and backward; the backward pass costs twice the forward pass.
TRAINING_FACTOR = 3


@dataclass(frozen=True)
class Cost:
    """One model.

    Attributes:
        image_flops, text_flops: of a forward pass of one image and one text of the full context.
        parameters: of both towers.
        embed_dim: width of the shared space.
    """

    name: str
    image_flops: float
    text_flops: float
    parameters: int
    embed_dim: int

    def towers(self, image_locked: bool = False, text_locked: bool = False) -> float:
        """Model FLOPs of a training sample in the towers; a locked one has no backward pass."""
        image = self.image_flops * (1 if image_locked else TRAINING_FACTOR)
        return image + self.text_flops * (1 if text_locked else TRAINING_FACTOR)

    def per_sample(self, global_batch: int) -> float:
        """Model FLOPs of a training sample: the towers, and the B x B logits of the loss, 6 B D for a pair."""
        return self.towers() + 6 * global_batch * self.embed_dim


@cache
def _carried() -> dict[str, Cost]:
    return _parse((Path(__file__).parent / "models.csv").read_text(encoding="utf-8"))


def of_models(names: Sequence[str]) -> list[Cost]:
    """Costs of named models, in the order given.

    Raises: UserError: a name is unknown.
    """
    missing = [name for name in names if name not in _carried()]
    found = _carried() | (_count(missing) if missing else {})
    return [found[name] for name in names]


def of_config(path: Path) -> Cost:
    """The cost of the model in a run's config.yaml. Raises: UserError: it cannot be built."""
    return _count(["--config", str(path)])[str(path)]


def of_phases(path: Path) -> list[Cost]:
    """The costs of the model in a run's config.yaml: at its own sizes, then in each phase. Raises: UserError."""
    return list(_count(["--config", str(path)]).values())


def _count(arguments: Sequence[str]) -> dict[str, Cost]:
    command = [sys.executable, "-m", "clip_lightning.model.flops", "--csv", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the FLOPs of {' '.join(arguments)} cannot be counted: {reason}")
    return _parse(done.stdout)


def _parse(text: str) -> dict[str, Cost]:
    return {
        str(row.model): Cost(str(row.model), row.image_flops, row.text_flops, int(row.parameters), int(row.embed_dim))
        for row in pd.read_csv(StringIO(text)).itertuples()
    }
