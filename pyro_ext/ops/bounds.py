"""Bounds on a log evidence as pure functions of ``log_w (K, *plates)``."""

from torch import Tensor

from pyro_ext.ops.log_weights import log_mean_exp


def iwae(log_w: Tensor) -> Tensor:
    r"""Importance-weighted lower bound on the log evidence.

    .. math::

        \mathcal{L}_K = \log \frac{1}{K} \sum_{k=1}^K w_k, \qquad
        w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    Its expectation increases with :math:`K`, from the evidence lower bound at :math:`K=1` to
    :math:`\log p(x)`. A user's own bound is a function of the same form.

    Args:
        log_w: log-weights :math:`\log w_k` in nats, particles leftmost.

    Shape:
        ``(K, *plates) -> (*plates)``: one bound per datum.

    References:
        Burda, Grosse and Salakhutdinov, *Importance Weighted Autoencoders*, arXiv 1509.00519.

    Example:
        >>> import torch
        >>> iwae(torch.tensor([[0.0, -1.0], [0.0, -3.0]]))
        tensor([ 0.0000, -1.5662])
    """
    return log_mean_exp(log_w, 0)
