"""Whose turn it is in flow-contrastive estimation, and the losses of both players."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_ext.distributions.noise import batch_of, draw, noise_given
from pyro_ext.infer.energy_objective import check_data, check_energies
from pyro_ext.infer.noise_contrastive import binary_loss


class FlowContrastiveModule(nn.Module):
    """The losses of :class:`~pyro_ext.infer.FlowContrastive`, and whose turn it is.

    Attributes:
        accuracy: moving average of the energy's accuracy.
        steps: of the present turn.
    """

    accuracy: Tensor
    steps: Tensor
    is_noise_turn: Tensor

    def __init__(self, objective: Any, ebm: Any, noise: Any):
        super().__init__()
        self.objective, self.ebm, self.noise = objective, ebm, noise
        self.register_buffer("accuracy", torch.tensor(0.5))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("is_noise_turn", torch.tensor(False))

    @property
    def turn(self) -> str:
        """``"ebm"`` or ``"noise"``, whose loss the next call is."""
        return "noise" if self.is_noise_turn else "ebm"

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The loss of whose turn it is, in nats per datum; a step of the turn if it is trained."""
        play = self._noise_turn if self.is_noise_turn else self._ebm_turn
        loss, accuracy = play(x, context)
        if self.training and torch.is_grad_enabled():
            self._take_turns(accuracy)
        return loss

    def ebm_loss(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Minus the value and, with labels, their cross-entropy; the noise gets no gradient."""
        return self._ebm_turn(x, context)[0]

    def noise_loss(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The value; the energy's parameters get no gradient."""
        return self._noise_turn(x, context)[0]

    def _ebm_turn(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        check_data(x, context)
        with torch.no_grad():
            played = self._play_noise(x, context)
        loss, accuracy = self._contrast(x, context, *played)
        weight = self.objective.label_weight
        if weight is not None and context is not None:
            loss = loss + weight * _label_loss(self.ebm, x, context)
        return loss, accuracy

    def _noise_turn(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        check_data(x, context)
        played = self._play_noise(x, context)
        with held(self.ebm):
            loss, accuracy = self._contrast(x, context, *played)
        return -loss, accuracy

    def _play_noise(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scores data first: nets that start from data do so before they draw."""
        seen = context if self.objective.label_weight is None else None
        given = noise_given(self.noise, seen, x)
        log_q = given.log_prob(x)
        missing = batch_of(given, x) if given.batch_shape == () else ()
        return log_q, *draw(given, torch.Size((1, *missing)))

    def _contrast(
        self, x: Tensor, context: Tensor | None, log_q: Tensor, draws: Tensor, log_q_draws: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Minus the value, and the accuracy."""
        logits = self._log_density(x, context, log_q.shape) - log_q
        noise_logits = self._log_density(draws, context, log_q_draws.shape) - log_q_draws
        accuracy = _accuracy(logits.detach(), noise_logits.detach())
        return binary_loss(logits, noise_logits), accuracy

    def _log_density(self, x: Tensor, context: Tensor | None, batch: torch.Size) -> Tensor:
        if self.objective.label_weight is None:
            log_density = self.ebm.log_density(x, context)
        else:
            logits = self.ebm.class_logits(x)
            log_density = logits.logsumexp(-1) - math.log(logits.shape[-1])
        check_energies(log_density, batch)
        return log_density

    @torch.no_grad()
    def _take_turns(self, accuracy: Tensor) -> None:
        options = self.objective
        self.accuracy.lerp_(accuracy.to(self.accuracy), 1 - options.memory)
        self.steps += 1
        ends = self.accuracy < options.low if self.is_noise_turn else self.accuracy > options.high
        if ends or self.steps >= options.max_turn:
            self.is_noise_turn.logical_not_()
            self.steps.zero_()


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Within it, graphs are recorded through a module but not to its parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _accuracy(logits: Tensor, noise_logits: Tensor) -> Tensor:
    """The share of right guesses; half of one where there is nothing to guess by."""
    right = torch.cat([logits.flatten(), -noise_logits.flatten()])
    return (right.sign() + 1).mean() / 2


def _label_loss(ebm: Any, x: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labels that are known; zero if there are none."""
    logits = ebm.class_logits(x)
    _check_labels(labels, logits)
    known = labels >= 0
    matched = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -torch.where(known, matched, 0.0).sum() / known.sum().clamp(min=1)


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    if labels.dtype != torch.long or labels.shape != logits.shape[:-1]:
        raise ValueError(
            "With label_weight contexts are labels of torch.int64, one for each datum and -1 where "
            f"missing; got {labels.dtype} of shape {tuple(labels.shape)}, expected "
            f"{tuple(logits.shape[:-1])}."
        )
    if is_validation_enabled() and not ((labels >= -1) & (labels < logits.shape[-1])).all():
        raise ValueError(
            f"Labels reach from {labels.min()} to {labels.max()}, expected 0 to "
            f"{logits.shape[-1] - 1}, or -1 where missing."
        )
