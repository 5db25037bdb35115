"""Which of the candidates is kept."""

import torch
from pyro.distributions import Categorical
from torch import Tensor


class CandidateIndex(Categorical):
    r"""A categorical index whose logits may depend on its own value.

    .. math:: p(i) \propto e^{\ell_i}

    Backwards, candidates are put around a value at an index. Where that is enumerated, so are
    they, and logits that are computed from them, which Pyro refuses from what the shape of a batch
    tells. This one tells that of the sampler; further dimensions of the logits line up with those
    of the index.

    Args:
        logits: :math:`\ell`, of shape ``(*more, *batch, K)``.
        batch_shape: that of the sampler.
    """

    def __init__(self, logits: Tensor, batch_shape: torch.Size):
        shape = torch.broadcast_shapes(logits.shape[:-1], batch_shape)
        super().__init__(logits=logits.expand(*shape, -1), validate_args=False)
        self._batch_shape = torch.Size(batch_shape)

    def expand(self, batch_shape, _instance=None):
        """The same for a larger batch."""
        return CandidateIndex(self.logits, batch_shape)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws an index for each element of the batch."""
        return Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
