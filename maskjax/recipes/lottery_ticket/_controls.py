"""A training under a mask, and the controls that a ticket is compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import algebra, masking, packing, select, stacking
from maskjax._core import blame, checks, trees
from maskjax._core.trees import Array, Mask, Params, Predicate
from maskjax.structure import Entries, Groups
from maskjax.where import kernels

Train = Callable[..., tuple[Params, Any]]
_Mode = Literal["layerwise", "global", "even", "layer", "output"]
_FN = "maskjax.recipes.lottery_ticket"


def retrain(
    train: Train, params: Params, masks: Mask, *, batch_size: int = 1, key: Array
) -> tuple[Params, Any]:
    """Train the same parameters under each mask of a stack.

    Args:
        train: `(params, mask, *, key) -> (params, metrics)`, as for `search`.
        params: The parameters to begin with. `trace.rewound` repeats a search.
        masks: A stack of K masks.
        batch_size: The number of trainings that run at a time.
        key: Passed unchanged to every `train`.

    Returns:
        Parameters [K, ...], exactly 0 where removed, and metrics [K, ...].

    Raises:
        TypeError: If `train` returns no pair, a leaf is not a mask, the key is not
            typed, or `batch_size` is not a whole number.
        ValueError: If a mask does not fit the parameters, `batch_size` is below 1, or a
            training changes a shape or a dtype.

    Example:
        >>> train = lambda params, mask, *, key: (params, algebra.count(mask))
        >>> masks, key = {"w": jnp.array([[[True]], [[False]]])}, jax.random.key(0)
        >>> lottery_ticket.retrain(train, {"w": jnp.ones((1, 1))}, masks, key=key)[1]
        Array([1, 0], dtype=int32)
    """
    fn = f"{_FN}.retrain"
    checks.typed_key(key, fn=fn)
    checks.boolean(masks, fn=fn, name="masks")
    checks.at_least(batch_size, 1, fn=fn, name="batch_size")
    checks.members(masks, fn=fn)
    one = functools.partial(trained, train, params, key=key, fn=fn)
    return stacking.map(one, masks, batch_size=batch_size)


def random_masks(
    masks: Mask,
    *,
    mode: _Mode,
    structure: Entries | Groups = Entries(),
    where: Predicate = kernels,
    key: Array,
) -> Mask:
    """Random masks that keep as many entries as those of a stack.

    Args:
        masks: A stack of K masks.
        mode: What keeps its count: "layerwise", each leaf; "global", the whole mask;
            "even", the whole mask, up to rounding, with one density for all leaves. In
            stacked networks also "layer", each index of a stack, and "output", each
            output.
        structure: Entries, or the `structure.Groups` of the search: then units keep
            their counts, in each group ("layerwise", "layer"), or in all ("global").
        where: What the axes mean, for "layer" and "output".
        key: A typed key; every mask gets its own.

    Returns:
        A stack like `masks`: True keeps.

    Raises:
        TypeError: If a leaf is not a mask, or the key is not typed.
        ValueError: If the mode is unknown or means nothing for groups, there is no
            mask, or axes are needed and unknown.

    Example:
        >>> masks, key = {"w": jnp.array([[True, False, True]])}, jax.random.key(0)
        >>> int(lottery_ticket.random_masks(masks, mode="even", key=key)["w"].sum())
        2
    """
    fn = f"{_FN}.random_masks"
    checks.typed_key(key, fn=fn)
    checks.one_of(mode, get_args(_Mode), fn=fn, name="mode")
    if mode == "even" and isinstance(structure, Groups):
        raise ValueError(f"`{fn}` needs `mode` as 'layerwise' or 'global' for groups.")
    keys = jax.random.split(key, checks.members(masks, fn=fn))

    def one(mask: Mask, key: Array) -> Mask:
        if mode != "even":
            scope = "leaf" if mode == "layerwise" else mode
            how: Any = {"scope": scope, "structure": structure, "where": where}
            with blame.instead_of("maskjax.select.random_like", fn):
                return select.random_like(mask, **how, key=key)
        blank = trees.map_mask(lambda m: jnp.zeros(m.shape), mask)
        share = algebra.density(mask)
        return select.random(blank, density=share, where=lambda *_: True, key=key)

    return lax.map(lambda each: one(*each), (packing.unpack(masks), keys))


def trained(train: Train, start: Params, mask: Mask, key: Array, fn: str) -> Any:
    """One training under a mask: parameters, exactly masked, and metrics."""
    with blame.instead_of("maskjax.apply", fn):
        start = masking.apply(start, mask)
    result = train(start, mask, key=key)
    if not (isinstance(result, tuple) and len(result) == 2):
        got = type(result).__name__
        raise TypeError(f"`{fn}` needs `train` to return (params, metrics), got {got}.")
    checks.alike(start, result[0], fn=fn, name="train(...)")
    return masking.apply(result[0], mask), result[1]
