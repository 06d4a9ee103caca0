"""A fit that runs until a signal: argument 1 is the number of ranks; with `deaf` only a second Ctrl-C helps."""

import os
import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from clip_lightning.reliability.preemption import PreemptionCallback, StopSignals


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        time.sleep(0.02)
        print(f"step {batch_idx}", flush=True)
        return self.layer(batch).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_train_end(self) -> None:
        # One write for the line and its end: two ranks share the pipe.
        os.write(1, f"train end of rank {self.global_rank} at {self.trainer.global_step}\n".encode())


class Deaf(PreemptionCallback):
    def _agreed(self) -> tuple[int, bool]:
        return 0, False


signals = StopSignals()
ranks = int(sys.argv[1])
callback = (Deaf if "deaf" in sys.argv else PreemptionCallback)(signals)
trainer = Trainer(
    accelerator="cpu",
    devices=ranks,
    strategy="ddp" if ranks > 1 else "auto",
    callbacks=[callback],
    max_epochs=1,
    min_epochs=0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
with signals:
    trainer.fit(Module(), DataLoader(torch.zeros(100_000, 1), batch_size=1))
sys.exit(signals.exit_code if trainer.global_rank == 0 else 0)
