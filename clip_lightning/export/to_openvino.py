"""Two OpenVINO models, `image.xml` and `text.xml` with their `.bin` files; inputs and outputs are those of `graphs`."""

import warnings
from pathlib import Path

from clip_lightning.errors import UserError
from clip_lightning.export import graphs
from clip_lightning.training.any_model import OpenedModel


def export(opened: OpenedModel, folder: Path) -> None:
    """Writes both models in float32, with what `graphs.about` says as runtime information of each.

    Raises: UserError: the package openvino is missing, or a tower cannot be traced or converted.
    """
    try:
        import openvino
    except ImportError as error:
        raise UserError("--to openvino needs openvino; pip install clip_lightning[export]") from error
    facts = graphs.about(opened)
    for name, program in graphs.trace(opened):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = openvino.convert_model(program)
        except Exception as error:  # its frontends raise exceptions of many kinds
            lines = str(error).strip().split("\n")
            reason = next((line.strip("- ") for line in lines if "No conversion rule" in line), lines[0])
            raise UserError(
                f"openvino cannot convert the {name} tower of this model ({reason}); --to onnx may hold it"
            ) from error
        for port, tensor_name in zip(model.inputs, graphs.INPUTS[name], strict=True):
            port.get_tensor().set_names({tensor_name})
        model.outputs[0].get_tensor().set_names({graphs.OUTPUTS[name]})
        for key, value in facts.items():
            model.set_rt_info(value, ["model_info", key])
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=False)
