"""The image tower: any timm backbone, or the user's own, and a projection into the shared space.

Handles what depends on the kind of backbone: building it at the image size, its pretrained weights, its width.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from torch import Tensor, nn

import clip_lightning.model.small_resnet  # noqa: F401 - registers itself with timm
from clip_lightning.compat import BatchNorm
from clip_lightning.config.keys import did_you_mean, near
from clip_lightning.config.phases import Phase
from clip_lightning.config.schema import VisionConfig
from clip_lightning.errors import UserError
from clip_lightning.model import initialization, positions
from clip_lightning.model.pretrained import KNOWN, describe, part, read_state_dict
from clip_lightning.targets import resolve_target
from clip_lightning.tokenizer import use_hub_cache_when_offline


class VisionTower(nn.Module):
    """Pixels to a feature of the shared space, not yet normalised.

    Args:
        config: backbone, image size, pooling, projection.
        embed_dim: width D of the shared space.
        phases: of the run; the tower takes images of all their sizes and can leave out patches, with the same
            parameters and names: its positions are those of `config.image_size`, interpolated for a smaller image.

    Raises:
        UserError: unknown backbone, no such weights, or a width or batch norm that differs from the config.
    """

    def __init__(self, config: VisionConfig, embed_dim: int, phases: Sequence[Phase] = ()) -> None:
        super().__init__()
        self.backbone = _build_backbone(config, phases)
        self.width = width = _width(self.backbone, config)
        self.projection = _build_projection(config, width, embed_dim)
        if config.projection == "none" and width != embed_dim:
            raise UserError(
                f"model.vision.projection=none: the tower gives {width} numbers and model.embed_dim={embed_dim}; "
                f"write model.vision.projection=linear, or model.vision.options.num_classes={embed_dim}"
            )
        _check_batch_norm(self.backbone, config)
        self.mean = nn.Buffer(torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)
        self._resize = {size: f"positions_{size}" for size in self._make_matrices(config.image_size, phases)}
        self.locked = config.locked
        if config.locked:
            self.backbone.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features.

        Args:
            images: uint8 [B, 3, S, S], or floats that are normalised already.

        Returns:
            Float [B, D].
        """
        return self.projection(self.pooled(images))

    def pooled(self, images: Tensor) -> Tensor:
        """What the projection reads, [B, width]; of a locked tower without a graph."""
        if images.dtype == torch.uint8:
            images = (images.float() / 255 - self.mean) / self.std
        with torch.no_grad() if self.locked else nullcontext():
            if (name := self._resize.get(images.shape[-1])) is not None:
                return positions.call_resized(self.backbone, getattr(self, name), images)
            return self.backbone(images)

    def _make_matrices(self, image_size: int, phases: Sequence[Phase]) -> Iterator[int]:
        """Registers what position embeddings are multiplied by for each smaller size; yields the sizes."""
        old = positions.square_grid(self.backbone, image_size)
        for size in {phase.image_size for phase in phases} - {image_size}:
            new = positions.square_grid(self.backbone, size)
            if old is not None and new is not None:
                self.register_buffer(f"positions_{size}", positions.resize_matrix(old, new), persistent=False)
                yield size

    def train(self, mode: bool = True) -> "VisionTower":
        """As usual, but a locked backbone keeps its statistics and draws nothing at random."""
        super().train(mode)
        if self.locked:
            self.backbone.eval()
        return self


