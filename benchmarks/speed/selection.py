"""How fast are the k highest of n scores found and marked?

Baselines find a threshold, as every library of the field does; they sort, argsort (as
JaxPruner does, with its tie-breaking), take the top k, or partition on the host. The
limit is one pass over the scores that compares them with the known threshold and writes
the mask.
"""

import functools
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
# Scores, density, scope; and whether to include what takes seconds, to sort.
FULL = [
    *(("0.27M", "normal", d, "global", True) for d in (0.1, 0.5, 0.9)),
    ("0.27M", "normal", 0.5, "leaf", True),
    *(("2M", "normal", d, "global", True) for d in (0.1, 0.5, 0.9)),
    ("2M", "rounded", 0.5, "global", True),
    *(("20M", "normal", d, "global", d == 0.1) for d in (0.1, 0.5, 0.9)),
    ("20M", "normal", 0.1, "leaf", False),
    ("20M", "rounded", 0.5, "global", False),
]
QUICK = [("2k", "normal", 0.1, "leaf", True), ("2k", "rounded", 0.5, "global", True)]

Leaves = Sequence[Any]


def case(
    size: str,
    kind: str,
    density: float,
    scope: Any,
    sorts: bool,  # noqa: FBT001
) -> _case.Case:
    """One size, density, scope and kind of scores."""
    scores = [
        jnp.abs(jax.random.normal(jax.random.key(i), shape))
        for i, shape in enumerate(SIZES[size])
    ]
    if kind == "rounded":  # to about fifty values
        scores = [jnp.round(x, 1) for x in scores]
    jax.block_until_ready(scores)
    host = [np.array(x) for x in scores]
    k = _quotas(host, density, scope)
    thresholds = _np_thresholds(host, k, scope)

    def ours(leaves: Leaves) -> Leaves:
        return select.top_k(leaves, density=density, scope=scope)

    contestants = [_case.contestant("maskjax", ours, scores)]
    for name, find in {"argsort": argsort, "sort": sort, "lax.top_k": top_k}.items():
        if sorts:
            fn = functools.partial(find, k=k, scope=scope)
            contestants.append(_case.contestant(name, fn, scores))
    if jax.default_backend() == "cpu":
        contestants += list(_on_host(host, k, scope))
    least = _case.contestant("compare once", compare, scores, list(thresholds))

    def agree(results: Mapping[str, Leaves]) -> None:
        exact = first_of_equals(host, k, thresholds, scope)
        reached = [x >= t for x, t in zip(host, thresholds, strict=True)]
        for name, masks in results.items():
            expected = exact if name in ("maskjax", "argsort") else reached
            for mask, wanted in zip(masks, expected, strict=True):
                np.testing.assert_array_equal(np.asarray(mask), wanted, err_msg=name)

    return _case.of(
        f"n={size} {kind} density={density} {scope}",
        [*contestants, least],
        agree,
        shape=[list(s) for s in SIZES[size]],
        density=density,
        scope=scope,
        scores=kind,
    )


def _by_scope(
    leaves: Leaves, k: list[int], scope: str, fn: Callable[..., Any], xp: Any = jnp
) -> Leaves:
    """What a function of flat scores and a count gives, in the shapes of the leaves."""
    if scope == "leaf":
        pairs = zip(leaves, k, strict=True)
        return [fn(x.ravel(), n).reshape(x.shape) for x, n in pairs]
    whole = fn(xp.concatenate([x.ravel() for x in leaves]), k[0])
    ends = list(itertools.accumulate(x.size for x in leaves))[:-1]
    pairs = zip(xp.split(whole, ends), leaves, strict=True)
    return [piece.reshape(x.shape) for piece, x in pairs]


def argsort(leaves: Leaves, k: list[int], scope: str) -> Leaves:
    """As JaxPruner: sort indices, compare with the k-th score, break ties by index."""

    def mark(flat: jax.Array, k: int) -> jax.Array:
        last = jnp.argsort(-flat)[k - 1]
        at = flat[last]
        return (flat >= at) & ((jnp.arange(flat.size) <= last) | (flat != at))

    return _by_scope(leaves, k, scope, mark)


def sort(leaves: Leaves, k: list[int], scope: str) -> Leaves:
    """Everything that reaches the k-th of the sorted scores."""
    return _by_scope(leaves, k, scope, lambda x, n: x >= jnp.sort(x)[x.size - n])


def top_k(leaves: Leaves, k: list[int], scope: str) -> Leaves:
    """Everything that reaches the last of `lax.top_k`."""
    return _by_scope(leaves, k, scope, lambda x, n: x >= lax.top_k(x, n)[0][-1])


def compare(leaves: Leaves, thresholds: Leaves) -> Leaves:
    """One pass over the scores, were the threshold known."""
    return [x >= t for x, t in zip(leaves, thresholds, strict=True)]


def _on_host(host: Leaves, k: list[int], scope: str) -> Iterator[Contestant]:
    def partition() -> Leaves:
        return compare(host, _np_thresholds(host, k, scope))

    yield Contestant("np.partition", partition)
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    # Its selections run on one thread anyway, and more would compete for cores with
    # those of XLA, which waits up to a scheduler's quantum in each comparison.
    torch.set_num_threads(1)
    tensors = [torch.from_numpy(x) for x in host]

    def reaching(find: Callable[[Any, int], Any]) -> Leaves:
        if scope == "leaf":
            at = [find(x.ravel(), n) for x, n in zip(tensors, k, strict=True)]
        else:
            at = [find(torch.cat([x.ravel() for x in tensors]), k[0])] * len(tensors)
        return compare(tensors, at)

    def kth(x: Any, n: int) -> Any:
        return torch.kthvalue(x, x.numel() - n + 1).values

    def top(x: Any, n: int) -> Any:
        return torch.topk(x, n, sorted=False).values.min()

    yield Contestant("torch.kthvalue", lambda: reaching(kth))
    yield Contestant("torch.topk", lambda: reaching(top))


def _quotas(host: Leaves, density: float, scope: str) -> list[int]:
    sizes = [x.size for x in host]
    sizes = sizes if scope == "leaf" else [sum(sizes)]
    return [math.floor(density * n + 0.5) for n in sizes]


def _np_thresholds(host: Leaves, k: list[int], scope: str) -> Leaves:
    """For each leaf the k-th highest score; partitions a copy in place."""

    def kth(flat: np.ndarray, n: int) -> np.float32:
        flat.partition(flat.size - n)
        return flat[flat.size - n]

    if scope == "leaf":
        return [kth(x.flatten(), n) for x, n in zip(host, k, strict=True)]
    return [kth(np.concatenate([x.ravel() for x in host]), k[0])] * len(host)


def first_of_equals(
    host: Leaves, k: list[int], thresholds: Leaves, scope: str
) -> Leaves:
    """The exact masks: of scores that equal the threshold, the first that fit."""
    at = iter(thresholds)

    def mark(flat: np.ndarray, n: int) -> np.ndarray:
        cut = next(at)
        above, equal = flat > cut, flat == cut
        return above | (equal & (np.cumsum(equal) <= n - above.sum()))

    return _by_scope(host, k, scope, mark, np)
