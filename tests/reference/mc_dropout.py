"""MC-dropout in NumPy, in float64: sums over members and samples written out."""

import math

import numpy as np


def moments(outputs: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance from the mean and the mean square."""
    outputs = outputs.astype(np.float64)
    mean = outputs.sum(0) / len(outputs)
    square = (outputs**2).sum(0) / len(outputs)
    return mean, 1 / tau + square - mean**2


def normal_log_density(y: float, mean: float, tau: float) -> float:
    return 0.5 * math.log(tau / (2 * math.pi)) - 0.5 * tau * (y - mean) ** 2


def log_likelihood(
    outputs: np.ndarray, targets: np.ndarray, tau: float, event_ndim: int = 0
) -> np.ndarray:
    """The logarithm of the mean density of each sample: a product under each member."""
    found = np.empty(targets.shape[: targets.ndim - event_ndim])
    for at in np.ndindex(*found.shape):
        sample = targets[at].ravel()
        logs = []
        for o in outputs:
            each = zip(sample, o[at].ravel(), strict=True)
            logs.append(sum(normal_log_density(y, mean, tau) for y, mean in each))
        most = max(logs)
        found[at] = most + math.log(sum(math.exp(v - most) for v in logs) / len(logs))
    return found


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Along the last axis, in nats."""
    p = probabilities.astype(np.float64)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