def _build_projection(config: VisionConfig, width: int, embed_dim: int) -> nn.Module:
    """From the backbone's width to the shared space; weights begin as in OpenAI's CLIP, biases at 0."""
    if config.projection == "none":
        return nn.Identity()
    widths = (
        [(width, embed_dim)] if config.projection == "linear" else [(width, 2 * embed_dim), (2 * embed_dim, embed_dim)]
    )
    # open_clip's adapter of timm towers: the hidden layer of an mlp always has a bias.
    biases = [config.projection_bias] if config.projection == "linear" else [True, config.projection_bias]
    layers = [nn.Linear(*pair, bias=bias) for pair, bias in zip(widths, biases, strict=True)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layers[0] if len(layers) == 1 else nn.Sequential(layers[0], nn.GELU(), layers[1])


def first_line(error: BaseException) -> str:
    """What a library says went wrong, without the rest of its page."""
    return str(error).strip().split("\n")[0]


def _build_backbone(config: VisionConfig, phases: Sequence[Phase]) -> nn.Module:
    if config._target_ is not None:
        return resolve_target(config._target_, "model.vision._target_")(**config.options)
    assert config.timm is not None, "checked with the config"
    architecture = config.timm.split(".")[0]
    if not timm.is_model(architecture):
        raise UserError(
            f"model.vision.timm={config.timm} is not an architecture of timm {timm.__version__}"
            + did_you_mean(near(architecture, timm.list_models()))
        )
    if "patch_drop_rate" in config.options:
        raise UserError("model.vision.options.patch_drop_rate is read by no phase; write model.vision.patch_dropout")
    arguments = timm_arguments(config) | _arguments_of_phases(config, phases)
    on_meta = torch.get_default_device().type == "meta"
    if config.pretrained is True:
        use_hub_cache_when_offline()
    try:
        backbone = timm.create_model(config.timm, pretrained=config.pretrained is True and not on_meta, **arguments)
    except (OSError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        settings = ", ".join(f"{key}={value}" for key, value in arguments.items())
        weights = " and its published weights" if config.pretrained is True else ""
        raise UserError(
            f"model.vision.timm={config.timm} cannot be built with {settings}{weights}: {first_line(error)}"
        ) from error
    if isinstance(config.pretrained, str):
        _load_weights(backbone, config.timm, Path(config.pretrained), only_check=on_meta)
    elif config.pretrained is False and config.init != "timm":
        initialization.VISION[config.init](backbone)
    return backbone


def timm_arguments(config: VisionConfig) -> dict[str, Any]:
    """The arguments of timm.create_model."""
    arguments: dict[str, Any] = {"num_classes": 0}
    published = timm.get_pretrained_cfg(config.timm, allow_unregistered=True)
    if published is not None and published.fixed_input_size:
        arguments["img_size"] = config.image_size
    if config.pool is not None:
        arguments["global_pool"] = config.pool
    if config.patch_dropout:
        arguments["patch_drop_rate"] = config.patch_dropout
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    return arguments | config.options


def _arguments_of_phases(config: VisionConfig, phases: Sequence[Phase]) -> dict[str, Any]:
    """Further arguments of timm.create_model, so that the backbone fits every phase."""
    arguments: dict[str, Any] = {}
    if share := max((phase.patch_dropout for phase in phases), default=0.0):
        arguments["patch_drop_rate"] = share  # adds the layer; each step sets how much it drops
    if any(phase.image_size != config.image_size for phase in phases):
        with torch.device("meta"):
            plain = timm.create_model(str(config.timm).split(".")[0])
        if hasattr(plain, "dynamic_img_size"):  # else it has no table of positions, or resamples it, or refuses
            arguments["dynamic_img_size"] = True
    return arguments


def _load_weights(backbone: nn.Module, name: str, path: Path, only_check: bool) -> None:
    """Weights from a file that `read_state_dict` reads; position embeddings are resized to the image size.

    Of a model of clip_lightning, its image tower.

    Raises:
        UserError: no such file, no weights in it, or weights of another architecture.
    """
    key = f"model.vision.pretrained={path}"
    if only_check and path.is_file():
        return
    try:
        found = read_state_dict(path)
    except UserError as error:
        raise UserError(f"model.vision.pretrained: {error}") from error
    try:
        state = part(found, "vision.backbone.")
        adapt = getattr(sys.modules[model_entrypoint(name.split(".")[0]).__module__], "checkpoint_filter_fn", None)
        state = adapt(state, backbone) if adapt is not None else state
        heads = _classifiers(backbone)
        own = backbone.state_dict()
        state = {k: v for k, v in state.items() if not (k.startswith(heads) and k not in own)}
        missing, unexpected = backbone.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{key} cannot be loaded into {name} ({first_line(error)}): it holds {describe(found)}; known are {KNOWN}"
        ) from error
    if missing or unexpected:
        example = f"it lacks {missing[0]}" if missing else f"it has {unexpected[0]}, which the tower does not have"
        raise UserError(
            f"{key} holds weights of another architecture than {name}: {example}; it holds {describe(found)}; known "
            f"are {KNOWN}"
        )


def _classifiers(backbone: nn.Module) -> tuple[str, ...]:
    """Where the class scores of the published model are, which a tower without classes leaves out."""
    named = getattr(backbone, "default_cfg", {}).get("classifier") or ()
    return tuple(f"{layer}." for layer in ([named] if isinstance(named, str) else named))


def _width(backbone: nn.Module, config: VisionConfig) -> int:
    """Numbers that the backbone gives for an image."""
    if config._target_ is None and config.options.get("num_classes"):
        return int(config.options["num_classes"])
    width = getattr(backbone, "head_hidden_size", None) or getattr(backbone, "num_features", None)
    if not isinstance(width, int):
        raise UserError(f"model.vision._target_={config._target_} gives a module without `num_features`, its width")
    return width


def _check_batch_norm(backbone: nn.Module, config: VisionConfig) -> None:
    found = any(isinstance(module, BatchNorm) for module in backbone.modules())
    if found != config.batch_norm:
        raise UserError(
            f"model.vision.batch_norm={str(config.batch_norm).lower()}, but {config.timm or config._target_} "
            f"{'normalises' if found else 'does not normalise'} over the batch; write {str(found).lower()}"
        )
