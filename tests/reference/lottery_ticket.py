"""Iterative magnitude pruning of a linear model with two kernels and a bias.

Gradient descent on the mean squared error of `x1 @ a + x2 @ b + bias`, written out.
"""

import numpy as np

from tests.reference import selection

Arrays = list[np.ndarray]


def train(params: Arrays, masks: Arrays, data: Arrays, *, steps: int, lr: float):
    """Descends from masked parameters; gradients of removed weights are left out."""
    a, b, bias = params[0] * masks[0], params[1] * masks[1], params[2]
    x1, x2, y = data
    for _ in range(steps):
        arriving = 2 * (x1 @ a + x2 @ b + bias - y) / y.size
        slopes = x1.T @ arriving, x2.T @ arriving, arriving.sum(0)
        a = a - lr * masks[0] * slopes[0]
        b = b - lr * masks[1] * slopes[1]
        bias = bias - lr * slopes[2]
    return [a, b, bias]


def prune(params: Arrays, masks: Arrays, rates: list[float], *, scope: str) -> Arrays:
    """Without round(rate * alive) of the smallest of each kernel, or of both."""
    sizes = [np.abs(w).ravel() for w in params[:2]]
    alive = [m.ravel() for m in masks]
    if scope == "global":
        sizes, alive = [np.concatenate(sizes)], [np.concatenate(alive)]
    kept = []
    for size, live, rate in zip(sizes, alive, rates, strict=False):
        count = int(live.sum())
        kept.append(selection.best(size, count - selection.quota(rate, count), live))
    flat = np.split(np.concatenate(kept), [masks[0].size])
    return [m.reshape(mask.shape) for m, mask in zip(flat, masks, strict=True)]


def search(
    params: Arrays,
    data: Arrays,
    *,
    rounds: int,
    rates: list[float],
    steps: int,
    lr: float,
    scope: str = "leaf",
    first_steps: int = 0,
    reset_each_round: bool = True,
) -> tuple[list[Arrays], list[Arrays]]:
    """The masks of every round, and the parameters at the end of its training."""
    masks = [np.ones(w.shape, bool) for w in params[:2]]
    start = rewound = train(params, masks, data, steps=first_steps, lr=lr)
    found, finals = [], []
    for _ in range(rounds + 1):
        final = train(start, masks, data, steps=steps, lr=lr)
        found.append(masks)
        finals.append(final)
        masks = prune(final, masks, rates, scope=scope)
        start = rewound if reset_each_round else final
    return found, finals
