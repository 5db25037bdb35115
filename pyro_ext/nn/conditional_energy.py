"""Energies whose features meet a context in a scalar product."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_ext.nn.context_head import ContextHead
from pyro_ext.nn.energy_parts import check_sizes, split_shape
from pyro_ext.nn.perceptron import perceptron
from pyro_ext.ops.counts import count


class ConditionalEnergy(nn.Module):
    r"""A conditional energy: a scalar product of features of the datum and weights of the context.

    .. math::

        E(x, u) = -\bigl( f(x)^\top g(u) + (f(x)^2)^\top g_2(u) + b(x) \bigr), \qquad
        p(x \mid u) = e^{-E(x, u)} / Z(u)

    The sign is that of every energy here: :math:`-E` is a log density, up to its normaliser. So
    it is an exponential family with statistics :math:`T(x) = f(x)`, or :math:`(f(x), f(x)^2)` if
    ``augment``, natural parameters :math:`(g, g_2)` and the log base measure :math:`b`. The
    released code of the paper has :math:`+f^\top g` for the energy in one objective and for the
    log density in another; to compare, flip the weights.

    The base term belongs to it wherever data are an invertible function of the latents: it holds
    the log determinant and whatever density the contexts do not modulate. It leaves
    :math:`p(u \mid x)`, hence what the features are identified by, as it is.

    The normaliser :math:`\log Z(u)` is **learned**, not computed: one number for each label, a
    network of a vector, or one number for all. Binary contrastive objectives train it;
    :class:`~pyro_ext.infer.DenoisingScoreMatching`, ranking and others that need none leave it
    where it is, at zero.

    Args:
        event_shape: shape of one event; an integer stands for a vector.
        latent_dim: :math:`d`, the number of features.
        num_classes: labels as context: integers below it.
        context_dim: vectors as context: numbers in each. One of the two; with none the weights are
            parameters themselves and the energy takes no context.
        hidden_dims: widths of the hidden layers of :math:`f`, and for vectors of those of
            :math:`g` and of the normaliser.
        activation: of these layers. Smooth, so that the energy has a score.
        feature_net: :math:`f` as a module from ``(batch, *event_shape)`` to
            ``(batch, latent_dim)``, in place of a perceptron.
        base: :math:`b`, a module from ``(batch, *event_shape)`` to ``(batch)``, such as
            :class:`EnergyNet`; None for zero. High where data are probable.
        augment: whether squares of the features are statistics too.
        positive: whether features and weights pass a softplus. It needs a base term: with
            neither negative, :math:`e^{f^\top g} \ge 1` has no finite integral of its own.
        shared_normalizer: whether :math:`\log Z` is one number for all contexts.

    Shape:
        ``x`` is ``(*batch, *event_shape)``, a context ``(*batch)`` or ``(*batch, context_dim)``;
        both batches broadcast, so that ``(M, 1, *event_shape)`` and ``(B)`` make ``(M, B)``
        energies from M features.

    Raises:
        ValueError: if a size is not positive, both kinds of context are given, a net is no
            module, or ``positive`` comes without a base term; later, if events or contexts are of
            another shape or kind, if their batches do not fit, or if a net's output is not of the
            shape it ought to have.

    References:
        Khemakhem et al., *ICE-BeeM: Identifiable Conditional Energy-Based Deep Models Based on
        Nonlinear ICA*, arXiv 2002.11537.

    Example:
        >>> from pyro_ext.nn import EnergyNet
        >>> energy = ConditionalEnergy(5, 3, num_classes=20, base=EnergyNet(5), augment=True)
        >>> x, label = torch.randn(8, 5), torch.arange(8)
        >>> energy(x, label).shape, energy.features(x).shape, energy.weights(label).shape
        (torch.Size([8]), torch.Size([8, 3]), torch.Size([8, 6]))
        >>> log_density = -energy(x, label) - energy.log_normalizer(label)
        >>> bool((energy.log_density(x, label) == log_density).all())
        True
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dim: int,
        num_classes: int = 0,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (100, 100),
        *,
        activation: Callable[[], nn.Module] = nn.SiLU,
        feature_net: nn.Module | None = None,
        base: nn.Module | None = None,
        augment: bool = False,
        positive: bool = False,
        shared_normalizer: bool = False,
    ):
        super().__init__()
        self.event_shape = torch.Size(check_sizes(event_shape, "event_shape"))
        self.latent_dim = count(latent_dim, "latent_dim")
        self.augment, self.positive = augment, positive
        _check_modules(positive, base=base, feature_net=feature_net)
        hidden_dims = check_sizes(hidden_dims, "hidden_dims")
        if feature_net is None:
            dims = [self.event_shape.numel(), *hidden_dims, self.latent_dim]
            feature_net = nn.Sequential(_Flatten(dims[0]), perceptron(dims, activation))
        self.feature_net: Any = feature_net
        self.base: Any = base
        seen = (num_classes, context_dim, hidden_dims, activation)
        self.weight_head = ContextHead(self.num_statistics, *seen)
        self.normalizer_head = ContextHead(1) if shared_normalizer else ContextHead(1, *seen)
        nn.init.zeros_(self.normalizer_head.last)

    @property
    def num_classes(self) -> int:
        """Of the labels; zero if contexts are none."""
        return self.weight_head.num_classes

    @property
    def context_dim(self) -> int:
        """Of the vectors; zero if contexts are none."""
        return self.weight_head.context_dim

    @property
    def num_statistics(self) -> int:
        """The number of features and, if augmented, of their squares."""
        return self.latent_dim * (2 if self.augment else 1)

    def features(self, x: Tensor) -> Tensor:
        """The features :math:`f`, ``(*batch, latent_dim)``."""
        made = self._apply_net(self.feature_net, x, (self.latent_dim,), "feature_net")
        return softplus(made) if self.positive else made

    def statistics(self, x: Tensor) -> Tensor:
        """The features and, if augmented, then their squares, ``(*batch, num_statistics)``."""
        features = self.features(x)
        return torch.cat([features, features.square()], -1) if self.augment else features

    def weights(self, context: Tensor | None = None) -> Tensor:
        """What multiplies the statistics, ``(*batch, num_statistics)``."""
        made = self.weight_head(context)
        return softplus(made) if self.positive else made

    def base_term(self, x: Tensor) -> Tensor:
        """The log base measure :math:`b`, ``(*batch)``; zero if there is none."""
        if self.base is None:
            return x.new_zeros(split_shape(x, self.event_shape))
        return self._apply_net(self.base, x, (), "base")

    def log_normalizer(self, context: Tensor | None = None) -> Tensor:
        r"""The learned :math:`\log Z(u)` in nats, ``(*batch)``."""
        if self.normalizer_head.num_classes or self.normalizer_head.context_dim:
            return self.normalizer_head(context).squeeze(-1)
        batch = self.weight_head(context).shape[:-1]
        return self.normalizer_head(None).squeeze(-1).expand(batch)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Energies in nats, over the batches of events and contexts."""
        statistics, weights = self.statistics(x), self.weights(context)
        _check_batches(statistics.shape[:-1], weights.shape[:-1])
        return -((statistics * weights).sum(-1) + self.base_term(x))

    def log_density(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Minus the energy and the learned log normaliser, in nats."""
        return -self(x, context) - self.log_normalizer(context)

    def class_logits(self, x: Tensor) -> Tensor:
        r"""The log density for each label, ``(*batch, num_classes)``.

        Its softmax is :math:`p(u \mid x)` of labels that are equally frequent; the base term
        cancels there.

        Raises:
            ValueError: if contexts are not labels.
        """
        if not self.num_classes:
            raise ValueError("This energy has no labels. Build it with num_classes.")
        labels = torch.arange(self.num_classes, device=x.device)
        scores = self.statistics(x) @ self.weights(labels).T
        return scores + self.base_term(x).unsqueeze(-1) - self.log_normalizer(labels)

    def _apply_net(self, net: nn.Module, x: Tensor, shape: tuple[int, ...], role: str) -> Tensor:
        """Evaluates a net on one flat batch, and refuses results of another shape."""
        batch = split_shape(x, self.event_shape, "The conditional energy")
        _check_dtype(x, self.weight_head.last.dtype)
        made = net(x.reshape((batch.numel(), *self.event_shape)))
        if made.shape != (batch.numel(), *shape):
            raise ValueError(
                f"{role} returned shape {tuple(made.shape)} for {batch.numel()} events of shape "
                f"{tuple(self.event_shape)}, expected {(batch.numel(), *shape)}."
            )
        return made.reshape((*batch, *shape))


class _Flatten(nn.Module):
    """Makes vectors of events, of single numbers and of empty batches too."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape((len(x), self.size))


def _check_modules(positive: bool, **modules: Any) -> None:
    for name, module in modules.items():
        if module is not None and not isinstance(module, nn.Module):
            raise ValueError(f"{name} must be a torch module or None, got {module!r}.")
    if positive and modules["base"] is None:
        raise ValueError(
            "positive needs a base term: where neither features nor weights are negative, the "
            "density exp(f g) is nowhere below one and cannot be normalised. Pass base=, such as "
            "EnergyNet(event_shape), or leave positive=False."
        )


def _check_dtype(x: Tensor, dtype: torch.dtype) -> None:
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(
            f"Events are of {x.dtype}, but the energy's parameters of {dtype}. Convert one of "
            "them: x.float(), or energy.double()."
        )


def _check_batches(events: torch.Size, contexts: torch.Size) -> None:
    try:
        torch.broadcast_shapes(events, contexts)
    except RuntimeError as error:
        raise ValueError(
            f"Events have the batch {tuple(events)} but contexts {tuple(contexts)}: give one "
            "context for each event, or shapes that broadcast."
        ) from error
