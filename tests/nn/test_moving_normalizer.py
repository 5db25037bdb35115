"""The moving average by hand; its states."""

import io
import math
import pickle

import pytest
import torch

from pyro_ext.nn import MovingNormalizer


def test_recursion_by_hand():
    normalizer = MovingNormalizer(decay=0.9).double()
    # 0.9 * 0.5 + 0.1 * 0.3 = 0.48; 0.9 * 0.48 + 0.1 * 0.1 = 0.442
    for current, expected in ((0.3, 0.48), (0.1, 0.442)):
        assert normalizer(torch.tensor(current).double()).item() == pytest.approx(expected)
        assert normalizer.value.item() == pytest.approx(expected)


def test_gradient_is_that_of_the_current_estimate():
    current = torch.tensor(0.3, requires_grad=True)
    smooth = MovingNormalizer(decay=0.9)(current)
    assert smooth.item() == pytest.approx(0.48)
    assert torch.autograd.grad(smooth.log(), current)[0].item() == pytest.approx(1 / 0.48)


def test_what_updates_and_what_does_not():
    normalizer, current = MovingNormalizer(), torch.tensor(0.1)
    with torch.no_grad():
        assert normalizer(current).item() == pytest.approx(0.496)
    assert normalizer.smooth(current).item() == pytest.approx(0.496)
    assert normalizer.eval()(current).item() == 0.5
    assert normalizer.value.item() == 0.5
    normalizer.train()(current)
    assert normalizer.value.item() == pytest.approx(0.496)


def test_a_stored_estimate_is_exact_until_trained():
    normalizer = MovingNormalizer().eval()
    assert not normalizer.is_exact
    normalizer.store(torch.tensor(0.2), torch.tensor(0.01), 1000)
    assert normalizer.is_exact
    assert not normalizer.train().is_exact
    assert normalizer.eval().is_exact
    normalizer.train()(torch.tensor(0.3))
    assert not normalizer.eval().is_exact
    assert normalizer.value.item() == pytest.approx(0.99 * 0.2 + 0.01 * 0.3)
    assert math.isnan(normalizer.standard_error.item())
    normalizer.store(torch.tensor(0.2), torch.tensor(0.01), 1000)
    normalizer.train().smooth(torch.tensor(0.3))  # of a frozen density, which may be trained
    assert not normalizer.eval().is_exact


def test_state_survives_files_and_pickles():
    normalizer = MovingNormalizer((2,)).eval()
    normalizer.store(torch.tensor([0.2, 0.3]), torch.tensor([0.01, 0.02]), 1000)
    file = io.BytesIO()
    torch.save(normalizer.state_dict(), file)
    file.seek(0)
    other = MovingNormalizer((2,)).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, pickle.loads(pickle.dumps(normalizer))):
        assert twin.is_exact
        assert twin.num_samples == 1000
        assert torch.equal(twin.value, normalizer.value)
        assert torch.equal(twin.standard_error, normalizer.standard_error)
    assert normalizer.double().value.dtype == torch.float64
    assert repr(normalizer) == "MovingNormalizer(batch_shape=(2,), decay=0.99)"


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match="decay must be"):
        MovingNormalizer(decay=decay)


def test_bad_estimates():
    normalizer = MovingNormalizer()
    with pytest.raises(ValueError, match=r"got an estimate of shape \(3,\)"):
        normalizer(torch.full((3,), 0.5))
    with pytest.raises(ValueError, match=r"got an estimate of shape \(1,\)"):
        normalizer.store(torch.full((1,), 0.5), torch.zeros(1), 10)
    for value in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"is in \(0, 1\]"):
            normalizer.store(torch.tensor(value), torch.tensor(0.0), 10)
    with pytest.raises(ValueError, match="num_samples"):
        normalizer.store(torch.tensor(0.5), torch.tensor(0.0), 0)


def test_batch_shapes():
    assert MovingNormalizer(3).value.shape == (3,)
    with pytest.raises(ValueError, match="each size in batch_shape"):
        MovingNormalizer((-3,))
