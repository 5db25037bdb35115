"""Invertible modules as transforms."""

from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints


class InvertibleTransform(TransformModule):
    r"""An invertible module as a transform from latents to data.

    .. math::

        x = g(z), \qquad \log \Bigl\lvert \det \frac{\partial x}{\partial z} \Bigr\rvert

    where :math:`g` is the module's ``decode``, and ``encode`` its inverse: a
    :class:`~pyro_ext.nn.GlowNet`, or one of the layers that such nets are made of
    (:class:`~pyro_ext.nn.ActNorm`, :class:`~pyro_ext.nn.InvertibleConv1x1`,
    :class:`~pyro_ext.nn.Coupling`, :class:`~pyro_ext.nn.GlowLevel`). To be used in
    ``TransformedDistribution``, in :class:`pyro.infer.autoguide.AutoNormalizingFlow` and so in
    :class:`pyro.infer.reparam.NeuTraReparam`, or with :class:`pyro.infer.reparam.TransformReparam`.
    Nothing is cached, so that a change of parameters is always seen; the price is that value and
    log determinant are computed apart. :class:`~pyro_ext.distributions.Glow` needs one pass.

    A transform cannot tell data from its own draws, so it never starts a net from data: call
    ``net.initialize(images)``, or take ``Glow`` as the likelihood.

    Args:
        module: with methods ``encode`` and ``decode`` that return a value and a log determinant.
        context: second argument of both, if the module takes one; its left dimensions are a batch
            of transforms.
        flat: whether images are flattened, ``(C, H, W)`` to ``(C * H * W,)``, as automatic guides
            need; for a net with flat latents.

    Shape:
        Latents ``(..., D)`` of a net with an ``image_shape``, images ``(..., C, H, W)`` else;
        to images, or to ``(..., D)`` with ``flat``. The left dimensions broadcast with the
        context's.

    Raises:
        ValueError: if the module is not invertible, or ``flat`` is asked of a layer.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_ext.nn import GlowNet
        >>> net = GlowNet((1, 8, 8), depth=2, levels=2, width=16)
        >>> _ = net.initialize(torch.rand(20, 1, 8, 8))
        >>> base = dist.Normal(torch.zeros(64), 1.0).to_event(1)
        >>> d = dist.TransformedDistribution(base, [InvertibleTransform(net)])
        >>> d.event_shape, d.log_prob(d.sample((5,))).shape
        (torch.Size([1, 8, 8]), torch.Size([5]))
    """

    bijective = True

    def __init__(self, module: nn.Module, context: Tensor | None = None, flat: bool = False):
        super().__init__(cache_size=0)
        self._image_shape: Any = getattr(module, "image_shape", None)
        _check(module, flat, self._image_shape)
        self.module: Any = module
        self.context = context
        self.flat = flat

    @constraints.dependent_property(is_discrete=False)
    def domain(self):
        """Vectors for a net with flat latents, else images."""
        return constraints.independent(constraints.real, 3 if self._image_shape is None else 1)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self):
        """Images, or vectors if they are flattened."""
        return constraints.independent(constraints.real, 1 if self.flat else 3)

    def forward_shape(self, shape):
        """Shape of data of latents of a shape."""
        return self._shape_of(shape, self.domain, self._image_shape)

    def inverse_shape(self, shape):
        """Shape of latents of data of a shape."""
        size = None if self._image_shape is None else (self._image_shape.numel(),)
        return self._shape_of(shape, self.codomain, size)

    def _shape_of(self, shape, source, event) -> torch.Size:
        """A batch with the context's, and an event; that of layers and flat nets is kept."""
        cut = len(shape) - source.event_dim
        batch = torch.broadcast_shapes(torch.Size(shape[:cut]), self._context_batch())
        return torch.Size((*batch, *(shape[cut:] if event is None or self.flat else event)))

    def _context_batch(self) -> torch.Size:
        if self.context is None:
            return torch.Size()
        if self._image_shape is None:
            return self.context.shape[:-1]
        return self.module.context_batch(self.context)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Of data with respect to latents ``x``."""
        return self._run("decode", x)[1]

    def _call(self, z: Tensor) -> Tensor:
        x = self._run("decode", z)[0]
        return x.flatten(-3) if self.flat else x

    def _inverse(self, x: Tensor) -> Tensor:
        return self._run("encode", x.unflatten(-1, self._image_shape) if self.flat else x)[0]

    def _run(self, direction: str, x: Tensor) -> tuple[Tensor, Tensor]:
        run: Any = getattr(self.module, direction)
        if self._image_shape is None:
            return self._run_layer(run, x)
        options = {"start": False} if direction == "encode" else {}
        return run(x, self.context, **options)

    def _run_layer(self, run: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Layers take images ``(N, C, H, W)`` and contexts ``(N, U)``."""
        batch = torch.broadcast_shapes(x.shape[:-3], self._context_batch())
        images = x.expand(*batch, *x.shape[-3:]).reshape(-1, *x.shape[-3:])
        options = {}
        if self.context is not None:
            options["context"] = self.context.expand(*batch, -1).reshape(len(images), -1)
        y, log_det = run(images, **options)
        return y.reshape(*batch, *y.shape[1:]), log_det.reshape(batch)


def _check(module: Any, flat: bool, image_shape: torch.Size | None) -> None:
    if not (hasattr(module, "encode") and hasattr(module, "decode")):
        raise ValueError(
            f"InvertibleTransform needs a module with encode and decode, got {module!r}."
        )
    if flat and image_shape is None:
        raise ValueError("flat is for nets with flat latents; flatten layers with a reshape.")
