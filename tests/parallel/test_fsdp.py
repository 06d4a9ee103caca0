"""What DDP computes FSDP2 computes: clipped gradients, averages, recomputed activations, lower precision."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SETTINGS = (
    {"gradient_clip": 0.05, "ema_decay": 0.9},
    # Padded, since FSDP2 groups no captions by length, and another shape of a product is another sum in 16 bits.
    {"precision": "bf16", "pad_to_context": True, "micro_batch": 6, "activation_checkpointing": "selective"},
    {"activation_checkpointing": "full", "locked": True, "micro_batch": 5},
)


@pytest.mark.ci
def test_three_steps_end_with_the_weights_of_ddp(root: Path, tmp_path: Path) -> None:
    base = {"loss": "softmax", "micro_batch": None, "num_steps": 3}
    cases = [base | settings | {"strategy": strategy} for settings in SETTINGS for strategy in ("ddp", "fsdp")]
    command = [sys.executable, "-m", "tests.support.small_run", "2", str(tmp_path), json.dumps(cases)]
    subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True, timeout=300)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for k, settings in enumerate(SETTINGS):
        whole, sharded = results[str(2 * k)], results[str(2 * k + 1)]
        assert whole.keys() == sharded.keys()
        # Adam turns the sign of a gradient near 0, which 16 bits leave to chance, into a whole step.
        names = [name for name in whole if "precision" not in settings or not name.startswith("weight")]
        tolerance = 1e-3 if "precision" in settings else 1e-5
        for name in names:
            apart = float((sharded[name] - whole[name]).abs().max())
            assert apart <= tolerance * float(whole[name].abs().max().clamp(min=1)), (settings, name, apart)
        assert any(name.startswith("average ") for name in whole) == ("ema_decay" in settings)
