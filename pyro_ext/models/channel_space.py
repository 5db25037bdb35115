"""Sets of channels that must stay or go together, and what is known of them along a network."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Flow:
    r"""What is known of the channels of one tensor.

    Attributes:
        space: the set of channels, an index into :class:`Spaces`.
        axis: the dimension of the channels.
        block: how many entries of the dimension a channel has: more than one after flattening.
        alive: probability of each entry not to be constant, ``(channels * block,)``.
        constant: values of the entries that are constant.
    """

    space: int
    axis: int
    block: int
    alive: Tensor
    constant: Tensor

    @property
    def stopped(self) -> Tensor:
        """The constants, zero where an entry is none."""
        return torch.where(self.alive == 0, self.constant, 0.0)

    def known(self, alive: Tensor, constant: Tensor) -> "Flow":
        """The same channels with other knowledge."""
        return replace(self, alive=alive, constant=constant)

    def repeated(self, times: int) -> "Flow":
        """After the dimensions that follow the channels are flattened into them."""
        alive, constant = (part.repeat_interleave(times) for part in (self.alive, self.constant))
        return replace(self, block=self.block * times, alive=alive, constant=constant)


class Spaces:
    """Sets of channels, which additions join, and how likely each channel is needed.

    Args:
        like: a tensor whose dtype and device the probabilities have.
    """

    def __init__(self, like: Tensor):
        self._like = like.detach()
        self._parent: list[int] = []
        self._needs: list[list[Tensor]] = []
        self._sizes: list[int] = []

    def new(self, size: int) -> int:
        """A set of so many channels, none of them needed so far."""
        self._parent.append(len(self._parent))
        self._needs.append([])
        self._sizes.append(size)
        return len(self._parent) - 1

    def join(self, one: int, other: int) -> None:
        """Makes two sets one."""
        one, other = self._root(one), self._root(other)
        if one != other:
            self._parent[other] = one
            self._needs[one] += self._needs[other]

    def need(self, space: int, entries: Tensor, block: int = 1) -> None:
        """Notes how likely each entry of a tensor is needed."""
        needed = entries if block == 1 else either(*entries.reshape(-1, block).unbind(1))
        self._needs[self._root(space)].append(needed)

    def need_all(self, space: int) -> None:
        """Notes that no channel can go."""
        self.need(space, self._like.new_ones(self.size(space)))

    def outside(self, size: int, axis: int) -> Flow:
        """The channels of a tensor out of reach, all of which must stay."""
        space = self.new(size)
        self.need_all(space)
        return Flow(space, axis, 1, self._like.new_ones(size), self._like.new_zeros(size))

    def size(self, space: int) -> int:
        """The number of channels."""
        return self._sizes[self._root(space)]

    def needed(self, space: int) -> Tensor:
        """How likely each channel is needed, ``(channels,)``."""
        needs = self._needs[self._root(space)]
        return either(*needs) if needs else self._like.new_zeros(self.size(space))

    def kept(self, space: int) -> Tensor:
        """Indices of the channels that stay: the first, if none is needed."""
        return indices(self.needed(space))

    def is_empty(self, space: int) -> bool:
        """Whether no channel is needed."""
        return not bool((self.needed(space) > 0).any())

    def _root(self, space: int) -> int:
        while self._parent[space] != space:
            space = self._parent[space]
        return space


def either(*probs: Tensor) -> Tensor:
    """The probability of any of independent events; one and the same tensor is one event."""
    unlike = list({id(prob): prob for prob in probs}.values())
    if len(unlike) == 1:
        return unlike[0]
    none = torch.ones_like(unlike[0])
    for prob in unlike:
        none = none * (1 - prob)
    return 1 - none


def together(one: Flow, other: Flow) -> Tensor:
    """The probability that a product is not constant, where a zero stops the other factor."""
    if one.alive is other.alive:
        return one.alive
    for flow, factor in ((one, other), (other, one)):
        if bool((flow.constant == 0).all() and (factor.alive == 1).all()):
            return flow.alive
    stops = [flow.constant == 0 for flow in (one, other)]
    both = torch.where(stops[0], one.alive, 1.0) * torch.where(stops[1], other.alive, 1.0)
    return torch.where(stops[0] | stops[1], both, either(one.alive, other.alive))


def indices(open_: Tensor) -> Tensor:
    """Indices of what is open; of the first, if nothing is."""
    kept = (open_ > 0).nonzero().squeeze(1)
    return kept if len(kept) else torch.zeros(1, dtype=torch.long, device=open_.device)


def entries_of(channels: Tensor, block: int) -> Tensor:
    """Indices of the entries of channels, each of which has ``block``."""
    offsets = torch.arange(block, device=channels.device)
    return (channels[:, None] * block + offsets).flatten()
