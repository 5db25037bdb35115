"""What linear independent component analysis finds."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_ext.diagnostics.mean_correlation import MeanCorrelation, mean_correlation
from pyro_ext.diagnostics.representation_pair import Pair, split_rows
from pyro_ext.ops.counts import count


@dataclass(frozen=True, eq=False, repr=False)
class FastICABaseline:
    """The score of linear independent component analysis.

    Made by :func:`fastica_baseline`. Printing it prints one line.

    Attributes:
        correlation: of its components with the sources.
        converged: whether the algorithm did.
        num_iterations: how many it took.
    """

    correlation: MeanCorrelation
    converged: bool
    num_iterations: int

    @property
    def score(self) -> float:
        """The mean correlation coefficient, between 0 and 1."""
        return self.correlation.score

    def __repr__(self) -> str:
        fate = "converged in" if self.converged else "DID NOT CONVERGE in"
        return f"FastICA: {self.correlation!r}; {fate} {self.num_iterations} iterations"


def fastica_baseline(
    x: Tensor,
    s: Tensor,
    *,
    fit: tuple[Tensor, Tensor] | None = None,
    max_iter: int = 1000,
    seed: int = 0,
) -> FastICABaseline:
    r"""What FastICA makes of the observations, scored as :func:`mean_correlation` does.

    Say it beside every score of a nonlinear method: on the published mixtures it reaches what
    deep methods do. It takes as many components as there are sources, or as ``x`` has columns.
    Components are fitted, like their matching with the sources, on the rows for fitting alone.

    Args:
        x: observations, ``(N, E)``.
        s: the true sources, ``(N, D)``.
        fit: other rows of both, to fit on; if omitted, every other row is.
        max_iter: of FastICA.
        seed: of its start.

    Raises:
        ValueError: as :func:`mean_correlation` does; if ``max_iter`` or ``seed`` is no such
            integer; or if there are fewer rows to fit on than columns of ``x``.
        ImportError: if scikit-learn is not installed.

    Warns:
        RuntimeWarning: if FastICA does not converge.

    References:
        Hyvarinen, *Fast and Robust Fixed-Point Algorithms for Independent Component Analysis*, IEEE
        Transactions on Neural Networks 10, 1999.

    Example:
        >>> s = torch.distributions.Laplace(0.0, 1.0).sample((4000, 2))
        >>> fastica_baseline(s @ torch.tensor([[1.0, 0.5], [0.3, 1.0]]), s).score > 0.97
        True
    """
    fitted, scored = split_rows(x, s, fit)
    max_iter, seed = count(max_iter, "max_iter"), count(seed, "seed", 0)
    if len(fitted[0]) <= fitted[0].shape[1]:
        raise ValueError(
            f"FastICA needs more rows to fit on than the {fitted[0].shape[1]} columns of x, got "
            f"{len(fitted[0])}."
        )
    (train, test), num_iterations, converged = _components(fitted, scored, max_iter, seed)
    if not converged:
        warnings.warn(
            f"FastICA did not converge in {num_iterations} iterations: what it found is no "
            "baseline. Raise max_iter, or try another seed.",
            RuntimeWarning,
            stacklevel=2,
        )
    correlation = mean_correlation(test, scored[1], fit=(train, fitted[1]))
    return FastICABaseline(correlation, converged, num_iterations)


def _components(fit: Pair, score: Pair, max_iter: int, seed: int) -> tuple[Pair, int, bool]:
    """Components of both rows, how many iterations they took, and whether that was enough."""
    try:
        from sklearn.decomposition import FastICA
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise ImportError("This needs scikit-learn: pip install 'pyro-ext[demo]'.") from error
    num = min(fit[0].shape[1], fit[1].shape[1])
    ica = FastICA(num, whiten="unit-variance", max_iter=max_iter, random_state=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        train = torch.from_numpy(ica.fit_transform(fit[0].numpy()))
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn(warning.message, stacklevel=3)
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    test = torch.from_numpy(ica.transform(score[0].numpy()))
    return (train, test), int(ica.n_iter_), converged
