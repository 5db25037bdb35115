"""Ranks of conjugate posteriors, right and wrong ones. Thresholds are p < 1e-6 on either side."""

from functools import partial

import matplotlib
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_ext.diagnostics import simulation_based_calibration

TEMPLATE = torch.zeros(3)


def model(x):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
    pyro.deterministic("twice", 2 * scale)
    with pyro.plate("rows", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x, factor=1.0, shift=0.0):
    pyro.sample("scale", dist.LogNormal(0.0, 0.1))
    with pyro.plate("rows", 3):
        pyro.sample("z", dist.Normal(x / 2 + shift, factor * 0.5**0.5))


def run(num_simulations=300, **wrong):
    return simulation_based_calibration(
        model,
        lambda data: partial(guide, data["x"], **wrong),
        TEMPLATE,
        num_simulations=num_simulations,
        num_draws=30,
    )


def test_an_exact_posterior_is_calibrated():
    found = run()
    assert sorted(found.ranks) == ["scale", "z"]
    assert found.ranks["z"].shape == (300, 3)
    assert found.ranks["z"].min() >= 0
    assert found.ranks["z"].max() <= 30
    assert all((p > 1e-6).all() for p in found.p_values.values())
    assert "no sign of miscalibration" in repr(found)


@pytest.mark.parametrize("wrong", [{"factor": 0.5}, {"factor": 2.0}, {"shift": 0.5}])
def test_wrong_posteriors_are_found(wrong):
    found = run(**wrong)
    assert (found.p_values["z"] < 1e-4).all()
    assert found.p_values["scale"] > 1e-6
    assert "z: not calibrated" in repr(found)


def test_ranks_count_draws_below_the_truth():
    def fixed(data):
        return {"scale": torch.tensor([0.0, 1e9]), "z": torch.full((2, 3), -1e9)}

    found = simulation_based_calibration(model, fixed, TEMPLATE, num_simulations=4, num_draws=2)
    assert (found.ranks["scale"] == 1).all()
    assert (found.ranks["z"] == 2).all()


def test_ties_are_broken_at_random():
    """A coin whose posterior is itself: 400 ranks over 0..9, chi-squared with P < 1e-6 below 48."""

    def coin():
        pyro.sample("c", dist.Bernoulli(0.5))

    found = simulation_based_calibration(
        coin, lambda data: coin, num_simulations=400, num_draws=9
    ).ranks["c"]
    counts = torch.bincount(found, minlength=10)
    assert len(counts) == 10
    assert ((counts - 40) ** 2 / 40).sum() < 48


def test_the_plot_has_a_curve_for_each_number():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ax = run(num_simulations=20).plot("z")
    assert len(ax.lines) == 3
    plt.close("all")


@pytest.mark.parametrize(
    ("posterior", "message"),
    [
        (lambda data: 3, "posterior returned int"),
        (lambda data: {"scale": torch.zeros(5)}, r"draws no \['z'\]"),
        (lambda data: lambda: None, r"draws no \['scale', 'z'\]"),
        (lambda data: {"scale": torch.zeros(5), "z": torch.zeros(5)}, "of 'z' have shape"),
    ],
)
def test_bad_posteriors(posterior, message):
    with pytest.raises(ValueError, match=message):
        simulation_based_calibration(model, posterior, TEMPLATE, num_simulations=2, num_draws=5)


def test_bad_numbers():
    with pytest.raises(ValueError, match="num_draws"):
        simulation_based_calibration(model, lambda data: {}, TEMPLATE, num_draws=0)
