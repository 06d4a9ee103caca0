"""Retrieval, compositional tasks and features are those of one process on two and three ranks, to the bit."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.evaluation.caption_retrieval import CaptionRetrievalEvaluator
from clip_lightning.evaluation.compositional import CompositionalEvaluator
from clip_lightning.evaluation.features import FeatureStore, image_features, images_hash

pytestmark = pytest.mark.slow


def measure(rank: int, world: int, folder: Path) -> None:
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.manual_seed(0)
    model, tokenizer, device = SmallTowers(), CharacterTokenizer(), torch.device("cpu")
    task = make_task(41)

    def damaged(k: int) -> np.ndarray:
        if k in (5, 40):
            raise BadSample("truncated image")
        return task.read(k)

    records = [
        record
        for evaluator in (
            CaptionRetrievalEvaluator(task, 8, batch=8),
            CaptionRetrievalEvaluator(make_task(41, read=damaged), 8, batch=8),
            CaptionRetrievalEvaluator(make_task(3), 8, batch=8),
            CompositionalEvaluator(drawn_task(2, 9), 8, batch=4),
        )
        for record in evaluator.run(model, tokenizer, device)
    ]
    store = FeatureStore(folder / f"features_{world}")
    arguments = {"image_size": 8, "batch": 4, "part": "projected", "store": store}
    made = image_features(model, make_task(41, read=damaged), 41, device, **arguments)
    read = image_features(model, make_task(41, read=damaged), 41, device, **arguments)
    assert np.array_equal(made.values, read.values)
    result = {
        "records": [asdict(record) for record in records],
        "kept": made.kept.tolist(),
        "features": made.values.tobytes().hex(),
        "images": images_hash(task, 41, batch=8),
    }
    (folder / f"{rank}_of_{world}.json").write_text(json.dumps(result))
    if world > 1:
        dist.destroy_process_group()


def test_ranks_give_the_results_of_one_process(tmp_path: Path, root: Path) -> None:
    paths = f"{root}{os.pathsep}{Path(__file__).parent}"
    subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=300
    )
    alone = json.loads((tmp_path / "0_of_1.json").read_text())
    assert len(alone["records"]) == 7 + 7 + 7 + 3
    assert len(alone["kept"]) == 39
    for world in (2, 3):
        for rank in range(world):
            assert json.loads((tmp_path / f"{rank}_of_{world}.json").read_text()) == alone


if __name__ == "__main__":  # imported once, before the forks
    from conftest import CharacterTokenizer, SmallTowers
    from test_caption_retrieval import make_task
    from test_compositional import drawn_task

    for size in (1, 2, 3):
        torch.multiprocessing.start_processes(measure, (size, Path(sys.argv[1])), nprocs=size, start_method="fork")
