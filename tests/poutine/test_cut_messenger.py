"""Which draws are cut, and that both ends of a cut are what they say."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma

from pyro_ext.poutine.cut_messenger import CutMessenger

PARAMETER = torch.tensor(0.7, requires_grad=True)
FALSE = torch.tensor(False)


def normal():
    return dist.Normal(PARAMETER, 1.0)


def cut_sites(program, **options):
    with CutMessenger(**options) as cut:
        program()
    return cut


def draw(fn, **options):
    """The names that are cut of one site."""
    return list(cut_sites(lambda: pyro.sample("z", fn), **options).draws)


CUT = {
    "normal": normal,
    "event": lambda: normal().expand([3]).to_event(1),
    "gamma": lambda: dist.Gamma(PARAMETER, 1.0),
    "transformed": lambda: dist.LogNormal(PARAMETER, 1.0),
    "mixture": lambda: dist.MixtureOfDiagNormals(
        PARAMETER.expand(2, 1), torch.ones(2, 1), torch.zeros(2)
    ),
    "relaxed": lambda: dist.RelaxedBernoulli(torch.tensor(0.5), logits=PARAMETER),
}
LEFT_ALONE = {
    "without parameters": lambda: dist.Normal(0.0, 1.0),
    "discrete": lambda: dist.Bernoulli(logits=PARAMETER),
    "masked": lambda: normal().mask(False),
    "masked event": lambda: normal().expand([3]).mask(FALSE).to_event(1),
    "delta": lambda: dist.Delta(PARAMETER),
    "delta event": lambda: dist.Delta(PARAMETER.expand(3)).to_event(1),
    "rejector": lambda: RejectionStandardGamma(1 + PARAMETER),
    "straight-through": lambda: dist.RelaxedBernoulliStraightThrough(
        torch.tensor(0.5), logits=PARAMETER
    ),
    "straight-through event": lambda: dist.RelaxedOneHotCategoricalStraightThrough(
        torch.tensor(0.5), logits=PARAMETER.expand(3)
    ),
}


@pytest.mark.parametrize("name", CUT)
def test_what_is_cut(name):
    assert draw(CUT[name]()) == ["z"]


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone(name):
    assert draw(LEFT_ALONE[name]()) == []


def test_sites_are_left_alone_by_name():
    def program():
        pyro.sample("a", normal())
        pyro.sample("b", normal())

    assert list(cut_sites(program, skip={"a"}).draws) == ["b"]


def test_values_from_elsewhere_are_left_alone():
    def program():
        pyro.sample("observed", normal(), obs=PARAMETER * 2)
        poutine.condition(lambda: pyro.sample("z", normal()), {"z": PARAMETER * 3})()
        trace = poutine.trace(lambda: pyro.sample("replayed", normal())).get_trace()
        poutine.replay(lambda: pyro.sample("replayed", normal()), trace=trace)()

    assert list(cut_sites(program).draws) == ["replayed"]  # when first drawn


def test_sites_inside_of_a_mask_are_left_alone():
    def program():
        pyro.sample("plain", normal())
        with poutine.mask(mask=FALSE):
            pyro.sample("masked", normal())

    assert list(cut_sites(program).draws) == ["plain"]


def test_batch_dimensions_to_the_left_are_left_alone():
    fn = normal().expand([2, 3])
    assert draw(fn, max_batch_dim=1) == []
    assert draw(fn, max_batch_dim=2) == draw(fn) == ["z"]
    assert draw(fn.to_event(1), max_batch_dim=1) == ["z"]


@pytest.mark.parametrize("requires_grad", [True, False])
def test_both_ends(requires_grad):
    pyro.set_rng_seed(0)
    with CutMessenger(requires_grad) as cut:
        z = pyro.sample("z", normal())
    pyro.set_rng_seed(0)
    expected = normal().rsample()
    assert z is cut.leaves["z"]
    assert z.is_leaf
    assert z.requires_grad == requires_grad
    assert torch.equal(z, expected)
    assert torch.equal(cut.draws["z"], expected)
    assert torch.autograd.grad(cut.draws["z"], PARAMETER)[0] == 1


def test_a_density_has_the_gradient_of_its_parameters_alone():
    with CutMessenger() as cut, poutine.trace() as tracer:
        pyro.sample("z", normal())
    tracer.trace.compute_log_prob()
    site, z = tracer.trace.nodes["z"], cut.leaves["z"]
    by_parameter, by_value = torch.autograd.grad(site["log_prob"], [PARAMETER, z])
    torch.testing.assert_close(by_parameter, (z - PARAMETER).detach())
    torch.testing.assert_close(by_value, (PARAMETER - z).detach())


def test_later_draws_depend_on_leaves():
    with CutMessenger() as cut:
        first = pyro.sample("first", normal())
        pyro.sample("second", dist.Normal(2 * first, 1.0))
    by_first, by_parameter = torch.autograd.grad(
        cut.draws["second"], [first, PARAMETER], allow_unused=True
    )
    assert by_first == 2
    assert by_parameter is None


def test_each_context_starts_anew():
    cut = CutMessenger()
    with cut:
        pyro.sample("a", normal())
    with cut:
        pyro.sample("b", normal())
    assert list(cut.draws) == list(cut.leaves) == ["b"]
