"""Task inference by hand: a ReLU network under a weighted sum of masks, in NumPy.

The derivative by a mask's coefficient is the directional derivative along W * M_k,
formed layer by layer (arXiv:2006.14769, section 3.2).
"""

import math

import numpy as np


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def objective_and_slope(z: np.ndarray, labels: int | None) -> tuple[float, np.ndarray]:
    """The entropy of outputs z, or the paper's G if there are labels; and its slope."""
    q = _softmax(z)
    if labels is None:
        entropy = -(q * np.log(q)).sum(-1, keepdims=True)
        return float(entropy.mean()), -q * (np.log(q) + entropy) / len(z)
    slope = q / len(z)
    slope[:, :labels] = 0  # the real logits do not move
    return float(-np.log(q[:, :labels].sum(-1)).mean()), slope


def gradient(
    weights: list[np.ndarray],
    masks: list[np.ndarray],
    alphas: np.ndarray,
    x: np.ndarray,
    *,
    labels: int | None = None,
) -> tuple[float, np.ndarray]:
    """The objective at the mixed mask, and its derivative by every coefficient."""
    mixed = [
        w * np.tensordot(alphas, m, 1) for w, m in zip(weights, masks, strict=True)
    ]
    inputs, sums = [], []
    for i, w in enumerate(mixed):
        inputs.append(x)
        sums.append(x @ w)
        x = np.maximum(sums[-1], 0) if i + 1 < len(mixed) else sums[-1]
    value, slope = objective_and_slope(x, labels)
    slopes = []
    for k in range(len(alphas)):
        moved = np.zeros_like(inputs[0])  # how the inputs move as alpha_k grows
        for i, w in enumerate(mixed):
            moved = moved @ w + inputs[i] @ (weights[i] * masks[i][k])
            if i + 1 < len(mixed):
                moved = moved * (sums[i] > 0)
        slopes.append(float((slope * moved).sum()))
    return value, np.array(slopes)


def one_shot(weights, masks, x, *, learned: int, labels: int | None = None) -> int:
    """The learned task of the lowest derivative at the mean of learned masks."""
    alphas = np.where(np.arange(len(masks[0])) < learned, 1 / learned, 0)
    _, slopes = gradient(weights, masks, alphas, x, labels=labels)
    return int(np.argmin(slopes[:learned]))


def binary(
    weights, masks, x, *, learned: int, base: int = 2, labels: int | None = None
) -> int:
    """Halved until one task is left; under ties the first ones stay."""
    left = list(range(learned))
    while True:
        alphas = np.zeros(len(masks[0]))
        alphas[left] = 1 / len(left)
        _, slopes = gradient(weights, masks, alphas, x, labels=labels)
        ranked = sorted(left, key=lambda k: (slopes[k], k))
        left = sorted(ranked[: math.ceil(len(left) / base)])
        if len(left) == 1:
            return left[0]


def exhaustive(weights, masks, x, *, learned: int, labels: int | None = None) -> int:
    """The learned task of the lowest objective."""
    each = np.eye(len(masks[0]))
    values = [
        gradient(weights, masks, each[k], x, labels=labels)[0] for k in range(learned)
    ]
    return int(np.argmin(values))


def descent(weights, masks, x, *, learned: int, steps: int, rate: float) -> np.ndarray:
    """Coefficients after gradient descent on the entropy, on the simplex."""
    alphas = np.where(np.arange(len(masks[0])) < learned, 1 / learned, 0)
    for _ in range(steps):
        _, slopes = gradient(weights, masks, alphas, x)
        below = np.where(
            alphas > 0, rate * (slopes[alphas > 0].min() - slopes), -np.inf
        )
        alphas = alphas * np.exp(below)
        alphas /= alphas.sum()
    return alphas
