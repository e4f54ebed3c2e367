"""Whole-array reductions to scalars, several at once, in one pass over memory."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax

from maskjax._tree import Array

# Rows shorter than this are merged with the axis before them, so that the inner loop
# of a reduction is long enough to vectorize; longer ones keep their axis, which may
# be sharded.
_SHORT_ROW = 32
# A vector longer than this is cut into rows, which run in parallel.
_LONG_VECTOR = 2**14


def fold(
    operands: Sequence[Array],
    initial: Sequence[int],
    combine: Callable[[tuple, tuple], tuple],
) -> tuple[Array, ...]:
    """Reduce at least two same-shaped arrays to scalars, together.

    Two steps, first along rows and then over the row totals: rows run in parallel and
    vectorize. XLA rewrites a long reduction of a single operand on CPU into windows,
    for which it first writes the operand out (ten times slower when the operand is a
    comparison); it leaves reductions of several operands alone.
    """
    if len(operands) < 2:
        raise AssertionError("a fold of one operand takes the slow path")
    operands = tuple(_rows(x) for x in operands)
    seeds = tuple(jnp.array(i, x.dtype) for i, x in zip(initial, operands, strict=True))
    rank = operands[0].ndim
    split = max(rank - 1, 0)
    for axes in (range(split, rank), range(split)):
        operands = lax.reduce(operands, seeds, combine, tuple(axes))
    return tuple(operands)


def tally(flags: Sequence[Array], dtype: jnp.dtype) -> list[Array]:
    """How many entries are True, for each of several same-shaped flags."""
    return list(
        fold(
            [flag.astype(dtype) for flag in flags],
            [0] * len(flags),
            lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
        )
    )


def _rows(x: Array) -> Array:
    while x.ndim > 1 and x.shape[-1] < _SHORT_ROW:
        x = x.reshape(*x.shape[:-2], -1)
    if x.ndim == 1 and x.size >= _LONG_VECTOR:
        rows = [x.size // d for d in range(256, 4097) if x.size % d == 0]
        if rows:  # as many factors of two as there are, so that shards divide the rows
            x = x.reshape(max(rows, key=lambda r: (r & -r, -r)), -1)
    return x
