"""What a bound does when the log-weight of one particle moves and the others stay."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor


class SingleParticle:
    r"""A bound as a function of each particle's log-weight alone, the others held fixed.

    .. math::

        f_k(\ell) = f(\ell_1, \dots, \ell_{k-1}, \ell, \ell_{k+1}, \dots, \ell_K), \qquad
        \ell_k = \log w_k

    Everything that a gradient estimator of a multi-sample bound needs of the bound :math:`f` is
    in these :math:`K` functions: their slopes and curvatures where the particles are (pathwise and
    doubly reparameterised gradients) and their values elsewhere (leave-one-out baselines). They
    are found for any bound by differentiating it and, but for the slopes, by evaluating it on
    :math:`K` copies of the weights, which costs memory for :math:`K^2` numbers per datum.

    Args:
        bound: :math:`f`, a function ``(K, *rest) -> (*rest)``.
        log_w: log-weights :math:`\ell` in nats, particles leftmost.
        num_groups: the size :math:`M` of the first of the other dimensions, if the objective is the
            mean of as many bounds.

    Shape:
        ``log_w`` is ``(K, *rest)``, ``value`` is ``(*rest)``, everything else ``(K, *rest)``.

    Example:
        >>> from pyro_ext.ops import iwae
        >>> particle = SingleParticle(iwae, torch.tensor([0.0, 0.0]))
        >>> particle.slope, particle.curvature
        (tensor([0.5000, 0.5000]), tensor([0.2500, 0.2500]))
    """

    def __init__(self, bound: Callable[[Tensor], Tensor], log_w: Tensor, num_groups: int = 1):
        self.bound = bound
        self.log_w = log_w.detach()
        self.num_groups = num_groups

    @property
    def num_particles(self) -> int:
        """:math:`K`."""
        return len(self.log_w)

    @cached_property
    def value(self) -> Tensor:
        """The bound itself."""
        return self.bound(self.log_w)

    @cached_property
    def slope(self) -> Tensor:
        r""":math:`f_k'(\ell_k)`: for ``iwae`` the normalised weight."""
        with torch.enable_grad():
            log_w = self.log_w.clone().requires_grad_()
            return torch.autograd.grad(self.bound(log_w).sum(), log_w)[0]

    @cached_property
    def curvature(self) -> Tensor:
        r""":math:`f_k''(\ell_k)`, the diagonal of the Hessian of :math:`f`."""
        with torch.enable_grad():
            log_w = self.log_w.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.replaced(log_w).sum(), log_w, create_graph=True)
            if not slope.requires_grad:  # f is linear
                return torch.zeros_like(slope)
            return torch.autograd.grad(slope.sum(), log_w)[0]

    @property
    def pooled_slope(self) -> Tensor:
        """The slope of one bound of all :math:`K M` particles, in units of a mean over groups."""
        if self.num_groups == 1:
            return self.slope
        pooled = SingleParticle(self.bound, self.log_w.flatten(0, 1))
        return self.num_groups * pooled.slope.unflatten(0, self.log_w.shape[:2])

    @cached_property
    def others(self) -> Tensor:
        """The log-weights of the other particles, ``(K - 1, K, *rest)``."""
        index = torch.arange(self.num_particles, device=self.log_w.device)
        behind = index[1:, None] <= index  # of particle k: 0 .. k - 1, then k + 1 .. K - 1
        return self.log_w[index[:-1, None] + ~behind]

    def replaced(self, log_w: Tensor) -> Tensor:
        """:math:`f_k` at ``log_w``, one number for each particle."""
        diagonal = torch.eye(self.num_particles, dtype=torch.bool, device=self.log_w.device)
        diagonal = diagonal.reshape(diagonal.shape + (1,) * (self.log_w.dim() - 1))
        return self.bound(torch.where(diagonal, log_w, self.log_w.unsqueeze(1)))

    def dropped(self) -> Tensor:
        """The bound of the other :math:`K - 1` particles; zero if there are none."""
        return torch.zeros_like(self.log_w) if self.num_particles == 1 else self.bound(self.others)
