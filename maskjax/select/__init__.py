"""Selection: scores in, mask out. True keeps.

>>> scores = {"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([[2.0, 5.0]])}
>>> select.top_k(scores, density=0.5, scope="global")
{'a': Array([[ True, False]], dtype=bool), 'b': Array([[False,  True]], dtype=bool)}
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maskjax import algebra, packing
from maskjax._core import checks, trees
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, Scores
from maskjax.score import random as _random_scores
from maskjax.select._choice import Scope, choose, choose_count
from maskjax.select._quota import Keep
from maskjax.select._rounds import drop, grow, iterative_top_k, shrink
from maskjax.structure import Entries, Structure
from maskjax.where import everything as _everything
from maskjax.where import kernels

__all__ = [
    "bernoulli",
    "drop",
    "grow",
    "iterative_top_k",
    "random",
    "random_like",
    "shrink",
    "threshold",
    "top_k",
    "top_k_and_cutoff",
]


def top_k(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    structure: Structure = Entries(),
    within: Mask | None = None,
    near: Scores | None = None,
) -> Mask:
    """The highest scores: exactly `round(density * n)` of n, halves rounded up.

    Ties go to the lowest index (of the leaf, flattened; in "global" scope earlier
    leaves come first), as in a stable descending sort. -0.0 equals 0.0. A nan is below
    -inf: it is never kept ahead of a number. The k-th score is found by counting, not
    by sorting, in about eight passes over the data and 17 at most (33 for float64);
    the only thing that is communicated between devices is counts.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone. Higher
            means more worth keeping.
        density: The fraction to keep, in [0, 1]. A number; or a scalar array, which may
            be traced and is clipped; or, with scope "leaf", a tree of them like
            `scores`. A number counts as the decimal that it is written as.
        scope: "leaf" ranks each leaf on its own, "global" all of them together.
        structure: What is decided together, and so is counted: entries, blocks, units,
            or entries within an N:M pattern, see `maskjax.structure`.
        within: A mask. Only what it keeps is counted and can be kept: n is its count,
            of decisions of which it keeps at least one entry.
        near: Where the last kept score is expected: the second result of an earlier
            `top_k_and_cutoff`. It changes the time taken, never the result.

    Returns:
        A mask shaped like `scores`, with axes of 1 where a structure shares decisions.

    Raises:
        TypeError: If a leaf of `scores` is not floating, or density is not a number.
        ValueError: If density is outside [0, 1] or nan, the scope unknown, a leaf does
            not fit the structure, or `within`, `near` or a tree of densities does not
            fit the scores. All offending leaves are named.

    Example:
        >>> select.top_k({"w": jnp.array([1.0, 1.0, 1.0, 2.0])}, density=0.5)
        {'w': Array([ True, False, False,  True], dtype=bool)}
    """
    fn = "maskjax.select.top_k"
    given = {"mask_name": "within", "within": within, "near": near}
    return choose(scores, Keep, density, scope, structure, fn=fn, **given)[0]


def top_k_and_cutoff(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    structure: Structure = Entries(),
    within: Mask | None = None,
    near: Scores | None = None,
) -> tuple[Mask, Scores]:
    """`top_k`, and the scores at which it cut, a good guess for the next time.

    In a training loop scores move little from step to step. Handing the cutoffs of one
    step to the next as `near` saves about half of the passes.

    Args:
        scores: As in `top_k`.
        density: As in `top_k`.
        scope: As in `top_k`.
        structure: As in `top_k`.
        within: As in `top_k`.
        near: As in `top_k`.

    Returns:
        The mask of `top_k`, True keeps; and a tree like `scores` of one scalar for each
        leaf, float32 where entries are pooled. No decision that was kept scores below
        it, none that was removed above.

    Raises:
        TypeError: As in `top_k`.
        ValueError: As in `top_k`.

    Example:
        >>> scores = {"w": jnp.array([1.0, 7.0, 5.0])}
        >>> mask, cutoff = select.top_k_and_cutoff(scores, density=0.5)
        >>> bool(cutoff["w"] <= 5.0) and bool(cutoff["w"] > 1.0)
        True
        >>> select.top_k(scores, density=0.5, near=cutoff)
        {'w': Array([False,  True,  True], dtype=bool)}
    """
    fn = "maskjax.select.top_k_and_cutoff"
    given = {"mask_name": "within", "within": within, "near": near}
    return choose(scores, Keep, density, scope, structure, fn=fn, **given)


def threshold(scores: Scores, *, at: ArrayLike) -> Mask:
    """The entries whose score reaches a threshold.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone.
        at: Entries with `score >= at` are kept; a nan never is. May be traced.

    Returns:
        A mask shaped like `scores`: True keeps.

    Raises:
        TypeError: If a leaf is not floating.

    Example:
        >>> select.threshold({"w": jnp.array([3.0, 1.0, 2.0])}, at=2.0)
        {'w': Array([ True, False,  True], dtype=bool)}

    References:
        Mallya et al., "Piggyback", ECCV 2018. arXiv:1801.06519, section 3.
    """
    checks.floating_scores(scores, fn="maskjax.select.threshold")
    return trees.map_mask(lambda s: s >= jnp.asarray(at).astype(s.dtype), scores)


def bernoulli(probabilities: Scores, *, key: Array) -> Mask:
    """Each entry kept with its own probability, independently.

    Args:
        probabilities: Tree of floating leaves in [0, 1], `None` where a parameter is
            left alone. 0 never keeps, 1 always.
        key: A typed key; every leaf gets its own.

    Returns:
        A mask shaped like `probabilities`: True keeps.

    Raises:
        TypeError: If a leaf is not floating, or the key is not a typed key.

    Example:
        >>> p = {"w": jnp.array([0.0, 1.0, 1.0])}
        >>> select.bernoulli(p, key=jax.random.key(0))
        {'w': Array([False,  True,  True], dtype=bool)}
    """
    fn = "maskjax.select.bernoulli"
    checks.typed_key(key, fn=fn)
    checks.floating_scores(probabilities, fn=fn, name="probabilities")
    leaves, treedef = trees.mask_leaves(probabilities)
    return treedef.unflatten(
        [
            None
            if p is None
            else jax.random.uniform(jax.random.fold_in(key, i), p.shape, jnp.float32)
            < p.astype(jnp.float32)
            for i, (_, p) in enumerate(leaves)
        ]
    )


def random(
    params: Params,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    where: Predicate = kernels,
    key: Array,
) -> Mask:
    """A uniformly random mask with an exact count.

    Args:
        params: Tree of arrays.
        density: The fraction to keep, as in `top_k`.
        scope: "leaf" keeps that fraction of each leaf, "global" of all together.
        where: Which leaves carry a mask.
        key: A typed key; every leaf gets its own.

    Returns:
        A mask: True keeps, `None` where `where` does not choose.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not a typed key.
        ValueError: If density or scope is as `top_k` refuses it, or `where` chooses
            nothing.

    Example:
        >>> params = {"w": jnp.ones((4, 5))}
        >>> mask = select.random(params, density=0.25, key=jax.random.key(0))
        >>> int(mask["w"].sum())
        5
    """
    fn = "maskjax.select.random"
    checks.typed_key(key, fn=fn)
    checks.chosen(params, where, fn=fn)
    scores = _random_scores(params, where=where, key=key)
    return choose(scores, Keep, density, scope, Entries(), fn=fn)[0]


def random_like(mask: Mask, *, scope: Scope = "leaf", key: Array) -> Mask:
    """A random mask that keeps as many entries as another one.

    Args:
        mask: A mask, packed or not. Along an axis of 1 entries go on sharing decisions.
        scope: "leaf" keeps the count of each leaf, "global" that of all together.
        key: A typed key; every leaf gets its own.

    Returns:
        A mask shaped like `mask`, uniformly random among those of its counts.

    Raises:
        TypeError: If a leaf is neither boolean nor packed, or the key is not typed.
        ValueError: If the scope is unknown, or no leaf carries a mask.

    Example:
        >>> mask = {"w": jnp.array([True, False, False, True, True])}
        >>> int(select.random_like(mask, key=jax.random.key(0))["w"].sum())
        3

    References:
        Frankle & Carbin, ICLR 2019. arXiv:1803.03635, section 4 ("random sparsity").
    """
    fn = "maskjax.select.random_like"
    checks.typed_key(key, fn=fn)
    checks.one_of(scope, ("leaf", "global"), fn=fn, name="scope")
    checks.boolean(mask, fn=fn)
    checks.packed(mask, fn=fn, stacked=False)
    alive = packing.unpack(mask)
    shapes = trees.map_mask(lambda m: jax.ShapeDtypeStruct(m.shape, jnp.float32), alive)
    checks.floating_scores(shapes, fn=fn, name="mask")
    searched = [alive] if scope == "global" else jax.tree.leaves(alive)
    counts = [algebra.count(part) for part in searched]
    scores = _random_scores(shapes, where=_everything, key=key)
    return choose_count(scores, counts, scope, fn=fn)
