"""A learned supermask on a multi-layer perceptron, forward and backward by hand.

For a sample m of the mask, and a factor f of each layer (1, or n / sum(m) with dynamic
weight rescaling), weights are f * w * m, and the gradient of a score is

    dL/da = (dL/dm) * sigmoid(a) * (1 - sigmoid(a))

(Zhou et al., arXiv:1905.01067, section 5).
"""

import jax
import numpy as np
import optax


def sigmoid(a: np.ndarray) -> np.ndarray:
    """Probabilities of scores."""
    return 1 / (1 + np.exp(-a))


def factor(m: np.ndarray, *, rescale: bool) -> float:
    """What a layer's weights are multiplied by."""
    return m.size / max(m.sum(), 1) if rescale else 1.0


def forward(
    weights: list[np.ndarray],
    kept: list[np.ndarray],
    x: np.ndarray,
    *,
    rescale: bool = False,
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Output, inputs of each layer, and sums before each nonlinearity."""
    inputs, sums = [], []
    for i, (w, m) in enumerate(zip(weights, kept, strict=True)):
        inputs.append(x)
        sums.append(x @ (factor(m, rescale=rescale) * w * m))
        x = np.maximum(sums[-1], 0) if i + 1 < len(weights) else sums[-1]
    return x, inputs, sums


def loss(
    weights: list[np.ndarray],
    kept: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    *,
    rescale: bool = False,
) -> float:
    """Mean squared error."""
    return float(np.mean((forward(weights, kept, x, rescale=rescale)[0] - y) ** 2))


def score_gradients(
    weights: list[np.ndarray],
    scores: list[np.ndarray],
    kept: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    *,
    rescale: bool = False,
    through_count: bool = True,
) -> list[np.ndarray]:
    """Of the mean squared error under a sample, by every score."""
    out, inputs, sums = forward(weights, kept, x, rescale=rescale)
    arriving = 2 * (out - y) / out.size
    gradients: list[np.ndarray] = [np.zeros(0)] * len(weights)
    for i in reversed(range(len(weights))):
        w, m = weights[i], kept[i]
        f = factor(m, rescale=rescale)
        if i + 1 < len(weights):
            arriving = arriving * (sums[i] > 0)
        by_effective = inputs[i].T @ arriving
        by_mask = f * by_effective * w
        if rescale and through_count:
            by_mask = by_mask - f / m.sum() * np.sum(by_effective * w * m)
        p = sigmoid(scores[i])
        gradients[i] = by_mask * p * (1 - p)
        arriving = arriving @ (f * w * m).T
    return gradients


def train(loss, weights, scores, *data, keys, rate: float):
    """The scores after a step of Adam for each key, in float32."""
    optimizer = optax.adam(rate)
    leaves, treedef = jax.tree.flatten(scores)

    def objective(leaves, key):
        drawn = []
        for i, a in enumerate(leaves):
            p = jax.nn.sigmoid(a)
            draw = jax.random.uniform(jax.random.fold_in(key, i), a.shape)
            drawn.append((draw < p).astype(p.dtype) + (p - jax.lax.stop_gradient(p)))
        soft = treedef.unflatten(drawn)
        return loss(jax.tree.map(lambda w, m: m * w, weights, soft), *data)

    def step(carry, key):
        leaves, opt_state = carry
        gradients = jax.grad(objective)(leaves, key)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return (optax.apply_updates(leaves, updates), opt_state), None

    (leaves, _), _ = jax.lax.scan(step, (leaves, optimizer.init(leaves)), keys)
    return treedef.unflatten(leaves)
