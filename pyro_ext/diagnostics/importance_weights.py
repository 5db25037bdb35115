"""What the importance weights of a guide say about a model."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_ext.diagnostics.importance import pareto_k
from pyro_ext.diagnostics.particle_chunks import draw_log_weights
from pyro_ext.ops.backend import import_arviz
from pyro_ext.ops.counts import count
from pyro_ext.ops.log_weights import effective_sample_size, log_mean_exp

BLOCK = 2**22  # weights that are summarised at once


@dataclass(frozen=True, eq=False, repr=False)
class ImportanceDiagnostics:
    r"""Log-evidence estimates from importance weights, and how far to believe them.

    .. math::

        \hat\ell_n = \log \frac{1}{K} \sum_{k=1}^K w_{kn}, \qquad
        \mathrm{SE}_n^2 = \frac{1}{K} \widehat{\operatorname{Var}}_k
        \Bigl[ \frac{w_{kn}}{\bar w_n} \Bigr]
        = \frac{K / \mathrm{ESS}_n - 1}{K - 1}, \qquad
        \mathrm{SE}^2 = \frac{1}{K} \widehat{\operatorname{Var}}_k
        \Bigl[ \sum_n \frac{w_{kn}}{\bar w_n} \Bigr]

    The standard errors are those of the delta method. They need independent particles; the
    total's counts what the data of one particle have in common. They understate the error where
    :math:`\hat k > 0.5`, and they do not hold the bias: an estimate is low by about
    :math:`\mathrm{SE}_n^2 / 2`, which adds up over the data while errors cancel.

    Made by :func:`importance_diagnostics`, or from log-weights by :meth:`from_log_weights`.
    Printing it prints the verdict.

    Attributes:
        log_weights: :math:`\log w_{kn}` in nats, ``(K, *plates)``.
        log_evidence: :math:`\hat\ell_n` in nats, ``(*plates)``; minus infinity where all weights
            are zero, and then the next three are NaN.
        standard_error: :math:`\mathrm{SE}_n` in nats, ``(*plates)``.
        ess: Kish's effective sample size in particles, ``(*plates)``.
        pareto_k: :math:`\hat k` as in :func:`pareto_k`, ``(*plates)``.
        total_log_evidence: :math:`\sum_n \hat\ell_n` in nats.
        total_standard_error: :math:`\mathrm{SE}` in nats.

    References:
        Vehtari et al., *Pareto Smoothed Importance Sampling*, arXiv 1507.02646.

    Example:
        >>> log_w = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) / 2
        >>> ImportanceDiagnostics.from_log_weights(log_w)
        Trust it: Pareto k-hat is above 0.67 for 0 of 3 data; mean ESS 763 of 1000 particles; log
        evidence 0.385385 +- 0.031 nats in total, bias about -0.00047.
    """

    log_weights: Tensor
    log_evidence: Tensor
    standard_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    total_log_evidence: float
    total_standard_error: float

    @classmethod
    def from_log_weights(cls, log_w: Tensor) -> "ImportanceDiagnostics":
        """Summarises log-weights from anywhere, such as those of batches, joined by ``torch.cat``.

        Args:
            log_w: ``(K, *plates)`` in nats, particles leftmost, floating-point.

        Raises:
            ValueError: if ``log_w`` is no tensor, has no data or fewer than 25 particles.
            ImportError: if ArviZ is not installed.
        """
        if not isinstance(log_w, Tensor) or log_w.dim() == 0 or log_w.numel() == 0:
            given = tuple(log_w.shape) if isinstance(log_w, Tensor) else type(log_w).__name__
            raise ValueError(
                f"Needs a tensor of log-weights of shape (num_particles, *plates), got {given}."
            )
        columns = log_w.detach().reshape(len(log_w), -1)
        blocks = columns.split(max(1, BLOCK // len(log_w)), 1)
        parts = [_summarize(block) for block in tqdm(blocks, desc="Pareto k-hat", delay=5)]
        per_datum = torch.cat([statistics for statistics, _ in parts], 1)  # (4, data)
        ratio = torch.stack([summed for _, summed in parts]).sum(0)  # (K,)
        plates = log_w.shape[1:]
        log_evidence, error, ess, k_hat = per_datum.to(log_w.dtype).reshape(4, *plates)
        return cls(
            log_weights=log_w.detach(),
            log_evidence=log_evidence,
            standard_error=error,
            ess=ess,
            pareto_k=k_hat,
            total_log_evidence=per_datum[0].sum().item(),
            total_standard_error=(ratio.std() / math.sqrt(len(log_w))).item(),
        )

    @property
    def num_particles(self) -> int:
        """The number of particles."""
        return len(self.log_weights)

    @property
    def threshold(self) -> float:
        r"""What k-hat may be at most: :math:`\min(1 - 1 / \log_{10} K, 0.7)`."""
        return min(1 - 1 / math.log10(self.num_particles), 0.7)

    @property
    def total_bias(self) -> float:
        r"""Bias of the total in nats to first order, :math:`-\sum_n \mathrm{SE}_n^2 / 2`."""
        return -self.standard_error.double().square().sum().item() / 2

    @property
    def verdict(self) -> str:
        """One line in plain words.

        "Trust it" if k-hat is above the threshold for no datum, "Trust most of it" for up to a
        tenth of them, else "Do not trust it"; nor if a datum has no finite log evidence.
        """
        broken = int((~self.log_evidence.isfinite()).sum())
        if broken:
            return (
                f"Do not trust it: no finite log evidence for {broken} of {self._data}, whose "
                "weights are all zero (log-weights of -inf), or one of them NaN or infinite."
            )
        unreliable = int((self.pareto_k > self.threshold).sum())
        return (
            f"{self._advice(unreliable)}: Pareto k-hat is above {self.threshold:.2g} for "
            f"{unreliable} of {self._data}{self._equal}; mean ESS {self.ess.mean():.3g} of "
            f"{self.num_particles} particles; log evidence {self.total_log_evidence:.6g} +- "
            f"{self.total_standard_error:.2g} nats in total, bias about {self.total_bias:.2g}."
        )

    def __repr__(self) -> str:
        return self.verdict

    @property
    def _data(self) -> str:
        if self.log_evidence.dim() == 0:
            return "1 joint weight of all data"
        return f"{self.log_evidence.numel()} data"

    @property
    def _equal(self) -> str:
        equal = int((self.pareto_k == -math.inf).sum())
        return f" ({equal} with equal weights: exact or masked)" if equal else ""

    def _advice(self, unreliable: int) -> str:
        if unreliable == 0:
            return "Trust it"
        few = unreliable <= self.log_evidence.numel() / 10
        return "Trust most of it" if few else "Do not trust it"


def importance_diagnostics(
    model: Callable,
    guide: Callable,
    *args,
    num_particles: int = 1000,
    chunk_size: int | None = None,
    max_plate_nesting: float = math.inf,
    vectorize_particles: bool = True,
    **kwargs,
) -> ImportanceDiagnostics:
    r"""Weighs draws of a guide by its model, and says how far to trust what they average to.

    .. math:: \log w_{kn} = \log p(x_n, z_{kn}) - \log q(z_{kn} \mid x_n)

    The weights are those of :class:`~pyro_ext.infer.MultiSampleELBO`, without its factor
    :math:`c`: per datum over the plates common to all sites. If there are none, each particle has
    one joint weight of all data, ``(K,)``: with global latent variables a datum has no evidence of
    its own. All runs see one subsample. There are no gradients, and the results lie on the CPU.

    Particles are drawn ``chunk_size`` at a time. If not given, it is what keeps the largest tensor
    of a run below 64 MiB, by one more run of one particle; a run holds a few of these. Besides, the
    log-weights take 4 bytes each in single precision: 200 MB for 5,000 particles of 10,000 data.
    If a single particle of all data is too much, diagnose batches and join their weights.

    Args:
        model: a Pyro model.
        guide: its guide, trained.
        *args: arguments of model and guide.
        num_particles: :math:`K \ge 25`, in total.
        chunk_size: particles per run. The standard errors need independent particles, so that it
            is 1, if not given, for densities that share random numbers between the particles of
            a run, such as :class:`~pyro_ext.distributions.SelfNormalizedImportance` with
            ``share_proposals``. That takes its time; ``share_proposals=False`` is the other way.
        max_plate_nesting: the number of nested plates; guessed by one more run.
        vectorize_particles: ``False`` runs model and guide once for each particle.
        **kwargs: keyword arguments of model and guide.

    Raises:
        ValueError: if ``num_particles < 25`` or ``chunk_size < 1``, or as
            :class:`~pyro_ext.infer.MultiSampleELBO` does.
        ImportError: if ArviZ is not installed.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.8))
        >>> result = importance_diagnostics(model, guide, torch.tensor([0.0, 1.0]))
        >>> result.verdict[:20], result.pareto_k.shape
        ('Trust it: Pareto k-h', torch.Size([2]))

        In batches of data, for a loader that yields them:

        >>> loader = torch.randn(6).split(2)
        >>> parts = [importance_diagnostics(model, guide, x).log_weights for x in loader]
        >>> ImportanceDiagnostics.from_log_weights(torch.cat(parts, 1)).log_evidence.shape
        torch.Size([6])
    """
    import_arviz()  # before the work rather than after
    num_particles = count(num_particles, "num_particles", minimum=25)
    if not vectorize_particles:
        chunk_size = 1
    with torch.no_grad():
        log_w = draw_log_weights(
            model, guide, args, kwargs, num_particles, chunk_size, max_plate_nesting
        )
    return ImportanceDiagnostics.from_log_weights(log_w)


def _summarize(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Of weights ``(K, data)``: the four statistics of each datum; the summed ratios ``(K,)``."""
    precise = log_w.double()
    log_evidence = log_mean_exp(precise)
    ratio = (precise - log_evidence).exp()  # w / mean(w)
    error = ratio.std(0) / math.sqrt(len(ratio))
    ess = effective_sample_size(precise)
    return torch.stack([log_evidence, error, ess, pareto_k(log_w)]), ratio.sum(1)
