"""The operations that a run records are those of its captions' own tokens, counted here caption by caption."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clip_lightning.config import compose
from clip_lightning.config.phases import Phase, phase_at
from clip_lightning.model.flops import count_flops
from clip_lightning.records import read_records
from clip_lightning.run.console.throughput import Costs, Throughput
from clip_lightning.run.plan.preflight import build_datamodule
from clip_lightning.run.tokenizer import prepare_tokenizer

pytestmark = pytest.mark.slow


def recorded_flops(run: Path) -> list[float]:
    """Of each logged step of 16 samples."""
    rows = read_records(run / "metrics.jsonl")
    speed, flops = (
        {row.samples_seen: row.value for row in rows if row.what == what}
        for what in ("samples_per_second", "flops_per_second")
    )
    return [16 * flops[seen] / speed[seen] for seen in sorted(speed)]


def counted_flops(run: Path) -> list[float]:
    """Of the same steps: every caption by itself, read from the data once more."""
    config = compose.read(run / "config.yaml")
    datamodule = build_datamodule(config)
    datamodule.tokenizer = prepare_tokenizer(config, run / "tokenizer", datamodule)

    @cache
    def of_sample(phase: Phase, num_tokens: int) -> float:
        return 3 * sum(count_flops(config.model, config.loss, phase._replace(context_length=num_tokens)))

    steps = []
    for batch in datamodule.train_dataloader():
        phase = phase_at(datamodule.phases, int(batch.positions[0]))
        whole = phase.context_length if config.model.text.pad_to_context else None
        steps.append(sum(of_sample(phase, whole or num_tokens) for num_tokens in batch.lengths.tolist()))
    return steps


@pytest.mark.ci
@pytest.mark.parametrize("pad_to_context", [False, True])
def test_recorded_operations_are_those_of_the_captions(runner: Any, tmp_path: Path, pad_to_context: bool) -> None:
    runner.train(tmp_path, "model=tiny", f"model.text.pad_to_context={pad_to_context}")
    found = recorded_flops(tmp_path / "latest")
    assert found == pytest.approx(counted_flops(tmp_path / "latest"), rel=1e-9)
    assert (len(set(map(round, found))) == 1) == pad_to_context


def test_an_error_shows_the_first_sample_ids_of_a_large_batch() -> None:
    nothing: Any = None
    throughput = Throughput(lambda *_: None, nothing, Costs(lambda _: 0.0, None), every=1, pauses=lambda: 0.0)
    throughput._batch = SimpleNamespace(sample_ids=torch.arange(32_768))  # type: ignore[assignment]
    error, module = ValueError("broken"), SimpleNamespace(global_rank=1, samples_seen=64)
    throughput.on_exception(nothing, module, error)  # type: ignore[arg-type]
    (note,) = error.__notes__
    assert note.startswith("rank 1, 64 samples seen, sample ids [0, 1, 2, ")
    assert note.endswith(" 15] and 32,752 more")
