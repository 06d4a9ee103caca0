"""Two ONNX graphs, `image.onnx` and `text.onnx`; their inputs and outputs are those of `graphs`."""

import warnings
from pathlib import Path

import torch

from clip_lightning.errors import UserError
from clip_lightning.export import graphs
from clip_lightning.training.any_model import OpenedModel

_OPSET = 20


def export(opened: OpenedModel, folder: Path) -> None:
    """Writes both graphs, with what `graphs.about` says as metadata of each.

    Raises: UserError: the packages onnx and onnxscript are missing, or torch cannot trace a tower.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx writes with it
    except ImportError as error:
        raise UserError("--to onnx needs onnx and onnxscript; pip install clip_lightning[export]") from error
    facts = graphs.about(opened)
    for name, program in graphs.trace(opened):
        path = folder / f"{name}.onnx"
        _write(name, program, path)
        graph = onnx.load(path)
        onnx.helper.set_model_props(graph, facts)
        onnx.save(graph, path)


def _write(name: str, program: torch.export.ExportedProgram, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program,
                f=path,
                input_names=graphs.INPUTS[name],
                output_names=[graphs.OUTPUTS[name]],
                opset_version=_OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch.onnx raises exceptions of many kinds
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"torch cannot write {path.name} of this model ({reason})") from error
