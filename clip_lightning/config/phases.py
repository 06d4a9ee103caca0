"""The phases of a run: what size of images, length of texts and share of patches a step trains on. Knows no torch.

A phase is a pure function of the samples seen, in whole steps of the global batch: no batch mixes two, and a resumed
run needs nothing to be kept. Nothing that is learned changes its shape with them (FLIP, arXiv 2212.00794: patches left
out, then a short time with all; CLIPA, arXiv 2305.07017: small images and short texts, then a short time in full).
Evaluation knows no phases: it has the model's own size and every patch.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from clip_lightning.config import duration
from clip_lightning.config.schema import Config, PhaseConfig, VisionConfig
from clip_lightning.errors import UserError


class Phase(NamedTuple):
    """What holds from `start` on, in samples: pixels of the square image, tokens, share of patches left out."""

    start: int
    image_size: int
    context_length: int
    patch_dropout: float


def phases_of(config: Config, *, total_samples: int, epoch_samples: int | None) -> list[Phase]:
    """All phases in order, the first from sample 0; where none is set, the model's own values throughout.

    Args:
        total_samples: of the run.
        epoch_samples: training pairs of an epoch, where they are known.

    Raises:
        UserError: starts that are not in order, not in the run, or not known here; a phase that changes nothing.
    """
    if problems := list(order_problems(config, total_samples, epoch_samples)):
        raise UserError(*problems)
    own, *found = _resolved(config, total_samples, epoch_samples)
    return found if found and not found[0].start else [own, *found]


def phase_sizes(config: Config) -> list[Phase]:
    """What a model has to be built for: the model's own values and those of every phase, all with start 0."""
    own = _own(config)
    return [own, *(own._replace(**_set_values(phase)) for phase in config.compute.phases)]


def phase_at(phases: Sequence[Phase], position: int) -> Phase:
    """The phase of the sample at `position`, and of its whole step."""
    return next(phase for phase in reversed(phases) if phase.start <= position)


def phase_lengths(phases: Sequence[Phase], total_samples: int) -> list[int]:
    """Samples of each phase."""
    return [end - start for start, end in pairwise([*(phase.start for phase in phases), total_samples])]


def size_step(vision: VisionConfig) -> int | None:
    """What the side of an image must be a multiple of, as the name of the backbone says: the patch, or a stride."""
    if not vision.timm:
        return None
    architecture = vision.timm.split(".")[0]
    if re.fullmatch(r"resnet\w+_clip\w*", architecture):
        return 32  # its average pooling and its strides must meet in whole pixels
    return patch_size(vision)


def patch_size(vision: VisionConfig) -> int | None:
    """Pixels of a patch, from the name or the options of a timm backbone; None where it has no patches."""
    if not vision.timm:
        return None
    named = re.search(r"patch(\d+)", vision.timm.split(".")[0])
    size = vision.options.get("patch_size") or (int(named[1]) if named else None)
    return size if isinstance(size, int) else None


def problems(config: Config) -> Iterator[str]:
    """What is wrong with each phase by itself and beside the model, one sentence each."""
    for k, phase in enumerate(config.compute.phases):
        yield from _problems(config, phase, f"compute.phases[{k}]")


def order_problems(config: Config, total_samples: int, epoch_samples: int | None) -> Iterator[str]:
    """What is wrong with the places of phases in a run, where each by itself can be read; see `phases_of`."""
    if any(problems(config)):
        return
    for k, (last, new) in enumerate(pairwise(_resolved(config, total_samples, epoch_samples))):
        named = f"compute.phases[{k}].start={config.compute.phases[k].start}"
        if new.start >= total_samples:
            yield f"{named} is sample {new.start:,}, and the run ends at {total_samples:,}; write an earlier one"
        elif k and new.start <= last.start:
            yield f"{named} is sample {new.start:,}, and the phase before starts at {last.start:,}; put them in order"
        elif new[1:] == last[1:]:
            yield f"{named} has no effect: nothing differs from what holds before it; leave it out"


def _own(config: Config) -> Phase:
    """The model's own values, from sample 0 on."""
    vision = config.model.vision
    return Phase(0, vision.image_size, config.model.text.context_length, vision.patch_dropout)


def _set_values(phase: PhaseConfig) -> dict[str, Any]:
    return {name: value for name in Phase._fields[1:] if (value := getattr(phase, name)) is not None}


def _resolved(config: Config, total_samples: int, epoch_samples: int | None) -> list[Phase]:
    """The model's own values, and then every phase with its start in samples."""
    batch, own = config.compute.global_batch, _own(config)
    found = [own]
    for phase in config.compute.phases:
        start = duration.to_samples(
            phase.start, global_batch=batch, epoch_samples=epoch_samples, total_samples=total_samples
        )
        found.append(own._replace(start=start, **_set_values(phase)))
    return found


def _problems(config: Config, phase: PhaseConfig, key: str) -> Iterator[str]:
    vision, text = config.model.vision, config.model.text
    try:
        duration.parse(phase.start)
    except UserError as error:
        yield f"{key}.start: {error}"
    size, step, length = phase.image_size, size_step(vision), phase.context_length
    if size is not None and not 0 < size <= vision.image_size:
        yield f"{key}.image_size={size} must be from 1 to model.vision.image_size={vision.image_size}, the largest"
    elif size is not None and step and size % step:
        smaller, larger = max(1, size // step) * step, (size // step + 1) * step
        yield f"{key}.image_size={size} must be a multiple of {step} for {vision.timm}; write {smaller} or {larger}"
    if length is not None and not 3 <= length <= text.context_length:
        yield (
            f"{key}.context_length={length} must be from 3 (start, a word, end) to "
            f"model.text.context_length={text.context_length}, the largest"
        )
    if (share := phase.patch_dropout) is None:
        return
    if not 0 <= share < 1:
        yield f"{key}.patch_dropout={share} must be from 0 to below 1"
    elif vision.timm is None or patch_size(vision) is None:
        yield f"{key}.patch_dropout={share} has no effect: {vision.timm or vision._target_} has no patches; write null"
    elif vision.locked:
        yield f"{key}.patch_dropout={share} has no effect: model.vision.locked=true leaves nothing out; write null"
