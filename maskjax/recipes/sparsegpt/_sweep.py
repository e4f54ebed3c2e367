"""One kernel [d, out], swept from its first input to its last: 3.

What leaves a weight changes the output, and later weights make up for it. Inputs are
taken in blocks, so that nearly all the work is products of large matrices, and blocks
in parts of a few, so that what single inputs read stays in a processor's cache.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from maskjax._core import placement
from maskjax._core.trees import Array
from maskjax.recipes.sparsegpt import _choice
from maskjax.recipes.sparsegpt._factor import Factor
from maskjax.recipes.sparsegpt._linear import inverse

# The product with all changes so far is cut into so many, of which those with changes
# to come are left out; and the most inputs that are taken together within a block.
_SEGMENTS, _FEW = 8, 32

_product = functools.partial(jnp.matmul, precision="highest")


def swept(
    w: Array,
    factor: Factor,
    choice: Array | None,
    *,
    block: int,
    pattern: tuple[int, int] | None,
    each: bool,
) -> tuple[Array, Array]:
    """The mask of a kernel, and the weights that are left, repaired.

    Args:
        w: [d, out].
        factor: Of the inputs' Gram matrix.
        choice: How many weights each block keeps, [N]; or a mask, [d, out]; or `None`.
        block: How many inputs are decided on at once.
        pattern: (n, m): of every m inputs of an output, n are kept.
        each: Whether the numbers in `choice` are of each output.
    """
    d, out = w.shape
    count = -(-d // block)
    per = -(-count // _SEGMENTS)  # blocks in a segment
    extra = ((0, count * block - d), (0, 0))
    padded = placement.cut(jnp.pad(w, extra), 0, block)
    feedback = jnp.pad(factor.feedback, (extra[0], extra[0]))
    rows = feedback.reshape(count, block, -1)
    sizes = jnp.pad(factor.sizes, extra[0], constant_values=-1).reshape(count, block)
    if choice is not None and choice.ndim == 2:
        kept = jnp.pad(choice, extra, constant_values=True)
        choice = placement.cut(kept, 0, block)

    def step(changes: tuple[Array, ...], now: Any) -> tuple[Any, Array]:
        own, row, size, chosen, i = now
        segment, start = i // per, i % per * block
        met = _met(row, changes, segment)
        inner = lax.dynamic_slice_in_dim(row, i * block, block, axis=1)
        if pattern:
            keep = jnp.zeros_like(own, dtype=bool)
        elif chosen.ndim == 2:
            keep = chosen
        else:
            # What weights have got becomes what they get if all in the block are kept:
            # one that is kept changes by what it has got, and hands on the opposite.
            values = own + _product(inverse(inner), met)
            keep = _choice.best(_choice.scores(values, size), chosen, each=each)
        change, keep = _within(own, met, keep, inner, size, pattern)
        put = functools.partial(_put, change, segment=segment, start=start)
        return tuple(put(old, n) for n, old in enumerate(changes)), keep

    blocks = [min(per, count - first) for first in range(0, count, per)]
    none = [jnp.zeros_like(padded[:n]).reshape(n * block, out) for n in blocks]
    places = jnp.arange(count, dtype=jnp.int32)
    changes, keep = lax.scan(step, tuple(none), (padded, rows, sizes, choice, places))
    keep = placement.merge(keep, 2, 1)[:d]
    change = jnp.concatenate(changes)[:d]
    return keep, jnp.where(keep, w - change, 0)


def _met(row: Array, changes: Sequence[Array], segment: Array) -> Array:
    """What a block has got from all changes before it, [block, out]."""
    start, total = 0, None
    for n, change in enumerate(changes):
        part = row[:, start : start + change.shape[0]]
        start += change.shape[0]
        if total is None:
            total = _product(part, change)
            continue
        total = lax.cond(
            n <= segment,
            lambda total, part, change: total + _product(part, change),
            lambda total, *_: total,
            total,
            part,
            change,
        )
    assert total is not None
    return total


def _put(change: Array, old: Array, n: int, *, segment: Array, start: Array) -> Array:
    """The changes of segment n, with those of one more block if it is in there."""
    here = lax.dynamic_slice_in_dim(old, start, change.shape[0])
    new = jnp.where(n == segment, change, here)
    return lax.dynamic_update_slice_in_dim(old, new, start, axis=0)


def _within(
    own: Array,
    met: Array,
    keep: Array,
    feedback: Array,
    sizes: Array,
    pattern: tuple[int, int] | None,
) -> tuple[Array, Array]:
    """How the weights of a block change, a few inputs at a time, and its mask."""
    block = own.shape[0]
    few = pattern[1] if pattern else _part(block)

    def step(n: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        changes, keep = state
        take = functools.partial(
            lax.dynamic_slice_in_dim, start_index=n * few, slice_size=few
        )
        rows, mine = take(feedback), take(own)
        got = take(met) + _product(rows, changes)
        inner = take(rows, axis=1)
        if pattern:
            values = mine - _in_turn(mine, got, jnp.ones_like(mine, dtype=bool), inner)
            chosen = _choice.of_every(_choice.scores(values, take(sizes)), pattern[0])
            keep = lax.dynamic_update_slice_in_dim(keep, chosen, n * few, axis=0)
        change = _in_turn(mine, got, take(keep), inner)
        changes = lax.dynamic_update_slice_in_dim(changes, change, n * few, axis=0)
        return changes, keep

    return lax.fori_loop(0, block // few, step, (jnp.zeros_like(own), keep))


def _part(block: int) -> int:
    """The largest part of a block that is a whole fraction of it, and not too large."""
    most = max(n for n in range(1, _FEW + 1) if block % n == 0)
    return most if most >= 4 else block


def _in_turn(own: Array, met: Array, keep: Array, feedback: Array) -> Array:
    """How the weights of a few inputs change, one after another."""

    def step(j: Array, changes: Array) -> Array:
        at = functools.partial(lax.dynamic_index_in_dim, index=j)
        got = at(met) + _product(at(feedback), changes)
        change = jnp.where(at(keep), -got, at(own))
        return lax.dynamic_update_slice_in_dim(changes, change, j, axis=0)

    return lax.fori_loop(0, own.shape[0], step, jnp.zeros_like(own))
