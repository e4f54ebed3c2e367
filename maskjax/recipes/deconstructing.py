"""Lottery tickets taken apart: criteria, signs and zeros (Zhou et al., NeurIPS 2019).

Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask. arXiv:1905.01067.

Algorithm (numbers match the comments below):
  1. train; score each weight by its initial and final value, by one of many criteria
  2. keep the highest scores of each leaf: `select.drop`
  3. mask-1 action: where the kept weights start again
  4. mask-0 action: what the removed weights are held at
  5. train what is kept of `maskjax.apply(params, mask, fill=start)`; repeat
Initial weights under the mask of 2., never trained, are a supermask.

Departures from the paper:
  * counts are exact; the reference code's are nearly so where a criterion ranks twice
  * mask-1 actions leave removed weights alone; the reference code permutes them too

    >>> from maskjax.recipes import deconstructing
    >>> initial = {"w": jnp.array([[0.5, -1.0, 2.0, 0.25]])}
    >>> final = {"w": jnp.array([[0.75, 3.0, -1.0, 0.5]])}  # after training
    >>> alive, key = masking.everything(initial), jax.random.key(0)
    >>> table = deconstructing.scores(initial, final, alive, key=key)
    >>> stack = stacking.stack(list(table.values()))
    >>> masks = jax.vmap(lambda s: select.drop(s, alive, rate=0.5))(stack)
    >>> mask = stacking.take(masks, list(table).index("large_final_same_sign"))
    >>> deconstructing.restart(initial, final, mask, key=key)
    {'w': Array([[0.5 , 0.  , 0.  , 0.25]], dtype=float32)}
"""

import jax
import jax.numpy as jnp

from maskjax import masking, packing, score
from maskjax._core import checks, dtypes
from maskjax._core.trees import Array, Mask, Params, Scores, map_mask
from maskjax.where import floating

__all__ = ["restart", "scores"]

_KEPT = ("rewind", "reinit", "reshuffle", "constant")
_SHRUNK = ("freeze_init_zero_mask", "freeze_init_zero_all")
_CONTROLS = [f"{name}_{how}" for name in _SHRUNK for how in ("reshuffle", "rev")]
_REMOVED = ("zero", "freeze_init", *_SHRUNK, *_CONTROLS)


