"""What open_clip gives for a loss that it has not in our form; apart, since ranks need not load it (7 s)."""

import torch
from open_clip.loss import DistillClipLoss
from torch import Tensor


def peers_distillation(image: Tensor, text: Tensor, scale: Tensor, taught: dict[str, Tensor]) -> Tensor:
    """Half open_clip's softmax loss, and half its cross entropy of teacher and student less the teacher's entropy."""
    teacher_image, teacher_text, teacher_scale = (value.to(image.dtype) for value in taught.values())
    both = DistillClipLoss()(image, text, scale.reshape(()), teacher_image, teacher_text, teacher_scale.reshape(()))
    teacher = teacher_scale * teacher_image @ teacher_text.T
    entropies = [-(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean() for logits in (teacher, teacher.T)]
    return (both[0] + both[1] - torch.stack(entropies).mean()) / 2
