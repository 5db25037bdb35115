"""A running estimate of a normaliser, as batch normalisation keeps one of moments."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_ext.nn.energy_parts import check_sizes
from pyro_ext.ops.counts import count


class MovingNormalizer(nn.Module):
    r"""Remembers an acceptance rate :math:`Z`: smoothed in training, stored for evaluation.

    In training, an estimate :math:`\hat Z` from a batch of proposals is smoothed, with the
    gradient of the estimate alone,

    .. math::

        \bar Z \leftarrow \delta \bar Z + (1 - \delta) \hat Z, \qquad
        Z = \hat Z + \mathrm{sg}(\bar Z - \hat Z)

    In evaluation :math:`Z` is what is stored: the moving average, until :meth:`store` replaces it
    by an estimate from many proposals. The first update afterwards makes it a moving average
    again, which starts from there. The average is updated where batch normalisation's is, in
    training mode, but only in grad mode.

    Args:
        batch_shape: of :math:`Z`, one for each of so many proposals.
        decay: :math:`\delta \in [0, 1)`.

    Attributes:
        value: :math:`\bar Z`, starts at one half.
        standard_error: of a stored estimate; NaN for a moving average.
        num_samples: proposals behind a stored estimate; zero for a moving average.

    Shape:
        ``(*batch_shape) -> (*batch_shape)``.

    Raises:
        ValueError: if a size is not positive or the decay is outside :math:`[0, 1)`; later, if an
            estimate has another shape or, when stored, is not in :math:`(0, 1]`.

    References:
        Bauer and Mnih, *Resampled Priors for Variational Autoencoders*, arXiv 1810.11428.

    Example:
        >>> normalizer = MovingNormalizer(decay=0.9)
        >>> normalizer(torch.tensor(0.3))
        tensor(0.4800)
        >>> normalizer.eval().value
        tensor(0.4800)
    """

    value: Tensor
    standard_error: Tensor

    def __init__(self, batch_shape: Sequence[int] = (), decay: float = 0.99):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"The decay must be at least 0 and less than 1, got decay={decay}.")
        shape = check_sizes(batch_shape, "batch_shape")
        self.decay = decay
        self.num_samples = 0
        self.register_buffer("value", torch.full(shape, 0.5))
        self.register_buffer("standard_error", torch.full(shape, float("nan")))

    @property
    def is_exact(self) -> bool:
        """Whether it is in evaluation, on an estimate from many proposals."""
        return self.num_samples > 0 and not self.training

    def forward(self, current: Tensor) -> Tensor:
        r"""Smooths an estimate :math:`\hat Z`, and remembers it if training in grad mode."""
        smooth = self.smooth(current)
        if self.training and torch.is_grad_enabled():
            self._set(smooth.detach(), float("nan"), 0)
        return smooth

    def smooth(self, current: Tensor) -> Tensor:
        r"""The same without remembering; in evaluation, what is stored.

        In training in grad mode, what is stored no longer counts as one of many proposals.
        """
        if not self.training:
            return self.value
        if self.num_samples and torch.is_grad_enabled():
            self._set(self.value, float("nan"), 0)
        self._check_shape(current)
        smooth = self.decay * self.value + (1 - self.decay) * current
        return current + (smooth - current).detach()

    def store(self, value: Tensor, standard_error: Tensor, num_samples: int) -> None:
        """Replaces the moving average by an estimate from ``num_samples`` proposals.

        Raises:
            ValueError: if it has the wrong shape or is not in ``(0, 1]``.
        """
        self._check_shape(value)
        if not bool(((value > 0) & (value <= 1)).all()):
            raise ValueError(
                f"A normaliser is in (0, 1], got {value}. If no proposal was accepted, take more "
                "of them."
            )
        self._set(value, standard_error, count(num_samples, "num_samples"))

    def get_extra_state(self) -> Tensor:
        """The number of proposals behind the value, for the ``state_dict``."""
        return torch.tensor(self.num_samples, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Takes it back."""
        self.num_samples = int(state)

    @torch.no_grad()
    def _set(self, value: Tensor, standard_error: Tensor | float, num_samples: int) -> None:
        self.value.copy_(value)
        if isinstance(standard_error, Tensor):
            self.standard_error.copy_(standard_error)
        elif self.num_samples:
            self.standard_error.fill_(standard_error)
        self.num_samples = num_samples

    def _check_shape(self, value: Tensor) -> None:
        if value.shape != self.value.shape:
            raise ValueError(
                f"The normaliser has batch shape {tuple(self.value.shape)}, got an estimate of "
                f"shape {tuple(value.shape)}. There is one for each proposal, so its batch shape "
                "is that of the proposal and the logit. For a proposal that changes from call to "
                "call, as a decoder's does, use TruncatedRejection, which needs no normaliser."
            )

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"batch_shape={tuple(self.value.shape)}, decay={self.decay}"
