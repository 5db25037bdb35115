"""A model as a potential of its unconstrained latent variables."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor
from torch.distributions import biject_to

from pyro_ext.distributions.program import apart
from pyro_ext.infer.plates import PARTICLES
from pyro_ext.poutine.frame_messenger import FrameMessenger
from pyro_ext.poutine.shared_subsample_messenger import SharedSubsampleMessenger

Unpack = Callable[[Tensor], Iterator[tuple[Any, Tensor]]]


class ModelPotential:
    r"""Minus the log joint density of a model and of its data, in unconstrained space.

    .. math::

        U(u) = -\log p\bigl(x, z(u)\bigr) - \log \left| \frac{\partial z}{\partial u} \right|

    Several vectors are rows of one run of the model, in a dimension to the left of its plates; a
    single one is run alone. Handlers and plates around the caller do not see the model's sites. The
    subsample of a plate is drawn once, and kept for all evaluations.

    Args:
        model: the model.
        unpack: splits vectors ``(..., latent_dim)`` into pairs of a latent site and its
            unconstrained value.
        latent_dim: size of the vectors.
        num_plate_dims: dimensions that plates of the model take.
        args: of the model.
        kwargs: of the model.

    Shape:
        ``(..., latent_dim) -> (...)``, in nats.

    Raises:
        ValueError: when called, if the model draws a site that is neither latent nor observed, or
            does not run on several rows at once.
    """

    def __init__(
        self,
        model: Callable,
        unpack: Unpack,
        latent_dim: int,
        num_plate_dims: int,
        args: tuple,
        kwargs: dict[str, Any],
    ):
        self.model = model
        self.unpack = unpack
        self.event_shape = torch.Size([latent_dim])
        self.num_plate_dims = num_plate_dims
        self.args, self.kwargs = args, kwargs
        self._subsamples: dict[str, Tensor] = {}

    def __call__(self, vectors: Tensor) -> Tensor:
        """Potentials."""
        batch = vectors.shape[:-1]
        if batch.numel() == 1:
            return -self._log_joint(vectors.reshape(-1), 1).reshape(batch)
        ones = (1,) * self.num_plate_dims
        rows = vectors.reshape(batch.numel(), *ones, -1)
        return -self._log_joint(rows, batch.numel()).reshape(batch)

    def _log_joint(self, vectors: Tensor, num_rows: int) -> Tensor:
        total: Any = vectors.new_zeros(())
        values = {}
        for site, unconstrained in self.unpack(vectors):
            transform = biject_to(site["fn"].support)
            values[site["name"]] = value = transform(unconstrained)
            jacobian = transform.log_abs_det_jacobian(unconstrained, value)
            total = total + self._sum(jacobian, num_rows)
        for site in self._sites(values, num_rows):
            total = total + self._sum(site["log_prob"], num_rows)
        return total.expand(num_rows)

    def _sum(self, log_prob: Tensor, num_rows: int) -> Tensor:
        """The sum for each row that a term depends on."""
        if num_rows == 1 or log_prob.dim() <= self.num_plate_dims:
            return log_prob.sum()
        return log_prob.reshape(log_prob.shape[0], -1).sum(-1)

    def _sites(self, values: dict[str, Tensor], num_rows: int) -> list[Any]:
        model: Any = poutine.condition(self.model, data=values)
        if num_rows > 1:
            dim = -1 - self.num_plate_dims
            frame = CondIndepStackFrame(f"{PARTICLES}_of_potential", dim, num_rows, 0)
            model = FrameMessenger(frame)(model)
        try:
            trace = self._trace(model)
        except (RuntimeError, ValueError) as error:
            raise error if num_rows == 1 else _not_vectorised(num_rows, error) from error
        nodes: Any = poutine.util.prune_subsample_sites(trace).nodes
        sites = [site for site in nodes.values() if site["type"] == "sample"]
        _refuse_free([site["name"] for site in sites if not site["is_observed"]])
        return sites

    def _trace(self, model: Any) -> Any:
        with apart(), SharedSubsampleMessenger() as shared:
            shared.subsamples.update(self._subsamples)
            trace = poutine.trace(model).get_trace(*self.args, **self.kwargs)
            self._subsamples.update(shared.subsamples)
        trace.compute_log_prob()
        return trace


def num_plate_dims(model: Callable, args: tuple, kwargs: dict[str, Any]) -> int:
    """Dimensions that plates of a model take, counted in one run of it."""
    with poutine.block():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    nodes: Any = trace.nodes
    sites = [site for site in nodes.values() if site["type"] == "sample"]
    frames = [frame for site in sites for frame in site["cond_indep_stack"] if frame.vectorized]
    return max([0, *(-frame.dim for frame in frames)])


def _refuse_free(names: list[str]) -> None:
    if names:
        raise ValueError(
            f"The model draws {names} freely, so its potential would be random: a Hamiltonian "
            "guide runs the model, and needs the data it was trained on. For predictions, draw "
            "posterior samples with Predictive(guide, num_samples=n)(*training_arguments) and pass "
            "them on to Predictive(model, posterior_samples). Sites may be neither enumerated nor "
            "left to another guide."
        )


def _not_vectorised(num_rows: int, error: Exception) -> ValueError:
    what = str(error).splitlines()[0]
    return ValueError(
        f"The model does not run on {num_rows} draws at once, in a dimension to the left of its "
        f"plates ({what}). Let it index dimensions from the right, as vectorised particles need "
        "it too: (x * w).sum(-1) rather than x @ w."
    )
