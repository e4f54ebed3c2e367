"""Friedman's first function and its relatives, to transfer from one to another.

y = a1 10 sin(pi (b1 x1 + c1) (b2 x2 + c2)) + a2 20 (b3 x3 + c3 - 1/2)^2
    + a3 10 (b4 x4 + c4) + a4 5 (b5 x5 + c5) + noise, with x uniform in [0, 1]^10

The target has a = b = 1 and c = 0; sources lie around it, farther the larger their
distance d (Pardoe & Stone, "Boosting for regression transfer", ICML 2010). The last
five inputs mean nothing.
"""

from typing import NamedTuple

import numpy as np

INPUTS = 10
NOISE = 1.0


class Coefficients(NamedTuple):
    """Which function it is: a [4], b [5] and c [5]."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray


TARGET = Coefficients(np.ones(4), np.ones(5), np.zeros(5))


def source(distance: float, *, seed: int) -> Coefficients:
    """A function near the target: a, b ~ N(1, 0.1 d) and c ~ N(0, 0.05 d).

    The second number is read as a standard deviation. At distance 0 it is the target;
    farther sources of a seed lie in the same direction.
    """
    rng = np.random.default_rng(seed)
    spread = 0.1 * distance
    a, b = (1 + spread * rng.standard_normal(n) for n in (4, 5))
    return Coefficients(a, b, spread / 2 * rng.standard_normal(5))


def value(which: Coefficients, x: np.ndarray) -> np.ndarray:
    """What a function is at inputs [..., 10], without noise, [...]."""
    a = which.a
    z = which.b * x[..., :5] + which.c
    return (
        a[0] * 10 * np.sin(np.pi * z[..., 0] * z[..., 1])
        + a[1] * 20 * (z[..., 2] - 0.5) ** 2
        + a[2] * 10 * z[..., 3]
        + a[3] * 5 * z[..., 4]
    )


def samples(
    which: Coefficients, count: int, *, seed: int, noise: float = NOISE
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, 10] and noisy values [N, 1], float32.

    Fewer samples of a seed are the first of more.
    """
    where, how_far = (np.random.default_rng([seed, i]) for i in range(2))
    x = where.random((count, INPUTS))
    y = value(which, x) + noise * how_far.standard_normal(count)
    return x.astype(np.float32), y[:, None].astype(np.float32)
