"""Merging rules on lists of task vectors, each a dict of float64 arrays."""

import numpy as np

from tests.reference import selection

Arrays = dict[str, np.ndarray]


def vectors(start: Arrays, networks: list[Arrays]) -> list[Arrays]:
    return [{name: net[name] - w for name, w in start.items()} for net in networks]


def total(taus: list[Arrays]) -> Arrays:
    return {name: sum(tau[name] for tau in taus) for name in taus[0]}


def tall_masks(
    taus: list[Arrays], merged: Arrays, thresholds: list[float]
) -> list[Arrays]:
    return [
        {n: abs(tau[n]) >= at * abs(merged[n] - tau[n]) for n in merged}
        for tau, at in zip(taus, thresholds, strict=True)
    ]


def consensus(masks: list[Arrays], least: int) -> Arrays:
    return {n: sum(m[n].astype(int) for m in masks) >= least for n in masks[0]}


def trimmed(taus: list[Arrays], density: float, *, scope: str) -> list[Arrays]:
    """The task vectors with all but their largest entries at 0."""
    found = []
    for tau in taus:
        sizes = [abs(x) for x in tau.values()]
        kept = selection.top_k(sizes, density, scope=scope)
        pairs = zip(tau.items(), kept, strict=True)
        found.append({n: np.where(m, x, 0) for (n, x), m in pairs})
    return found


def ties(taus: list[Arrays], density: float, *, scope: str) -> Arrays:
    left, merged = trimmed(taus, density, scope=scope), {}
    for name in taus[0]:
        each = np.stack([tau[name] for tau in left])
        elected = np.sign(each.sum(0))
        out = np.zeros(elected.shape)
        for at in np.ndindex(out.shape):
            agree = [x for x in each[(slice(None), *at)] if x * elected[at] > 0]
            out[at] = np.mean(agree) if agree else 0
        merged[name] = out
    return merged
