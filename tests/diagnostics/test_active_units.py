"""Active units of a linear Gaussian model, whose posterior means are known."""

import pytest
import torch

from pyro_ext.diagnostics import active_units


def test_of_a_linear_gaussian_model():
    """x_d = w_d z_d + noise: the mean is w x / (1 + w^2), of variance w^2 / (1 + w^2).

    A relative error of a tenth is ten standard errors of 20,000 data.
    """
    w = torch.tensor([0.0, 0.05, 0.5, 3.0])
    x = w * torch.randn(20_000, 4) + torch.randn(20_000, 4)
    used = active_units(w * x / (1 + w**2))
    assert torch.allclose(used.variance, w**2 / (1 + w**2), rtol=0.1)
    assert used.is_active.tolist() == [False, False, True, True]
    assert used.num_active == 2


def test_bad_arguments():
    for bad in (torch.zeros(3), torch.zeros(1, 3)):
        with pytest.raises(ValueError, match="posterior means"):
            active_units(bad)
