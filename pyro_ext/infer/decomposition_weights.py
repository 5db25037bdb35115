"""Weights of the parts of a decomposed bound."""

import math
from typing import NamedTuple

WARM_PART = 1 / 1.6  # of all steps


class DecompositionWeights(NamedTuple):
    """What each part of :class:`DecomposedELBO` counts.

    Example:
        >>> DecompositionWeights(reconstruction=100.0, total_correlation=0.0, dimension_kl=10.0)[1:]
        (1.0, 0.0, 10.0)
    """

    reconstruction: float = 1.0
    mutual_information: float = 1.0
    total_correlation: float = 1.0
    dimension_kl: float = 1.0

    @classmethod
    def annealed(cls, step: int, num_steps: int, start: float = 50.0) -> "DecompositionWeights":
        r"""The published schedule, at a step of so many.

        .. math::

            a = A (1 + r), \qquad b = \max(1, 0.3 A (1 - r)), \qquad c = \min(1, r), \qquad
            d = \max(1, 0.5 A (1 - r)), \qquad r = 1.6\, \text{step} / \text{num\_steps}

        for reconstruction, mutual information, total correlation and divergence of single
        coordinates, until :math:`r = 1`; from then on all are one, so that the last three eighths
        of the training have the plain bound.

        Args:
            step: from 0 to ``num_steps``.
            num_steps: of the training.
            start: :math:`A`; published as half of the decoder's precision.

        Raises:
            ValueError: if a number is out of its range.

        Example:
            >>> tuple(DecompositionWeights.annealed(0, 1000))
            (50.0, 15.0, 0.0, 25.0)
            >>> tuple(DecompositionWeights.annealed(700, 1000))
            (1.0, 1.0, 1.0, 1.0)
        """
        if not (0 <= step <= num_steps and num_steps > 0 and start > 0):
            raise ValueError(
                "A schedule needs 0 <= step <= num_steps, num_steps > 0 and start > 0, got "
                f"step={step}, num_steps={num_steps}, start={start}."
            )
        part = step / num_steps / WARM_PART
        if part >= 1:
            return cls()
        mutual, single = (max(1.0, share * start * (1 - part)) for share in (0.3, 0.5))
        return cls(start * (1 + part), mutual, min(1.0, part), single)


def check_weights(weights: DecompositionWeights) -> DecompositionWeights:
    """Refuses weights that are negative or not finite.

    Raises:
        ValueError: if one is.
    """
    wrong = [
        f"{name}={value}"
        for name, value in weights._asdict().items()
        if not (value >= 0 and math.isfinite(value))
    ]
    if wrong:
        raise ValueError(f"Weights are finite numbers >= 0, got {', '.join(wrong)}.")
    return weights
