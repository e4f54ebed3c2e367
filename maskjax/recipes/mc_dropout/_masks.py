"""Dropout masks: one, or one for each member."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from maskjax._core import checks, trees
from maskjax._core.trees import Array, SoftMask

_FN = "maskjax.recipes.mc_dropout."


def mask(units: Any, *, rate: Any, examples: int | None = None, key: Array) -> SoftMask:
    """A mask on units, with entries 0 and 1 / (1 - rate): 1.

    Args:
        units: Tree of arrays or `jax.ShapeDtypeStruct`s with one entry for each unit,
            such as the masks of `layers`; or `None`. Only shapes and dtypes are read.
        rate: The probability that a unit is dropped, in [0, 1): a number, a traced
            scalar, or a tree of them like `units`.
        examples: B, to draw a mask for each of B examples. `None`: all examples share
            one mask, so that a member is one function.
        key: A typed key. Every leaf gets its own.

    Returns:
        A soft mask. Its leaves have the shapes of `units`, or [B, 1, ...], and their
        dtype if it is floating, else float32.

    Raises:
        TypeError: If a rate is not a number, a unit has no shape, or the key is not
            typed.
        ValueError: If a rate is outside [0, 1), the rates do not fit the units,
            `examples` is below 1, or there are no units.

    Example:
        >>> units = {"hidden": jnp.ones(3), "input": None}
        >>> mc_dropout.mask(units, rate=0.0, key=jax.random.key(0))
        {'hidden': Array([1., 1., 1.], dtype=float32), 'input': None}
        >>> key = jax.random.key(0)
        >>> mc_dropout.mask(jnp.ones(3), rate=0.5, examples=2, key=key).shape
        (2, 1, 3)
    """
    fn = _FN + "mask"
    checks.typed_key(key, fn=fn)
    rates = _checked(units, rate, examples, fn=fn)
    return _draw(units, rates, examples, key)


def masks(
    units: Any, *, rate: Any, examples: int | None = None, keys: Array
) -> SoftMask:
    """A stack of masks, one for each key: 3.

    Args:
        units: Tree of arrays or `jax.ShapeDtypeStruct`s with one entry for each unit,
            or `None`. Only shapes and dtypes are read.
        rate: The probability that a unit is dropped, in [0, 1): a number, a traced
            scalar, or a tree of them like `units`.
        examples: B, to draw a mask for each of B examples and each member. `None`: all
            examples share a member's mask.
        keys: [T], typed, one for each member: `jax.random.split(key, T)`.

    Returns:
        A stack of T soft masks, for `stacking.map` or `stacking.predict`. Mask i is
        `mask` with key i.

    Raises:
        TypeError: If a rate is not a number, a unit has no shape, or the keys are not
            typed.
        ValueError: If a rate is outside [0, 1), the rates do not fit the units,
            `examples` is below 1, there are no units or no keys, or two members have
            the same key and keys are not traced.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> stack = mc_dropout.masks(jnp.ones(3), rate=0.5, keys=keys)
        >>> stacking.map(lambda mask, x: x * mask, stack, jnp.ones((4, 3))).shape
        (2, 4, 3)
    """
    fn = _FN + "masks"
    checks.own_keys(keys, fn=fn)
    rates = _checked(units, rate, examples, fn=fn)
    return jax.vmap(lambda key: _draw(units, rates, examples, key))(keys)


def below_one(rate: Any, *, fn: str, name: str = "rate") -> None:
    """Raise unless a rate is in [0, 1), if it is a number."""
    checks.unit_interval(rate, fn=fn, name=name)
    if checks.is_number(rate) and rate == 1:
        raise ValueError(f"`{fn}` needs `{name}` below 1, got {rate}.")


def _checked(units: Any, rate: Any, examples: int | None, *, fn: str) -> list[Any]:
    """The rate of every leaf, `None` leaves included."""
    if examples is not None:
        checks.at_least(examples, 1, fn=fn, name="examples")
    leaves, _ = trees.mask_leaves(units)
    given = [(path, leaf) for path, leaf in leaves if leaf is not None]
    if not given:
        raise ValueError(f"`{fn}` needs `units` with at least one leaf, got none.")
    checks.raise_all(
        (f"{p}: {checks.kind_of(u)}" for p, u in given if not checks.shaped(u)),
        f"`{fn}` needs every leaf of `units` with a shape and a dtype, or None",
        TypeError,
    )
    if trees.is_single(rate):
        below_one(rate, fn=fn)
        return [rate] * len(leaves)
    how = {"names": ("units", "rate"), "is_leaf": trees.is_mask_leaf}
    pairs = checks.matched(units, rate, fn=fn, **how)
    for path, unit, each in pairs:
        if unit is not None:
            below_one(each, fn=fn, name=f"rate of {path}")
    return [each for *_, each in pairs]


def _draw(units: Any, rates: list[Any], examples: int | None, key: Array) -> SoftMask:
    leaves, treedef = jax.tree.flatten(units, is_leaf=trees.is_mask_leaf)
    return treedef.unflatten(
        None if leaf is None else _draw_leaf(key, i, rate, _kind(leaf, examples))
        for i, (leaf, rate) in enumerate(zip(leaves, rates, strict=True))
    )


def _kind(leaf: Any, examples: int | None) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if checks.is_floating(leaf) else "float32"
    shape = leaf.shape if examples is None else (examples, 1, *leaf.shape)
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))


@functools.partial(jax.jit, static_argnames="kind")
def _draw_leaf(key: Array, i: Any, rate: Any, kind: jax.ShapeDtypeStruct) -> Array:
    keep = 1 - jnp.asarray(rate, "float32")
    kept = jax.random.bernoulli(jax.random.fold_in(key, i), keep, kind.shape)
    return jnp.where(kept, 1 / keep, 0.0).astype(kind.dtype)
