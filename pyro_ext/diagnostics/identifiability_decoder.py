"""Conditions on noise and decoder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ext.diagnostics.identifiability_report import (
    MET,
    OUTSIDE,
    UNCHECKED,
    VIOLATED,
    Condition,
)

FLAT = 1e-4  # smallest over largest singular value of a Jacobian
WIDE = 128  # numbers of a datum
PAIRS, STEPS = 64, 15  # of the search for latents that share an image
ADDITIVE: tuple[type, ...] = (
    torch.distributions.Normal,
    torch.distributions.MultivariateNormal,
    torch.distributions.LowRankMultivariateNormal,
    torch.distributions.Laplace,
    torch.distributions.StudentT,
    torch.distributions.Cauchy,
    torch.distributions.Gumbel,
    torch.distributions.Uniform,
    dist.MultivariateStudentT,
    dist.Logistic,
)
WRAPPERS = (
    torch.distributions.Independent,
    dist.MaskedDistribution,
    dist.ExpandedDistribution,
)


def check_noise(likelihood: Any) -> Condition:
    """Whether the noise is additive, and has a characteristic function with few zeros."""
    if likelihood is None:
        text = "no likelihood given; the theorem wants additive noise that does not depend on z"
        return Condition("noise", UNCHECKED, text)
    kind = _kind(likelihood)
    if issubclass(kind, dist.Delta):
        return Condition("noise", MET, "none")
    if issubclass(kind, ADDITIVE):
        text = f"{kind.__name__}, if it is added and does not depend on z"
        return Condition("noise", MET, text)
    if getattr(getattr(kind, "support", None), "is_discrete", False):
        text = f"{kind.__name__} is discrete: the theorem is about additive noise, not about counts"
        return Condition("noise", OUTSIDE, text)
    text = f"{kind.__name__} is not known to be additive noise"
    return Condition("noise", UNCHECKED, text)


def _kind(likelihood: Any) -> type:
    while isinstance(likelihood, WRAPPERS):
        likelihood = likelihood.base_dist
    kind = likelihood if isinstance(likelihood, type) else type(likelihood)
    if not issubclass(kind, torch.distributions.Distribution):
        raise ValueError(
            f"likelihood must be a distribution or a class of them, such as Normal, got "
            f"{likelihood!r}. Without noise it is Delta."
        )
    return kind


def check_decoder(decoder: Any, z: Tensor) -> Condition:
    """Whether the decoder is injective near each of some latents."""
    if decoder is None:
        return Condition("injective", UNCHECKED, "no decoder given")
    with evaluating(decoder):
        jacobian = jacobians(decoder, z)
    latent_dim, data_dim = z.shape[-1], jacobian.shape[-2]
    if data_dim < latent_dim:
        text = f"the decoder makes {data_dim} numbers of {latent_dim} latents: take fewer latents"
        return Condition("injective", VIOLATED, text)
    if not jacobian.isfinite().all():
        raise ValueError("The decoder's Jacobian is not finite at draws of the prior.")
    values = torch.linalg.svdvals(jacobian.double())
    ratios = values[:, -1] / values[:, 0].clamp(min=torch.finfo(values.dtype).tiny)
    text = f"smallest over largest singular value of the Jacobian {ratios.min():.1e}"
    num_flat = int((ratios < FLAT).sum())
    if num_flat:
        return Condition("injective", VIOLATED, f"{text}, flat at {num_flat} of {len(z)} draws")
    with evaluating(decoder):
        twins = _num_twins(decoder, z[:PAIRS], values[:PAIRS, -1])
    if twins:
        text = f"{text}, but of {len(z[:PAIRS])} draws {twins} share their image with other latents"
        return Condition("injective", VIOLATED, text)
    return Condition("injective", MET, f"{text} at {len(z)} draws, and no other latents found")


@contextmanager
def evaluating(function: Any) -> Iterator[None]:
    """Dropout off and running averages kept, as far as a function is a module."""
    owner = getattr(function, "__self__", function)
    modules = list(owner.modules()) if isinstance(owner, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def jacobians(decoder: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Derivatives of the numbers of a datum by its latents, ``(S, n) -> (S, d, n)``.

    Raises:
        ValueError: if the decoder does not return a tensor with a row for each latent.
    """
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        outputs = _data(decoder(z))
        _check_output(outputs, z)
        if not outputs.requires_grad:
            raise ValueError("decoder must be differentiable, but its output has no gradient.")
        flat = outputs.flatten(1)
        return _by_rows(flat, z) if flat.shape[1] <= WIDE else _by_columns(flat, z)


def _by_rows(outputs: Tensor, z: Tensor) -> Tensor:
    rows = [torch.autograd.grad(x, z, retain_graph=True)[0] for x in outputs.sum(0)]
    return torch.stack(rows, -2)


def _by_columns(outputs: Tensor, z: Tensor) -> Tensor:
    """By the derivative of a backward pass, which is linear in what it begins with."""
    start = torch.zeros_like(outputs).requires_grad_()
    (slopes,) = torch.autograd.grad(outputs, z, start, create_graph=True)
    columns = [torch.autograd.grad(x, start, retain_graph=True)[0] for x in slopes.sum(0)]
    return torch.stack(columns, -1)


def _num_twins(decoder: Callable[[Tensor], Tensor], z: Tensor, slopes: Tensor) -> int:
    """How many latents have an image that Gauss-Newton steps from other ones reach elsewhere."""
    found, target = z.roll(1, 0), _images(decoder, z)
    for _ in range(STEPS):
        jacobian = jacobians(decoder, found)
        missing = (target - _images(decoder, found)).unsqueeze(-1)
        normal = jacobian.mT @ jacobian
        damping = 1e-6 * normal.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        step = torch.linalg.solve(
            normal + damping * torch.eye(z.shape[-1]).to(z), jacobian.mT @ missing
        )
        found = found + step.squeeze(-1).nan_to_num(0.0, 0.0, 0.0)
    far = (found - z).norm(dim=-1)
    near = (target - _images(decoder, found)).norm(dim=-1)
    within = (found.abs() <= 1.5 * z.abs().amax(0)).all(-1)
    apart = far > 0.01 * z.std(0).norm()
    return int((within & apart & (near < 0.01 * far * slopes.to(far))).sum())


@torch.no_grad()
def _images(decoder: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return _data(decoder(z)).flatten(1)


def _data(outputs: Any) -> Any:
    """The mean, if a decoder returns the likelihood."""
    return outputs.mean if isinstance(outputs, torch.distributions.Distribution) else outputs


def _check_output(x: Any, z: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dim() < 2 or len(x) != len(z):
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"decoder must map latents {tuple(z.shape)} to data ({len(z)}, ...), such as the mean "
            f"of the likelihood, got {shape}."
        )
