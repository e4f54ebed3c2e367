"""Which weights of a block of inputs stay: 2."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskjax._core.trees import Array
from maskjax.select import _search
from maskjax.select._quota import Count


def scores(values: Array, sizes: Array) -> Array:
    """Inputs that fire are above those that never do, and these above none at all.

    The square of a score is how much the squared error grows. nan counts as 0.
    """
    sizes = sizes[:, None]
    values = jnp.where(jnp.isnan(values), 0, jnp.abs(values))
    idle = jnp.where(sizes < 0, -2, -1 / (1 + values))
    return jnp.where(sizes > 0, values * sizes, idle)


def best(scores: Array, count: Array, *, each: bool) -> Array:
    """The highest scores of a block, or of each output, that many."""
    if each:
        counts = jnp.broadcast_to(count, scores.shape[1])
        return _of_rows(1)(scores.T, counts).T
    return _of_rows(0)(scores, count)


@functools.cache
def _of_rows(rows: int) -> Callable[..., Array]:
    """The highest entries of each index of the first axes, that many.

    Members of a `vmap` are further rows of one search. By itself JAX would gather them
    on an Explicit mesh.
    """

    @jax.custom_batching.custom_vmap
    def best(scores: Array, counts: Array) -> Array:
        how: dict[str, Any] = {"joint": False, "rows": [rows]}
        flags, _ = _search.top_k([scores], [None], [None], [Count(counts)], [0], **how)
        return flags[0]

    @best.def_vmap
    def of_members(size: int, batched: Any, scores: Array, counts: Array) -> Any:
        given = zip((scores, counts), batched, strict=True)
        every = (
            x if mapped else jnp.broadcast_to(x, (size, *x.shape))
            for x, mapped in given
        )
        return _of_rows(rows + 1)(*every), True

    return best


def of_every(scores: Array, n: int) -> Array:
    """The n best of each output of [m, out]; of equal ones the first."""
    place = jnp.arange(scores.shape[0])
    earlier = (place[:, None] < place[None, :])[:, :, None]
    mine, other = scores[None, :], scores[:, None]
    ahead = (other > mine) | (other == mine) & earlier
    return jnp.sum(ahead, axis=0, dtype=jnp.int32) < n
