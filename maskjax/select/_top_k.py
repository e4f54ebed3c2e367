"""The highest scores, and those above a threshold."""

from __future__ import annotations

import itertools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from maskjax._core import checks, dtypes, trees
from maskjax._core.trees import Array, Density, Mask, Predicate, Scores
from maskjax.select._choice import choose
from maskjax.select._keys import exactly, order_key
from maskjax.select._leaves import Scope
from maskjax.select._quota import Keep
from maskjax.structure import Entries, Structure
from maskjax.where import kernels

Tree = Any


@overload
def top_k(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    structure: Structure | Tree = Entries(),
    where: Predicate = kernels,
    within: Mask | None = None,
    guess: Scores | None = None,
    return_cutoff: Literal[False] = False,
) -> Mask: ...


@overload
def top_k(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    structure: Structure | Tree = Entries(),
    where: Predicate = kernels,
    within: Mask | None = None,
    guess: Scores | None = None,
    return_cutoff: Literal[True],
) -> tuple[Mask, Scores]: ...


def top_k(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    structure: Structure | Tree = Entries(),
    where: Predicate = kernels,
    within: Mask | None = None,
    guess: Scores | None = None,
    return_cutoff: bool = False,
) -> Mask | tuple[Mask, Scores]:
    """Keep the highest scores: exactly `round(density * n)` of n, halves rounded up.

    Ties go to the lowest index (of the flattened leaf; in scope "global", earlier
    leaves come first), as in a stable descending sort. -0.0 equals 0.0, and a nan ranks
    below -inf. Selection counts instead of sorting: in about eight passes over the data
    (at most one for each bit of the scores, and of the places of equal ones), and only
    counts travel between devices.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone. Higher
            is kept.
        density: The fraction to keep, in [0, 1]: a Python number, a scalar array, or,
            except in scope "global", a tree of either like `scores`. In scope "layer"
            and "output" its leaves may also be arrays of a number for each layer.
            Python numbers are read as decimals: 0.35 of 10 is 3.5, which rounds up to
            4, and 1 - 0.55 is 0.45. Arrays may be traced, and are clipped to [0, 1].
        scope: "leaf" ranks each leaf on its own, "global" all leaves together, "layer"
            each index of a stack (where nothing is stacked: each leaf), "output" each
            output of each of them, in leaves that have inputs. Each of these counts is
            rounded: a density that gives each output less than half an input keeps
            nothing.
        structure: What is kept or removed together, and counts as one: entries, blocks,
            units, or entries within an N:M pattern. See `maskjax.structure`. Or a tree
            of structures like `scores`. Or `structure.Groups`: units that run through
            many leaves, each group as one leaf; then a tree of densities, and the
            cutoffs, are dicts by the names of groups.
        where: What the axes mean; `scores` says which leaves have a mask. Asked only
            where a structure names roles, the scope is "output", or it is "layer" and a
            leaf may be a stack: it has 3 axes or more, or 2 and not the name of a
            kernel.
        within: A mask. Only its entries are counted and can be kept. A block or unit
            counts if at least one of its entries is within.
        guess: The cutoffs of an earlier call. It never changes the result. In a
            training loop, where scores move little, it saves about half of the passes.
        return_cutoff: Whether to return the cutoffs too.

    Returns:
        A mask shaped like `scores`, True keeps; axes have length 1 where a structure
        shares decisions. With `return_cutoff`, a pair of this mask and a tree like
        `scores` with one scalar per leaf: nothing that was kept scores below it, and
        nothing that was removed above. It has the dtype of the leaf, or of the mean
        score (float32 at least) for blocks and units. Where a leaf has many layers or
        outputs that are ranked apart, it is an array of the leaf's rank, with length 1
        along what is ranked together.

    Raises:
        TypeError: If a leaf of `scores` is not floating, `density` not a number, or
            `structure` not a value such as `structure.Units()`.
        ValueError: If `density` is outside [0, 1] or nan, `scope` unknown, a leaf does
            not fit the structure, the axes of a leaf are needed and unknown, or
            `within`, `guess` or a tree of densities does not fit the scores. Bad leaves
            are named by path.

    Example:
        >>> scores = {"w": jnp.array([1.0, 7.0, 5.0, 1.0])}
        >>> select.top_k(scores, density=0.75)
        {'w': Array([ True,  True,  True, False], dtype=bool)}
        >>> mask, cutoff = select.top_k(scores, density=0.5, return_cutoff=True)
        >>> bool(cutoff["w"] <= 5.0) and bool(cutoff["w"] >= 1.0)
        True
        >>> select.top_k(scores, density=0.5, guess=cutoff)
        {'w': Array([False,  True,  True, False], dtype=bool)}
        >>> scores = {"w": jnp.array([[1.0, 4.0], [2.0, 3.0]])}
        >>> select.top_k(scores, density=0.5, scope="output")
        {'w': Array([[False,  True],
               [ True, False]], dtype=bool)}
    """
    fn = "maskjax.select.top_k"
    given = {"mask_name": "within", "within": within, "guess": guess}
    how = scope, structure, where
    mask, cutoff = choose(scores, Keep, density, *how, fn=fn, **given)
    return (mask, cutoff) if return_cutoff else mask


