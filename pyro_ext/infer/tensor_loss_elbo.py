"""Objectives whose loss is one tensor."""

from typing import Any

import torch
from pyro.infer import ELBO
from pyro.util import warn_if_nan
from torch import Tensor


class TensorLossELBO(ELBO):
    """All that ``SVI`` calls, made of ``differentiable_loss``."""

    def differentiable_loss(self, model, guide, *args, **kwargs) -> Tensor:
        """The loss as a scalar tensor."""
        raise NotImplementedError

    def loss(self, model, guide, *args, **kwargs) -> float:
        """The loss, without gradient."""
        with torch.no_grad():
            return to_float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model, guide, *args, **kwargs) -> float:
        """The loss; adds its gradient to that of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return to_float(loss)


def to_float(loss: Any) -> float:
    """A loss as a number, with Pyro's warning if it is NaN."""
    value: Any = loss.item() if isinstance(loss, Tensor) else float(loss)
    warn_if_nan(value, "loss")
    return value
