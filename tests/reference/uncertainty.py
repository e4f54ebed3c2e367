"""How sure predictions are, from the definitions: samples, pairs and orders in turn.

In NumPy, doubles, loops. Probabilities are p[sample][class], with members
p[member][sample][class].
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np


def accuracy(p: np.ndarray, y: np.ndarray) -> float:
    return sum(
        int(np.argmax(row)) == label for row, label in zip(p, y, strict=True)
    ) / (len(y))


def negative_log_likelihood(p: np.ndarray, y: np.ndarray) -> float:
    return sum(-math.log(row[label]) for row, label in zip(p, y, strict=True)) / len(y)


def brier_score(p: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for row, label in zip(p, y, strict=True):
        total += sum((q - (c == label)) ** 2 for c, q in enumerate(row))
    return total / len(y)


def _entropy(row: np.ndarray) -> float:
    return -sum(q * math.log(q) for q in row if q > 0)


def entropy(p: np.ndarray) -> np.ndarray:
    return np.array([_entropy(row) for row in p])


def expected_entropy(p: np.ndarray) -> np.ndarray:
    return np.mean([entropy(member) for member in p], axis=0)


def mutual_information(p: np.ndarray) -> np.ndarray:
    return entropy(p.mean(0)) - expected_entropy(p)


def disagreement(p: np.ndarray) -> np.ndarray:
    votes = p.argmax(-1)
    pairs = list(itertools.combinations(range(len(p)), 2))
    return np.mean([votes[i] != votes[j] for i, j in pairs], axis=0)


def variation_ratio(p: np.ndarray) -> np.ndarray:
    votes = p.argmax(-1)
    most = [max(np.bincount(votes[:, i])) for i in range(p.shape[1])]
    return 1 - np.array(most) / len(p)


# Calibration.


def bin_of(sure: np.ndarray, bins: int, binning: str) -> list[int]:
    """The bin of each; edges of equal width are compared in the inputs' precision."""
    if binning == "equal-width":
        edges = [np.asarray(i / bins, sure.dtype) for i in range(1, bins)]
        return [sum(bool(value > edge) for edge in edges) for value in sure]
    less = [sum(bool(other < value) for other in sure) for value in sure]
    return [k * bins // len(sure) for k in less]


def reliability(
    sure: np.ndarray, right: np.ndarray, bins: int, binning: str
) -> tuple[list, list, list]:
    where = np.array(bin_of(sure, bins, binning))
    counts, confidences, accuracies = [], [], []
    for i in range(bins):
        inside = where == i
        counts.append(int(inside.sum()))
        empty = not inside.any()
        confidences.append(math.nan if empty else sure[inside].astype(float).mean())
        accuracies.append(math.nan if empty else right[inside].mean())
    return counts, confidences, accuracies


def judged(p: np.ndarray, y: np.ndarray, of: str) -> Iterator[tuple]:
    """Probabilities and whether each is right: of the largest, or class by class."""
    if of == "top-label":
        yield p.max(-1), p.argmax(-1) == y
    else:
        for c in range(p.shape[-1]):
            yield p[:, c], y == c


def expected_calibration_error(
    p: np.ndarray, y: np.ndarray, bins: int, binning: str, of: str
) -> float:
    errors = []
    for sure, right in judged(p, y, of):
        counts, confidences, accuracies = reliability(sure, right, bins, binning)
        rows = zip(counts, confidences, accuracies, strict=True)
        errors.append(sum(n * abs(a - c) for n, c, a in rows if n) / len(y))
    return float(np.mean(errors))


def tempered(logits: np.ndarray, y: np.ndarray, t: float) -> float:
    """The negative log-likelihood of softmax(logits / t)."""
    z = logits / t
    z = z - z.max(-1, keepdims=True)
    own = np.take_along_axis(z, y[:, None], 1)[:, 0]
    return float(np.mean(np.log(np.exp(z).sum(-1)) - own))


# Detection.


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    wins = 0.0
    for a in scores[positive]:
        for b in scores[~positive]:
            wins += 1 if a > b else 0.5 if a == b else 0
    return wins / (positive.sum() * (~positive).sum())


def points(scores: np.ndarray, positive: np.ndarray) -> Iterator[tuple[int, int]]:
    """True and false positives at each threshold, from none called on."""
    yield 0, 0
    for t in sorted(set(scores.tolist()), reverse=True):
        called = scores >= t
        yield int((called & positive).sum()), int((called & ~positive).sum())


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    area, before = 0.0, 0
    for hits, false in points(scores, positive):
        if hits + false:
            area += (hits - before) / positive.sum() * hits / (hits + false)
        before = hits
    return area


def fpr_at_tpr(scores: np.ndarray, positive: np.ndarray, parts: int, of: int) -> float:
    """At a true positive rate of parts / of, in whole numbers."""
    for hits, false in points(scores, positive):
        if hits * of >= parts * int(positive.sum()):
            return false / int((~positive).sum())
    raise AssertionError("all are found in the end")


def risk_coverage(confidence: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The mean over all orders in which confidence does not rise, by trying them."""
    curves = []
    for order in itertools.permutations(range(len(losses))):
        sure = confidence[list(order)]
        if (np.diff(sure) <= 0).all():
            sums = np.cumsum(losses[list(order)].astype(float))
            curves.append(sums / np.arange(1, len(losses) + 1))
    return np.mean(curves, axis=0)


# Regression.


def density(y: float, mean: float, variance: float) -> float:
    scale = math.sqrt(2 * math.pi * variance)
    return math.exp(-((y - mean) ** 2) / (2 * variance)) / scale


def mixture_nll(means: np.ndarray, variances: np.ndarray, y: float) -> float:
    return -math.log(
        np.mean([density(y, *m) for m in zip(means, variances, strict=True)])
    )


def mixture_crps(means: np.ndarray, variances: np.ndarray, y: float) -> float:
    """The integral over x of (F(x) - [x >= y])^2, by the midpoint rule on each side."""
    reach = 12 * math.sqrt(max(variances)) + max(abs(means - y))
    total = 0.0
    for low, high, step in ((y - reach, y, 0.0), (y, y + reach, 1.0)):
        width = (high - low) / 20_000
        x = low + width * (np.arange(20_000) + 0.5)
        erfs = np.vectorize(math.erf)
        parts = [
            (1 + erfs((x - m) / math.sqrt(2 * v))) / 2
            for m, v in zip(means, variances, strict=True)
        ]
        total += ((np.mean(parts, axis=0) - step) ** 2).sum() * width
    return total
