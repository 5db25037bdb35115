"""A scalar with the value of a bound and the gradient of an estimator."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_ext.infer.estimators import Estimator, Factors, pathwise, piwae, rws
from pyro_ext.infer.particles import Particles

Bound = Callable[[Tensor], Tensor]


def surrogate(particles: Particles, bound: Bound, estimator: Estimator) -> Tensor:
    """The mean over outer particles of the bound of all data, with the estimator's gradient."""
    log_w, outer = particles.log_w(), particles.outer()
    _refuse_nested_upper(particles, bound)
    if estimator is pathwise or not torch.is_grad_enabled():
        return _total(particles, evaluate(bound, log_w), outer).mean()
    _refuse(particles, bound, estimator)
    particle = particles.single(bound, log_w)
    total = _total(particles, evaluate(bound, particle.log_w), outer).detach()
    factors = estimator(particle)
    masked = estimator is rws  # whose scores are densities, not signs of a draw's influence
    parts = [_local(particles, factors, log_w, masked), outer, _outer_scored(particles, total)]
    objective = sum(part.sum() for part in parts if isinstance(part, Tensor))
    return _Surrogate.apply(total.mean(), objective / particles.num_outer)


def evaluate(bound: Bound, log_w: Tensor) -> Tensor:
    """The bound of log-weights, whose shape is checked."""
    value = bound(log_w)
    if not isinstance(value, Tensor):
        raise ValueError(f"The bound {bound!r} returned {value!r}, expected a tensor.")
    if value.shape != log_w.shape[1:]:
        raise ValueError(
            f"The bound {bound!r} returned shape {tuple(value.shape)} for log-weights of "
            f"shape {tuple(log_w.shape)}, expected {tuple(log_w.shape[1:])}: it reduces the "
            "particles on the left and nothing else."
        )
    return value


def _total(particles: Particles, value: Tensor, outer: Any) -> Tensor:
    return outer + particles.sum_data(particles.scale * value)


def _local(particles: Particles, factors: Factors, log_w: Tensor, masked: bool) -> Tensor:
    """What the sites inside of the plates contribute to the gradient."""
    weight, path, score = factors
    scored, many = 0.0, 0.0
    if score is not None:
        many = particles.score_of_many()
        scored = score * (particles.score(path is None, masked) + many)
    explicit = weight * (particles.log_w(held=True, masked=masked) + many) + scored
    objective = (particles.scale * explicit).sum()
    if path is None or not particles.cut:
        return objective
    along_path = particles.scale * (path * log_w + scored)
    return objective + sum(particles.adjoints(along_path.sum()))


def _outer_scored(particles: Particles, total: Tensor) -> Any:
    """Scores of the draws outside; the mean of the other outer particles is their baseline."""
    score = particles.outer_score()
    num_others = particles.num_outer - 1
    baseline = (total.sum() - total) / num_others if num_others else 0.0
    return score * (total - baseline) if isinstance(score, Tensor) else score


def is_upper(bound: Bound) -> bool:
    """Whether a bound is one from above."""
    return bool(getattr(bound, "upper", False))


def _refuse_nested_upper(particles: Particles, bound: Bound) -> None:
    if is_upper(bound) and particles.runs[0].is_nested:
        raise ValueError(
            f"There are sites outside of the plates {list(particles.runs[0].plate_names)}, so that "
            f"the bound is nested: from below in them. With {bound!r}, from above, it would be "
            "none. Take a lower bound, or a guide that draws only outside."
        )


def _refuse(particles: Particles, bound: Bound, estimator: Estimator) -> None:
    run = particles.runs[0]
    reasons = {
        f"the bound {bound!r} is to be minimised": is_upper(bound) and estimator is rws,
        f"there are sites outside of the plates {list(run.plate_names)} of the bound": (
            run.is_nested and estimator in (rws, piwae)
        ),
        "sites have different scales": run.is_tempered and estimator is rws,
        "draws of the guide depend on enumerated ones": run.draws_many and estimator is rws,
        "a stochastic density draws along paths": run.has_stochastic_paths and estimator is rws,
    }
    for reason, is_given in reasons.items():
        if is_given:
            name = getattr(estimator, "__name__", estimator)
            raise ValueError(f"gradient={name} has no meaning where {reason}. Use gradient=auto.")


class _Surrogate(torch.autograd.Function):
    """The value of one scalar with the gradient of another."""

    @staticmethod
    def forward(ctx, value, objective):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "This gradient is an estimate with constant factors, so its own derivatives are "
                "none of the bound. For second derivatives use gradient=pathwise."
            )
        return None, gradient
