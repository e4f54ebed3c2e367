"""Where the logits start: at random, or near a mask that is known already: 1."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from maskjax import packing
from maskjax._core import checks, dtypes, placement, trees
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, Scores
from maskjax.recipes.maskllm import _groups
from maskjax.select._plan import Plan
from maskjax.structure import NofM
from maskjax.where import kernels


def init(
    params: Params,
    prior: Mask | None = None,
    *,
    structure: NofM = NofM(2, 4),
    strength: Density = 3.0,
    deviation: Density = 0.01,
    where: Predicate = kernels,
    key: Array,
) -> Scores:
    """Logits to train, one for each pattern of each group of m inputs.

    Args:
        params: Tree of arrays. Only shapes and dtypes are used.
        prior: A mask to start from, packed or not: of magnitudes, of `score.wanda` or
            of `recipes.sparsegpt`. A pattern's logit is raised by how many entries more
            than the average pattern it shares with it. `None`, for all or for a leaf:
            all patterns are equally likely.
        structure: n of every m inputs of each output are kept. Every group has
            m! / (n! (m - n)!) logits, 6 for 2:4; at most 256. Pass the same value to
            `soft_mask` and `mask`: plain arrays can't tell 1:4 from 3:4.
        strength: How strongly the prior is believed, in deviations of the logits.
        deviation: The standard deviation of the logits at the start.
        where: Which leaves are kernels, and what their axes mean.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree like `params`, `None` where `where` does not choose. A leaf is [stack,
        window, outputs, groups, patterns], several axes of a role as one, or, where
        `structure` counts axes by number, [the other axes, groups, patterns]. Its
        dtype is float32, or float64 for such weights. Groups lie where their weights
        do. Of what is drawn, only counters may move between devices, one for each row.

    Raises:
        TypeError: If a chosen leaf is not floating, the structure is not N:M, or the
            key not a typed key.
        ValueError: If `where` chooses nothing, the axes of a kernel are not known, m
            does not divide its inputs, there are too many patterns, or the prior does
            not fit.

    Example:
        >>> params = {"w": jnp.ones((8, 3)), "b": jnp.ones(3)}
        >>> logits = maskllm.init(params, key=jax.random.key(0))
        >>> logits["w"].shape, logits["b"]
        ((1, 1, 3, 2, 6), None)

    References:
        Fang et al., arXiv:2409.17481, section 3 ("Transfer Learning of Sparsity").
    """
    fn = _groups.FN + "init"
    checks.typed_key(key, fn=fn)
    checks.not_negative(strength, fn=fn, name="strength")
    checks.not_negative(deviation, fn=fn, name="deviation")
    chosen = checks.chosen_leaves(params, where, fn=fn)
    checks.together(fn=fn, params=chosen, prior=prior, key=key)
    found = _groups.kernels(chosen, structure, where, fn=fn)
    leaves, treedef = jax.tree.flatten(chosen, is_leaf=trees.is_mask_leaf)
    priors: list[Any] = [None] * len(leaves)
    if prior is not None:
        names, stop = ("params", "prior"), trees.is_mask_leaf
        pairs = checks.masked(chosen, prior, fn=fn, names=names, is_leaf=stop)
        priors = [m for _, m in pairs]
    logits: list[Array | None] = [None] * len(leaves)
    numbers = dtypes.operand(strength), dtypes.operand(deviation)
    for i, _, w, plan in found:
        logits[i] = _drawn(w, priors[i], *numbers, key, i, plan=plan)
    return treedef.unflatten(logits)


# The kernel tells the devices, even where its values are not read.
@functools.partial(jax.jit, static_argnames="plan", keep_unused=True)
def _drawn(
    w: Array,
    prior: Any,
    strength: Array,
    deviation: Array,
    key: Array,
    leaf: int,
    *,
    plan: Plan,
) -> Array:
    wide = dtypes.at_least_float32(w.dtype)
    patterns = _groups.patterns(plan, wide)
    groups = _groups.cut(w, plan)
    shape = (*groups.shape[:-1], len(patterns))
    like = jnp.broadcast_to(groups[..., :1], shape)
    key = jax.random.fold_in(key, leaf)
    found = placement.made(jax.random.normal, like, key, static=(shape, wide))
    if prior is not None:
        mask = packing.unpack_leaf(prior)
        mask = placement.place(mask, placement.spec_for(mask.shape, w), like=w)
        mask = jnp.broadcast_to(placement.alike(mask, w), w.shape)
        shared = _groups.product(_groups.cut(mask, plan).astype(wide), patterns.T)
        more = shared - jnp.mean(shared, axis=-1, keepdims=True)
        found = found + strength.astype(wide) * more
    return deviation.astype(wide) * found  # 1.
