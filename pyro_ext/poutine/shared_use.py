"""Uses of a weight by several outputs of one datum."""

import warnings
from typing import Any

from pyro_ext.poutine.contraction import Contraction

CHOICES = (None, "weights", "independent")
WHERE = {"conv": "a convolution", "tokens": "a linear map of a sequence"}


class SharedUse:
    """What a handler does where one datum uses a weight more than once.

    Args:
        conv: of the pixels of a convolution: ``None`` takes one draw of the weight, with a
            warning, ``"weights"`` without; ``"independent"`` takes none.
        tokens: the same of the tokens of a sequence.

    Raises:
        ValueError: if one of them is something else.
    """

    def __init__(self, conv: str | None = None, tokens: str | None = None):
        self.choices = {"conv": conv, "tokens": tokens}
        for name, choice in self.choices.items():
            if choice not in CHOICES:
                raise ValueError(
                    f"{name} must be one of {CHOICES}, got {choice!r}. 'weights' is exact; "
                    "'independent' gives each use of a weight its own noise."
                )

    def takes_draw(self, contraction: Contraction) -> bool:
        """Whether the weight is to be drawn."""
        if not contraction.is_shared:
            return False
        word = "conv" if contraction.kind == "conv" else "tokens"
        if self.choices[word] is None:
            _warn(word, contraction.weight)
        return self.choices[word] != "independent"


def _warn(word: str, weight: Any) -> None:
    flipout = ", or take flipout()" if word == "conv" else ""
    warnings.warn(
        f"Weight '{weight.state.name}' meets {WHERE[word]}, where one datum uses it many times, so "
        "that noise of its own for each use would not be the law of one weight. One draw of the "
        f"weight is taken. Say {word}='weights' if that is right, or {word}='independent' for "
        f"noise at each use{flipout}.",
        UserWarning,
        stacklevel=2,
    )
