"""Run by test_ranks.py: evaluates the small model on one to four ranks, each rank a fork that writes its records."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from conftest import CharacterTokenizer, SmallTowers, make_pairs, make_task

from clip_lightning.distributed import padded_share
from clip_lightning.evaluation.retrieval import RetrievalEvaluator
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator


def evaluate(rank: int, world: int, folder: Path) -> None:
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.manual_seed(0)
    model, tokenizer, device = SmallTowers(), CharacterTokenizer(), torch.device("cpu")
    zero_shot = ZeroShotEvaluator(make_task(num_samples=103), 8, batch=20)
    cranes = ZeroShotEvaluator(make_task(names=["crane", "ox", "crane", "ox", "ewe", "crane", "a"]), 8, batch=7)
    damaged = replace(
        make_task(num_samples=150),
        groups=np.arange(150) // 50,
        group_names=["a", "b", "c"],
        metric="worst_group_acc1",
        read=lambda k: b"?" if k in (3, 40, 90) else np.full((8, 8, 3), k, dtype=np.uint8),
    )
    with_groups = ZeroShotEvaluator(damaged, 8)
    two_classes = replace(make_task(num_classes=2, names=["a", "b"]), metric="roc_auc")
    auc = ZeroShotEvaluator([two_classes, make_task()], 8)
    few_images = ZeroShotEvaluator(make_task(num_samples=1, num_classes=2), 8)
    ids, num_counted = padded_share(50)
    pairs = RetrievalEvaluator(make_pairs(ids[:num_counted], batch=8), candidates=16)
    records = [
        record
        for evaluator in (zero_shot, cranes, few_images, with_groups, auc, pairs)
        for record in evaluator.run(model, tokenizer, device)
    ]
    (folder / f"{rank}_of_{world}.json").write_text(json.dumps([asdict(record) for record in records]))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    for size in (1, 2, 3, 4):
        torch.multiprocessing.start_processes(evaluate, (size, Path(sys.argv[1])), nprocs=size, start_method="fork")
