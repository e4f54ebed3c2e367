"""SupSup's training step: on a ReLU network by hand, and for any network and optimizer.

Both multiply the gradient by the masked weights with the weights, and need no
straight-through estimator.
"""

from typing import Any

import jax
import numpy as np
import optax


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


def steps(loss: Any, optimizer: optax.GradientTransformation) -> Any:
    """`(opt_state, scores, weights, *data) -> (opt_state, scores, aux)`, compiled.

    Args:
        loss: `(params, *data) -> (scalar, aux)`.
        optimizer: Of the scores.
    """

    def kept(s: Any, w: Any) -> Any:
        return w if s is None else w * (s >= 0).astype(w.dtype)

    def by_score(s: Any, w: Any, slope: Any) -> Any:
        return None if s is None else slope * w

    def each(function: Any, *trees: Any) -> Any:
        return jax.tree.map(function, *trees, is_leaf=lambda s: s is None)

    @jax.jit
    def step(opt_state: Any, scores: Any, weights: Any, *data: Any) -> Any:
        params = each(kept, scores, weights)
        slopes, aux = jax.grad(loss, has_aux=True)(params, *data)
        slopes = each(by_score, scores, weights, slopes)
        updates, opt_state = optimizer.update(slopes, opt_state, scores)
        return opt_state, optax.apply_updates(scores, updates), aux

    return step
