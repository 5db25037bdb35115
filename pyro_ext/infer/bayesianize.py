"""Any module as a Pyro model with a guide."""

import copy
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions import Normal
from pyro.infer.autoguide import AutoGuide, init_to_value
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_ext.infer.auto_additive_normal import AutoAdditiveNormal
from pyro_ext.infer.batched_weights import batched_call, draws_of
from pyro_ext.infer.store_names import claim_names, plain_child
from pyro_ext.infer.weight_places import clear_places, filled
from pyro_ext.infer.weight_plates import refuse_data_plates, refuse_drawn_inputs
from pyro_ext.infer.weight_priors import Prior, random_parameters, weight_priors
from pyro_ext.ops.counts import count


class BayesianModule(PyroModule):
    r"""A module whose parameters are sample sites; :func:`bayesianize` makes it.

    .. math:: w \sim p(w), \qquad y_n \mid x_n, w \sim p\bigl(y_n \mid f_w(x_n)\bigr)

    The sites have the names of the parameters. Weights with batch dimensions, of vectorised
    particles or posterior predictive draws, are mapped over, whatever the module does with them.
    Inputs are not: in a larger program they must be the same for all draws.

    Args:
        module: :math:`f`; it is copied.
        prior: as in :func:`bayesianize`.
        guide: as in :func:`bayesianize`.
        likelihood: as in :func:`bayesianize`.
        size: as in :func:`bayesianize`.
        name: as in :func:`bayesianize`.

    Attributes:
        guide: the program that draws the same sites.
        module: the copy of the module, with what is left of its parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        prior: Prior,
        guide: Callable[[Callable], Callable],
        likelihood: Callable[[Any], Any] | None = None,
        size: int | None = None,
        name: str = "",
    ):
        if not isinstance(name, str):
            raise ValueError(f"name must be a string, got {name!r}.")
        super().__init__(name)
        parameters = random_parameters(module)
        self.priors = weight_priors(prior, parameters)
        self.likelihood = likelihood
        self.size = None if size is None else count(size, "size")
        self.module = copy.deepcopy(module)
        self._places = clear_places(self.module, self.priors)
        values = {key: parameters[key].detach().clone() for key in self.priors}
        init = init_to_value(values=values, fallback=None)
        self.guide = guide(InitMessenger(init)(self.draw_weights))
        if isinstance(self.guide, AutoGuide):
            self.guide._setup_prototype()
        if isinstance(self.guide, PyroModule):
            self.guide.register_forward_pre_hook(claim_names)
            self.guide.register_forward_pre_hook(refuse_data_plates)

    def claim_names(self) -> None:
        """Takes over what was loaded into Pyro's parameter store, as any call does.

        Raises:
            ValueError: if the store holds the parameters of another network of this name.
        """
        claim_names(self)

    def draw_weights(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draws all weights from the prior; arguments are ignored.

        Raises:
            ValueError: inside of a plate of data.
        """
        refuse_data_plates()
        return {name: pyro.sample(name, prior) for name, prior in self.priors.items()}

    def forward(self, *args, y: Any = None, **kwargs) -> Any:
        """Draws the weights, and with a likelihood the observed site ``y``.

        Args:
            *args: of the module; with a likelihood, its input and optionally ``y``.
            y: data, ``(B, ...)``.
            **kwargs: of the module.

        Returns:
            The output of the module, or the data with a likelihood.
        """
        if self.likelihood is None:
            return self._evaluate(self.draw_weights(), args, kwargs)
        x, *data = args
        y = data[0] if data else y
        weights = self.draw_weights()
        law = self.likelihood(self._evaluate(weights, (x,), kwargs))
        _check_law(law, (*draws_of(weights, self._shapes), len(x)), y)
        with _plate(len(x), self.size, is_observed=y is not None):
            return pyro.sample("y", law, obs=y)

    @property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: prior.event_shape for name, prior in self.priors.items()}

    def _evaluate(self, weights: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        module, places = plain_child(self, "module"), self._places
        draws = draws_of(weights, self._shapes)
        if draws and draws[0] > 1:
            refuse_drawn_inputs((args, kwargs), weights, draws[0])

        def call(weights: dict[str, Tensor]) -> Any:
            with filled(places, weights):
                return module(*args, **kwargs)

        return batched_call(call, weights, self._shapes)


def bayesianize(
    module: nn.Module,
    prior: Prior | None = None,
    guide: Callable[[Callable], Callable] = AutoAdditiveNormal,
    *,
    likelihood: Callable[[Any], Any] | None = None,
    size: int | None = None,
    name: str = "",
) -> BayesianModule:
    r"""Makes a Pyro model of any module, with a matching mean-field guide.

    The parameters become sample sites of the same names. The guide starts at the values that the
    module has. The model is a plain Pyro program: condition it, run NUTS or ``Predictive`` on it,
    give it another guide.

    Parameters that are frozen (``requires_grad`` is False) stay as they are, and those of an
    :class:`~pyro_ext.nn.L0Gate` stay parameters: its law is a posterior already. Charge for open
    gates in a program of your own, ``pyro.factor("gates", -model.module[0].gate.expected_l0())``,
    or by :class:`~pyro_ext.infer.ConstrainedELBO`. What a layer computes from its weights outside
    of a call, such as a decay, is NaN: they are random now, and their prior stands for it.

    In a larger program weights are drawn once for all data: call the model and its guide outside
    of plates of data. Inputs that are drawn too, such as those of a decoder, need one particle at
    a time. Under an improper prior ``Predictive(model, guide=model.guide)`` works, and draws from
    the prior are refused.

    Args:
        module: any network; it is copied, and keeps its own parameters.
        prior: of a single weight, standard normal if not given; or a function of name and
            parameter that returns the prior of a whole parameter or of a single weight, or
            ``None`` for a parameter that stays one.
        guide: makes the guide of a program that draws the weights, such as
            ``partial(AutoAdditiveNormal, init_log_var=-6.0)``, or Pyro's ``AutoNormal``.
        likelihood: a function from outputs to a distribution with one batch dimension, such as
            ``lambda logits: Categorical(logits=logits)``, or for outputs ``(B, 1)`` of a regression
            ``lambda mean: Normal(mean.squeeze(-1), 1.0)``. Without, the model has no data: sample
            them in a program of your own that calls the module.
        size: the number of data of which a batch is a part; that of the batch if not given.
            Predictions for other data may come in larger batches.
        name: what names in Pyro's parameter store begin with, such as
            ``<name>.guide.locs.0.weight``. Networks that are in use side by side need different
            ones, except under ``pyro.settings.context(module_local_params=True)``. A copy of a
            network has its name. Sites have the names of parameters, without it.

    Returns:
        The model, with ``guide`` as an attribute.

    Raises:
        ValueError: if ``prior`` is none, does not broadcast to a parameter, or leaves no parameter
            random; if ``size`` is not positive, or ``name`` no string; when run, if Pyro's store
            holds the parameters of another network of this name, if the likelihood or ``y`` has
            not one entry for each datum, if more than ``size`` data are observed, or if weights are
            drawn in a plate of data, or in parallel with inputs.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_ext.infer import MeanFieldELBO
        >>> from pyro_ext.poutine import local_reparameterization
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> model = bayesianize(net, likelihood=lambda x: dist.Categorical(logits=x), size=1000)
        >>> svi = SVI(model, model.guide, pyro.optim.Adam({"lr": 1e-3}), MeanFieldELBO())
        >>> x, y = torch.randn(20, 4), torch.zeros(20, dtype=torch.long)
        >>> with local_reparameterization():
        ...     loss = svi.step(x, y)
        >>> sorted(model.priors)
        ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    return BayesianModule(module, prior or Normal(0.0, 1.0), guide, likelihood, size, name)


def _check_law(law: Any, shape: tuple[int, ...], y: Any) -> None:
    """Refuses a likelihood without one distribution for each datum, and data of another shape."""
    found, expected = tuple(law.batch_shape), (*shape[-1:], *law.event_shape)
    if len(found) > len(shape) or found[-1:] != shape[-1:]:
        raise ValueError(
            f"likelihood(output) has batch shape {found}, expected {shape}: one distribution for "
            "each datum. Drop a last dimension of one, output.squeeze(-1), or let it be one of the "
            "event, .to_event(1)."
        )
    if isinstance(y, Tensor) and y.shape != expected:
        raise ValueError(f"y has shape {tuple(y.shape)}, expected {expected}, as the likelihood.")


def _plate(batch_size: int, size: int | None, is_observed: bool) -> Any:
    if size is None or size == batch_size or (size < batch_size and not is_observed):
        return pyro.plate("data", batch_size, dim=-1)
    if size < batch_size:
        raise ValueError(
            f"{batch_size} data are observed, but size={size} is the number of all of them. Give "
            "bayesianize the number of training data, and score other data in smaller batches."
        )
    return pyro.plate("data", size, subsample=torch.arange(batch_size), dim=-1)
