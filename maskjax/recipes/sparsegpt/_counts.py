"""How many weights each block of inputs keeps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import dtypes
from maskjax._core.trees import Array, Density
from maskjax.recipes.sparsegpt._layout import Layout
from maskjax.select._quota import Keep, operand


def of_blocks(
    share: Density, sums: Array, layout: Layout, *, block: int, each: bool
) -> Array:
    """How many weights each block of inputs keeps: together exactly the quota.

    Blocks share in proportion to their inputs that fire. Those that never fire keep
    something only where all others are whole. The running total is rounded to the
    nearest, so that what rounding adds or takes is spread over the blocks.

    Args:
        share: The density, or one for each index of the stack, [S].
        sums: The Gram matrices of the kernel's inputs: those on whose diagonal is 0
            never fire.
        layout: The kernel's.
        block: How many inputs a block has; the last one has those that are left.
        each: Whether the numbers are of each output, or of all outputs of all groups.

    Returns:
        [S, G, N], int32.
    """
    groups, d = layout.groups, layout.d
    inputs, unit = (d, 1) if each else (groups * d, layout.outputs)
    total = inputs * unit
    most = max(total, 3 * inputs**2)
    with dtypes.counting(most):
        count = operand(Keep(share), total).of(total)
        count = jnp.asarray(count, dtypes.counts(most))
        how: dict[str, Any] = {"layout": layout, "unit": unit, "block": block}
        return _shares(count.reshape(-1), sums, each=each, **how)


@functools.partial(jax.jit, static_argnames=("layout", "unit", "block", "each"))
def _shares(
    counts: Array, sums: Array, *, layout: Layout, unit: int, block: int, each: bool
) -> Array:
    live = layout.live(sums)
    stack, groups, d = live.shape
    rows = jnp.broadcast_to(counts, stack)
    if each:
        rows = jnp.repeat(rows, groups)
    ends = np.minimum(np.arange(block, d + block, block), d)
    lengths = np.diff(ends, prepend=0)
    padded = jnp.pad(live, ((0, 0), (0, 0), (0, len(ends) * block - d)))
    fire = jnp.sum(padded.reshape(*live.shape[:2], -1, block), -1, dtype=rows.dtype)
    idle = jnp.asarray(lengths[None, None], rows.dtype) - fire
    fire, idle = (x.reshape(len(rows), -1) for x in (fire, idle))
    most = unit * jnp.sum(fire, -1, dtype=rows.dtype)
    first = jnp.minimum(rows, most)
    found = _shared(first, fire) + _shared(rows - first, idle)
    return found.astype(jnp.int32).reshape(stack, groups, -1)


def _shared(counts: Array, parts: Array) -> Array:
    """[R] whole numbers, divided in proportion to parts, [R, N]."""
    ends = jnp.cumsum(parts, -1, dtype=parts.dtype)
    whole = jnp.maximum(ends[:, -1:], 1)
    counts = counts[:, None]
    rest = 2 * (counts % whole) * ends + whole
    totals = counts // whole * ends + rest // (2 * whole)
    return jnp.diff(totals, axis=-1, prepend=jnp.zeros_like(totals[:, :1]))
