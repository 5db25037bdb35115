"""Sparse layers against the dense ones they come from."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from pyro_ext.models import CsrLinear, export_csr
from pyro_ext.nn import L0Conv2d, L0Gate, L0Linear


def sparse_network(dtype=torch.float64):
    network = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5, bias=False)).to(dtype)
    network[0].weight.data[torch.rand(30, 40) < 0.95] = 0.0
    network[2].weight.data[torch.rand(5, 30) < 0.5] = 0.0
    return network


def test_outputs_and_which_layers_are_replaced():
    network = sparse_network()
    x = torch.randn(3, 4, 40, dtype=torch.float64)
    sparse = export_csr(network)
    assert [type(layer) for layer in sparse] == [CsrLinear, nn.ReLU, nn.Linear]
    torch.testing.assert_close(sparse(x), network(x))
    torch.testing.assert_close(sparse(x[0, 0]), network(x[0, 0]))
    every = export_csr(network, min_sparsity=0.0)
    assert [type(layer) for layer in every] == [CsrLinear, nn.ReLU, CsrLinear]
    torch.testing.assert_close(every(x), network(x))
    assert len(every[2].values) == int((network[2].weight != 0).sum())
    assert type(network[0]) is nn.Linear


def test_a_layer_by_itself_and_one_without_weights():
    layer = nn.Linear(6, 4)
    layer.weight.data.zero_()
    x = torch.randn(2, 6)
    torch.testing.assert_close(export_csr(layer)(x), layer(x))


def test_copies_state_and_casts():
    network = sparse_network(torch.float32)
    sparse, x = export_csr(network), torch.randn(7, 40)
    expected = sparse(x)
    torch.testing.assert_close(copy.deepcopy(sparse)(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(sparse))(x), expected)
    stream = io.BytesIO()
    torch.save(sparse.state_dict(), stream)
    stream.seek(0)
    other = copy.deepcopy(sparse)
    other[0].values.zero_()
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(other(x), expected)
    double = copy.deepcopy(sparse).double()(x.double())
    torch.testing.assert_close(double, expected.double(), rtol=1e-4, atol=1e-5)


def test_bad_sparsity_is_refused():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 90"):
        export_csr(sparse_network(), 90)


def test_networks_that_are_not_plain_are_refused():
    from pyro_ext.infer import bayesianize

    with pytest.raises(ValueError, match=r"BayesianModule '' is not plain.* Prune the network"):
        export_csr(bayesianize(nn.Linear(3, 2)), 0.0)
    for layer in (L0Linear(3, 2), L0Conv2d(1, 2, 3), L0Gate(4)):
        with pytest.raises(ValueError, match=rf"{type(layer).__name__} '0' is not plain"):
            export_csr(nn.Sequential(layer))
