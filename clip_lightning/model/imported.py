"""A whole model's weights from elsewhere, `model.pretrained`: read, converted, resized, and every key accounted for.

The logit scale and bias come with the weights: the scale is clamped to the run's maximum, a softmax run drops the bias,
and a sigmoid run from weights without one begins it at `loss.logit_bias_init`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from clip_lightning.config.foreign.sources import Source, find
from clip_lightning.distributed import rank_and_world
from clip_lightning.errors import UserError
from clip_lightning.model.convert.layouts import KNOWN, layout_of, to_ours
from clip_lightning.model.convert.names import below
from clip_lightning.model.convert.open_clip import norm_after_pooling
from clip_lightning.model.pretrained import first_keys, read_state_dict

_SCALE, _BIAS = "log_logit_scale", "logit_bias"
_TEXT_POSITIONS = "text.encoder.embeddings.position_embedding.weight"
_SQUARE_POSITIONS = ("vision.backbone.pos_embed", "vision.backbone.head.pos_embed")


def load_pretrained(model: nn.Module, source_name: str, allow_missing: Sequence[str], image_size: int) -> list[str]:
    """Puts a source's weights into a CLIP model, in place; printed on rank 0: what was resized, dropped or left.

    Args:
        model: on the CPU, or on the meta device: then the weights are only compared.
        source_name: `model.pretrained`.
        allow_missing: names, or beginnings of names, that may be missing or too many.
        image_size: pixels, of the model.

    Returns: the lines that are printed.
    Raises: UserError: the source cannot be read, or its weights are those of another architecture.
    """
    source = find(source_name)
    state, notes = fitted(weights_of(source), model, image_size)
    key = f"model.pretrained={source_name}"
    check_names(state, model, allow_missing, key)
    if any(tensor.is_meta for tensor in model.parameters()):
        return notes
    bias = getattr(model, _BIAS, None)
    if bias is not None and _BIAS not in state:
        notes.append(f"{key} has no logit bias; it begins at loss.logit_bias_init={float(bias):g}")
    model.load_state_dict(state, strict=False)
    limit = getattr(model, "_largest_log_scale", None)
    if limit is not None and _SCALE in state and float(state[_SCALE]) > limit:
        model.clamp_logit_scale()  # type: ignore[operator]
        notes.append(
            f"{key}: logit scale {state[_SCALE].exp().item():.4g} is clamped to {torch.tensor(limit).exp():.4g}"
        )
    if rank_and_world()[0] == 0:
        print("".join(f"{note}\n" for note in notes), end="", flush=True)
    return notes


def weights_of(source: Source) -> dict[str, Tensor]:
    """The tensors of a source under our names, on the CPU, in the dtype of the file.

    Raises: UserError: no such layout, or a name that the layout does not have.
    """
    if source.kind == "run":
        return _of_run(source)
    found: dict[str, Tensor] = {}
    for file in source.weights:
        found |= read_state_dict(file)
    found = {name: value for name, value in found.items() if not name.endswith("position_ids")}
    try:
        return to_ours(found)
    except KeyError as error:
        layout = layout_of(found)
        what = "an unknown layout" if layout is None else f"the layout of {layout}, but with {error.args[0]}"
        raise UserError(
            f"model.pretrained={source.name} has {what}; layouts known: {', '.join(KNOWN)}; first keys: "
            f"{first_keys(found)}"
        ) from error


def fitted(state: dict[str, Tensor], model: nn.Module, image_size: int) -> tuple[dict[str, Tensor], list[str]]:
    """A converted state dict with positions resized to a model's, and lines about what has changed."""
    own, notes = model.state_dict(), []
    state = dict(state)
    if "vision.backbone.fc_norm.weight" in own and "vision.backbone.norm.weight" not in own:
        state = norm_after_pooling(state)
    bias = "vision.backbone.patch_embed.proj.bias"
    if bias in own and bias not in state and "vision.backbone.patch_embed.proj.weight" in state:
        state[bias] = torch.zeros(own[bias].shape)  # open_clip's patches have no bias
    if _BIAS in state and _BIAS not in own:
        notes.append(
            f"the logit bias {state.pop(_BIAS).item():.4g} of the weights is dropped: it cancels in the softmax"
        )
    for name in _SQUARE_POSITIONS:
        if name in state and name in own and state[name].shape[-2] != own[name].shape[-2]:
            prefix = 1 if "vision.backbone.cls_token" in own or name.endswith("head.pos_embed") else 0
            old, new = state[name].shape[-2] - prefix, own[name].shape[-2] - prefix
            table = state[name].reshape(1, -1, state[name].shape[-1]).float()
            side = round(new**0.5)
            resized = resample_abs_pos_embed(table, [side, side], num_prefix_tokens=prefix)
            state[name] = resized.reshape(own[name].shape).to(state[name].dtype)
            notes.append(f"positions of the image tower resized from {old} to {new} patches ({image_size} pixels)")
    name = _TEXT_POSITIONS
    if name in state and name in own and len(state[name]) != len(own[name]):
        table = functional.interpolate(state[name].T[None].float(), size=len(own[name]), mode="linear")[0].T
        notes.append(f"positions of the text tower resized from {len(state[name])} to {len(own[name])} tokens")
        state[name] = table.to(state[name].dtype)
    return state, notes


def check_names(state: dict[str, Tensor], model: nn.Module, allow_missing: Sequence[str], key: str) -> None:
    """Compares names and shapes. Raises UserError with the first that differs, unless `allow_missing` names it."""
    own = model.state_dict()
    allowed = tuple(allow_missing)
    missing = [name for name in own if name not in state and name != _BIAS and not name.startswith(allowed or ("\0",))]
    unexpected = [name for name in state if name not in own and not name.startswith(allowed or ("\0",))]
    for problem in unexpected:
        if problem.startswith("text.encoder.pooler.") and getattr(model.text, "pool", None) != "pooler":
            state.pop(problem)  # a layer behind what this tower reads
    unexpected = [name for name in unexpected if name in state]
    if missing or unexpected:
        example = f"it lacks {missing[0]}" if missing else f"it has {unexpected[0]}, which the model does not have"
        more = len(missing) + len(unexpected) - 1
        others = f" (and {more} more names differ)" if more else ""
        raise UserError(
            f"{key} holds weights of another architecture: {example}{others}; choose its model (model=auto), or write "
            "model.allow_missing=[NAME,...] for what may differ"
        )
    for name, value in state.items():
        if name in own and value.shape != own[name].shape:
            raise UserError(
                f"{key} holds weights of another architecture: {name} has shape {list(value.shape)}, and the model "
                f"{list(own[name].shape)}; choose its model (model=auto)"
            )


def _of_run(source: Source) -> dict[str, Tensor]:
    """The weights of a run's newest checkpoint; each of its files is read by `torch.load(weights_only=True)`."""
    assert source.folder is not None
    folders = [path for path in (source.folder / "checkpoints").glob("[0-9]*") if (path / "manifest.json").is_file()]
    for folder in sorted(folders, key=lambda path: path.name, reverse=True):
        files: list[Path] = sorted(folder.glob("weights*.pt"))
        if len(files) == 1:
            state = read_state_dict(files[0])
            return below(state, "model.") or state
    raise UserError(
        f"model.pretrained={source.name}: the run has no checkpoint in one piece; export it first with "
        f"python -m clip_lightning.export {source.name} --to safetensors --out DIR"
    )
