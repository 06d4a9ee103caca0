"""The evaluator: exact counts, each image decoded once, model and random states unchanged."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import multiclass_calibration_error as calibration_error

from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.inference import inference
from clip_lightning.evaluation.prediction_table import write_predictions
from clip_lightning.evaluation.predictions import predictions
from clip_lightning.evaluation.tasks import ZeroShotTask, folder_task, warnings_of
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
from clip_lightning.records import metric_name
from tests.support.small_folder import encoded, write_folder

CPU = torch.device("cpu")


def logits_by_hand(model: Any, tokenizer: Any, task: ZeroShotTask) -> torch.Tensor:
    model.eval()
    rows = []
    for name in task.classnames:
        prompts = tokenizer([template.replace("{c}", name) for template in task.templates])
        row = model.encode_text(torch.from_numpy(prompts.tokens), torch.from_numpy(prompts.lengths)).mean(0)
        rows.append(row / row.norm())
    images = torch.stack([task.image(k, 8) for k in range(task.num_samples)])
    return (model.encode_image(images) @ torch.stack(rows).T).detach()


def test_accuracy_is_the_share_of_images_nearest_to_their_class(model: Any, tokenizer: Any, task: ZeroShotTask) -> None:
    acc1, acc5, mean_per_class, ece = ZeroShotEvaluator(task, 8, batch=10).run(model, tokenizer, CPU)
    logits = logits_by_hand(model, tokenizer, task)
    hits = logits.argmax(1).numpy() == task.labels
    assert acc1.value == hits.mean()
    assert acc5.value == (logits.topk(5).indices.numpy() == task.labels[:, None]).any(1).mean()
    assert mean_per_class.value == pytest.approx(np.mean([hits[task.labels == c].mean() for c in range(7)]))
    probabilities = (model.log_logit_scale.exp() * logits).softmax(1)
    assert ece.value == pytest.approx(
        calibration_error(probabilities, torch.from_numpy(task.labels), 7).item(), abs=1e-5
    )
    assert (acc1.what, acc1.task, acc1.split, acc1.n, acc1.chance) == ("acc1", "noise", "test", 103, 1 / 7)


def test_images_are_decoded_once_where_they_fit(model: Any, tokenizer: Any, task: ZeroShotTask) -> None:
    read: list[int] = []

    def counted(k: int) -> bytes | np.ndarray:
        read.append(k)
        return task.read(k)

    kept = ZeroShotEvaluator(replace(task, read=counted), 8, batch=20)
    assert kept.run(model, tokenizer, CPU) == kept.run(model, tokenizer, CPU)
    assert sorted(read) == list(range(103))
    read.clear()
    not_kept = ZeroShotEvaluator(replace(task, read=counted), 8, batch=20, budget=MemoryBudget(0))
    assert not_kept.run(model, tokenizer, CPU) == not_kept.run(model, tokenizer, CPU)
    assert len(read) == 206


def test_all_evaluators_of_a_rank_share_one_budget(model: Any, tokenizer: Any, task: ZeroShotTask) -> None:
    budget = MemoryBudget(250 * 3 * 64)
    evaluators = [ZeroShotEvaluator(task, 8, budget=budget) for _ in range(3)]
    for evaluator in [*evaluators, *evaluators]:
        evaluator.run(model, tokenizer, CPU)
    kept = [sum(len(images) for images in evaluator.images._kept.values()) for evaluator in evaluators]
    assert kept == [103, 103, 32 + 7]
    assert budget.free == 5 * 3 * 64


class Oracle(torch.nn.Module):
    """Features that name their class: of an image by its first pixel, of a text by its first letter."""

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 64).float()

    def encode_text(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(tokens[:, 1], 64).float()

    def current_logit_scale(self) -> torch.Tensor:
        return torch.ones(1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_changes_nothing(tokenizer: Any, tmp_path: Path, encoding: str) -> None:
    folder = write_folder(tmp_path / "letters")
    for name, text in (("classnames.txt", "abc\nbcd\ncde\n"), ("zeroshot_classification_templates.txt", "{c}\n")):
        (folder / name).write_text(text, encoding=encoding)
    images = np.array([tokenizer([letter]).tokens[0, 1] for letter in "abc"], dtype=np.uint8)
    task = replace(folder_task(folder), read=lambda k: np.full((8, 8, 3), images[task.labels[k]]))
    assert ZeroShotEvaluator(task, 8).run(Oracle(), tokenizer, CPU)[0].value == 1.0


def test_two_classes_of_one_name_share_their_hits_in_any_order(tokenizer: Any) -> None:
    names, labels = ["crane", "ox", "Crane", "ewe"], np.array([0, 0, 1, 1, 2, 2, 3, 3])
    results = []
    for order in ([0, 1, 2, 3], [2, 1, 0, 3], [3, 0, 2, 1]):
        shown = [names[k].lower() for k in order]
        of_image = [tokenizer([names[label].lower()]).tokens[0, 1] for label in labels]
        task = ZeroShotTask("cranes", shown, ["{c}"], np.argsort(order)[labels],
                            lambda k, ids=of_image: np.full((8, 8, 3), ids[k], dtype=np.uint8))  # fmt: skip
        records = ZeroShotEvaluator(task, 8).run(Oracle(), tokenizer, CPU)
        assert [shown[k] for k in task.repeated_names[0][1]] == ["crane", "crane"]
        (sentence,) = warnings_of([task])
        assert "'crane'" in sentence
        assert records[2].per_class is not None
        recalls = dict(zip(order, records[2].per_class, strict=True))
        assert recalls == {0: 0.5, 1: 1.0, 2: 0.5, 3: 1.0}
        results.append([record.value for record in records[:3]])
    assert results[0] == results[1] == results[2] == [0.75, 1.0, 0.75]


def test_records_distinguish_prompts_of_one_name(model: Any, tokenizer: Any, task: ZeroShotTask) -> None:
    variants = [task, replace(task, classnames=["rot", *task.classnames[1:]]), replace(task, templates=["{c}"])]
    hashes = {
        record.prompts_hash
        for variant in variants
        for record in ZeroShotEvaluator(variant, 8).run(model, tokenizer, CPU)
    }
    assert len(hashes) == 3
    assert {len(found) for found in hashes} == {8}


def test_evaluation_does_not_change_modes_and_random_states(model: Any, tokenizer: Any, task: ZeroShotTask) -> None:
    def disturbing(k: int) -> bytes | np.ndarray:
        random.random(), np.random.rand(), torch.rand(1)
        return task.read(k)

    model.train()
    model.text.eval()
    expected_modes = [module.training for module in model.modules()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    ZeroShotEvaluator(replace(task, read=disturbing), 8).run(model, tokenizer, CPU)
    assert [module.training for module in model.modules()] == expected_modes
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_are_restored_after_an_error(model: Any) -> None:
    model.train()
    with pytest.raises(ZeroDivisionError), inference(model, CPU):
        _ = 1 / 0
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


SETS = {"contextless": ["{c}"], "single": ["a photo of a {c}."], "own": ["a {c} thing", "the {c}"]}


def test_features_are_computed_once_for_all_tasks_and_prompt_sets(
    model: Any, tokenizer: Any, task: ZeroShotTask
) -> None:
    other = replace(task, name="few", classnames=["cold", "warm"], labels=task.labels % 2)
    num_seen = 0

    class Watched(type(model)):  # type: ignore[misc]
        def encode_image(self, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
            nonlocal num_seen
            num_seen += len(images)
            return super().encode_image(images, normalize)

    watched = Watched()
    watched.load_state_dict(model.state_dict())
    several = ZeroShotEvaluator([replace(task, prompt_sets=SETS), other], 8, batch=20, prompt_sets=True)
    records = several.run(watched, tokenizer, CPU)
    assert num_seen == 103
    assert several.name == "noise, few"
    found = {(r.task, r.variant): r.value for r in records if r.what == "acc1"}
    assert list(found) == [("noise", ""), ("noise", "contextless"), ("noise", "single"), ("few", "")]
    for key, one in {
        ("noise", ""): task,
        ("noise", "contextless"): replace(task, templates=["{c}"]),
        ("noise", "single"): replace(task, templates=SETS["single"]),
        ("few", ""): other,
    }.items():
        assert found[key] == ZeroShotEvaluator(one, 8).run(model, tokenizer, CPU)[0].value
    assert {metric_name(r) for r in records} >= {"noise/acc1", "noise/contextless/acc1", "few/ece"}
    assert {r.prompts for r in records if r.variant == "single"} == {"single"}


def test_tasks_that_cannot_be_measured_are_refused(task: ZeroShotTask) -> None:
    for wrong, sentence in {
        "share images": [task, replace(task, labels=task.labels[:5])],
        "no metric f2; it is one of acc1": [replace(task, metric="f2")],
        "needs a group": [replace(task, metric="pm")],
        r"needs labels bool \[n, classes\]": [replace(task, metric="map11")],
        "one label per image": [replace(task, labels=np.zeros((3, 7), dtype=bool))],
        "is of two classes": [replace(task, metric="roc_auc")],
        "2 groups for 103 images": [replace(task, groups=np.zeros(2, dtype=np.int64))],
    }.items():
        with pytest.raises(DataError, match=wrong):
            ZeroShotEvaluator(sentence, 8)


@pytest.mark.parametrize("batch", [1, 10, 256])
def test_images_that_cannot_be_read_are_counted_and_named(
    model: Any, tokenizer: Any, task: ZeroShotTask, batch: int
) -> None:
    def failing(k: int) -> bytes | np.ndarray:
        if k == 17:
            raise OSError(5, "Input/output error")
        return encoded(7)[:40] if k in (5, 50) else task.read(k)

    records = ZeroShotEvaluator(replace(task, read=failing, num_expected=103), 8, batch=batch).run(
        model, tokenizer, CPU
    )
    kept = np.setdiff1d(np.arange(103), [5, 17, 50])
    hits = logits_by_hand(model, tokenizer, task).argmax(1).numpy() == task.labels
    assert (records[0].value, records[0].n) == (pytest.approx(hits[kept].mean()), 100)
    assert {record.n for record in records} == {100}
    (note,) = {record.note for record in records}
    assert note.startswith("3 of 103 images could not be read and are not counted; the first is image 5 (")
    assert note.endswith("100 images were evaluated, and the set is known to have 103.")


def test_a_set_without_a_readable_image_is_refused(model: Any, tokenizer: Any, task: ZeroShotTask) -> None:
    with pytest.raises(DataError, match="noise: 0 of 103 images could be read; the first is image 0 "):
        ZeroShotEvaluator(replace(task, read=lambda k: b"?"), 8).run(model, tokenizer, CPU)


def test_records_say_what_the_set_is(model: Any, tokenizer: Any, task: ZeroShotTask) -> None:
    (note,) = {
        record.note
        for record in ZeroShotEvaluator(
            replace(task, stand_in="Its class list was never published", num_expected=2_000, names_from="a file"), 8
        ).run(model, tokenizer, CPU)
    }
    assert note == (
        "Its class list was never published. 103 images were evaluated, and the set is known to have 2,000."
    )
    record = ZeroShotEvaluator(replace(task, names_from="a file"), 8).run(model, tokenizer, CPU)[0]
    assert (record.note, record.names_from, record.transform) == ("", "a file", "8 shortest bicubic")


def test_labels_of_a_wider_classifier_take_the_largest_logit(model: Any, tokenizer: Any, task: ZeroShotTask) -> None:
    allowed = np.zeros((7, 3), dtype=bool)
    allowed[[0, 1, 4, 5], [0, 0, 1, 1]] = True  # no class counts as label 2, two count as none
    labels = task.labels % 3
    records = ZeroShotEvaluator(replace(task, labels=labels, allowed=allowed), 8).run(model, tokenizer, CPU)
    logits = logits_by_hand(model, tokenizer, task)
    pooled = torch.stack([logits[:, [0, 1]].amax(1), logits[:, [4, 5]].amax(1)], dim=1).argmax(1).numpy()
    found = {record.what: record for record in records}
    assert found["acc1"].value == pytest.approx((pooled == labels).mean())
    assert found["acc1"].chance == pytest.approx(1 / 3)
    assert found["acc1_all_classes"].value == pytest.approx(allowed[logits.argmax(1), labels].mean())


def test_several_labels_per_image_are_measured(model: Any, tokenizer: Any, task: ZeroShotTask) -> None:
    labels = np.random.default_rng(4).random((103, 7)) < 0.3
    evaluator = ZeroShotEvaluator(replace(task, labels=labels, metric="map11"), 8, batch=30, keep_predictions=True)
    records = {record.what: record for record in evaluator.run(model, tokenizer, CPU)}
    logits = logits_by_hand(model, tokenizer, task)
    expected = [average_precision_score(labels[:, k], logits[:, k]) for k in range(7)]
    assert list(records) == ["map", "map11"]
    assert records["map"].value == pytest.approx(np.mean(expected), abs=1e-4)
    (table,) = evaluator.predictions
    assert table.column("correct").to_pylist() == labels[np.arange(103), logits.argmax(1)].astype(float).tolist()


def test_predictions_are_kept_on_request(model: Any, tokenizer: Any, task: ZeroShotTask, tmp_path: Path) -> None:
    damaged = replace(task, read=lambda k: b"?" if k == 2 else task.read(k), prompt_sets=SETS)
    evaluator = ZeroShotEvaluator(damaged, 8, batch=10, prompt_sets=True, keep_predictions=True)
    evaluator.run(model, tokenizer, CPU)
    assert [table.column("prompts")[0].as_py() for table in evaluator.predictions] == ["own", "contextless", "single"]
    path = write_predictions(evaluator.predictions, tmp_path, samples_seen=64)
    table = pq.read_table(path)
    assert table.schema.metadata == {b"samples_seen": b"64"}
    rows = [row for row in table.to_pylist() if row["prompts"] == "own"]
    probabilities = (model.log_logit_scale.exp() * logits_by_hand(model, tokenizer, task)).softmax(1)
    assert [row["index"] for row in rows] == [k for k in range(103) if k != 2]
    for row in rows:
        label = int(task.labels[row["index"]])
        assert (row["task"], row["split"], row["key"], row["label"]) == ("noise", "test", str(row["index"]), label)
        assert row["predicted"] == probabilities[row["index"]].argmax()
        assert row["correct"] == float(row["predicted"] == label)
        assert row["probability"] == pytest.approx(probabilities[row["index"], label].item(), rel=1e-5)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_features_that_are_not_numbers_are_refused(model: Any, tokenizer: Any, task: ZeroShotTask, tower: str) -> None:
    with torch.no_grad():
        getattr(model, tower)[-1].weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"103 of 103 features|7 of 7 features"):
        ZeroShotEvaluator(task, 8).run(model, tokenizer, CPU)


def test_bf16_towers_still_give_float32_logits(model: Any, tokenizer: Any, task: ZeroShotTask) -> None:
    records = ZeroShotEvaluator(task, 8, precision="bf16").run(model, tokenizer, CPU)
    assert {record.precision for record in records} == {"bf16"}
    agree = logits_by_hand(model, tokenizer, task).argmax(1).numpy() == task.labels
    assert records[0].value == pytest.approx(agree.mean(), abs=0.05)


def test_predictions_are_the_softmax_at_the_models_scale(model: Any, tokenizer: Any, task: ZeroShotTask) -> None:
    rows = predictions(model, tokenizer, task, [4, 50], CPU, image_size=8)
    probabilities = (model.log_logit_scale.exp() * logits_by_hand(model, tokenizer, task)).softmax(1)
    for row, k in zip(rows, [4, 50], strict=True):
        label = int(task.labels[k])
        order = probabilities[k].argsort(descending=True).tolist()
        assert np.array_equal(row.image, task.image(k, 8).permute(1, 2, 0).numpy())
        assert (row.label, row.num_classes) == (task.classnames[label], 7)
        assert row.rank == order.index(label) + 1
        assert row.probability == pytest.approx(probabilities[k, label].item(), rel=1e-5)
        assert row.prompts == [f"a {task.classnames[c]} thing" for c in order[:5]]
        assert row.probabilities == pytest.approx(probabilities[k, order[:5]].tolist(), rel=1e-5)
        assert row.correct == (order.index(label) if label in order[:5] else None)


def test_photographs_give_clip_benchmarks_numbers(model: Any, tokenizer: Any, photographs: Path) -> None:
    from clip_benchmark.metrics import zeroshot_classification as peer

    whole = folder_task(photographs / "wds_cifar10")
    task = replace(whole, labels=whole.labels[:512])
    records = ZeroShotEvaluator(task, 32).run(model, tokenizer, CPU)

    class Loaded:
        def __init__(self, texts: list[str]) -> None:
            batch = tokenizer(texts)
            self.tokens, self.lengths = torch.from_numpy(batch.tokens), torch.from_numpy(batch.lengths)

        def to(self, device: str) -> "Loaded":
            return self

    class Peer:
        def encode_text(self, texts: Loaded) -> torch.Tensor:
            return model.encode_text(texts.tokens, texts.lengths)

        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            return model.encode_image(images)

    model.eval()
    images = torch.stack([task.image(k, 32) for k in range(512)])
    weights = peer.zero_shot_classifier(Peer(), Loaded, list(task.classnames), list(task.templates), "cpu", amp=False)
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, torch.from_numpy(task.labels)), batch_size=100
    )
    logits, target = peer.run_classification(Peer(), weights, batches, "cpu", amp=False)
    assert records[0].value == (logits.argmax(1) == target).double().mean().item()
    assert records[1].value == (logits.topk(5).indices == target[:, None]).any(1).double().mean().item()
