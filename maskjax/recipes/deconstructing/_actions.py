"""What kept and removed weights are set to before the next training."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from maskjax._core import checks, placement
from maskjax._core.trees import Array, Mask, Params
from maskjax.recipes.deconstructing._criteria import masked

_KEPT = ("rewind", "reinit", "reshuffle", "constant")
_SHRUNK = ("freeze_init_zero_mask", "freeze_init_zero_all")
_CONTROLS = [f"{name}_{how}" for name in _SHRUNK for how in ("reshuffle", "rev")]
_REMOVED = ("zero", "freeze_init", *_SHRUNK, *_CONTROLS)


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
    """Where the next training starts: kept weights get values, the others constants.

    Args:
        initial: The weights w_i before training.
        final: The weights w_f after training; only "freeze_init_zero_..." uses them.
        mask: True keeps. Where it is `None`, the leaf of `initial` is passed through
            uncopied.
        kept: "rewind": w_i. "reinit": w_i of the whole leaf, permuted. "reshuffle": w_i
            of the kept weights, permuted. "constant": the standard deviation of w_i.
        sign: "original": the sign of w_i. "random": a coin, or with "reinit" and
            "reshuffle" the sign of the value that came.
        removed: "zero". "freeze_init": w_i. "freeze_init_zero_mask": 0 for weights that
            shrank, |w_f| < |w_i|, else w_i. "freeze_init_zero_all": the same, and kept
            weights that shrank start at 0 too. With "_rev" added the two set weights
            that grew to 0 instead, |w_f| > |w_i|; with "_reshuffle", as many as shrank,
            at random places.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree like `initial`; train in `maskjax.apply(params, mask, fill=start)`.

    Raises:
        TypeError: If a leaf with a mask is not floating, the mask is not boolean, or
            the key is not typed.
        ValueError: If the trees do not fit each other, the mask has no leaf, or an
            action is unknown.

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
    others = map(treedef.flatten_up_to, masked(initial, final, mask, fn=fn))
    leaf = functools.partial(_restarted, kept=kept, sign=sign, removed=removed)
    started = [
        w if m is None else leaf(w_i, w_f, m, jax.random.fold_in(key, i), dtype=w.dtype)
        for i, (w, m, w_i, w_f) in enumerate(zip(leaves, *others, strict=True))
    ]
    return treedef.unflatten(started)


@functools.partial(jax.jit, static_argnames=("kept", "sign", "removed", "dtype"))
def _restarted(
    w_i: Array,
    w_f: Array,
    m: Array,
    key: Array,
    *,
    kept: str,
    sign: str,
    removed: str,
    dtype: Any,
) -> Array:
    one, two = jax.random.split(key)
    m = placement.alike(m, w_i)
    value = jnp.where(m, _value(w_i, m, kept, sign, one), w_i)  # 3.
    before, after = jnp.abs(w_i), jnp.abs(w_f)
    moved = before < after if removed.endswith("rev") else after < before
    zero = _zero(moved, m, removed, two)
    return jnp.where(zero, 0.0, value).astype(dtype)  # 4.


def _value(w: Array, m: Array, kept: str, sign: str, key: Array) -> Array:
    order, coin = jax.random.split(key)
    static = tuple(w.shape), w.dtype
    value, signs = w, placement.made(jax.random.rademacher, w, coin, static=static)
    if kept == "constant":
        value = jnp.full_like(w, jnp.std(w))
    elif kept != "rewind":
        value = signs = _permuted(w, m | (kept == "reinit"), order)
    return jnp.copysign(value, w if sign == "original" else signs)


def _zero(moved: Array, m: Array, removed: str, key: Array) -> Array:
    if removed in ("zero", "freeze_init"):
        return ~m & (removed == "zero")
    among = ~m | ("zero_all" in removed)
    if removed.endswith("reshuffle"):
        moved = _permuted(moved, among, key)
    return among & moved


def _permuted(x: Array, among: Array, key: Array) -> Array:
    """The entries of a set, permuted at random; the other entries are arbitrary."""
    spec = placement.spec_of(x)
    whole, among = placement.whole((x, among))
    flat, others = whole.ravel(), ~among.ravel()
    # Both sorts put the set first, in its order and at random: its size is not known
    # while tracing.
    into = jnp.argsort(others)
    source = jnp.lexsort((jax.random.bits(key, others.shape), others))
    return placement.place(
        flat.at[into].set(flat[source]).reshape(x.shape), spec, like=x
    )