def threshold(scores: Scores, *, at: ArrayLike | Scores) -> Mask:
    """Keep the entries whose score reaches a threshold.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone. Higher
            is kept.
        at: Entries with `score >= at` are kept; nan never is. A number, a scalar array,
            or a tree of either like `scores`, such as the cutoffs of `top_k`. Arrays
            may be traced. Nothing is rounded: 0.7 in float32 is less than 0.7.

    Returns:
        A mask shaped like `scores`: True keeps.

    Raises:
        TypeError: If a leaf of `scores` is not floating, or `at` not a number.
        ValueError: If a tree of thresholds does not fit the scores.

    Example:
        >>> select.threshold({"w": jnp.array([3.0, 1.0, 2.0])}, at=2.0)
        {'w': Array([ True, False,  True], dtype=bool)}
        >>> scores = {"a": jnp.array([3.0, 1.0]), "b": jnp.array([2.0])}
        >>> select.threshold(scores, at={"a": 2.0, "b": 3.0})
        {'a': Array([ True, False], dtype=bool), 'b': Array([False], dtype=bool)}

    References:
        Mallya et al., "Piggyback", ECCV 2018. arXiv:1801.06519, section 3.
    """
    return reaching(scores, at, fn="maskjax.select.threshold")


def reaching(scores: Scores, at: ArrayLike | Scores, *, fn: str) -> Mask:
    """`threshold`, with its errors blamed on `fn`."""
    checks.floating_scores(scores, fn=fn)
    leaves, treedef = jax.tree.flatten(scores, is_leaf=trees.is_mask_leaf)
    if trees.is_single(at):
        at = treedef.unflatten([None if x is None else at for x in leaves])
    names = ("scores", "at")
    pairs = checks.rows(scores, at, fn=fn, names=names, is_leaf=trees.is_mask_leaf)
    for fine, needs, kind in (
        (_is_level, "`at` as a number, or a tree with a number per score", TypeError),
        (_fits, "`at` as scalars, or shaped like the scores", ValueError),
    ):
        wrong = [s is not None and not fine(s, level) for s, level in pairs]
        if any(wrong):
            named = zip(trees.paths(scores, trees.is_mask_leaf), pairs, strict=True)
            lines = [f"{path}: {checks.kind_of(level)}" for path, (_, level) in named]
            lines = itertools.compress(lines, wrong)
            raise checks.listing(lines, f"`{fn}` needs {needs}", kind)
    return treedef.unflatten(
        [None if s is None else _reaches(s, level) for s, level in pairs]
    )


def _is_level(_: Array, x: Any) -> bool:
    if not checks.shaped(x):
        return checks.is_number(x)
    return any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer))


def _fits(scores: Array, level: Any) -> bool:
    shape = jnp.shape(level)
    return not shape or checks.fits(shape, scores.shape)


def _reaches(s: Array, level: Any) -> Array:
    wide = dtypes.at_least_float32(s.dtype)
    level = level.item() if isinstance(level, np.generic) else level
    if not checks.shaped(level):  # a Python number, which may lie between two floats
        with np.errstate(over="ignore"):
            at = np.array(level, wide)
        level = np.nextafter(at, np.inf, dtype=wide) if float(at) < level else at
    return _reaches_array(s, level)


@jax.jit
def _reaches_array(s: Array, level: Array) -> Array:
    """Compares integers, because floats are rounded, or flushed to zero."""
    real = next((x.dtype for x in (s, level) if x.dtype == jnp.float64), jnp.float32)
    if jnp.issubdtype(level.dtype, jnp.integer):
        at = level.astype(real)
        above = at.astype(level.dtype) < level
    else:
        at, above = exactly(level, real), False
    key, first = order_key(exactly(s, real), None), order_key(at, None)
    return (key >= first + jnp.asarray(above, first.dtype)) & ~jnp.isnan(at)
