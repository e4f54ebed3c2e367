"""Edge-popup on a multi-layer perceptron without biases, forward and backward by hand.

The gradient of an edge's score is dL/dI_v * Z_u * w_uv * sign(s_uv) for every edge,
removed ones included (Ramanujan et al., arXiv:1911.13299, section 3).
"""

import numpy as np

from tests.reference import selection


def masks(scores: list[np.ndarray], density: float, *, scope: str = "leaf") -> list:
    """The highest |scores|."""
    return selection.top_k([np.abs(s) for s in scores], density, scope=scope)


def forward(
    weights: list[np.ndarray], kept: list[np.ndarray], x: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Output, inputs of each layer, and sums before each nonlinearity."""
    inputs, sums = [], []
    for i, (w, m) in enumerate(zip(weights, kept, strict=True)):
        inputs.append(x)
        sums.append(x @ np.where(m, w, 0))
        x = np.maximum(sums[-1], 0) if i + 1 < len(weights) else sums[-1]
    return x, inputs, sums


def loss_and_score_gradients(
    weights: list[np.ndarray],
    scores: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    density: float,
    *,
    scope: str = "leaf",
    thresholds: list[float] | None = None,
) -> tuple[float, list[np.ndarray]]:
    """Mean squared error, and its gradient by every score.

    With thresholds these decide on the masks, and not the density.
    """
    kept = masks(scores, density, scope=scope)
    if thresholds is not None:
        kept = [np.abs(s) >= t for s, t in zip(scores, thresholds, strict=True)]
    out, inputs, sums = forward(weights, kept, x)
    arriving = 2 * (out - y) / out.size
    gradients: list[np.ndarray] = [np.zeros(0)] * len(weights)
    for i in reversed(range(len(weights))):
        if i + 1 < len(weights):
            arriving = arriving * (sums[i] > 0)
        gradients[i] = (inputs[i].T @ arriving) * weights[i] * np.sign(scores[i])
        arriving = arriving @ np.where(kept[i], weights[i], 0).T
    return float(np.mean((out - y) ** 2)), gradients


def train(
    weights: list[np.ndarray],
    scores: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    density: float,
    *,
    learning_rate: float,
    steps: int,
) -> list[np.ndarray]:
    """The scores after plain gradient descent."""
    for _ in range(steps):
        _, gradients = loss_and_score_gradients(weights, scores, x, y, density)
        scores = [s - learning_rate * g for s, g in zip(scores, gradients, strict=True)]
    return scores
