"""Whether draws pass for data: two tests of two samples."""

import torch
from torch import Tensor


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Székely's, without bias: it may be negative."""
    within = torch.pdist(a).mean() + torch.pdist(b).mean()
    return (2 * torch.cdist(a, b).mean() - within).item()


def told_apart(a: Tensor, b: Tensor) -> float:
    """The share that a random forest tells right, out of bag (%); 50 by chance."""
    from sklearn.ensemble import RandomForestClassifier

    rows, sizes = torch.cat([a, b]).numpy(), (len(a), len(b))
    labels = torch.arange(2).repeat_interleave(torch.tensor(sizes)).numpy()
    forest = RandomForestClassifier(100, min_samples_leaf=5, oob_score=True, random_state=0)
    return 100 * forest.fit(rows, labels).oob_score_


def quality(draws: Tensor, data: Tensor) -> dict[str, float]:
    """Of as many draws as one likes; the forest sees as many as there are data."""
    return {
        "energy distance (1e-3)": 1e3 * energy_distance(draws, data),
        "forest tells apart (%)": told_apart(draws[: len(data)], data),
    }
