"""Winning SubNetworks on `relu(x @ a + bias) @ b @ head`, by plain gradient descent.

`a` and `b` have scores and a mask; the bias trains with the first task; every task has
its own head.
"""

from typing import NamedTuple

import numpy as np

from tests.reference import packnet, selection

Arrays = dict[str, np.ndarray]


class Learned(NamedTuple):
    """What is known after the last task."""

    params: Arrays
    scores: Arrays
    masks: list[Arrays]
    heads: list[np.ndarray]


def mask(scores: Arrays, density: float) -> Arrays:
    sizes = [abs(scores[name]) for name in ("a", "b")]
    return dict(zip(("a", "b"), selection.top_k(sizes, density), strict=True))


def learn(
    p: Arrays,
    scores: Arrays,
    heads: list[np.ndarray],
    tasks: list[tuple[np.ndarray, np.ndarray]],
    *,
    density: float,
    steps: int,
    lr: float,
) -> Learned:
    used = {name: np.zeros(s.shape, bool) for name, s in scores.items()}
    masks, trained = [], []
    for number, (head, (x, y)) in enumerate(zip(heads, tasks, strict=True)):
        p = {**p, "head": head}
        for _ in range(steps):
            kept = mask(scores, density)
            run = {**p, **{name: p[name] * m for name, m in kept.items()}}
            slopes = packnet.gradients(run, x, y)
            weights = {n: slopes[n] * m * ~used[n] for n, m in kept.items()}
            weights |= {"head": slopes["head"], "bias": slopes["bias"] * (number == 0)}
            signs = {n: slopes[n] * p[n] * np.sign(s) for n, s in scores.items()}
            p = {name: w - lr * weights[name] for name, w in p.items()}
            scores = {name: s - lr * signs[name] for name, s in scores.items()}
        masks.append(mask(scores, density))
        used = {name: m | masks[-1][name] for name, m in used.items()}
        trained.append(p["head"])
    return Learned(p, scores, masks, trained)
