"""Mixtures of sources whose law depends on a context."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_ext.data.arguments import integer
from pyro_ext.data.mixing import Mixing
from pyro_ext.data.random_stream import DATA, stream
from pyro_ext.data.source_laws import SourceLaw


class SourceDraws(NamedTuple):
    """Observations with the truth behind them, one context after the other."""

    x: Tensor  # (N, D)
    sources: Tensor  # (N, D)
    context: Tensor  # (N,), integers


class MixedSources:
    r"""Observations that an invertible network makes of sources, whose law the context modulates.

    .. math::

        s \sim p(s \mid u), \qquad x = h(s), \qquad
        \log p(x \mid u) = \log p(h^{-1}(x) \mid u) - \log \lvert \det J_h(h^{-1}(x)) \rvert

    Both densities are exact: their means over a test set are the likelihoods no model can beat in
    expectation.

    Made by :func:`tcl`, :func:`imca` and :func:`xtanh`, from seeds of their own for the mixing and
    the modulation; the seed of the data comes with :meth:`sample`. So neither more data nor more
    contexts change the mixing, and a test set is the same problem under another seed.

    Attributes:
        source_law: of the sources, with the truth of the modulation, in double precision:
            ``scale`` ``(U, D)``, and ``loc`` ``(U, D)`` or ``precision`` ``(U, D, D)``.
        mixing: :math:`h`, with its ``matrices`` ``(L, D, D)``.
    """

    def __init__(self, source_law: SourceLaw, mixing: Mixing) -> None:
        self.source_law = source_law
        self.mixing = mixing

    @property
    def num_contexts(self) -> int:
        """How many values the context has, integers from 0."""
        return self.source_law.shape[0]

    @property
    def latent_dim(self) -> int:
        """How many sources, and observed coordinates, there are."""
        return self.source_law.shape[1]

    def sample(
        self,
        num_per_context: int,
        seed: int = 0,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> SourceDraws:
        """Draws as many of each context, without touching torch's generator.

        They are made in double precision on the CPU. The draws of a context begin with the same
        numbers however many are asked for.

        Args:
            num_per_context: of each context.
            seed: of the data.
            dtype: of ``x`` and ``sources``; the default dtype if omitted.
            device: of all; the CPU if omitted.

        Raises:
            ValueError: if a number is no such integer.
        """
        num = integer(num_per_context, "num_per_context", 1)
        contexts = range(self.num_contexts)
        sources = torch.cat(
            [self.source_law.sample(u, num, stream(seed, "seed", DATA, u)) for u in contexts]
        )
        context = torch.arange(self.num_contexts).repeat_interleave(num)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        x, sources = (part.to(device, dtype) for part in (self.mixing(sources), sources))
        return SourceDraws(x, sources, context.to(device))

    def mix(self, sources: Tensor) -> Tensor:
        """Observations of given sources, ``(..., D) -> (..., D)``."""
        self._check(sources)
        return self.mixing(sources)

    def unmix(self, x: Tensor) -> Tensor:
        """The sources of given observations, ``(..., D) -> (..., D)``."""
        self._check(x)
        return self.mixing.inverse(x)[0]

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        """Log density of observations in nats, ``(..., D), (...) -> (...)``.

        Raises:
            ValueError: if shapes do not fit, or if a context is none of the problem's.
        """
        self._check(x, context)
        sources, log_det = self.mixing.inverse(x)
        return self.source_law.log_prob(sources, context) - log_det

    def source_log_prob(self, sources: Tensor, context: Tensor) -> Tensor:
        """Log density of sources in nats, ``(..., D), (...) -> (...)``.

        Raises:
            ValueError: if shapes do not fit, or if a context is none of the problem's.
        """
        self._check(sources, context)
        return self.source_law.log_prob(sources, context)

    def _check(self, value: Tensor, context: Tensor | None = None) -> None:
        if value.shape[-1:] != (self.latent_dim,) or not value.is_floating_point():
            raise ValueError(
                f"Expected floating-point numbers of shape (..., {self.latent_dim}), got "
                f"{tuple(value.shape)} of {value.dtype}."
            )
        if context is None:
            return
        if context.is_floating_point() or context.shape != value.shape[:-1]:
            raise ValueError(
                f"context must be integers of shape {tuple(value.shape[:-1])}, one for each row, "
                f"got {tuple(context.shape)} of {context.dtype}."
            )
        if not ((context >= 0) & (context < self.num_contexts)).all():
            raise ValueError(f"context must lie in 0 to {self.num_contexts - 1}.")
