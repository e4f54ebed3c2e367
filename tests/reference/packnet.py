"""PackNet on `relu(x @ a + bias) @ b @ head`, forward and backward by hand.

Gradient descent with momentum on the mean squared error, of what a task may train.
`a` and `b` are shared and owned weight by weight; the bias trains with the first task;
every task has its own head.
"""

import numpy as np

from tests.reference import selection

Arrays = dict[str, np.ndarray]


def forward(p: Arrays, x: np.ndarray) -> tuple[np.ndarray, ...]:
    sums = x @ p["a"] + p["bias"]
    hidden = np.maximum(sums, 0)
    return sums, hidden, hidden @ p["b"], hidden @ p["b"] @ p["head"]


def gradients(p: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    sums, hidden, features, out = forward(p, x)
    arriving = 2 * (out - y) / y.size
    to_features = arriving @ p["head"].T
    to_sums = (to_features @ p["b"].T) * (sums > 0)
    return {
        "head": features.T @ arriving,
        "b": hidden.T @ to_features,
        "a": x.T @ to_sums,
        "bias": to_sums.sum(0),
    }


def train(
    p: Arrays, mask: Arrays, x: np.ndarray, y: np.ndarray, *, steps: int, lr: float
) -> Arrays:
    """Descends where the mask allows it, with momentum 0.9."""
    velocity = {name: np.zeros_like(w) for name, w in p.items()}
    for _ in range(steps):
        slopes = gradients(p, x, y)
        velocity = {name: 0.9 * velocity[name] + slopes[name] for name in p}
        p = {name: p[name] - lr * np.where(mask[name], velocity[name], 0) for name in p}
    return p


def smallest(p: Arrays, mine: Arrays, rate: float, *, scope: str) -> Arrays:
    """What stays of the weights that are mine, without round(rate * n)."""
    sizes = [np.abs(p[name]).ravel() for name in ("a", "b")]
    alive = [mine[name].ravel() for name in ("a", "b")]
    if scope == "global":
        sizes, alive = [np.concatenate(sizes)], [np.concatenate(alive)]
    kept = np.concatenate(
        [
            selection.best(size, int(m.sum()) - selection.quota(rate, int(m.sum())), m)
            for size, m in zip(sizes, alive, strict=True)
        ]
    )
    parts = np.split(kept, [p["a"].size])
    return {n: k.reshape(p[n].shape) for n, k in zip(("a", "b"), parts, strict=True)}


def learn(
    p: Arrays,
    heads: list[np.ndarray],
    tasks: list[tuple[np.ndarray, np.ndarray]],
    rates: list[float],
    *,
    steps: tuple[int, int],
    lr: float,
    scope: str,
) -> tuple[Arrays, Arrays, list[np.ndarray]]:
    """All tasks in order: the weights, their owners, and the heads."""
    owner = {name: np.zeros(p[name].shape, int) for name in ("a", "b")}
    trained = []
    for number, (head, (x, y), rate) in enumerate(
        zip(heads, tasks, rates, strict=True), start=1
    ):
        mine = {name: o == 0 for name, o in owner.items()}
        first = np.full(p["bias"].shape, number == 1)
        mask = {**mine, "bias": first, "head": np.ones(head.shape, bool)}
        p = train({**p, "head": head}, mask, x, y, steps=steps[0], lr=lr)
        kept = smallest(p, mine, rate, scope=scope)
        for name in ("a", "b"):
            p[name] = np.where(mine[name] & ~kept[name], 0, p[name])
        p = train(p, {**mask, **kept}, x, y, steps=steps[1], lr=lr)
        owner = {n: np.where(kept[n], number, o) for n, o in owner.items()}
        trained.append(p["head"])
    return p, owner, trained


def logits(
    p: Arrays, owner: Arrays, head: np.ndarray, task: int, x: np.ndarray
) -> np.ndarray:
    """Task `task`, from 1 on, with the weights of tasks 1 to `task`."""
    seen = {n: np.where((o > 0) & (o <= task), p[n], 0) for n, o in owner.items()}
    return forward({**p, **seen, "head": head}, x)[-1]
