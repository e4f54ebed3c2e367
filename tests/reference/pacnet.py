"""PAC-Net on `relu(x @ a + bias) @ b @ head`, whose gradients are PackNet's.

Gradient descent with momentum on the mean squared error, and on lam times the squared
distance from the source's parameters. `a` and `b` are pruned.
"""

import numpy as np

from tests.reference import selection
from tests.reference.packnet import gradients

Arrays = dict[str, np.ndarray]
WEIGHTS = ("a", "b")


def train(
    p: Arrays, trains: Arrays, anchor: Arrays, lam: float, data: tuple, how: dict
) -> Arrays:
    """Descends where it may, with momentum 0.9."""
    velocity = {name: np.zeros_like(w) for name, w in p.items()}
    for _ in range(how["steps"]):
        slopes = gradients(p, *data)
        for name, w in p.items():
            pull = 2 * lam * (w - anchor[name])
            velocity[name] = 0.9 * velocity[name] + slopes[name] + pull
        p = {
            n: w - how["lr"] * np.where(trains[n], velocity[n], 0) for n, w in p.items()
        }
    return p


def learn(
    source: Arrays,
    first: tuple,
    second: tuple,
    *,
    density: float,
    scope: str,
    start: str,
    lams: tuple[float, float],
    **how: float,
) -> tuple[Arrays, Arrays, Arrays]:
    """What is kept, and the parameters of the source and of the target."""
    sizes = [np.abs(source[name]) for name in WEIGHTS]
    masks = selection.top_k(sizes, density, scope=scope)
    kept = dict(zip(WEIGHTS, masks, strict=True))

    def split(p: Arrays, others: Arrays) -> Arrays:
        return {
            n: np.where(kept[n], w, others[n]) if n in kept else w for n, w in p.items()
        }

    nothing = {name: np.zeros_like(w) for name, w in source.items()}
    trains = {name: kept.get(name, True) for name in source}
    p = train(split(source, nothing), trains, source, lams[0], first, how)
    of_source = dict(p)
    if start == "source":
        p = split(p, source)
    trains = {name: ~kept[name] if name in kept else False for name in source}
    return kept, of_source, train(p, trains, source, lams[1], second, how)
