"""Meta-gradients of a linear model by hand, step by step forward and then backward.

Weights are w = m * theta for a mask m, elementwise, and the loss of a task on inputs X
and targets Y is mean((X w - Y)^2), of gradient g(w) = H w - c with H = 2 X'X / size and
c = 2 X'Y / size. An inner step and its adjoint, lambda being dL/dtheta:

    theta <- theta - r * m * g(m * theta)
    v = m * r * lambda
    dL/dm <- dL/dm - r * lambda * g - theta * (H v)
    lambda <- lambda - m * (H v)

(Finn et al., arXiv:1703.03400; Chijiwa et al., arXiv:2205.15619). A first-order
derivative leaves out everything that passes through g.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax


def order_statistic(scores: np.ndarray, density: float) -> float:
    """Number 1 + round(q (n - 1)) from below, q = 1 - density, halves rounding down."""
    rank = math.ceil(round((1 - density) * (scores.size - 1), 9) - 0.5)
    return float(np.sort(scores, axis=None)[rank])


def task_gradients(
    theta: np.ndarray,
    m: np.ndarray,
    rates: np.ndarray,
    support: tuple[np.ndarray, np.ndarray],
    query: tuple[np.ndarray, np.ndarray],
    *,
    steps: int,
    first_order: bool = False,
) -> tuple[float, np.ndarray, np.ndarray]:
    """The query loss after adapting, and its gradients by theta and by the mask."""

    def slope(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 2 * x.T @ (x @ w - y) / y.size

    x, y = support
    hessian = 2 * x.T @ x / y.size
    path = [theta]
    for _ in range(steps):
        path.append(path[-1] - rates * m * slope(m * path[-1], x, y))
    last = path.pop()
    residual = query[0] @ (m * last) - query[1]
    arriving = slope(m * last, *query)
    by_mask, by_theta = last * arriving, m * arriving
    if first_order:
        return float(np.mean(residual**2)), by_theta, by_mask
    for theta in reversed(path):
        back = hessian @ (m * rates * by_theta)
        by_mask = by_mask - rates * by_theta * slope(m * theta, x, y) - theta * back
        by_theta = by_theta - m * back
    return float(np.mean(residual**2)), by_theta, by_mask


def step(loss, optimizer, learned, opt_state, start, tasks, *, rates, steps):
    """One step of meta-training in plain JAX, for parameters in a flat dict.

    Args:
        loss: `(params, x, y) -> scalar`.
        optimizer: Trains `learned`.
        learned: Scores, and the weights that are meta-trained, by name.
        opt_state: The optimizer's state.
        start: Weights that never change, and thresholds of the scores, by name.
        tasks: Support and query sets of B tasks.
        rates: An inner learning rate, or `None`, by name.
        steps: The number of inner steps.
    """

    def query_loss(learned, support, query):
        scores, trained = learned
        fixed, thresholds = start
        hard = {k: (s >= thresholds[k]).astype(s.dtype) for k, s in scores.items()}
        masks = {k: hard[k] + (s - lax.stop_gradient(s)) for k, s in scores.items()}
        params = {**fixed, **trained}
        # Before w, since the order of uses is that in which derivatives are summed.
        paces = {
            k: r if r is None else jnp.full_like(params[k], r) for k, r in rates.items()
        }
        paces |= {k: m * (m * paces[k]) for k, m in masks.items() if rates[k]}
        w = params | {k: m * params[k] for k, m in masks.items()}
        for _ in range(steps):
            slope = jax.grad(loss)(w, *support)
            w = {
                k: v if paces[k] is None else v - paces[k] * slope[k]
                for k, v in w.items()
            }
        return loss(w, *query)

    each = jax.vmap(jax.value_and_grad(query_loss), (None, 0, 0))(learned, *tasks)
    ones = jnp.ones(len(each[0]), each[0].dtype)
    value, gradients = jax.tree.map(
        lambda x: jnp.tensordot(ones, x, 1, precision="highest") / len(x), each
    )
    updates, opt_state = optimizer.update(gradients, opt_state, learned)
    return optax.apply_updates(learned, updates), opt_state, value
