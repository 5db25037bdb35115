"""Seeds as chains: what ArviZ says of them before and after."""

import arviz
import numpy as np
import pytest
import torch

from pyro_ext.diagnostics import align_to, mean_correlation

M, N, D = 200, 40, 3


def draws(means):
    return means + 0.3 * torch.randn(M, *means.shape).double()


def rhat(chains):
    data = arviz.convert_to_dataset({"z": torch.stack(chains).numpy()})  # (chain, draw, N, D)
    return arviz.rhat(data)["z"].values


def test_undoes_what_identifiability_leaves_open():
    means = torch.randn(N, D).double()
    order = torch.tensor([2, 0, 1])
    z = torch.tensor([3.0, -0.5, -2.0]) * means[:, order] + torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(align_to(means, z), means)
    torch.testing.assert_close(align_to(means, z.expand(7, 5, N, D)), means.expand(7, 5, N, D))


def test_scales_and_shifts_are_those_of_the_reference():
    reference = torch.randn(N, D).double() * 3 + 1
    z = reference[:, [1, 2, 0]] + torch.randn(N, D)
    aligned = align_to(reference, z)
    torch.testing.assert_close(aligned.mean(0), reference.mean(0))
    torch.testing.assert_close(aligned.std(0), reference.std(0))
    match = mean_correlation(aligned, reference, fit=(aligned, reference))
    assert match.rows.tolist() == [0, 1, 2]
    assert match.signs.tolist() == [1, 1, 1]


def test_seeds_that_agree_are_chains_that_converged():
    means = torch.randn(N, D).double()
    seeds = [draws(means), 5 - 2 * draws(means)[..., [2, 0, 1]], draws(means)[..., [1, 0, 2]]]
    assert np.median(rhat(seeds)) > 1.5
    aligned = [align_to(seeds[0], seed) for seed in seeds]
    torch.testing.assert_close(aligned[0], seeds[0])
    assert rhat(aligned).shape == (N, D)
    assert np.median(rhat(aligned)) < 1.05


def test_seeds_that_disagree_stay_chains_that_did_not_converge():
    means = torch.randn(N, D).double()
    rotated = means @ torch.linalg.qr(torch.randn(D, D).double())[0]
    seeds = [draws(means), draws(rotated), draws(torch.randn(N, D).double())]
    aligned = [align_to(seeds[0], seed) for seed in seeds]
    assert np.median(rhat(aligned)) > 1.2


def test_wider_representations_are_narrowed():
    reference = torch.randn(N, 2)
    z = torch.cat([torch.randn(N, 1), reference.flip(-1)], -1)
    torch.testing.assert_close(align_to(reference, z), reference)
    assert align_to(reference, z).dtype == torch.float32


def test_gradients_pass_through_draws():
    reference = torch.randn(N, 2)
    z = torch.randn(4, N, 2, requires_grad=True)
    align_to(reference, z).sum().backward()
    assert z.grad.abs().sum() > 0


def test_bad_input_is_refused():
    z = torch.randn(N, 2)
    with pytest.raises(ValueError, match="at least the 3 coordinates of reference, got 2"):
        align_to(torch.randn(N, 3), z)
    with pytest.raises(ValueError, match=r"z must be of shape \(\.\.\., N, D\)"):
        align_to(z, z[:, 0])
    with pytest.raises(ValueError, match="rows"):
        align_to(z, z[:-1])


def test_chains_are_matched_by_the_mean_of_their_draws():
    """The first draw alone is misleading: its columns are exchanged."""
    means = torch.randn(N, D).double()
    chain = means.expand(9, N, D).clone()
    chain[0] = means[:, [1, 0, 2]]
    torch.testing.assert_close(align_to(means, chain)[1:].mean(0), means, atol=0.3, rtol=0)
    assert mean_correlation(align_to(means, chain)[1], means).rows.tolist() == [0, 1, 2]
