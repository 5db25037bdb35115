"""Mixtures of Student's t for each label, as noise that is close to the data."""

import warnings

import pyro.distributions as dist
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn


class StudentMixture(nn.Module):
    """Normal mixtures fitted by scikit-learn, with heavier tails, so that weights are bounded."""

    def __init__(self, x: Tensor, label: Tensor, num: int, df: float):
        super().__init__()
        fitted = [fit(x[label == u], num) for u in range(int(label.max()) + 1)]
        self.df = df
        for name in ("weights", "means", "covariances"):
            made = torch.stack([torch.from_numpy(getattr(one, f"{name}_")) for one in fitted])
            self.register_buffer(name, made.to(x))
        self.register_buffer("scale_tril", torch.linalg.cholesky(self.covariances))

    def forward(self, label: Tensor) -> dist.MixtureSameFamily:
        df = self.means.new_full((*label.shape, self.means.shape[1]), self.df)
        part = dist.MultivariateStudentT(df, self.means[label], self.scale_tril[label])
        return dist.MixtureSameFamily(dist.Categorical(self.weights[label]), part)


def fit(x: Tensor, num: int) -> GaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EM may stop early: any density will do
        return GaussianMixture(num, reg_covar=1e-5, max_iter=50, random_state=0).fit(x.numpy())
