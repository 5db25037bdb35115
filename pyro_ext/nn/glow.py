"""Glow."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ext.nn.act_norm import ActNorm
from pyro_ext.nn.context_features import as_features
from pyro_ext.nn.coupling_law import law
from pyro_ext.nn.gaussian_split import GaussianSplit
from pyro_ext.nn.glow_checks import check_config, check_images, check_latents
from pyro_ext.nn.glow_level import GlowLevel
from pyro_ext.nn.image_batch import flat, joint_batch
from pyro_ext.nn.squeeze import squeeze, unsqueeze
from pyro_ext.nn.top_prior import TopPrior


class GlowNet(nn.Module):
    r"""Glow: a bijection between images and as many independent latents.

    .. math::

        x \mapsto \epsilon \in \mathbb{R}^D, \qquad
        \log p(x) = \log \mathcal N(\epsilon; 0, 1)
        + \log \Bigl\lvert \det \frac{\partial \epsilon}{\partial x} \Bigr\rvert

    At each level pixels are squeezed, 2x2 to four channels, ``depth`` steps of flow follow
    (:class:`GlowLevel`), and half of the channels are left as latents of this level
    (:class:`GaussianSplit`); the last level's are all latents (:class:`TopPrior`). As the learned
    priors are parts of the transform, the latents are standard Normal, and a temperature is the
    scale of their law: see :class:`~pyro_ext.distributions.Glow`.

    The flat latents run from coarse to fine: those of the last level first, of the first level
    last, each as ``(C, H, W)``. :meth:`split` and :meth:`join` go between the two forms.

    Actnorms start from data: call :meth:`initialize` with some 256 images, or else the first
    batch that is encoded in training mode is taken. Decoding starts nothing.

    Args:
        image_shape: :math:`(C, H, W)`, height and width divisible by :math:`2^{levels}`.
        depth: steps of flow per level.
        levels: number of levels.
        width: hidden channels of the couplings' networks.
        coupling: ``"affine_bounded"``, ``"affine"`` or ``"additive"``, see :class:`Coupling`.
        num_classes: labels as context: integers below it.
        context_dim: vectors as context: numbers in each. One of the two, or none.
        condition_couplings: whether the couplings see the context; else only the last level's
            prior does, and all labels of an image are scored by one pass through the net.
        classifier: whether to have :meth:`class_logits`, linear in the mean of the last level.
        edge_bias: whether convolutions know the edge of the image, see :class:`ZeroConv2d`.
        lu: whether 1x1 convolutions are made of triangular factors.
        compute_dtype: dtype of the couplings' networks, ``torch.bfloat16`` say, the parameters' if
            None. Latents and log determinants stay in the parameters' dtype. With ``bfloat16``
            images are decoded to some 1e-3 only.
        memory: what is kept for the backward pass, see :class:`GlowLevel`.

    Raises:
        ValueError: if an argument is out of its range; later, if images or contexts have the wrong
            shape or dtype, or if images are encoded in evaluation mode before the net has started.

    References:
        Kingma and Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*,
        arXiv 1807.03039.

    Example:
        >>> net = GlowNet((3, 16, 16), depth=2, levels=2, width=16)
        >>> images = torch.rand(10, 3, 16, 16) - 0.5
        >>> eps, log_det = net.initialize(images).encode(images)
        >>> eps.shape, log_det.shape, torch.allclose(net.decode(eps)[0], images, atol=1e-4)
        (torch.Size([10, 768]), torch.Size([10]), True)
        >>> [tuple(part.shape) for part in net.split(eps)]
        [(10, 24, 4, 4), (10, 6, 8, 8)]
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        depth: int = 32,
        levels: int = 3,
        width: int = 512,
        coupling: str = "affine_bounded",
        num_classes: int = 0,
        context_dim: int = 0,
        *,
        condition_couplings: bool = False,
        classifier: bool = False,
        edge_bias: bool = False,
        lu: bool = True,
        compute_dtype: torch.dtype | None = None,
        memory: str = "none",
    ):
        super().__init__()
        self.config: dict[str, Any] = {
            "image_shape": tuple(image_shape),
            "depth": depth,
            "levels": levels,
            "width": width,
            "coupling": coupling,
            "num_classes": num_classes,
            "context_dim": context_dim,
            "condition_couplings": condition_couplings,
            "classifier": classifier,
            "edge_bias": edge_bias,
            "lu": lu,
            "compute_dtype": compute_dtype,
            "memory": memory,
        }
        check_config(**self.config)
        self.image_shape = torch.Size(image_shape)
        self.num_classes, self.context_dim = num_classes, context_dim
        self.condition_couplings = condition_couplings
        features = num_classes + context_dim
        sizes = _channels(self.image_shape, levels)
        seen = features if condition_couplings else 0
        options = (depth, width, coupling, seen, edge_bias, lu, compute_dtype, memory)
        self.levels: Any = nn.ModuleList(GlowLevel(size, *options) for size in sizes)
        left = (law(coupling).bound, edge_bias)
        self.splits: Any = nn.ModuleList(GaussianSplit(size, *left) for size in sizes[:-1])
        self.top = TopPrior(sizes[-1], features)
        self.head = nn.Linear(sizes[-1], num_classes) if classifier else None
        self._is_started = False
        self.register_load_state_dict_post_hook(_look_again)

    @property
    def latent_shapes(self) -> list[torch.Size]:
        """Shapes ``(C, H, W)`` of the levels' latents, from coarse to fine."""
        _, height, width = self.image_shape
        sizes = _channels(self.image_shape, len(self.levels))
        left = [size // 2 for size in sizes[:-1]] + sizes[-1:]
        shapes = [(size, height >> k, width >> k) for k, size in enumerate(left, 1)]
        return [torch.Size(shape) for shape in reversed(shapes)]

    def context_batch(self, context: Tensor | None) -> torch.Size:
        """The batch shape of a context.

        Raises:
            ValueError: if the net cannot take it.
        """
        features = self._features(context)
        return torch.Size() if features is None else features.shape[:-1]

    @property
    def is_initialized(self) -> bool:
        """Whether the actnorms have started, from data or by loading ones that had."""
        if not self._is_started:
            first = self.levels[0].norms[0]
            self._is_started = bool(first.bias.any() | first.log_scale.any())
        return self._is_started

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density of images under standard Normal latents, ``(*batch)`` in nats."""
        eps, log_det = self.encode(x, context)
        return -0.5 * (eps.square().sum(-1) + eps.shape[-1] * math.log(2 * math.pi)) + log_det

    def encode(
        self, x: Tensor, context: Tensor | None = None, *, start: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Maps images to latents.

        Args:
            x: ``(*batch, C, H, W)``.
            context: labels ``(*context_batch)`` or vectors ``(*context_batch, U)``.
            start: whether a net in training mode that has not started does so from ``x``.

        Returns:
            Latents, ``(*batch, D)`` over the broadcast batch, and log determinants, ``(*batch)``.
        """
        features = self._features(context)
        x, seen, batch = self._flat(x, features)
        if start:
            self._ensure_started(x, seen)
        with torch.autocast(x.device.type, enabled=False):
            top, left, log_det = self._ascend(x, seen)
            top, added = self.top.encode(top.reshape(*batch, *top.shape[1:]), features)
        left = [part.reshape(*batch, *part.shape[1:]) for part in left]
        return self.join([top, *left]), log_det.reshape(batch) + added

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps latents to images, with the log determinant of this direction.

        Args:
            z: ``(*batch, D)``.
            context: as in :meth:`encode`.

        Returns:
            Images, ``(*batch, C, H, W)`` over the broadcast batch, and ``(*batch)``.
        """
        top, *left = self.split(z)
        features = self._features(context)
        joint_batch(z.shape[:-1], features)
        with torch.autocast(z.device.type, enabled=False):
            top, log_det = self.top.decode(top, features)
            batch = top.shape[:-3]
            x, seen, _ = self._flat(top, features, top.shape[-3:])
            left = [flat(part, batch, 3) for part in left]
            x, added = self._descend(x, left, seen)
        return x.reshape(*batch, *self.image_shape), log_det + added.reshape(batch)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> "GlowNet":
        """Starts the actnorms from images, some 256 of them, and returns the net.

        A context is needed only by couplings that see one. Where ``torch.distributed`` runs, every
        process calls this with images of its own.

        Raises:
            ValueError: if the net has started already; if a channel is constant, or has one value.
        """
        if self.is_initialized:
            raise ValueError("GlowNet has started from data or was trained. Build a new one.")
        x, seen, _ = self._flat(x, self._seen(context))
        self._start(x, seen)
        return self

    def split(self, z: Tensor) -> list[Tensor]:
        """Cuts flat latents, ``(*batch, D)``, into those of each level, from coarse to fine.

        Raises:
            ValueError: if the size is not that of an image, or the dtype not the net's.
        """
        shapes = self.latent_shapes
        check_latents(z, self.image_shape.numel(), self.top.bias.dtype)
        parts = z.split([shape.numel() for shape in shapes], -1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def join(self, latents: Sequence[Tensor]) -> Tensor:
        """Undoes :meth:`split`; the batches of the levels are broadcast."""
        batch = torch.broadcast_shapes(*(part.shape[:-3] for part in latents))
        return torch.cat([part.flatten(-3).expand(*batch, -1) for part in latents], -1)

    def class_logits(self, x: Tensor) -> Tensor:
        r"""Logits of a classifier that sees the mean of the last level over its pixels.

        Trained beside the density, as :math:`-\log p(x) + w \, \mathrm{CE}`.

        Args:
            x: ``(*batch, C, H, W)``.

        Returns:
            ``(*batch, num_classes)``.

        Raises:
            ValueError: if the net was built without ``classifier``, or has not started in
                evaluation mode.
        """
        if self.head is None:
            raise ValueError("This GlowNet has no classifier. Build it with classifier=True.")
        x, _, batch = self._flat(x, None)
        self._ensure_started(x, None)
        with torch.autocast(x.device.type, enabled=False):
            top, _, _ = self._ascend(x, None)
            return self.head(top.mean((-2, -1))).reshape(*batch, self.num_classes)

    def log_prob_all_classes(self, x: Tensor) -> Tensor:
        """Log density of images given each label, ``(*batch, num_classes)`` in nats.

        One pass through the net, unless the couplings see the labels.

        Raises:
            ValueError: if the net has no labels.
        """
        if not self.num_classes:
            raise ValueError("This GlowNet has no labels. Build it with num_classes.")
        labels = torch.arange(self.num_classes, device=x.device)
        return self(x, labels.reshape(-1, *[1] * (x.dim() - 3))).movedim(0, -1)

    @torch.no_grad()
    def _start(self, x: Tensor, context: Tensor | None) -> None:
        """Starts all norms, or none if it fails."""
        norms = [part for part in self.modules() if isinstance(part, ActNorm)]
        try:
            with torch.autocast(x.device.type, enabled=False):
                for k, level in enumerate(self.levels):
                    x = level.initialize(squeeze(x), context)
                    x = self.splits[k].encode(x)[0] if k < len(self.splits) else x
        except ValueError:
            for norm in norms:
                norm.reset()
            raise
        self._is_started = True

    def _ascend(self, x: Tensor, seen: Tensor | None) -> tuple[Tensor, list[Tensor], Tensor]:
        """The last level before its prior, the latents from coarse to fine, log determinant."""
        x, log_det = self.levels[0].encode(squeeze(x), seen)
        left: list[Tensor] = []
        for split, level in zip(self.splits, self.levels[1:], strict=True):
            x, eps, of_split = split.encode(x)
            left.insert(0, eps)
            x, of_level = level.encode(squeeze(x), seen)
            log_det = log_det + of_split + of_level
        return x, left, log_det

    def _descend(self, x: Tensor, left: list[Tensor], seen: Tensor | None) -> tuple[Tensor, Tensor]:
        *others, first = reversed(self.levels)
        log_det: Any = 0.0
        for level, split, eps in zip(others, reversed(self.splits), left, strict=True):
            x, of_level = level.decode(x, seen)
            x, of_split = split.decode(unsqueeze(x), eps)
            log_det = log_det + of_level + of_split
        x, of_level = first.decode(x, seen)
        return unsqueeze(x), log_det + of_level

    def _features(self, context: Tensor | None) -> Tensor | None:
        """The context as vectors, ``(*context_batch, U)``."""
        return as_features(context, self.num_classes, self.context_dim, self.top.bias)

    def _seen(self, context: Tensor | None) -> Tensor | None:
        """The context as vectors, if the couplings see it."""
        return self._features(context) if self.condition_couplings else None

    def _flat(
        self, x: Tensor, features: Tensor | None, shape: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor | None, torch.Size]:
        """Images ``(N, C, H, W)``, what the couplings see of the context, and the batch shape."""
        shape = self.image_shape if shape is None else shape
        check_images(x, shape, self.top.bias.dtype)
        batch, seen = x.shape[:-3], features if self.condition_couplings else None
        joint = joint_batch(batch, features)
        if seen is not None:
            batch, seen = joint, flat(seen, joint, 1)
        return flat(x, batch, 3), seen, batch

    def _ensure_started(self, x: Tensor, seen: Tensor | None) -> None:
        if self.is_initialized:
            return
        if not self.training:
            raise ValueError(
                "GlowNet has not started from data, and in evaluation mode it does not. "
                "Call net.initialize(images), load a checkpoint, or train it."
            )
        self._start(x, seen)


def _look_again(net: GlowNet, _) -> None:
    """Whether a net has started is known anew once parameters were loaded."""
    net._is_started = False
    net._is_started = net.is_initialized


def _channels(image_shape: Sequence[int], levels: int) -> list[int]:
    """Channels of each level, from fine to coarse."""
    return [image_shape[0] * 2 ** (k + 2) for k in range(levels)]
