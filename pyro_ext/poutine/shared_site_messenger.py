"""One draw of some sites for a group of particles."""

from collections.abc import Container

from pyro.poutine.messenger import Messenger
from torch import Tensor


class SharedSiteMessenger(Messenger):
    """Gives all particles of a group the same value at the named sites.

    Particle ``k * num_groups + m`` belongs to group ``m``. Vectorised particles have a dimension,
    along which the first value of each group is repeated. Others are runs, one entrance of the
    context each, and the first run of each group is repeated.

    Args:
        names: the sites.
        num_groups: the number of groups.
        particle_dim: the (negative) batch dimension of vectorised particles, if there is one.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> with SharedSiteMessenger({"z"}, num_groups=2, particle_dim=-1):
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0))
        >>> bool((z[2:] == z[:-2]).all())
        True
    """

    def __init__(self, names: Container[str], num_groups: int, particle_dim: int | None = None):
        super().__init__()
        self.names = names
        self.num_groups = num_groups
        self.particle_dim = particle_dim
        self.run = -1
        self.values: dict[tuple[str, int], Tensor] = {}

    def __enter__(self):
        self.run += 1
        return super().__enter__()

    def _pyro_sample(self, msg) -> None:
        if msg["done"] or msg["is_observed"] or msg["name"] not in self.names:
            return
        group = (msg["name"], self.run % self.num_groups)
        if self.particle_dim is not None or group not in self.values:
            self.values[group] = self._draw(msg)
        msg["value"], msg["done"] = self.values[group], True

    def _draw(self, msg) -> Tensor:
        value = msg["fn"](*msg["args"], **msg["kwargs"])
        if self.particle_dim is None:
            return value
        dim = self.particle_dim - msg["fn"].event_dim
        groups = value.unflatten(dim, (-1, self.num_groups))
        return groups.narrow(dim - 1, 0, 1).expand_as(groups).flatten(dim - 1, dim)
