"""A frame against the plate that it stands for."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame

from pyro_ext.poutine.frame_messenger import FrameMessenger


def program():
    with pyro.plate("data", 4, dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("event", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(4, 1))


@pytest.mark.parametrize("dim", [-1, -3])
def test_a_frame_is_a_plate(dim):
    traces = []
    for context in (pyro.plate("draws", 3, dim=dim), FrameMessenger(frame(dim))):
        pyro.set_rng_seed(0)
        with context:
            traces.append(poutine.trace(program).get_trace())
    for trace in traces:
        trace.compute_log_prob()
    plate, ours = ({name: trace.nodes[name] for name in ("z", "event", "x")} for trace in traces)
    for name, site in plate.items():
        assert set(ours[name]["cond_indep_stack"]) == set(site["cond_indep_stack"])
        assert torch.equal(ours[name]["value"], site["value"])
        assert torch.equal(ours[name]["log_prob"], site["log_prob"])
        assert ours[name]["fn"].batch_shape == site["fn"].batch_shape


def frame(dim):
    return CondIndepStackFrame("draws", dim, 3, 0)


def test_a_frame_may_lie_along_an_open_plate():
    with pyro.plate("particles", 3, dim=-1):
        with FrameMessenger(CondIndepStackFrame("particles", -1, 3, 0)):
            assert pyro.sample("z", dist.Normal(0.0, 1.0)).shape == (3,)
        with pytest.raises(ValueError, match="collide"), pyro.plate("other", 3, dim=-1):
            pyro.sample("w", dist.Normal(0.0, 1.0))


def test_the_dimension_stays_free_for_plates():
    with FrameMessenger(frame(-1)), pyro.plate("data", 4) as index:
        assert len(index) == 4


def test_a_size_that_does_not_fit():
    with FrameMessenger(frame(-1)), pytest.raises(ValueError, match="Shape mismatch"):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))
