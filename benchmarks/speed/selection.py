"""How fast are the k highest of n scores found and marked?

Baselines find a threshold, as every library of the field does: by argsort (as JaxPruner
does, with its tie-breaking), by the top k, or by partitioning on the host. The limit
is one pass over the scores that compares them with the known threshold.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks._timing import Contestant
from benchmarks.speed import _case
from maskjax import select

SIZES = {
    "2k": [(40, 30), (30, 20), (20, 10)],
    "0.27M": [(784, 300), (300, 100), (100, 10)],
    "2M": [(1024, 512)] * 2 + [(512, 512)] * 2 + [(512, 256)] * 3 + [(256, 64)],
    "20M": [(2048, 2048)] * 3 + [(2048, 1024)] * 2 + [(1024, 1024)] * 3,
}
# Scores, density, scope; and whether to sort as well, which takes seconds.
FULL = [
    *(("0.27M", "normal", d, "global", "sorts") for d in (0.1, 0.5, 0.9)),
    ("0.27M", "normal", 0.5, "leaf", "sorts"),
    *(("2M", "normal", d, "global", "sorts") for d in (0.1, 0.5, 0.9)),
    ("2M", "rounded", 0.5, "global", "sorts"),
    ("20M", "normal", 0.1, "global", "sorts"),
    *(("20M", "normal", d, "global", "") for d in (0.5, 0.9)),
    ("20M", "normal", 0.1, "leaf", ""),
    ("20M", "rounded", 0.5, "global", ""),
]
QUICK = [
    ("2k", "normal", 0.1, "leaf", "sorts"),
    ("2k", "rounded", 0.5, "global", "sorts"),
]

Leaves = Sequence[Any]


def case(size: str, kind: str, density: float, scope: str, sorts: str) -> _case.Case:
    """One size, density, scope and kind of scores."""
    keys = map(jax.random.key, range(len(SIZES[size])))
    pairs = zip(keys, SIZES[size], strict=True)
    scores = [jnp.abs(jax.random.normal(key, shape)) for key, shape in pairs]
    if kind == "rounded":  # to about fifty values
        scores = [jnp.round(x, 1) for x in scores]
    jax.block_until_ready(scores)
    host = [np.array(x) for x in scores]
    k = _quotas(host, density, scope)
    thresholds = _np_thresholds(host, k, scope)

    def ours(leaves):
        return select.top_k(leaves, density=density, scope=scope)

    contestants = [_case.contestant("maskjax", ours, scores)]
    for name, fn in SORTS.items() if sorts else ():
        find = functools.partial(_by_scope, k=k, scope=scope, fn=fn)
        contestants.append(_case.contestant(name, find, scores))
    if jax.default_backend() == "cpu":
        find = lambda: compare(host, _np_thresholds(host, k, scope))  # noqa: E731
        contestants.append(Contestant("np.partition", find))
    least = _case.contestant("compare once", compare, scores, list(thresholds))

    def agree(results):
        exact = first_of_equals(host, k, thresholds, scope)
        reached = compare(host, thresholds)
        for name, masks in results.items():
            expected = exact if name in ("maskjax", "argsort") else reached
            for mask, wanted in zip(masks, expected, strict=True):
                np.testing.assert_array_equal(np.asarray(mask), wanted, err_msg=name)

    name, shape = f"n={size} {kind} density={density} {scope}", SIZES[size]
    context = {"shape": list(map(list, shape)), "density": density, "scope": scope}
    return _case.of(name, [*contestants, least], agree, scores=kind, **context)


def _by_scope(
    leaves: Leaves, k: list[int], scope: str, fn: Any, xp: Any = jnp
) -> Leaves:
    """What a function of flat scores and a count gives, in the shapes of the leaves."""
    if scope == "leaf":
        pairs = zip(leaves, k, strict=True)
        return [fn(x.ravel(), n).reshape(x.shape) for x, n in pairs]
    whole = fn(xp.concatenate([x.ravel() for x in leaves]), k[0])
    ends = list(itertools.accumulate(x.size for x in leaves))[:-1]
    pairs = zip(xp.split(whole, ends), leaves, strict=True)
    return [piece.reshape(x.shape) for piece, x in pairs]


def _argsort(flat: jax.Array, k: int) -> jax.Array:
    """As JaxPruner: sort indices, compare with the k-th score, break ties by index."""
    last = jnp.argsort(-flat)[k - 1]
    at = flat[last]
    return (flat >= at) & ((jnp.arange(flat.size) <= last) | (flat != at))


SORTS = {
    "argsort": _argsort,
    "lax.top_k": lambda x, n: x >= lax.top_k(x, n)[0][-1],
}


def compare(leaves: Leaves, thresholds: Leaves) -> Leaves:
    """One pass over the scores, were the threshold known."""
    return [x >= t for x, t in zip(leaves, thresholds, strict=True)]


def _quotas(host: Leaves, density: float, scope: str) -> list[int]:
    sizes = [x.size for x in host]
    sizes = sizes if scope == "leaf" else [sum(sizes)]
    return [math.floor(density * n + 0.5) for n in sizes]


def _np_thresholds(host: Leaves, k: list[int], scope: str) -> Leaves:
    """For each leaf the k-th highest score, by partitioning a copy in place."""

    def kth(leaves, n):
        flat = np.concatenate([x.ravel() for x in leaves])
        flat.partition(flat.size - n)
        return flat[flat.size - n]

    if scope == "leaf":
        return [kth([x], n) for x, n in zip(host, k, strict=True)]
    return [kth(host, k[0])] * len(host)


def first_of_equals(
    host: Leaves, k: list[int], thresholds: Leaves, scope: str
) -> Leaves:
    """The exact masks: of scores that equal the threshold, the first that fit."""
    at = iter(thresholds)

    def mark(flat, n):
        cut = next(at)
        above, equal = flat > cut, flat == cut
        return above | (equal & (np.cumsum(equal) <= n - above.sum()))

    return _by_scope(host, k, scope, mark, np)
