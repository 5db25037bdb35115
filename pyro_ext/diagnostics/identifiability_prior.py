"""Conditions on a conditional prior of an exponential family."""

from typing import Any

import torch
from torch import Tensor

from pyro_ext.diagnostics.identifiability_contexts import (
    check_labels,
    check_number,
    check_variability,
    thin,
)
from pyro_ext.diagnostics.identifiability_decoder import check_decoder, check_noise
from pyro_ext.diagnostics.identifiability_report import (
    MET,
    VIOLATED,
    WEAK,
    Condition,
    IdentifiabilityReport,
    promised,
)
from pyro_ext.ops.affine_rank import affine_rank

COLLAPSED = 1e-3  # nats between two contexts
DEPENDENT = 1e-8
CELLS = 8  # of the line, on each of which statistics have to be independent


def prior_report(
    prior: Any, contexts: Tensor, likelihood: Any, decoder: Any, num_draws: int, tolerance: float
) -> IdentifiabilityReport:
    """All conditions on a prior, a noise and a decoder."""
    size, k = prior.latent_dim, prior.num_statistics
    natural = prior.natural_parameters(thin(contexts)).detach()
    seen = affine_rank(natural.flatten(1), tolerance)
    modulation = modulations(prior, natural)
    z = draws(prior, contexts, num_draws)
    conditions = [
        check_number(contexts, size * k + 1, f"n k + 1, n = {size}, k = {k}"),
        *check_labels(prior, contexts),
        check_variability(seen, size * k),
        _check_collapse(modulation),
        _check_independence(prior, z),
        *([_monotone()] if prior.is_monotone else []),
        check_noise(likelihood),
        check_decoder(decoder, z),
    ]
    return IdentifiabilityReport(
        conditions=tuple(conditions),
        promise=promised(conditions, "linear" if prior.is_monotone else "permutation"),
        num_contexts=len(contexts),
        required_contexts=size * k + 1,
        rank=seen.rank,
        required_rank=size * k,
        condition_number=seen.condition_number,
        modulation=modulation,
    )


def modulations(prior: Any, natural: Tensor) -> Tensor:
    r"""Mean divergence between the laws of two contexts, of each coordinate, in nats.

    .. math::

        \frac{1}{N^2} \sum_{u, v} \mathrm{KL}(p_u \,\|\, p_v)
            = \sum_j \operatorname{Cov}_u(\lambda_j, \mathbb E[T_j])
    """
    natural = natural.double().requires_grad_()
    with torch.enable_grad():
        (moments,) = torch.autograd.grad(prior.log_normalizer(natural).sum(), natural)
    centred = natural.detach() - natural.detach().mean(0)
    return (centred * moments).mean(0).sum(-1)


@torch.no_grad()
def draws(prior: Any, contexts: Tensor, num_draws: int) -> Tensor:
    """Latents of contexts in turn; the same ones at each call, and no generator moves."""
    chosen = torch.linspace(0, len(contexts) - 1, num_draws, device=contexts.device).round().long()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        return prior.condition(contexts[chosen]).sample()


def _check_collapse(modulation: Tensor) -> Condition:
    text = f"contexts {modulation.min():.2g} to {modulation.max():.2g} nats apart in a coordinate"
    collapsed = (modulation < COLLAPSED).nonzero().flatten().tolist()
    if not collapsed:
        return Condition("modulation", MET, text)
    return Condition("modulation", WEAK, f"{text}; collapsed: {collapsed[:8]}")


def _check_independence(prior: Any, z: Tensor) -> Condition:
    ordered = z.double().flatten().sort().values
    ratios = torch.stack([_independence(prior.statistics(x)) for x in ordered.tensor_split(CELLS)])
    text = f"smallest over largest singular value of statistics {ratios.min():.1e}"
    if ratios.min() > DEPENDENT:
        return Condition("statistics", MET, text)
    where = "everywhere" if bool((ratios <= DEPENDENT).all()) else "on a part of the line"
    return Condition("statistics", VIOLATED, f"{text}: linearly dependent {where}")


def _independence(statistics: Tensor) -> Tensor:
    """How far statistics at some points are from affinely dependent."""
    centred = statistics - statistics.mean(0)
    lengths, sizes = centred.norm(dim=0), statistics.norm(dim=0)
    if bool((lengths <= 1e-12 * sizes).any()):
        return lengths.new_zeros(())
    values = torch.linalg.svdvals(centred / lengths)
    return values[-1] / values[0]


def _monotone() -> Condition:
    return Condition(
        "monotone",
        WEAK,
        "the only statistic is monotone (a modulated location), so that latents are known up to a "
        "linear map only; modulate the scale too",
    )
