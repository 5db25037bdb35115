"""Pyro's parameter store on disk."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_ext.infer import load_param_store, save_param_store
from pyro_ext.infer.param_store_file import BOUNDED, SIMPLE, _of_name
from pyro_ext.nn import save_checkpoint

X = torch.randn(20, generator=torch.Generator().manual_seed(0))


def model():
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", 20, subsample_size=5) as index:
        pyro.sample("x", dist.Normal(loc, scale), obs=X[index])


def svi_of():
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99})
    return optimizer, SVI(
        model, AutoMultivariateNormal(model), optimizer, Trace_ELBO(max_plate_nesting=1)
    )


def values():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def test_svi_goes_on_bit_by_bit(tmp_path):
    path = tmp_path / "store"
    optimizer, svi = svi_of()
    for _ in range(5):
        svi.step()
    save_param_store(path, optimizer)
    losses = [svi.step() for _ in range(6)]
    expected = values()
    pyro.clear_param_store()
    pyro.set_rng_seed(77)
    optimizer, svi = svi_of()
    svi.guide()  # autoguides make their parameters at the first call, by a draw
    load_param_store(path, optimizer)
    assert [svi.step() for _ in range(6)] == losses
    assert values().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in values().items())


@pytest.mark.parametrize(
    "constraint",
    [
        *(getattr(constraints, name) for name in SIMPLE),
        constraints.interval(-1.0, 2.5),
        constraints.greater_than(0.5),
        constraints.less_than(3.0),
        constraints.independent(constraints.positive, 1),
        constraints.independent(constraints.interval(0.0, 1.0), 2),
    ],
    ids=str,
)
def test_constraints_round_trip(constraint):
    from pyro_ext.infer.param_store_file import _to_name

    again = _of_name(_to_name(constraint, "x"), "x")
    assert type(again) is type(constraint)
    assert str(again) == str(constraint)
    assert getattr(again, "base_constraint", None).__class__ is (
        getattr(constraint, "base_constraint", None).__class__
    )


def test_values_and_constraints(tmp_path):
    pyro.param("p", torch.tensor([0.2, 0.8]), constraint=constraints.simplex)
    pyro.param("i", torch.tensor(1.5), constraint=constraints.interval(1.0, 2.0))
    expected = values()
    save_param_store(tmp_path / "store")
    pyro.clear_param_store()
    pyro.param("gone", torch.zeros(()))
    load_param_store(tmp_path / "store")
    assert list(pyro.get_param_store()) == ["p", "i"]
    assert all(torch.equal(value, expected[name]) for name, value in values().items())
    assert pyro.param("i").unconstrained().requires_grad


def test_what_is_refused(tmp_path):
    pyro.param(
        "x", torch.zeros(2), constraint=constraints.stack([constraints.real, constraints.real])
    )
    with pytest.raises(ValueError, match="'x' has the constraint"):
        save_param_store(tmp_path / "store")
    pyro.clear_param_store()
    save_param_store(tmp_path / "store")
    with pytest.raises(ValueError, match="holds no state of an optimiser"):
        load_param_store(tmp_path / "store", pyro.optim.Adam({}))
    save_checkpoint(torch.nn.Linear(1, 1), tmp_path / "net")
    with pytest.raises(ValueError, match="holds Linear, expected a ParamStore"):
        load_param_store(tmp_path / "net")
    (tmp_path / "evil").write_bytes(pickle.dumps({"params": {}}))
    with pytest.raises(ValueError, match="no safetensors file"):
        load_param_store(tmp_path / "evil")
    for made in (["cat"], ["interval", 1], ["__class__"], [], "real", ["greater_than"]):
        with pytest.raises(ValueError, match="unknown constraint"):
            _of_name(made, "x")
    assert set(BOUNDED).isdisjoint(SIMPLE)
