"""Whether tensors hold numbers."""

import torch


def is_traced() -> bool:
    """Whether tensors may stand for others, so that Python cannot branch on their numbers.

    So it is while compiling, and within ``torch.func.vmap`` and ``torch.func.grad``.
    """
    return torch.compiler.is_compiling() or is_transformed()


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work."""
    return torch._C._are_functorch_transforms_active()
