"""The mask while its logits are trained, and at the end."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maskjax._core import checks, draws, dtypes, placement, trees
from maskjax._core.trees import (
    Array,
    Density,
    Mask,
    Params,
    Predicate,
    Scores,
    SoftMask,
)
from maskjax.recipes.maskllm import _groups
from maskjax.select._plan import Plan
from maskjax.structure import NofM
from maskjax.where import kernels


def soft_mask(
    logits: Scores,
    params: Params,
    *,
    progress: Density,
    temperatures: Sequence[float] = (4.0, 0.05),
    scales: Sequence[float] = (100.0, 500.0),
    structure: NofM = NofM(2, 4),
    where: Predicate = kernels,
    key: Array,
) -> SoftMask:
    """A random mix of the patterns of each group, for the loss: 2.

    Args:
        logits: From `init`, and then as you train them.
        params: The parameters. Only shapes are used.
        progress: How much of the training is done, in [0, 1], as `step / steps`. May be
            traced.
        temperatures: At the beginning and at the end, above 0; linear in between. The
            lower, the closer a mix is to a single pattern.
        scales: What the logits are multiplied by, at the beginning and at the end,
            above 0: the higher, the less random the choice.
        structure: As for `init`, the same value. Logits tell how many patterns there
            are, and n:m has as many as (m - n):m: those of 1:4 would pass for 3:4.
        where: As for `init`; `logits` says which leaves have a mask.
        key: A typed key, a new one for each step; every leaf gets its own.

    Returns:
        A soft mask of the parameters' shapes, in [0, 1], in the logits' dtypes, for
        `maskjax.apply`. Each group sums up to n, but for rounding. Counters of draws
        may move between devices, one for each row.

    Raises:
        TypeError: If logits are not floating, a number is none, or the key is not a
            typed key.
        ValueError: If the logits do not fit `params`, or are not finite (unless
            traced), or a number is out of its range.

    Example:
        >>> params, key = {"w": jnp.ones((4, 1))}, jax.random.key(0)
        >>> logits = {"w": jnp.array([0.0, 0.0, 9.0, 0.0, 0.0, 0.0])}
        >>> logits = {"w": logits["w"].reshape(1, 1, 1, 1, 6)}
        >>> maskllm.soft_mask(logits, params, progress=1.0, key=key)["w"].ravel()
        Array([1., 0., 0., 1.], dtype=float32)

    References:
        Fang et al., arXiv:2409.17481, section 3. Jang et al., "Categorical
        Reparameterization with Gumbel-Softmax", arXiv:1611.01144.
    """
    fn = _groups.FN + "soft_mask"
    checks.typed_key(key, fn=fn)
    checks.unit_interval(progress, fn=fn, name="progress")
    _check_ends(temperatures, fn=fn, name="temperatures")
    _check_ends(scales, fn=fn, name="scales")
    checks.together(fn=fn, logits=logits, progress=progress, key=key)
    pairs = _groups.with_logits(logits, params, structure, where, fn=fn)
    done = dtypes.operand(progress)
    ends = [np.asarray(each, np.float32) for each in (temperatures, scales)]
    soft = [_mixed(x, k.w, done, *ends, key, k.place, plan=k.plan) for k, x in pairs]
    return _whole(logits, pairs, soft)


def mask(
    logits: Scores,
    params: Params,
    *,
    structure: NofM = NofM(2, 4),
    where: Predicate = kernels,
) -> Mask:
    """The pattern of each group with the highest logit, once they are trained: 4.

    Args:
        logits: From `init`, after training.
        params: The parameters. Only shapes are used.
        structure: As for `init`, the same value. Logits tell how many patterns there
            are, and n:m has as many as (m - n):m: those of 1:4 would pass for 3:4.
        where: As for `init`; `logits` says which leaves have a mask.

    Returns:
        A mask of exactly n of every m inputs: True keeps. Of equal logits the first
        one counts.

    Raises:
        TypeError: If logits are not floating.
        ValueError: If the logits do not fit `params`, or are not finite (unless
            traced).

    Example:
        >>> logits = {"w": jnp.array([0.0, 0.0, 9.0, 0.0, 0.0, 0.0])}
        >>> logits = {"w": logits["w"].reshape(1, 1, 1, 1, 6)}
        >>> maskllm.mask(logits, {"w": jnp.ones((4, 1))})["w"].ravel()
        Array([ True, False, False,  True], dtype=bool)
    """
    pairs = _groups.with_logits(
        logits, params, structure, where, fn=_groups.FN + "mask"
    )
    return _whole(logits, pairs, [_best(x, k.w, plan=k.plan) for k, x in pairs])


def _check_ends(ends: Any, *, fn: str, name: str) -> None:
    pair = isinstance(ends, tuple | list) and len(ends) == 2
    if not pair or not all(map(checks.is_number, ends)):
        raise TypeError(f"`{fn}` needs `{name}` as two numbers, got {ends!r}.")
    if not all(0 < end < math.inf for end in ends):
        raise ValueError(f"`{fn}` needs `{name}` finite and above 0, got {ends}.")


def _whole(logits: Scores, pairs: Sequence[Any], values: Sequence[Array]) -> Any:
    leaves, treedef = jax.tree.flatten(logits, is_leaf=trees.is_mask_leaf)
    found: list[Array | None] = [None] * len(leaves)
    for (kernel, _), value in zip(pairs, values, strict=True):
        found[kernel.place] = value
    return treedef.unflatten(found)


@functools.partial(jax.jit, static_argnames="plan")
def _mixed(
    logits: Array,
    w: Array,
    progress: Array,
    temperatures: Array,
    scales: Array,
    key: Array,
    leaf: int,
    *,
    plan: Plan,
) -> Array:
    wide = dtypes.at_least_float32(logits.dtype)
    noise = draws.gumbel(jax.random.fold_in(key, leaf), logits).astype(wide)
    temperature, scale = (
        (ends[0] + (ends[1] - ends[0]) * progress.astype(ends.dtype)).astype(wide)
        for ends in (temperatures, scales)
    )
    shares = jax.nn.softmax((logits.astype(wide) * scale + noise) / temperature)  # 2.
    found = _groups.product(shares, _groups.patterns(plan, wide))
    return _placed(_groups.joined(found.astype(logits.dtype), plan), w)


@functools.partial(jax.jit, static_argnames="plan")
def _best(logits: Array, w: Array, *, plan: Plan) -> Array:
    best = jnp.argmax(logits, axis=-1, keepdims=True)  # 4.
    each = lax.broadcasted_iota(best.dtype, logits.shape, logits.ndim - 1)
    one = (each == best).astype(jnp.float32)
    kept = _groups.product(one, _groups.patterns(plan, jnp.float32)) > 0.5
    return _placed(_groups.joined(kept, plan), w)


def _placed(mask: Array, w: Array) -> Array:
    """The mask sharded as its kernel, also where groups straddle its shards."""
    spec = placement.spec_for(mask.shape, w)
    return placement.follow(placement.cut_as(mask, spec, like=w), w)
