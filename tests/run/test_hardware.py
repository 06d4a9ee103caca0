"""Hardware on which a run would be slow is reported."""

import pytest
import torch

from clip_lightning.config.schema import ComputeConfig
from clip_lightning.run.hardware import precision_warning


@pytest.mark.parametrize(
    ("capability", "precision", "num"), [("AVX2", "bf16", 1), ("AVX2", "fp32", 0), ("AVX512", "bf16", 0)]
)
def test_a_cpu_that_emulates_bfloat16_is_reported(
    capability: str, precision: str, num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    found = precision_warning(ComputeConfig(precision=precision), "cpu")
    assert len(found) == num
    assert all("compute.precision=fp32" in line for line in found)
