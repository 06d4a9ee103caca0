"""Run by test_ranks.py as one process per rank: evaluates the small model and prints its records as JSON."""

import json
import sys
from dataclasses import asdict

import torch
import torch.distributed as dist
from conftest import CharacterTokenizer, SmallTowers, make_pairs, make_task

from clip_lightning.evaluation.ranks import rank_and_world, share
from clip_lightning.evaluation.retrieval import RetrievalEvaluator
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator


def main(rank: int, world: int, rendezvous: str) -> None:
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model, tokenizer, device = SmallTowers(), CharacterTokenizer(), torch.device("cpu")
    zero_shot = ZeroShotEvaluator(make_task(num_samples=103), 8, batch=20)
    few_images = ZeroShotEvaluator(make_task(num_samples=1, num_classes=2), 8)
    ids, num_counted = share(50)
    pairs = RetrievalEvaluator(make_pairs(ids[:num_counted], batch=8), candidates=16)
    records = [
        record for evaluator in (zero_shot, few_images, pairs) for record in evaluator.run(model, tokenizer, device)
    ]
    print(json.dumps({"rank": rank_and_world()[0], "records": [asdict(record) for record in records]}))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
