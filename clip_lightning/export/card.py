"""The model card of an export: README.md with the Hub's metadata, filled from the run; the licence is the person's."""

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.constants import EVAL_RESULTS_FOLDER

from clip_lightning.config import described
from clip_lightning.records import read_records
from clip_lightning.reliability import provenance
from clip_lightning.training.any_model import OpenedModel

_LIBRARIES = {
    "transformers": ("transformers", 'AutoModel.from_pretrained("{}"), AutoProcessor.from_pretrained("{}")'),
    "open_clip": ("open_clip", 'open_clip.create_model_from_pretrained("local-dir:{}")'),
    "timm": ("timm", 'timm.create_model("local-dir:{}", pretrained=True)'),
    "sentence-transformers": ("sentence-transformers", 'SentenceTransformer("{}")'),
    "onnx": ("onnx", 'onnxruntime.InferenceSession("{}/image.onnx")'),
    "openvino": ("openvino", 'openvino.compile_model("{}/image.xml", "CPU")'),
    "executorch": ("executorch", 'executorch.runtime.Runtime.get().load_program("{}/image.pte")'),
    "safetensors": ("clip_lightning", 'clip_lightning.load("{}")'),
}


def write(opened: OpenedModel, folder: Path, library: str, checked: str, final_name: str) -> None:
    """Writes README.md.

    Args: checked: what the check after writing found. final_name: of the folder once it is complete.
    """
    name, call = _LIBRARIES[library]
    scores = _scores(opened)
    metadata: dict[str, Any] = {
        "library_name": name,
        "pipeline_tag": "image-feature-extraction" if library == "timm" else "zero-shot-image-classification",
        "tags": ["clip", "clip_lightning"],
        "license": "other # write the licence of these weights",
    }
    if scores:
        metadata["model-index"] = [{"name": _name(opened), "results": [_result(score) for score in scores]}]
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).replace(
        "'other # write the licence of these weights'", "other # write the licence of these weights"
    )
    lines = [f"---\n{head}---\n", f"# {_name(opened)}\n", *_about(opened)]
    lines += ["\n## Use\n", f"```python\n{call.replace('{}', final_name)}\n```\n"]
    lines += ["\n## Zero-shot scores\n", *_table(scores)] if scores else []
    lines += ["\n## Check after the export\n", f"{library} against clip_lightning: {checked}.\n"]
    lines += ["\n## Versions\n", f"{provenance.versions_line(provenance.versions())}\n"]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
    if scores:
        _write_results(scores, folder)


def _write_results(scores: list[Any], folder: Path) -> None:
    """The scores in the Hub's newer form, `.eval_results/*.yaml`, one file per task.

    A folder in CLIP_benchmark's layout has the name of its data set there; other tasks have no data set on the Hub, and
    their names are ours.
    """
    for task in dict.fromkeys(score.task for score in scores):
        entries = [
            EvalResultEntry(
                dataset_id=f"clip-benchmark/{task}" if task.startswith("wds_") else task,
                task_id=f"{score.split}_{score.what}",
                value=score.value,
                notes=f"zero-shot, prompts {score.prompts or 'own'}, {score.n or 0:,} images",
            )
            for score in scores
            if score.task == task
        ]
        file = folder / EVAL_RESULTS_FOLDER / f"{task}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")


def _name(opened: OpenedModel) -> str:
    return opened.folder.name if opened.folder is not None else opened.config.name


def _about(opened: OpenedModel) -> list[str]:
    """What was trained, on what, for how long."""
    parameters = sum(parameter.numel() for parameter in opened.model.parameters())
    rows = {
        **described.of_model(opened.config),
        "parameters": f"{parameters / 1e6:,.2f} M",
        "logit scale": f"{float(opened.model.current_logit_scale()):.4g}",
    }
    if opened.model.logit_bias is not None:
        rows["logit bias"] = f"{float(opened.model.logit_bias):.4g}"
    if opened.run is not None:
        rows |= described.of_training(opened.run)
    if opened.samples_seen is not None:
        rows["samples seen"] = f"{opened.samples_seen:,}"
    rows |= _summary(opened)
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]


def _summary(opened: OpenedModel) -> dict[str, str]:
    """FLOPs of the run, where its summary has them."""
    path = opened.folder / "summary.json" if opened.folder is not None else None
    if path is None or not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    flops = content.get("training_flops") or content.get("flops")
    return {"training FLOPs": f"{float(flops):.3g}"} if flops else {}


def _scores(opened: OpenedModel) -> list[Any]:
    """The newest records of accuracy, one per task and metric."""
    if opened.folder is None:
        return []
    newest: dict[tuple[str, str], Any] = {}
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        file = opened.folder / name
        for record in read_records(file) if file.is_file() else []:
            if record.what in ("acc1", "acc5", "mean_per_class") and record.samples_seen == opened.samples_seen:
                newest[record.task, record.what] = record
    return list(newest.values())


def _table(scores: list[Any]) -> list[str]:
    rows = ["| task | metric | value | 95 % interval | n |", "|---|---|---|---|---|"]
    for score in scores:
        low, high = score.low, score.high
        interval = f"{100 * low:.1f} to {100 * high:.1f} %" if low is not None and high is not None else ""
        counted = f"{score.n:,}" if score.n is not None else ""
        rows.append(f"| {score.task} | {score.what} | {100 * score.value:.1f} % | {interval} | {counted} |")
    return rows


def _result(score: Any) -> dict[str, Any]:
    return {
        "task": {"type": "zero-shot-image-classification"},
        "dataset": {"name": score.task, "type": score.task},
        "metrics": [{"type": score.what, "value": float(score.value)}],
    }
