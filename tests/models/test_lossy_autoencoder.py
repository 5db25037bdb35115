"""The lossy autoencoder: code lengths, and who tells what."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_ext.models import LossyAutoencoder
from pyro_ext.models.priors import StandardNormalPrior
from pyro_ext.nn import PixelCNNNet

SMALL = {"levels": 2, "latent_dim": 3, "hidden_channels": 4}


def test_code_length_is_minus_the_bound():
    """Means of 400 draws of eight images; six standard errors, a false alarm of 2e-9."""
    vae = LossyAutoencoder((1, 8, 8), window=(3, 2), **SMALL)
    x = torch.randint(2, (8, 1, 8, 8))
    vae.initialize(x)
    code = vae.code_length(x, 400)
    assert torch.equal(code.total, code.latent + code.pixels)
    elbo = Trace_ELBO()
    losses = torch.tensor([elbo.loss(vae.model, vae.guide, x) for _ in range(400)])
    error = 6 * 2**0.5 * losses.std() / 20 / math.log(2)
    assert abs(code.total.sum() - losses.mean() / math.log(2)) < error


def test_subsamples_stand_for_all_data():
    vae = LossyAutoencoder((1, 8, 8), window=(3, 2), **SMALL)
    x = torch.randint(2, (8, 1, 8, 8))
    losses = []
    for size in (8, 80):
        pyro.set_rng_seed(0)
        losses.append(Trace_ELBO().loss(vae.model, vae.guide, x, size=size))
    assert losses[1] == pytest.approx(10 * losses[0], rel=1e-5)
    assert vae.model(size=3).shape == (3, 1, 8, 8)


@pytest.mark.slow
def test_the_window_decides_what_the_code_keeps():
    """Images that are all of one bit: a window of noise's own must be told it, a full view not.

    Half of the images are drawn with nine in ten pixels on, half with one in ten. The first pixels
    tell a decoder that sees them all; one that sees none has to be told, one bit.
    """
    is_on = torch.rand(2000, 1, 1, 1) < 0.5
    x = (torch.rand(2000, 1, 8, 8) < torch.where(is_on, 0.9, 0.1)).long()
    held = {}
    for name, window in (("none", (1, 0)), ("all", None)):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        vae = LossyAutoencoder((1, 8, 8), 2, 2, window, StandardNormalPrior(2), hidden_channels=4)
        vae.initialize(x[:200])
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 5e-3}), Trace_ELBO())
        for _ in range(8):
            for index in torch.randperm(2000).split(100):
                svi.step(x[index], size=2000)
        held[name] = vae.eval().code_length(x[:500], 10).latent.mean().item()
    assert held["none"] > 0.8
    assert held["all"] < 0.3


def test_mixed_precision_computes_laws_in_full():
    vae = LossyAutoencoder((1, 8, 8), window=(3, 2), **SMALL)
    x = torch.randint(2, (8, 1, 8, 8))
    vae.initialize(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.encode(x).mean.dtype == torch.float32
        loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match="divisible by four"):
        LossyAutoencoder((1, 6, 8), **SMALL)
    decoder = PixelCNNNet((1, 8, 8), 2, hidden_channels=4, num_resnets=1, window=(3, 2))
    with pytest.raises(ValueError, match="context_channels=4"):
        LossyAutoencoder((1, 8, 8), decoder=decoder, **SMALL)
    with pytest.raises(ValueError, match="3 levels"):
        LossyAutoencoder((1, 8, 8), decoder=decoder, **{**SMALL, "levels": 3})
