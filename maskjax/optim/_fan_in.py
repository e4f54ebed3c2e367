"""SRigL: every output keeps the same number of inputs, or none (Lasby et al., 2024).

Algorithm (numbers match the comments below), in every layer:
  1. the weights that RigL would keep are salient, and of the others those that it would
     grow: as many as it drops, where gradients are largest
  2. outputs with fewer than round(min_salient * k) salient inputs are ablated, where k
     is what `density` gives each output; the best ones stay, if the others could not
     hold the layer's weights
  3. the layer's weights, k for each output, are shared equally: every active output
     gets k' of them
  4. active outputs keep their salient weights, at most k'
  5. and grow up to k', where gradients are largest
"""

import functools
import math

import jax
import jax.numpy as jnp

from maskjax import algebra
from maskjax._core import dtypes
from maskjax._core.trees import Array, Density, Mask, Predicate, Scores
from maskjax.select._choice import choose, choose_counted
from maskjax.select._choice import kept as counts_of
from maskjax.select._leaves import Leaves
from maskjax.select._plan import Plan
from maskjax.select._quota import Keep, Leave, operand
from maskjax.structure import Entries


def rewired(
    scores: Scores,
    worth: Scores,
    alive: Mask,
    *,
    density: Density | Scores,
    rate: Density | Scores,
    least: Density | Scores,
    where: Predicate,
    fn: str,
) -> Mask:
    """The mask after one change.

    Args:
        scores: What ranks the weights that are alive.
        worth: What ranks those that may grow.
        alive: The mask before.
        density: The share of its inputs that each output keeps if all are active.
        rate: The share of a layer's weights that is dropped.
        least: `min_salient`.
        where: What the axes mean.
        fn: The public function that errors blame.
    """
    entries = Entries()
    kept, _ = choose(  # 1.
        scores, Leave, rate, "layer", entries, where, fn=fn, name="rate", within=alive
    )
    layers = Leaves(scores, "layer", entries, where, fn=fn)
    pairs = zip(counts_of(alive, layers), counts_of(kept, layers), strict=True)
    dropped = [before - after for before, after in pairs]
    free = algebra.complement(alive)
    grown = choose_counted(worth, lambda _: dropped, "layer", where, fn=fn, within=free)
    outputs = Leaves(scores, "output", entries, where, fn=fn)
    salient = counts_of(algebra.union(kept, grown), outputs)
    shares = outputs.shares(density, name="density")
    lowest = outputs.shares(least, name="min_salient")
    counts = [
        _inputs_of(salient[i], shares[i], lowest[i], plan, _stacked(outputs, i))
        for i, plan in enumerate(outputs.plans)
    ]
    given = lambda _: counts  # noqa: E731
    held = choose_counted(scores, given, "output", where, fn=fn, within=kept)  # 4.
    return choose_counted(worth, given, "output", where, fn=fn, holding=held)  # 5.


def _stacked(leaves: Leaves, leaf: int) -> int:
    """How many axes of a leaf stack layers; the layout has them first."""
    roles = leaves.axes[leaf]
    return len(roles.stack) if roles is not None else 0


def _inputs_of(
    salient: Array, density: Density, least: Density, plan: Plan, stacked: int
) -> Array:
    """How many inputs each output keeps: k', or 0 if it is ablated."""
    fan_in = plan.decisions()
    with dtypes.counting(math.prod(plan.shape)):
        own = jnp.asarray(operand(Keep(density), fan_in).of(fan_in))
        low = jnp.asarray(operand(Keep(least), None).of(own))
        # Outputs without a salient input go if any go, as in the authors' code.
        low = jnp.where(jnp.asarray(least) > 0, jnp.maximum(low, 1), low)
        # The outputs of a layer share both: one number stands for all of them.
        one = (slice(None),) * stacked + (slice(0, 1),) * (plan.rows - stacked)
        own, low = (x[one] if x.ndim else x for x in (own, low))
        axes = tuple(range(stacked, plan.rows))
        wide = dtypes.counts(math.prod(plan.shape))
        numbers = (x.astype(wide) for x in (salient, own, low))
        return _inputs(*numbers, axes=axes, fan_in=fan_in)


@functools.partial(jax.jit, static_argnames=("axes", "fan_in"))
def _inputs(
    salient: Array, own: Array, low: Array, *, axes: tuple[int, ...], fan_in: int
) -> Array:
    """The numbers of inputs, from those of salient inputs, [layers..., outputs...]."""
    total = functools.partial(jnp.sum, axis=axes, keepdims=True, dtype=salient.dtype)
    budget = own * math.prod(salient.shape[axis] for axis in axes)
    fewest = jnp.maximum(-(-budget // max(fan_in, 1)), 1)
    # 2. The number of salient inputs that `fewest` outputs reach, bit by bit.
    level = total(jnp.zeros_like(salient))
    for bit in reversed(range(fan_in.bit_length())):
        higher = level + (1 << bit)
        reached = total((salient >= higher).astype(salient.dtype)) >= fewest
        level = jnp.where(reached, higher, level)
    active = (salient >= jnp.minimum(low, level)).astype(salient.dtype)
    inputs = budget // total(active)  # 3.
    return (active * inputs).astype(dtypes.counts(fan_in))
