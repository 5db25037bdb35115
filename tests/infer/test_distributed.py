"""Two processes that average gradients train as one that sees all data.

The comparison is exact, for the noise of a draw belongs to its datum: the two processes draw
together what the one draws. The file is also the script that they run:
``test_distributed.py ENGINE PROGRAM ACCUMULATE RESULT``.
"""

import os
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pyro_ext.infer import MultiSampleELBO

N, K, BATCH, EPOCHS = 24, 4, 8, 3
RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(N, generator=RANDOM, dtype=torch.float64)
NOISE = torch.randn(K, N, generator=RANDOM, dtype=torch.float64)
UNIFORM = torch.rand(K, N, generator=RANDOM, dtype=torch.float64)


class ReplayedNormal(dist.Normal):
    """Draws with noise that is given."""

    def __init__(self, loc, scale, noise, validate_args=None):
        self.noise = noise
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return ReplayedNormal(loc, scale, self.noise)

    def rsample(self, sample_shape=torch.Size()):
        return self.loc + self.scale * self.noise


class ReplayedBernoulli(dist.Bernoulli):
    """Draws with uniform noise that is given."""

    def __init__(self, logits, noise, validate_args=None):
        self.noise = noise
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return ReplayedBernoulli(self.logits.expand(batch_shape), self.noise)

    def sample(self, sample_shape=torch.Size()):
        return (self.noise < self.probs).to(self.logits)


class Model(PyroModule):
    """x ~ N(w (z + y) + mean, s^2) with a local z, and a local binary y or a global mean."""

    def __init__(self, nested):
        super().__init__()
        self.nested = nested
        self.decoder = nn.Linear(1, 1).double()
        self.s = PyroParam(torch.tensor(1.5, dtype=torch.float64), dist.constraints.positive)

    def forward(self, x, index):
        zero = x.new_zeros(())
        mean = pyro.sample("mean", dist.Normal(zero, 1.0)) if self.nested else zero
        with pyro.plate("data", N, subsample=index):
            z = pyro.sample("z", dist.Normal(zero, 1.0))
            if not self.nested:
                z = z + pyro.sample("y", dist.Bernoulli(zero + 0.4))
            loc = self.decoder(z[..., None])[..., 0] + mean
            pyro.sample("x", dist.Normal(loc, self.s), obs=x)


class Guide(PyroModule):
    """Amortised, the binary y after z."""

    def __init__(self, nested):
        super().__init__()
        self.nested = nested
        self.encoder = nn.Linear(1, 2).double()
        self.rest = nn.Parameter(torch.tensor([0.5, -1.0], dtype=torch.float64))

    def forward(self, x, index):
        noise, uniform = NOISE[:, index], UNIFORM[:, index]
        loc, log_scale = self.encoder(x[:, None]).unbind(-1)
        if self.nested:
            location, log_width = self.rest
            pyro.sample("mean", ReplayedNormal(location, log_width.exp(), NOISE[:, :1]))
        with pyro.plate("data", N, subsample=index):
            z = pyro.sample("z", ReplayedNormal(loc, log_scale.exp(), noise))
            if not self.nested:
                slope, intercept = self.rest
                pyro.sample("y", ReplayedBernoulli(slope * z + intercept, uniform))


def program(name):
    """The loss as a module; equal seeds start it equally."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    nested = name == "nested"
    elbo = MultiSampleELBO(K, max_plate_nesting=1)
    return elbo(Model(nested), Guide(nested))


def optimiser(module):
    return torch.optim.Adam(module.parameters(), lr=0.05)


DATA = TensorDataset(X, torch.arange(N))


def parameters(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


# One process.


def train_alone(name):
    module = program(name)
    adam = optimiser(module)
    for _ in range(EPOCHS):
        for batch in DataLoader(DATA, BATCH):
            adam.zero_grad()
            module(*batch).backward()
            adam.step()
    return parameters(module)


# Two processes.


def shard(batch):
    """The batches of this process, which make one of ``train_alone`` with those of the other."""
    return DataLoader(DATA, batch, sampler=DistributedSampler(DATA, shuffle=False))


def train_with_torchrun(name, accumulate, result):
    torch.distributed.init_process_group("gloo")
    module = program(name)
    parallel = nn.parallel.DistributedDataParallel(module)
    adam = optimiser(module)
    loader = shard(BATCH // 2 // accumulate)
    for _ in range(EPOCHS):
        for i, batch in enumerate(loader, start=1):
            parallel.require_backward_grad_sync = i % accumulate == 0
            (parallel(*batch) / accumulate).backward()
            if i % accumulate == 0:
                adam.step()
                adam.zero_grad()
    torch.save(parameters(module), f"{result}.{torch.distributed.get_rank()}")
    torch.distributed.destroy_process_group()


def train_with_lightning(name, accumulate, result):
    import lightning

    class Plan(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.loss = program(name)

        def training_step(self, batch, batch_idx):
            return self.loss(*batch)

        def configure_optimizers(self):
            return optimiser(self)

        def train_dataloader(self):
            return shard(BATCH // 2 // accumulate)

    plan = Plan()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,  # it would shuffle
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(plan)
    torch.save(parameters(plan.loss), f"{result}.{trainer.global_rank}")
    trainer.save_checkpoint(f"{result}.checkpoint")


ENGINES = {"torchrun": train_with_torchrun, "lightning": train_with_lightning}
RUN = {"torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]}


def launch(engine, name, accumulate, result):
    command = [sys.executable, *RUN.get(engine, []), __file__, engine, name, accumulate, result]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=result.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "name", "accumulate"),
    [
        ("torchrun", "mixed", 2),
        ("torchrun", "nested", 1),
        ("lightning", "mixed", 1),
        ("lightning", "nested", 2),
    ],
)
def test_two_processes_train_as_one(engine, name, accumulate, tmp_path):
    if engine == "lightning":
        pytest.importorskip("lightning", reason="the extra pyro-ext[lightning] is not installed")
    result = tmp_path / "parameters"
    launch(engine, name, accumulate, result)
    expected = train_alone(name)
    for rank in range(2):
        torch.testing.assert_close(torch.load(f"{result}.{rank}"), expected)
    if engine == "lightning":
        checkpoint = torch.load(f"{result}.checkpoint", weights_only=True)["state_dict"]
        torch.testing.assert_close(checkpoint, {f"loss.{n}": p for n, p in expected.items()})


if __name__ == "__main__":
    ENGINES[sys.argv[1]](sys.argv[2], int(sys.argv[3]), sys.argv[4])
