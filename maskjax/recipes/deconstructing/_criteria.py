"""Scores of weights by their initial and final values."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from maskjax import masking, packing, score
from maskjax._core import checks, dtypes, placement
from maskjax._core.trees import Array, Mask, Params, Scores, map_mask
from maskjax.where import floating

_magnitude = functools.partial(score.magnitude, where=floating)


def scores(
    initial: Params,
    final: Params,
    mask: Mask,
    *,
    gradients: Params | None = None,
    key: Array,
) -> dict[str, Scores]:
    """All criteria of the paper by name, from one training run.

    The paper's "..._single" masks, all weights that kept (or changed) their sign, are
    where "large_final_same_sign" (or "large_final_diff_sign") is above 0.

    Args:
        initial: The weights w_i before training.
        final: The weights w_f after training, masked if a mask was applied.
        mask: The alive weights; in the first round `masking.everything(initial)`. The
            criteria "..._init_..._final" score the lower of two ranks among them.
        gradients: Gradients of the loss at `initial`; they add "snip" and "grad".
        key: A typed key, for "random".

    Returns:
        Trees of scores for `select.drop`: higher is kept, `None` where the mask is. All
        are float32 (float64 where weights are), so that they can be stacked.

    Raises:
        TypeError: If a leaf with a mask is not floating, the mask is not boolean, or
            the key is not typed.
        ValueError: If the trees do not fit each other, or the mask has no leaf.

    Example:
        >>> w_i, w_f = {"w": jnp.array([[1.0, -2.0]])}, {"w": jnp.array([[-3.0, -5.0]])}
        >>> alive, key = masking.everything(w_i), jax.random.key(0)
        >>> table = deconstructing.scores(w_i, w_f, alive, key=key)
        >>> table["movement"]["w"], table["large_final_same_sign"]["w"]
        (Array([[4., 3.]], dtype=float32), Array([[0., 5.]], dtype=float32))
    """
    fn = "maskjax.recipes.deconstructing.scores"
    checks.typed_key(key, fn=fn)
    alive, w_i, w_f = masked(initial, final, mask, fn=fn)
    slope = None
    if gradients is not None:
        _, _, slope = masked(initial, gradients, mask, fn=fn, name="gradients")
    return _table(w_i, w_f, alive, slope, key)


@jax.jit
def _table(
    w_i: Params, w_f: Params, alive: Mask, slope: Params | None, key: Array
) -> dict[str, Scores]:
    size_i, size_f = _magnitude(w_i), _magnitude(w_f)
    less_i, less_f = (map_mask(jnp.negative, size) for size in (size_i, size_f))
    growth = map_mask(jnp.subtract, size_f, size_i)
    turn = map_mask(lambda a, b: jnp.sign(a) * jnp.sign(b), w_i, w_f)
    same, diff = map_mask(lambda t: t > 0, turn), map_mask(lambda t: t < 0, turn)
    chance = score.random(w_i, where=floating, key=key)
    table = {  # 1.
        "large_final": size_f,
        "small_final": less_f,
        "large_init": size_i,
        "small_init": less_i,
        "large_init_large_final": map_mask(_lower_rank, size_i, size_f, alive),
        "small_init_small_final": map_mask(_lower_rank, less_i, less_f, alive),
        "magnitude_increase": growth,
        "movement": score.movement(w_f, w_i, where=floating),
        "random": map_mask(lambda s, w: s.astype(w.dtype), chance, w_i),
        "large_final_same_sign": masking.apply(size_f, same),
        "large_final_diff_sign": masking.apply(size_f, diff),
        "magnitude_increase_same_sign": masking.apply(growth, same),
        "magnitude_increase_diff_sign": masking.apply(growth, diff),
    }
    if slope is not None:
        table["grad"] = _magnitude(slope)
        table["snip"] = map_mask(jnp.multiply, table["grad"], size_i)
    return table


def _lower_rank(x: Array, y: Array, alive: Array) -> Array:
    """The lower of two ranks, represented by the value of x at that rank.

    Ranks themselves would be inexact in float32 past 2**24.
    """
    spec, like = placement.spec_of(x), x
    x, y, alive = placement.whole((x, y, alive))
    x, y = (jnp.where(alive, a, -jnp.inf).ravel() for a in (x, y))
    order = jnp.argsort(y, descending=True)
    y_as_x = x.at[order].set(jnp.sort(x, descending=True))
    lower = jnp.minimum(x, y_as_x).reshape(alive.shape)
    return placement.place(lower, spec, like=like)


def masked(
    initial: Params, other: Params, mask: Mask, *, fn: str, name: str = "final"
) -> tuple[Mask, Params, Params]:
    """The mask in full shape; leaves with a mask of both trees, in float32 at least."""
    checks.same_shapes(initial, other, fn=fn, names=("initial", name), is_leaf=None)
    mask = checks.spread(initial, mask)
    checks.boolean(mask, fn=fn)
    mask = packing.unpack(mask)
    checks.shaped_like(initial, mask, fn=fn, names=("initial", "mask"))
    pair = [map_mask(lambda _, w: w, mask, tree) for tree in (initial, other)]
    for tree, of in zip(pair, ("initial", name), strict=True):
        checks.floating_scores(tree, fn=fn, name=f"{of}` under `mask")
    mask = map_mask(lambda m, w: jnp.broadcast_to(m, w.shape), mask, initial)
    pair = jax.tree.map(lambda w: w.astype(dtypes.at_least_float32(w.dtype)), pair)
    return mask, *pair
