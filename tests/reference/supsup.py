"""SupSup's training step on a ReLU network, forward and backward by hand."""

import numpy as np


def step(
    weights: list[np.ndarray],
    scores: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    *,
    learning_rate: float,
) -> tuple[float, list[np.ndarray]]:
    """Cross-entropy, and the scores after a step of plain gradient descent."""
    effective = [np.where(s >= 0, w, 0) for w, s in zip(weights, scores, strict=True)]
    inputs, sums = [], []
    for i, w in enumerate(effective):
        inputs.append(x)
        sums.append(x @ w)
        x = np.maximum(sums[-1], 0) if i + 1 < len(effective) else sums[-1]
    log = x - x.max(1, keepdims=True)
    log = log - np.log(np.exp(log).sum(1, keepdims=True))
    at = np.arange(len(y)), y
    arriving = np.exp(log)
    arriving[at] -= 1
    arriving /= len(y)
    new = [np.zeros(0)] * len(weights)
    for i in reversed(range(len(weights))):
        if i + 1 < len(weights):
            arriving = arriving * (sums[i] > 0)
        gradient = (inputs[i].T @ arriving) * weights[i]
        new[i] = scores[i] - learning_rate * gradient
        arriving = arriving @ effective[i].T
    return float(-log[at].mean()), new
