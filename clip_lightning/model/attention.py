"""Attention in bfloat16 on a CPU: plain products in float32 instead of torch's fused kernel, which is slow there."""

import torch


def choose_attention(precision: str, on_gpu: bool) -> None:
    """Sets torch's attention for all of this process, before a model is built in it.

    On two cores with bf16 instructions the fused kernel's backward pass took half of a small ViT's step, and the step
    1.47 times as long as with plain products. In float32, and on GPUs, fused kernels are the quicker ones. The backward
    pass then needs the scores, float32 [heads, length, length] for each sample and layer.

    Args: precision: of the towers: fp32, bf16, fp16.
    """
    torch.backends.cuda.enable_flash_sdp(on_gpu or precision != "bf16")  # the switch for CPUs as well