def scores(
    initial: Params,
    final: Params,
    mask: Mask,
    *,
    gradients: Params | None = None,
    key: Array,
) -> dict[str, Scores]:
    """Every criterion of the paper by its name, from one training run.

    The masks of criteria in "_single", all weights that kept (or changed) their sign,
    are where "large_final_same_sign" (or "..._diff_sign") is above 0.

    Args:
        initial: The weights w_i before training.
        final: The weights w_f after it: effective ones, if a mask was applied.
        mask: What is alive: `masking.everything(initial)` in the first round. The two
            "..._init_..._final" score the lower of an entry's ranks among these.
        gradients: Of the loss at `initial`; with them there are also "snip" and "grad".
        key: A typed key, for "random".

    Returns:
        Trees of scores for `select.drop`, higher is kept, `None` where the mask is. All
        are float32 (float64 where weights are), so that they can be stacked.

    Raises:
        TypeError: If a leaf with a mask is not floating, a mask not boolean, or the key
            not typed.
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
    alive, w_i, w_f = _masked(initial, final, mask, fn=fn)
    size_i, size_f = (score.magnitude(w, where=floating) for w in (w_i, w_f))
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
    if gradients is not None:
        _, _, slope = _masked(initial, gradients, mask, fn=fn, name="gradients")
        table["grad"] = score.magnitude(slope, where=floating)
        table["snip"] = map_mask(jnp.multiply, table["grad"], size_i)
    return table


def restart(
    initial: Params,
    final: Params,
    mask: Mask,
    *,
    kept: str = "rewind",
    sign: str = "original",
    removed: str = "zero",
    key: Array,
) -> Params:
    """Where the next training starts: kept weights set again, the others held fixed.

    Args:
        initial: The weights w_i before training.
        final: The weights w_f after it, for "freeze_init_zero_...".
        mask: True keeps. Where it is `None` a leaf is w_i.
        kept: "rewind": w_i. "reinit": w_i of the whole leaf, permuted. "reshuffle": w_i
            of what is kept, permuted. "constant": the deviation of the leaf's w_i.
        sign: "original", that of w_i. "random": a coin's, but in "reinit" and
            "reshuffle" the one that comes with the value.
        removed: "zero". "freeze_init": w_i. "freeze_init_zero_mask": 0 for weights that
            shrank, |w_f| < |w_i|, else w_i. "freeze_init_zero_all": so, and kept ones
            that shrank start at 0 too. These two with "_rev" added: 0 for those that
            did not shrink; with "_reshuffle": as many zeros, at random places.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree like `initial`, to train in `maskjax.apply(params, mask, fill=start)`.

    Raises:
        TypeError: As in `scores`.
        ValueError: As in `scores`, or if an action is unknown.

    Example:
        >>> w, mask = {"w": jnp.array([[1.0, -3.0]])}, {"w": jnp.array([[False, True]])}
        >>> deconstructing.restart(w, w, mask, kept="constant", key=jax.random.key(0))
        {'w': Array([[ 0., -2.]], dtype=float32)}
    """
    fn = "maskjax.recipes.deconstructing.restart"
    checks.typed_key(key, fn=fn)
    checks.one_of(kept, _KEPT, fn=fn, name="kept")
    checks.one_of(sign, ("original", "random"), fn=fn, name="sign")
    checks.one_of(removed, _REMOVED, fn=fn, name="removed")
    leaves, treedef = jax.tree.flatten(initial)
    others = map(treedef.flatten_up_to, _masked(initial, final, mask, fn=fn))

    def of_leaf(i: int, w: Array, m: Array | None, w_i: Array, w_f: Array) -> Array:
        if m is None:
            return w
        keys = jax.random.split(jax.random.fold_in(key, i))
        value = jnp.where(m, _value(w_i, m, kept, sign, keys[0]), w_i)  # 3.
        zero = _zero(jnp.abs(w_f) < jnp.abs(w_i), m, removed, keys[1])
        return jnp.where(zero, 0.0, value).astype(w.dtype)  # 4.

    matched = enumerate(zip(leaves, *others, strict=True))
    return treedef.unflatten([of_leaf(i, *leaf) for i, leaf in matched])


def _value(w: Array, m: Array, kept: str, sign: str, key: Array) -> Array:
    order, coin = jax.random.split(key)
    value, signs = w, jax.random.rademacher(coin, w.shape, w.dtype)
    if kept == "constant":
        value = jnp.full_like(w, jnp.std(w))
    elif kept != "rewind":
        value = signs = _permuted(w, m | (kept == "reinit"), order)
    return jnp.copysign(value, w if sign == "original" else signs)


def _zero(shrank: Array, m: Array, removed: str, key: Array) -> Array:
    if removed in ("zero", "freeze_init"):
        return ~m & (removed == "zero")
    among = ~m | ("zero_all" in removed)
    if removed.endswith("reshuffle"):
        shrank = _permuted(shrank, among, key)
    return among & (shrank ^ removed.endswith("rev"))


def _permuted(x: Array, among: Array, key: Array) -> Array:
    """Some entries in random order in their own places; the others are of no use."""
    flat, others = x.ravel(), ~among.ravel()
    # Both sorts put them first, as they stand and at random: how many there are is not
    # known while tracing.
    into = jnp.argsort(others)
    source = jnp.lexsort((jax.random.bits(key, others.shape), others))
    return flat.at[into].set(flat[source]).reshape(x.shape)


def _lower_rank(x: Array, y: Array, alive: Array) -> Array:
    """The lower of two ranks, as the entry of x that has it: floats count to 2**24."""
    x, y = (jnp.where(alive, a, -jnp.inf).ravel() for a in (x, y))
    order = jnp.argsort(y, descending=True)
    y_as_x = x.at[order].set(jnp.sort(x, descending=True))
    return jnp.minimum(x, y_as_x).reshape(alive.shape)


def _masked(
    initial: Params, other: Params, mask: Mask, *, fn: str, name: str = "final"
) -> tuple[Mask, Params, Params]:
    """The mask in full, and the weights that have one in a dtype that they share."""
    checks.same_shapes(initial, other, fn=fn, names=("initial", name), is_leaf=None)
    checks.boolean(mask, fn=fn)
    mask = packing.unpack(mask)
    checks.mask_of(mask, initial, fn=fn, names=("initial", "mask"))
    pair = [map_mask(lambda _, w: w, mask, tree) for tree in (initial, other)]
    for tree, of in zip(pair, ("initial", name), strict=True):
        checks.floating_scores(tree, fn=fn, name=f"{of}` under `mask")
    mask = map_mask(lambda m, w: jnp.broadcast_to(m, w.shape), mask, initial)
    pair = jax.tree.map(lambda w: w.astype(dtypes.at_least_float32(w.dtype)), pair)
    return mask, *pair
