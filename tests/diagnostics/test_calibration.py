"""Scores of probabilities against plain loops, closed forms and scikit-learn."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch

from pyro_ext.diagnostics import calibration

PROBS = torch.tensor(
    [[0.9, 0.05, 0.05], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.34, 0.33, 0.33], [0.2, 0.75, 0.05]]
).double()
LABELS = torch.tensor([0, 1, 2, 0, 0])


def random_predictions(num=400, classes=4, sharpness=2.0):
    log_probs = (sharpness * torch.randn(num, classes).double()).log_softmax(-1)
    return log_probs, torch.distributions.Categorical(logits=log_probs).sample()


def test_scores_against_loops():
    log_probs, labels = random_predictions()
    result = calibration(log_probs, labels, num_bins=10)
    probs = log_probs.exp().numpy()
    confidence, predicted = probs.max(1), probs.argmax(1)
    right = predicted == labels.numpy()
    ece, counts = 0.0, []
    for b in range(10):
        inside = [n for n in range(400) if b / 10 < confidence[n] <= (b + 1) / 10]
        counts.append(len(inside))
        if inside:
            ece += len(inside) / 400 * abs(right[inside].mean() - confidence[inside].mean())
    brier = np.mean(
        [sum((probs[n, c] - (labels[n].item() == c)) ** 2 for c in range(4)) for n in range(400)]
    )
    order = np.argsort(-confidence, kind="stable")
    aurc = np.mean([1 - right[order[: k + 1]].mean() for k in range(400)])
    assert result.ece == pytest.approx(ece)
    assert result.bin_counts.tolist() == counts
    assert result.brier == pytest.approx(brier)
    assert result.aurc == pytest.approx(aurc)
    assert result.accuracy == pytest.approx(right.mean())
    assert result.nll == pytest.approx(-np.mean([log_probs[n, labels[n]] for n in range(400)]))


def test_scores_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    log_probs, labels = random_predictions(classes=2)
    result = calibration(log_probs, labels)
    positive = log_probs.exp()[:, 1].numpy()
    assert result.nll == pytest.approx(metrics.log_loss(labels, positive))
    assert result.brier == pytest.approx(2 * metrics.brier_score_loss(labels, positive))


def test_a_small_example_by_hand():
    result = calibration(PROBS.log(), LABELS, num_bins=2)
    # confidences .9 .5 .7 .34 .75, right in the first, third and fourth
    assert result.bin_counts.tolist() == [2, 3]
    assert result.ece == pytest.approx(2 / 5 * abs(0.5 - 0.42) + 3 / 5 * abs(2 / 3 - 2.35 / 3))
    assert result.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4 + 2 / 5) / 5)
    assert result.accuracy == 0.6


def test_true_probabilities_are_calibrated():
    # the labels are drawn from the predictions: each bin's gap is noise of at most 1 / (2 sqrt n)
    log_probs, labels = random_predictions(num=100_000, classes=3)
    result = calibration(log_probs, labels, num_bins=10)
    full = result.bin_counts > 0
    gaps = (result.bin_accuracy - result.bin_confidence)[full]
    errors = 0.5 / result.bin_counts[full].sqrt()
    assert (gaps.abs() < 5 * errors).all()  # false alarm below 10 * 6e-7
    sharper = calibration((3 * log_probs).log_softmax(-1), labels, num_bins=10)
    assert sharper.ece > 5 * result.ece
    assert sharper.nll > result.nll
    assert sharper.brier > result.brier
    assert sharper.accuracy == result.accuracy


def test_draws_are_averaged_as_probabilities():
    draws = torch.randn(6, 50, 3).double().log_softmax(-1)
    labels = torch.randint(3, (50,))
    mixture = draws.exp().mean(0).log()
    assert repr(calibration(draws, labels)) == repr(calibration(mixture, labels))


def test_ties_are_averaged_over_their_orders():
    log_probs = torch.tensor([[0.9, 0.1]] * 2 + [[0.7, 0.3]] * 3 + [[0.6, 0.4]]).log()
    labels = torch.tensor([0, 1, 1, 0, 0, 1])
    found, risks = set(), []
    for order in itertools.permutations(range(6)):
        found.add(round(calibration(log_probs[list(order)], labels[list(order)]).aurc, 12))
        confidence = [-log_probs[n].max().item() for n in order]
        if confidence == sorted(confidence):
            wrong = labels[list(order)].double().cumsum(0)
            risks.append((wrong / torch.arange(1, 7)).mean().item())
    assert len(risks) == 2 * 6
    assert list(found) == [pytest.approx(np.mean(risks))]


def test_certainty_and_impossibility():
    log_probs = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()
    right = calibration(log_probs, torch.tensor([0, 1]))
    assert (right.nll, right.brier, right.ece, right.aurc) == (0, 0, 0, 0)
    wrong = calibration(log_probs, torch.tensor([1, 0]))
    assert (wrong.nll, wrong.brier, wrong.ece, wrong.aurc) == (math.inf, 2, 1, 1)


def test_the_diagram():
    matplotlib = pytest.importorskip("matplotlib")
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    result = calibration(*random_predictions())
    axis = result.plot()
    assert axis.get_xlabel() == "confidence"
    assert result.plot(axis) is axis
    drawn = axis.lines[1].get_xydata()
    full = result.bin_counts > 0
    np.testing.assert_allclose(drawn[:, 1], result.bin_accuracy[full])
    plt.close(axis.figure)
    matplotlib.use(backend)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="pip install"):
        calibration(PROBS.log(), LABELS).plot()


@pytest.mark.parametrize(
    ("log_probs", "labels", "message"),
    [
        (PROBS, LABELS, r"sum to one.*log_softmax"),
        (PROBS.log()[0], LABELS, r"shape \(N, C\)"),
        (PROBS.log()[:0], LABELS[:0], r"shape \(N, C\)"),
        (PROBS.log(), LABELS[:4], r"labels must be integers of shape \(5,\)"),
        (PROBS.log(), LABELS.double(), "labels must be integers"),
        (PROBS.log(), LABELS + 1, "labels must lie in 0 to 2"),
    ],
)
def test_bad_predictions_are_refused(log_probs, labels, message):
    with pytest.raises(ValueError, match=message):
        calibration(log_probs, labels)
    with pytest.raises(ValueError, match="num_bins must be an integer >= 1"):
        calibration(PROBS.log(), LABELS, num_bins=0)
