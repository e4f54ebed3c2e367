"""Edge-popup on a multi-layer perceptron without biases, forward and backward by hand.

The gradient of an edge's score is dL/dI_v * Z_u * w_uv * sign(s_uv) for every edge,
removed ones included (Ramanujan et al., arXiv:1911.13299, section 3).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.reference import selection


def masks(
    scores: list[np.ndarray], density: float | list[float], *, scope: str = "leaf"
) -> list[np.ndarray]:
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
    kept: list[np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
) -> tuple[float, list[np.ndarray]]:
    """Mean squared error under a mask, and its gradient by every score."""
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
    loss, weights, scores, *data, density: float, scope: str, rate: float, steps: int
):
    """The scores after steps of Adam, in float32: a mask by sorting, |s| behind it."""
    optimizer = optax.adam(rate)
    leaves, treedef = jax.tree.flatten(scores)
    sizes = np.array([leaf.size for leaf in leaves])

    def kept(leaves):
        ranked = [-jnp.abs(leaf).ravel() for leaf in leaves]
        ranked = [jnp.concatenate(ranked)] if scope == "global" else ranked
        flat = [
            jnp.zeros(r.shape)
            .at[jnp.argsort(r, stable=True)[: selection.quota(density, r.size)]]
            .set(1.0)
            for r in ranked
        ]
        flat = jnp.split(flat[0], sizes.cumsum()[:-1]) if scope == "global" else flat
        return [f.reshape(leaf.shape) for f, leaf in zip(flat, leaves, strict=True)]

    def objective(leaves):
        hard = kept(leaves)
        soft = [abs(s) - jax.lax.stop_gradient(abs(s)) for s in leaves]
        soft = treedef.unflatten([h + s for h, s in zip(hard, soft, strict=True)])
        return loss(jax.tree.map(lambda w, m: m * w, weights, soft), *data)

    def step(carry, _):
        leaves, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(objective)(leaves), opt_state)
        return (optax.apply_updates(leaves, updates), opt_state), None

    carry = leaves, optimizer.init(leaves)
    (leaves, _), _ = jax.lax.scan(step, carry, length=steps)
    return treedef.unflatten(leaves)
