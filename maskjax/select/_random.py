"""Masks drawn at random: each entry on its own, or with an exact count."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from maskjax import packing
from maskjax._core import blame, checks, placement, trees
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, Scores
from maskjax.score import random as random_scores
from maskjax.select import _units
from maskjax.select._choice import choose, choose_counted, kept
from maskjax.select._leaves import Scope
from maskjax.select._quota import Keep
from maskjax.structure import Entries, Groups
from maskjax.where import kernels


def bernoulli(probabilities: Scores, *, key: Array) -> Mask:
    """Keep each entry with its own probability, independently of the others.

    For an exact number of entries use `random`.

    Args:
        probabilities: Tree of floating leaves in [0, 1], `None` where a parameter is
            left alone. 0 never keeps, 1 always; nan never keeps.
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
    checks.beside(probabilities, fn=fn, name="probabilities", key=key)
    leaves, treedef = jax.tree.flatten(probabilities, is_leaf=trees.is_mask_leaf)
    return treedef.unflatten(
        [None if p is None else _sampled(p, key, i) for i, p in enumerate(leaves)]
    )


@jax.jit
def _sampled(probabilities: Array, key: Array, leaf: int) -> Array:
    draws = placement.uniform(jax.random.fold_in(key, leaf), probabilities)
    return draws < probabilities.astype(jnp.float32)


def random(
    params: Params,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    structure: Entries | Groups = Entries(),
    where: Predicate = kernels,
    key: Array,
) -> Mask:
    """Keep random entries, exactly `round(density * n)` of n, halves rounded up.

    Args:
        params: Tree of arrays.
        density: The fraction to keep, in [0, 1]: a Python number, a scalar array that
            may be traced, or, except in scope "global", a tree of either. In scope
            "layer" and "output" its leaves may also be arrays of a number for each
            layer.
        scope: "leaf" keeps that fraction of each leaf, "global" of all leaves together,
            "layer" of each index of a stack (where nothing is stacked: of each leaf),
            "output" of each output of each of them.
        structure: Entries on their own, or `structure.Groups`: random units. A density
            may be a dict by the names of groups then.
        where: Which leaves carry a mask, and for "layer" and "output" what their axes
            mean. All leaves of groups carry one.
        key: A typed key; every leaf gets its own.

    Returns:
        A mask: True keeps, `None` where `where` does not choose.

    Raises:
        TypeError: If a chosen leaf is not floating, the density not a number, `where`
            not a function, the structure another one, or the key not a typed key.
        ValueError: If the density is outside [0, 1] or nan, a tree of densities does
            not fit, the scope is unknown, axes are needed and unknown, or `where`
            chooses nothing.

    Example:
        >>> params = {"w": jnp.ones((4, 5))}
        >>> mask = select.random(params, density=0.25, key=jax.random.key(0))
        >>> int(mask["w"].sum())
        5
    """
    fn = "maskjax.select.random"
    checks.typed_key(key, fn=fn)
    chosen = checks.chosen_leaves(params, where, fn=fn)
    checks.together(fn=fn, params=chosen, density=density, key=key)
    if isinstance(structure, Groups):
        _units.check_scope(scope, fn=fn)
        _units.check_share(density, structure, fn=fn, name="density")

        def search(units: Any, alive: Any, held: Any, scope: Scope, axes: Any) -> Any:
            how = scope, Entries(), axes
            return choose(units, Keep, density, *how, fn=fn, holding=held)

        flags, _ = _units.among(_draws(structure, key), structure, search, scope)
        return structure.spread(flags, chosen)
    _check_entries(structure, fn=fn)
    scores = random_scores(params, where=where, key=key)
    return choose(scores, Keep, density, scope, Entries(), where, fn=fn)[0]


def random_like(
    mask: Mask,
    *,
    scope: Scope = "leaf",
    structure: Entries | Groups = Entries(),
    where: Predicate = kernels,
    key: Array,
) -> Mask:
    """Keep random entries, the same number that another mask keeps.

    Args:
        mask: A mask, packed or not. Entries along an axis of 1 share their decision in
            the result too.
        scope: "leaf" keeps the count of each leaf, "global" that of all together,
            "layer" that of each index of a stack (where nothing is stacked: of each
            leaf), "output" that of each output.
        structure: Entries on their own, or `structure.Groups`, for a mask that was
            selected by them: random units, the same number in each group, or in scope
            "global" in all groups together.
        where: What the axes mean, for "layer" and "output".
        key: A typed key; every leaf gets its own.

    Returns:
        A mask shaped like `mask`: True keeps.

    Raises:
        TypeError: If a leaf is neither boolean nor packed, the structure another one,
            or the key is not typed.
        ValueError: If the scope is unknown, axes are needed and unknown, or no leaf
            carries a mask.

    Example:
        >>> mask = {"w": jnp.array([True, False, False, True, True])}
        >>> int(select.random_like(mask, key=jax.random.key(0))["w"].sum())
        3

    References:
        Frankle & Carbin, ICLR 2019. arXiv:1803.03635, section 4 ("random sparsity").
    """
    fn = "maskjax.select.random_like"
    checks.typed_key(key, fn=fn)
    checks.boolean(mask, fn=fn)
    checks.packed(mask, fn=fn, stacked=False)
    checks.together(fn=fn, mask=mask, key=key)
    alive = packing.unpack(mask)
    if isinstance(structure, Groups):
        return _units_like(alive, structure, scope, key, fn=fn)
    _check_entries(structure, fn=fn)
    leaves, treedef = jax.tree.flatten(alive)
    keys = (jax.random.fold_in(key, i) for i in range(len(leaves)))
    scores = treedef.unflatten(map(placement.uniform, keys, leaves))
    checks.floating_scores(scores, fn=fn, name="mask")
    counts = functools.partial(kept, alive)
    return choose_counted(scores, counts, scope, where, fn=fn)


def _units_like(
    mask: Mask, groups: Groups, scope: Scope, key: Array, *, fn: str
) -> Mask:
    """`random_like` for units."""
    _units.check_scope(scope, fn=fn)
    with blame.instead_of("maskjax.structure.Groups.kept", fn):
        decided = groups.kept(mask)
    if scope == "global":
        counts = [jnp.sum(x, axis=-1, dtype=jnp.int32).max() for x in decided.values()]
        total = functools.reduce(jnp.add, counts)
        given = lambda _: [total]  # noqa: E731
    else:
        given = functools.partial(kept, decided)
        groups = dataclasses.replace(groups, least=0)

    def search(units: Any, alive: Any, held: Any, scope: Scope, axes: Any) -> Any:
        return choose_counted(units, given, scope, axes, fn=fn, holding=held), {}

    flags, _ = _units.among(_draws(groups, key), groups, search, scope)
    blank = trees.map_mask(lambda _: None, mask)
    return jax.tree.map(
        lambda old, new: None if old is None else jnp.copy(old) if new is None else new,
        mask,
        groups.spread(flags, blank),
        is_leaf=trees.is_mask_leaf,
    )


def _draws(groups: Groups, key: Array) -> dict[str, Array]:
    """A random score for each unit."""
    return {
        group.name: jax.random.uniform(jax.random.fold_in(key, i), group.shape)
        for i, group in enumerate(groups)
    }


def _check_entries(structure: Any, *, fn: str) -> None:
    if not isinstance(structure, Entries):
        raise TypeError(
            f"`{fn}` needs `structure` as `structure.Entries()` or "
            f"`structure.Groups`, got {structure!r}."
        )
