"""Laws of the channels of a pixel, given the outputs of a network."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyro_ext.ops.discretized_logistic import logit_of_uniform
from pyro_ext.ops.logistic_mixture import mixture_log_prob, sample_mixture

_LOWEST = -7.0


class PixelHead(Protocol):
    """What a law of pixels can do; values are integers, ``(*batch, C)``."""

    num_outputs: int  # P
    num_uniforms: int  # U

    def log_prob(self, value: Tensor, outputs: Tensor, temperature: Any) -> Tensor:
        """Log probability ``(*batch)`` given outputs ``(*batch, P)``."""
        ...

    def sample(self, uniforms: Tensor, outputs: Tensor, temperature: Any) -> Tensor:
        """The values that uniform numbers ``(*batch, U)`` stand for."""
        ...


class LogisticHead(nn.Module):
    r"""Mixtures of rounded logistic laws, see ``DiscretizedLogisticMixture``.

    Locations and log scales are given for pixels in :math:`[-1, 1]`. As published, log scales are
    -7 at least, a tenth of a level of 256; with more levels they may be a tenth of a level too.
    """

    def __init__(self, channels: int, levels: int, num_components: int):
        super().__init__()
        self.channels, self.levels, self.num = channels, levels, num_components
        self.lowest = _LOWEST - max(0.0, math.log((levels - 1) / 255))
        pairs = channels * (channels - 1) // 2
        self.sizes = [1, channels, channels, pairs]
        self.num_outputs = num_components * sum(self.sizes)
        self.num_uniforms = num_components + channels

    def log_prob(self, value: Tensor, outputs: Tensor, temperature: Any = 1.0) -> Tensor:
        """Exact log probability."""
        logits, loc, scale, coefficients = self._arguments(outputs)
        logits, scale = logits / _fit(temperature, 1), scale * _fit(temperature, 2)
        return mixture_log_prob(value, logits, loc, scale, coefficients, self.levels)

    def sample(self, uniforms: Tensor, outputs: Tensor, temperature: Any = 1.0) -> Tensor:
        """Channel after channel, each rounded before the next sees it."""
        choice, uniform = uniforms.split([self.num, self.channels], -1)
        arguments = (*self._arguments(outputs), self.levels, temperature)
        return sample_mixture(choice, uniform, *arguments)

    def _arguments(self, outputs: Tensor) -> tuple[Tensor, ...]:
        parts = outputs.unflatten(-1, (-1, self.num)).split(self.sizes, -2)
        logits, loc, log_scale, coefficients = parts
        half = (self.levels - 1) / 2
        scale = half * log_scale.clamp_min(self.lowest).exp()
        return logits.squeeze(-2), half * (1 + loc), scale, coefficients.tanh()


class BernoulliHead(nn.Module):
    """Two levels; the logit of a channel is linear in the channels before it."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = self.num_uniforms = channels
        self.num_outputs = channels + channels * (channels - 1) // 2

    def log_prob(self, value: Tensor, outputs: Tensor, temperature: Any = 1.0) -> Tensor:
        """Exact log probability."""
        signs = 2 * value.to(outputs.dtype) - 1
        logits = [self._logit(k, outputs, signs) for k in range(self.channels)]
        scaled = torch.stack(logits, -1) / _fit(temperature, 1)
        return logsigmoid(signs * scaled).sum(-1)

    def sample(self, uniforms: Tensor, outputs: Tensor, temperature: Any = 1.0) -> Tensor:
        """Channel after channel."""
        signs = torch.zeros_like(uniforms)
        for k in range(self.channels):
            logit = self._logit(k, outputs, signs)
            is_one = logit_of_uniform(uniforms[..., k]) * temperature < logit
            signs[..., k] = 2 * is_one.to(signs.dtype) - 1
        return (signs + 1) / 2

    def _logit(self, k: int, outputs: Tensor, signs: Tensor) -> Tensor:
        start = self.channels + k * (k - 1) // 2
        earlier = outputs[..., start : start + k] * signs[..., :k]
        return outputs[..., k] + earlier.sum(-1)


class CategoricalHead(nn.Module):
    """Any law of each channel; its logits add a learned row for the value of each earlier one."""

    def __init__(self, channels: int, levels: int):
        super().__init__()
        self.channels = self.num_uniforms = channels
        self.levels, self.num_outputs = levels, channels * levels
        pairs = channels * (channels - 1) // 2
        self.rows = nn.Parameter(torch.zeros(pairs, levels, levels))

    def log_prob(self, value: Tensor, outputs: Tensor, temperature: Any = 1.0) -> Tensor:
        """Exact log probability."""
        value = value.long()
        logits = [self._logits(k, outputs, value) for k in range(self.channels)]
        log_probs = (torch.stack(logits, -2) / _fit(temperature, 2)).log_softmax(-1)
        return log_probs.gather(-1, value.unsqueeze(-1)).squeeze(-1).sum(-1)

    def sample(self, uniforms: Tensor, outputs: Tensor, temperature: Any = 1.0) -> Tensor:
        """Channel after channel, by the inverse of the distribution function."""
        value = torch.zeros_like(uniforms).long()
        for k in range(self.channels):
            probs = (self._logits(k, outputs, value) / _fit(temperature, 1)).softmax(-1)
            place = (probs.cumsum(-1) <= uniforms[..., k, None]).sum(-1)
            value[..., k] = place.clamp_max(self.levels - 1)
        return value.to(uniforms.dtype)

    def _logits(self, k: int, outputs: Tensor, value: Tensor) -> Tensor:
        logits = outputs[..., k * self.levels : (k + 1) * self.levels]
        start = k * (k - 1) // 2
        for j in range(k):
            logits = logits + self.rows[start + j][value[..., j]]
        return logits


def _fit(temperature: Any, dims: int) -> Any:
    """A number, or a tensor ``(*batch)`` with so many dimensions more."""
    if not isinstance(temperature, Tensor):
        return temperature
    return temperature.reshape(*temperature.shape, *[1] * dims)
