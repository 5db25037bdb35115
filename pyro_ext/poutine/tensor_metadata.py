"""Functions that look at the shape and kind of a tensor, but not at its elements."""

import torch
from torch import Tensor

FUNCTIONS = (
    "__len__ dim element_size get_device is_complex is_contiguous is_floating_point is_signed "
    "ndimension nelement numel size stride"
)
ATTRIBUTES = (
    "device dtype grad_fn is_cpu is_cuda is_leaf is_meta is_mps is_nested is_quantized is_sparse "
    "itemsize layout ndim requires_grad shape"
)

METADATA = {
    torch.is_complex,
    torch.is_floating_point,
    torch.numel,
    *(getattr(Tensor, name) for name in FUNCTIONS.split()),
    *(getattr(Tensor, name).__get__ for name in ATTRIBUTES.split()),
}
