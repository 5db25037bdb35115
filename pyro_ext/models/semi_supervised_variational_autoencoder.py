"""A variational autoencoder that learns from data with and without labels."""

from collections.abc import Sequence

import pyro
import torch
from pyro.distributions import Categorical
from pyro.nn import DenseNN, PyroModule, pyro_method
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_ext.models.checks import check_labels, check_sizes
from pyro_ext.models.mini_batch import data_plate
from pyro_ext.models.variational_autoencoder import VariationalAutoencoder

IMPOSSIBLE = -1e6  # a logit whose probability is zero, while zero times it is still zero


class SemiSupervisedVariationalAutoencoder(PyroModule):
    r"""A class per datum, observed or not, and a latent vector: Kingma's model M2.

    .. math::

        y_n \sim \operatorname{Cat}(1 / C), \qquad z_n \sim p(z), \qquad
        x_n \sim p(x \mid z_n, y_n), \qquad
        q(y_n, z_n \mid x_n) = q(y_n \mid x_n) \, q(z_n \mid x_n, y_n)

    Where the label is known, guide and model put all mass of :math:`y_n` on it, and the model is
    charged :math:`\log p(y_n)` and :math:`\alpha \log q(y_n \mid x_n)`, which teaches the
    classifier: the factor ``classification``. Where it is missing, :math:`y_n` is a latent
    variable that the guide asks to enumerate. Both kinds may be mixed in one mini-batch.

    Train with :class:`~pyro.infer.TraceEnum_ELBO`, whose
    :math:`\sum_y q(y \mid x) \, [\,\cdot\,]` teaches the classifier from data without labels too.
    The importance-weighted bound of :class:`~pyro_ext.infer.MultiSampleELBO` sums classes inside
    of its weights: it is tighter, but the classifier cancels and learns from labels only.
    For the bound on the log evidence alone, set ``classification_weight`` to 0.

    Args:
        autoencoder: a :class:`VariationalAutoencoder` whose ``context_dim`` is the number of
            classes :math:`C \ge 2`; it makes :math:`p(z)`, :math:`p(x \mid z, y)` and
            :math:`q(z \mid x, y)`.
        hidden_dims: widths of the tanh layers of the classifier :math:`q(y \mid x)`.
        classification_weight: :math:`\alpha \ge 0`, per datum with a label. The paper's is
            0.1 times the number of all data over that of labelled data.

    Shape:
        Data are ``(batch, input_dim)``, floating-point. The context are labels ``(batch,)``,
        integers ``0, ..., C - 1``, and -1 where the label is missing; without a context all
        are. Sites are ``context`` (the class), ``z`` and ``x``.

    Raises:
        ValueError: if there are fewer than two classes, if a size is not positive, if the weight
            is negative or, later, if labels have a wrong shape, type or value.

    References:
        Kingma, Rezende, Mohamed and Welling, *Semi-Supervised Learning with Deep Generative
        Models*, arXiv 1406.5298.

    Example:
        >>> from pyro.infer import SVI, TraceEnum_ELBO
        >>> autoencoder = VariationalAutoencoder(4, 2, (8,), context_dim=3)
        >>> vae = SemiSupervisedVariationalAutoencoder(autoencoder, hidden_dims=(8,))
        >>> elbo = TraceEnum_ELBO(max_plate_nesting=1)
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
        >>> x = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
        >>> isinstance(svi.step(x, torch.tensor([2, -1])), float)
        True
    """

    def __init__(
        self,
        autoencoder: VariationalAutoencoder,
        hidden_dims: Sequence[int] = (300, 300),
        classification_weight: float = 1.0,
    ):
        super().__init__()
        self.num_classes, self.input_dim = autoencoder.context_dim, autoencoder.input_dim
        if self.num_classes < 2:
            raise ValueError(
                f"The autoencoder has context_dim={self.num_classes}, expected the number of "
                "classes, two or more: VariationalAutoencoder(..., context_dim=10)."
            )
        if not classification_weight >= 0:
            raise ValueError(f"classification_weight must be >= 0, got {classification_weight}.")
        check_sizes(hidden_dims, num_classes=self.num_classes)
        self.autoencoder = autoencoder
        self.classification_weight = classification_weight
        self.classifier = DenseNN(self.input_dim, list(hidden_dims), [self.num_classes], nn.Tanh())
        self.register_buffer("prior_logits", torch.zeros(self.num_classes), persistent=False)

    @pyro_method
    def model(
        self, x: Tensor | None = None, context: Tensor | None = None, *, size: int | None = None
    ) -> Tensor:
        """Samples ``context``, ``z`` and ``x``, which is observed if given.

        Args:
            x: mini-batch of shape ``(batch, input_dim)``; none draws ``size`` data.
            context: labels of shape ``(batch,)``, -1 where missing.
            size: number of data that the mini-batch stands for; its own length if not given.

        Returns:
            The data.
        """
        with self._plate(x, context, size):
            label = pyro.sample("context", self._where_known(self.prior_logits, context))
            if x is not None and context is not None:
                self._charge(x, context)
            z = pyro.sample("z", self.autoencoder.prior())
            return pyro.sample("x", self.autoencoder.decode(z, self._one_hot(label)), obs=x)

    @pyro_method
    def guide(self, x: Tensor, context: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Samples ``context`` and ``z`` given the mini-batch ``x``."""
        with self._plate(x, context, size):
            label = pyro.sample(
                "context",
                self._where_known(self.classify(x).logits, context),
                infer={"enumerate": "parallel"},
            )
            return pyro.sample("z", self.autoencoder.encode(x, self._one_hot(label)))

    @pyro_method
    def classify(self, x: Tensor) -> Categorical:
        r"""The classifier :math:`q(y \mid x)`."""
        mean = self.autoencoder.data_mean
        return Categorical(logits=self.classifier(x if mean is None else x - mean))

    def _where_known(self, logits: Tensor, context: Tensor | None) -> Categorical:
        """All mass on the label where there is one, ``logits`` elsewhere."""
        if context is None:
            return Categorical(logits=logits)
        certain = (1 - self._one_hot(context.clamp(min=0))) * IMPOSSIBLE
        return Categorical(logits=torch.where((context >= 0).unsqueeze(-1), certain, logits))

    def _charge(self, x: Tensor, context: Tensor) -> None:
        label = context.clamp(min=0)
        log_prior = Categorical(logits=self.prior_logits).log_prob(label)
        log_prob = log_prior + self.classification_weight * self.classify(x).log_prob(label)
        pyro.factor("classification", torch.where(context >= 0, log_prob, 0.0))

    def _one_hot(self, label: Tensor) -> Tensor:
        return one_hot(label, self.num_classes).to(self.prior_logits.dtype)

    def _plate(self, x: Tensor | None, context: Tensor | None, size: int | None):
        if context is not None:
            check_labels(context, self.num_classes, None if x is None else len(x))
        return data_plate(x, size, self.input_dim)
