"""Energy functions as networks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_ext.nn.energy_parts import Norm, check_center, check_sizes, split_shape
from pyro_ext.nn.perceptron import perceptron


class EnergyNet(nn.Module):
    r"""A multilayer perceptron :math:`U(x)` that maps events to energies.

    .. math:: U(x) = f_L(\dots \sigma(f_1(x - c)) \dots), \qquad p(x) \propto e^{-U(x)} \pi(x)

    with affine layers :math:`f_l`, whose weights start Glorot-uniform and whose biases start at
    zero, and an output that is not bounded.

    A ``norm`` holds the hidden layers down. The output layer stays free, or the energy could not
    grow as steep as the data ask; norm ``energy.layers[-1]`` yourself to hold it too. With
    :func:`torch.nn.utils.parametrizations.spectral_norm` and :math:`\sigma = \tanh`,

    .. math:: |U(x) - U(y)| \le \lVert W_L \rVert \, \lVert x - y \rVert

    up to the error of its power iteration, which makes a step in each forward pass of training:
    a density that must not change between evaluations (``frozen``) needs ``.eval()``. Torch
    pickles no module with such norms; ``copy.deepcopy`` and the ``state_dict`` work.

    Args:
        event_shape: shape of one event; an integer stands for a vector.
        hidden_dims: widths of the hidden layers; none makes the energy affine.
        activation: builds :math:`\sigma`. Smooth ones suit samplers that use the energy's gradient.
        center: :math:`c`, subtracted from each event, usually the data's mean; copied.
        norm: maps each hidden layer to a module with the same forward,
            such as ``spectral_norm`` or ``weight_norm`` of ``torch.nn.utils.parametrizations``.

    Shape:
        ``(..., *event_shape) -> (...)``, in nats.

    Raises:
        ValueError: if a size is not positive; if ``center`` or, later, a value does not have
            the event shape; if ``norm`` has no hidden layer, or returns no module.

    References:
        Lawson et al., *Energy-Inspired Models*, arXiv 1910.14265: the published code's energies;
        Miyato et al., *Spectral Normalization for Generative Adversarial Networks*,
        arXiv 1802.05957.

    Example:
        >>> energy = EnergyNet(2, hidden_dims=(20, 20))
        >>> energy(torch.zeros(5, 3, 2)).shape
        torch.Size([5, 3])
        >>> from torch.nn.utils.parametrizations import spectral_norm
        >>> data = torch.rand(100, 2)
        >>> EnergyNet(2, center=data.mean(0), norm=spectral_norm)(data).shape
        torch.Size([100])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        hidden_dims: Sequence[int] = (100, 100),
        activation: Callable[[], nn.Module] = nn.Tanh,
        center: Tensor | None = None,
        norm: Norm | None = None,
    ):
        super().__init__()
        self.event_shape = torch.Size(check_sizes(event_shape, "event_shape"))
        hidden_dims = check_sizes(hidden_dims, "hidden_dims")
        if norm is not None and not hidden_dims:
            raise ValueError(
                "EnergyNet applies norm to its hidden layers, but hidden_dims is empty."
            )
        dims = [self.event_shape.numel(), *hidden_dims, 1]
        self.layers = perceptron(dims, activation, norm)
        self.center: Tensor | None
        self.register_buffer("center", check_center(center, self.event_shape))

    def forward(self, x: Tensor) -> Tensor:
        """Energies of events, over any dimensions to their left."""
        batch_shape = split_shape(x, self.event_shape)
        x = x if self.center is None else x - self.center
        return self.layers(x.reshape(*batch_shape, self.event_shape.numel())).squeeze(-1)
