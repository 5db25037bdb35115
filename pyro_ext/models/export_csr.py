"""Scattered zeros as sparse matrices."""

import copy
import warnings

import torch
from torch import Tensor, nn

from pyro_ext.models.channel_trace import as_root, replace
from pyro_ext.nn.l0_conv import L0Conv2d
from pyro_ext.nn.l0_gate import L0Gate
from pyro_ext.nn.l0_linear import L0Linear


class CsrLinear(nn.Module):
    r"""A dense layer whose weights are a sparse matrix by compressed rows, for evaluation.

    .. math:: y = W x + b

    Args:
        weight: :math:`W`, ``(out_features, in_features)``, zeros included.
        bias: :math:`b`, if any.

    Shape:
        ``(*batch, in_features) -> (*batch, out_features)``.

    Example:
        >>> layer = CsrLinear(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        >>> layer(torch.ones(3, 2))[0]
        tensor([2., 0.])
        >>> layer
        CsrLinear(in_features=2, out_features=2, nonzero=1, bias=False)
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            matrix = weight.detach().to_sparse_csr()
        self.register_buffer("rows", matrix.crow_indices())
        self.register_buffer("columns", matrix.col_indices())
        self.register_buffer("values", matrix.values())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The sparse matrix; torch copies the parts of one, but not the whole."""
        size = (self.out_features, self.in_features)
        return torch.sparse_csr_tensor(
            self.rows, self.columns, self.values, size, check_invariants=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies by the sparse matrix."""
        flat = x.reshape(-1, x.shape[-1])
        y = (self.weight @ flat.T).T
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"nonzero={len(self.values)}, bias={self.bias is not None}"
        )


def export_csr(network: nn.Module, min_sparsity: float = 0.9) -> nn.Module:
    r"""Replaces dense layers that are mostly zeros by sparse ones, in a copy.

    Worthwhile for weights of which most are zero without whole units being so, as sparse
    variational dropout leaves them: of a layer 784-300 with 98.5 % zeros, one processor multiplied
    a batch of 100 several times faster. Below about 90 % it is slower.

    Args:
        network: plain, such as one that :func:`~pyro_ext.models.prune` returned.
        min_sparsity: the fraction of zeros from which a layer is replaced.

    Returns:
        A network in evaluation, for use in this process or pickled. Its sparse weights are buffers
        and are not trained. :func:`torch.export.export` knows no sparse matrices and refuses it.

    Raises:
        ValueError: if ``min_sparsity`` is not in [0, 1], or if the network has gates or is
            Bayesian.

    Example:
        >>> network = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3))
        >>> with torch.no_grad():
        ...     _ = network[0].weight[torch.rand(10, 20) < 0.95] = 0.0
        >>> [type(layer).__name__ for layer in export_csr(network)]
        ['CsrLinear', 'ReLU', 'Linear']
    """
    if not 0 <= min_sparsity <= 1:
        raise ValueError(f"min_sparsity must lie in [0, 1], got {min_sparsity}.")
    _refuse_not_plain(network)
    root = as_root(copy.deepcopy(network).eval())
    sparse = {
        name: CsrLinear(module.weight, module.bias)
        for name, module in root.named_modules()
        if type(module) is nn.Linear and _sparsity(module.weight) >= min_sparsity
    }
    replace(root, sparse)
    return root


def _refuse_not_plain(network: nn.Module) -> None:
    """Refuses networks whose weights are not yet what they compute with."""
    for name, module in network.named_modules():
        bayesian = all(hasattr(module, part) for part in ("module", "guide", "_places"))
        if bayesian or isinstance(module, L0Gate | L0Linear | L0Conv2d):
            raise ValueError(
                f"The {type(module).__name__} '{name}' is not plain: its weights depend on gates "
                "or a guide. Prune the network first, prune(network, example)[0]."
            )


def _sparsity(weight: Tensor) -> float:
    return float((weight == 0).double().mean())
