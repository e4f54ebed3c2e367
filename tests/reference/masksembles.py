"""Masksembles in NumPy: how many ones, which overlaps there are, and a network."""

import itertools
import math

import numpy as np


def ones(channels: int, members: int, scale: float) -> int:
    """The paper's m, in fractions that do not round; at least what covers all."""
    from fractions import Fraction

    s = Fraction(str(scale))
    covered = s * (1 - (1 - 1 / s) ** members)
    return min(channels, max(math.floor(channels / covered), -(-channels // members)))


def shared(masks: np.ndarray) -> int:
    """Ones that two masks have, summed over pairs."""
    pairs = itertools.combinations(masks.astype(int), 2)
    return int(sum((a * b).sum() for a, b in pairs))


def every_overlap(channels: int, members: int, ones: int) -> set[int]:
    """What `shared` can be, of masks that cover all and repeat no more than they must.

    Found by going through all families.
    """
    every = np.array(
        [
            np.isin(range(channels), c)
            for c in itertools.combinations(range(channels), ones)
        ]
    )
    whole, rest = divmod(members, len(every))
    families = (
        np.concatenate([*[every] * whole, every[list(choice)]])
        for choice in itertools.combinations(range(len(every)), rest)
    )
    return {shared(family) for family in families if family.any(0).all()}


def hypergeometric(total: int, ones: int) -> tuple[float, float]:
    """Mean and variance of how many ones two draws of `ones` of `total` share."""
    share = ones / total
    return ones * share, ones * share * (1 - share) * (total - ones) / (total - 1)


def network(
    p: dict[str, np.ndarray], x: np.ndarray, first: np.ndarray, second: np.ndarray
):
    """One sample through a network whose hidden features are multiplied by masks."""
    h = np.maximum(x @ p["a"] + p["a_bias"], 0) * first
    h = np.maximum(h @ p["b"] + p["b_bias"], 0) * second
    return h @ p["c"] + p["c_bias"]
