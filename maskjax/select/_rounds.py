"""Masks changed by scores: cut down, filled up, and pruned in rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import masking
from maskjax._core import blame, checks, trees
from maskjax._core.trees import Density, Mask, Params, Predicate, Scores
from maskjax.select._choice import choose, full
from maskjax.select._leaves import Scope
from maskjax.select._quota import Keep, Leave
from maskjax.structure import Entries, Structure
from maskjax.where import kernels


def drop(
    scores: Scores,
    mask: Mask,
    *,
    rate: Density | Scores,
    scope: Scope = "leaf",
    structure: Structure | Any = Entries(),
    where: Predicate = kernels,
) -> Mask:
    """Remove the lowest scores from a mask: one round of pruning.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone. Higher
            is kept.
        mask: What is alive: a mask with a leaf for every leaf of `scores`.
        rate: The fraction of what is alive to remove, in [0, 1]: exactly
            `round(rate * alive)`, halves rounded up. A number, a scalar array that may
            be traced, or, except in scope "global", a tree of either like `scores`. In
            scope "layer" and "output" its leaves may also be arrays of a number for
            each layer.
        scope: "leaf" ranks each leaf on its own, "global" all leaves together, "layer"
            each index of a stack (where nothing is stacked: each leaf), "output" each
            output of each of them.
        structure: What is removed together, and counts as one, or a tree of structures
            like `scores`. A block or unit is alive if at least one of its entries is.
            With `structure.Groups` a tree of rates is a dict by the names of groups.
        where: What the axes mean; `scores` says which leaves have a mask. Asked only
            where a structure names roles, or the scope is "layer" or "output".

    Returns:
        A mask shaped like `scores`, within `mask`: True keeps.

    Raises:
        TypeError: If a leaf of `scores` is not floating, `rate` not a number, or
            `structure` not a value such as `structure.Units()`.
        ValueError: If `rate` is outside [0, 1] or nan, `scope` unknown, a leaf does not
            fit the structure, its axes are needed and unknown, or the mask or a tree of
            rates does not fit the scores.

    Example:
        >>> mask = {"w": jnp.array([True, True, True, False])}
        >>> select.drop({"w": jnp.array([3.0, 1.0, 2.0, 9.0])}, mask, rate=1 / 3)
        {'w': Array([ True, False,  True, False], dtype=bool)}

    References:
        Frankle & Carbin, ICLR 2019. arXiv:1803.03635, section 1 ("iterative pruning").
    """
    fn = "maskjax.select.drop"
    return choose(
        scores, Leave, rate, scope, structure, where, fn=fn, name="rate", within=mask
    )[0]


def shrink(
    scores: Scores,
    mask: Mask,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    structure: Structure | Any = Entries(),
    where: Predicate = kernels,
) -> Mask:
    """Cut a mask down to a density: what is removed stays removed.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone. Higher
            is kept.
        mask: What is alive: a mask with a leaf for every leaf of `scores`.
        density: The fraction of all entries, alive or not, to keep, in [0, 1]. A
            number, a scalar array that may be traced, or, except in scope "global", a
            tree of either like `scores`. In scope "layer" and "output" its leaves may
            also be arrays of a number for each layer.
        scope: "leaf" ranks each leaf on its own, "global" all leaves together, "layer"
            each index of a stack (where nothing is stacked: each leaf), "output" each
            output of each of them.
        structure: What is kept or removed together, and counts as one, or a tree of
            structures like `scores`. With `structure.Groups` a tree of densities is a
            dict by the names of groups.
        where: What the axes mean; `scores` says which leaves have a mask. Asked only
            where a structure names roles, or the scope is "layer" or "output".

    Returns:
        A mask within `mask`, True keeps: exactly `round(density * n)` of all n, halves
        rounded up, or all that is alive if that is less.

    Raises:
        TypeError: If a leaf of `scores` is not floating, `density` not a number, or
            `structure` not a value such as `structure.Units()`.
        ValueError: If `density` is outside [0, 1] or nan, `scope` unknown, a leaf does
            not fit the structure, its axes are needed and unknown, or the mask or a
            tree of densities does not fit the scores.

    Example:
        >>> mask = {"w": jnp.array([True, True, True, False])}
        >>> select.shrink({"w": jnp.array([3.0, 1.0, 2.0, 9.0])}, mask, density=0.25)
        {'w': Array([ True, False, False, False], dtype=bool)}

    References:
        Zhu & Gupta, "To prune, or not to prune". arXiv:1710.01878, section 3.
    """
    fn = "maskjax.select.shrink"
    return choose(
        scores, Keep, density, scope, structure, where, fn=fn, within=mask, of_all=True
    )[0]


def grow(
    scores: Scores,
    mask: Mask,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    structure: Structure | Any = Entries(),
    where: Predicate = kernels,
) -> Mask:
    """Fill a mask up to a density with the highest scores of the other entries.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone. Higher
            is kept. Scores of entries that are alive do not matter.
        mask: What is alive: a mask with a leaf for every leaf of `scores`.
        density: The fraction of all entries, alive or not, to keep, in [0, 1]. A
            number, a scalar array that may be traced, or, except in scope "global", a
            tree of either like `scores`. In scope "layer" and "output" its leaves may
            also be arrays of a number for each layer.
        scope: "leaf" ranks each leaf on its own, "global" all leaves together, "layer"
            each index of a stack (where nothing is stacked: each leaf), "output" each
            output of each of them.
        structure: What grows together, and counts as one, or a tree of structures like
            `scores`. With `structure.Groups` a tree of densities is a dict by the names
            of groups.
        where: What the axes mean; `scores` says which leaves have a mask. Asked only
            where a structure names roles, or the scope is "layer" or "output".

    Returns:
        A mask that contains `mask`, True keeps: exactly `round(density * n)` of all n,
        halves rounded up, or `mask` itself if that has more.

    Raises:
        TypeError: If a leaf of `scores` is not floating, `density` not a number, or
            `structure` not a value such as `structure.Units()`.
        ValueError: If `density` is outside [0, 1] or nan, `scope` unknown, a leaf does
            not fit the structure, its axes are needed and unknown, or the mask or a
            tree of densities does not fit the scores.

    Example:
        >>> mask = {"w": jnp.array([True, False, False, False])}
        >>> select.grow({"w": jnp.array([0.0, 1.0, 3.0, 2.0])}, mask, density=0.5)
        {'w': Array([ True, False,  True, False], dtype=bool)}

    References:
        Evci et al., "Rigging the Lottery", ICML 2020. arXiv:1911.11134, section 3.
    """
    fn = "maskjax.select.grow"
    return choose(
        scores, Keep, density, scope, structure, where, fn=fn, holding=mask, of_all=True
    )[0]


def iterative_top_k(
    score: Callable[[Params], Scores],
    params: Params,
    *,
    density: Density,
    rounds: int,
    scope: Scope = "global",
    structure: Structure | Any = Entries(),
    where: Predicate = kernels,
) -> Mask:
    """Prune in rounds, each of which scores what the last one left.

    Round i of n shrinks the mask to `density ** (i / n)` by the scores of the masked
    parameters, all in one `lax.scan`. Criteria that look at the whole network, such as
    `score.synflow`, need rounds: in one shot they may remove a whole layer.

    Args:
        score: A function from parameters to scores.
        params: Tree of arrays.
        density: The fraction to keep in the end, in [0, 1]: a number, or a scalar array
            that may be traced.
        rounds: The number of rounds, at least 1.
        scope: "leaf" ranks each leaf on its own, "global" all leaves together, "layer"
            each index of a stack (where nothing is stacked: each leaf), "output" each
            output of each of them.
        structure: What is kept or removed together, and counts as one, or a tree of
            structures like the scores.
        where: What the axes mean; the scores say which leaves have a mask.

    Returns:
        A mask: True keeps, `None` where there are no scores.

    Raises:
        TypeError: If a score is not floating, `density` not a number, `rounds` not a
            whole number, or `structure` not a value such as `structure.Units()`.
        ValueError: If `density` is outside [0, 1] or nan, `rounds` less than 1, `scope`
            unknown, a leaf does not fit the structure, or its axes are needed and
            unknown.

    Example:
        >>> params = {"w": jnp.array([[3.0, -1.0], [0.5, -2.0]])}
        >>> select.iterative_top_k(score.magnitude, params, density=0.25, rounds=2)
        {'w': Array([[ True, False],
               [False, False]], dtype=bool)}

    References:
        Tanaka et al., "Pruning neural networks without any data by iteratively
        conserving synaptic flow", NeurIPS 2020. arXiv:2006.05467, algorithm 1.
    """
    fn = "maskjax.select.iterative_top_k"
    checks.unit_interval(density, fn=fn, name="density")
    checks.at_least(rounds, 1, fn=fn, name="rounds")

    def shrunk(mask: Mask, to: Density) -> Mask:
        with blame.instead_of("maskjax.apply", fn):
            masked = masking.apply(params, mask)
        scores = score(masked)
        how = {"scope": scope, "structure": structure, "where": where}
        with blame.instead_of("maskjax.select.shrink", fn):
            return shrink(scores, mask, density=to, **how)

    shapes = jax.eval_shape(score, params)
    names = ("params", "score(params)")
    checks.rows(params, shapes, fn=fn, names=names, is_leaf=trees.is_mask_leaf)
    mask = full(shapes, scope, structure, where, fn=fn)
    fractions = jnp.arange(1, rounds, dtype=jnp.float32) / jnp.float32(rounds)
    steps = jnp.asarray(density, jnp.float32) ** fractions
    mask, _ = lax.scan(lambda m, to: (shrunk(m, to), None), mask, steps)
    # The last round stands apart: `density` itself, as a number, gives an exact count.
    return shrunk(mask, density)
