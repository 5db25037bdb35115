import pyro
import torch

from pyro_ext.poutine import SharedSubsampleMessenger


def program():
    with pyro.plate("rows", 10_000, subsample_size=5) as rows, pyro.plate("columns", 3) as columns:
        return rows, columns


def test_runs_share_a_subsample_inside_and_not_outside():
    # two independent subsamples agree with probability below 1e-18
    with SharedSubsampleMessenger():
        (first, columns), (second, _) = program(), program()
    assert torch.equal(first, second)
    assert torch.equal(columns, torch.arange(3))
    assert not torch.equal(first, program()[0])


def test_each_context_draws_anew():
    messenger = SharedSubsampleMessenger()
    with messenger:
        first = program()[0]
    with messenger:
        assert not torch.equal(first, program()[0])


def test_an_explicit_subsample_is_respected():
    index = torch.tensor([4, 2])
    with SharedSubsampleMessenger(), pyro.plate("rows", 10, subsample=index) as rows:
        assert torch.equal(rows, index)
