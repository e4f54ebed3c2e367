"""Densities that are told, or that go by the shapes of kernels."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import checks, layout, trees
from maskjax._core.axes import Axes
from maskjax._core.trees import Density, Params, Predicate, Scores
from maskjax.structure import Groups
from maskjax.where import kernels
from maskjax.where import matching as by_name


def uniform(
    params: Params,
    *,
    density: Density,
    structure: Groups | None = None,
    where: Predicate = kernels,
) -> Scores:
    """The same density for every leaf, or for every group.

    Args:
        params: Tree of arrays.
        density: The fraction to keep, in [0, 1]: a number, or a scalar array that may
            be traced.
        structure: Groups of units: each of them gets the density.
        where: Which leaves carry a mask.

    Returns:
        A tree like `params`: `density` where `where` chooses, else `None`. For groups a
        dict by their names.

    Raises:
        TypeError: If a chosen leaf is not floating, the density not a number, or
            `where` not a function.
        ValueError: If density is outside [0, 1] or nan, or `where` chooses nothing.

    Example:
        >>> allocation.uniform({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, density=0.5)
        {'b': None, 'w': 0.5}
    """
    fn = "maskjax.allocation.uniform"
    checks.unit_interval(density, fn=fn, name="density")
    leaves = checks.chosen_leaves(params, where, fn=fn)
    if structure is not None:
        return dict.fromkeys(_names(structure, fn=fn), density)
    return trees.map_mask(lambda _: density, leaves)


def erk(params: Params, *, density: Density, where: Predicate = kernels) -> Scores:
    """Erdos-Renyi-kernel densities: thin leaves stay denser than wide ones.

    A layer's density is proportional to the sum of its axes divided by their product,
    at most 1. For a convolution this is (height + width + in + out) / (height * width *
    in * out). The factor is chosen so that `density` of all entries together are kept.
    Several input axes count as one, and so do several output axes. A stack of layers
    counts as that many layers, all of one density.

    Args:
        params: Tree of arrays.
        density: The fraction of all chosen entries to keep, in [0, 1]: a number, or a
            scalar array that may be traced.
        where: Which leaves carry a mask, and what their axes mean.

    Returns:
        A tree like `params`: a density in [0, 1] where `where` chooses, else `None`.
        Python numbers if `density` is a Python number.

    Raises:
        TypeError: If a chosen leaf is not floating, the density not a number, or
            `where` not a function.
        ValueError: If density is outside [0, 1] or nan, `where` chooses nothing, or the
            axes of a chosen leaf are not known. Kernels of 2 axes, and leaves of fewer,
            need not be known: (in, out) and (out, in) have the same density.

    Example:
        >>> allocation.erk({"w": jnp.ones((4, 4))}, density=0.5)
        {'w': 0.5}
        >>> params = {"layers": jnp.ones((3, 4, 4)), "wide": jnp.ones((4, 64))}
        >>> told = where.matching("layers", axes="stack inputs outputs")
        >>> allocation.erk(params, density=0.5, where=told | where.kernels)
        {'layers': 0.8..., 'wide': 0.4...}

    References:
        Evci et al., "Rigging the Lottery", ICML 2020. arXiv:1911.11134, section 3 (1).
        Mocanu et al., "Scalable Training of Artificial Neural Networks with Adaptive
        Sparse Connectivity". arXiv:1707.04780.
    """
    fn = "maskjax.allocation.erk"
    checks.unit_interval(density, fn=fn, name="density")
    picks = checks.chosen(params, where, fn=fn)
    why = "for the size of each layer"
    axes = layout.stacks(params, picks, where, fn=fn, why=why)
    leaves, treedef = jax.tree.flatten(params)
    rows = zip(leaves, axes, picks, strict=True)
    layers = [_layer(leaf.shape, axes) for leaf, axes, pick in rows if pick]
    corners, totals = _kept_by_factor(layers)
    rates = [slope / max(size, 1) for size, slope, _ in layers]
    if isinstance(density, jax.Array):
        dtype = jnp.zeros((), float).dtype
        factor = jnp.interp(
            density.astype(dtype), totals.astype(dtype), corners.astype(dtype)
        )
        shares = [jnp.minimum(factor * rate, 1.0) for rate in rates]
    else:
        factor = np.interp(np.float64(density), totals, corners)
        shares = [min(float(factor * rate), 1.0) for rate in rates]
    found = iter(shares)
    return treedef.unflatten([next(found) if pick else None for pick in picks])


def _layer(shape: Sequence[int], axes: Axes | None) -> tuple[int, int, int]:
    """The size of one layer of a leaf, the sum of its axes, and how many there are."""
    if axes is None:
        return math.prod(shape), max(sum(shape), 1), 1
    size = math.prod(shape[axis] for axis in layout.of_one(axes))
    count = math.prod(shape[axis] for axis in axes.stack)
    terms = [shape[axis] for axis in axes.window]
    for role in (axes.inputs, axes.outputs):
        if role:
            terms.append(math.prod(shape[axis] for axis in role))
    return size, max(sum(terms), 1), count


def _kept_by_factor(
    layers: Iterable[tuple[int, int, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """Factors, ascending, and the fraction of all entries that each of them keeps.

    A factor c keeps min(size, c * sum of axes) of a layer. The total is piecewise
    linear in c, with a corner where a layer becomes dense; interpolation inverts it.
    Equal layers are counted, and kinds are sorted, so that the result does not depend
    on how layers are stacked or ordered, to the last bit.
    """
    kinds: collections.Counter[tuple[int, int]] = collections.Counter()
    for size, slope, count in layers:
        kinds[size, slope] += count
    table = np.array([(*kind, kinds[kind]) for kind in sorted(kinds)], np.float64)
    sizes, slopes, counts = table.T
    corners = np.concatenate([[0.0], np.sort(sizes / slopes)])
    totals = (counts * np.minimum(sizes, corners[:, None] * slopes)).sum(axis=1)
    return corners, totals / max(totals[-1], 1.0)


def matching(
    params: Params,
    *,
    densities: Mapping[str, Density],
    density: Density,
    rest: Callable[..., Scores] = uniform,
    structure: Groups | None = None,
    where: Predicate = kernels,
) -> Scores:
    """Densities by path for some leaves, and another allocation for the rest.

    Args:
        params: Tree of arrays.
        densities: A mapping from regular expressions, as for `where.matching`, to
            densities in [0, 1]. Each expression must match a leaf, and no leaf may be
            matched twice.
        density: The fraction to keep of the leaves that no expression matches: a
            number, or a scalar array that may be traced.
        rest: The allocation of those leaves, such as `erk`.
        structure: Groups of units: expressions are matched with their names, and `rest`
            has to be `uniform`.
        where: Which leaves carry a mask.

    Returns:
        A tree like `params`: a density where `where` chooses, else `None`. For groups a
        dict by their names.

    Raises:
        TypeError: If a chosen leaf is not floating, a density not a number, or `where`
            not a function.
        ValueError: If a density is outside [0, 1] or nan, `where` chooses nothing, an
            expression is malformed or matches no leaf, a leaf is matched twice, or
            `rest` is not for groups.

    Example:
        >>> params = {"hidden": jnp.ones((4, 4)), "out": jnp.ones((4, 2))}
        >>> allocation.matching(params, densities={"^out": 0.5}, density=0.1)
        {'hidden': 0.1, 'out': 0.5}
    """
    fn = "maskjax.allocation.matching"
    checks.unit_interval(density, fn=fn, name="density")
    picks = checks.chosen(params, where, fn=fn)
    if structure is not None:
        if rest is not uniform:
            raise ValueError(f"`{fn}` needs `rest` as `uniform` for groups.")
        names = _names(structure, fn=fn)
        return dict.fromkeys(names, density) | _matched(names, densities, fn=fn)
    named = trees.named_leaves(params)
    paths = [path for (path, _), pick in zip(named, picks, strict=True) if pick]
    found = _matched(paths, densities, fn=fn)
    others = set(paths) - set(found)
    shares = [None] * len(named)
    if others:
        among = layout.Among(frozenset(others), where)
        left = rest(params, density=density, where=among)
        shares = jax.tree.structure(params).flatten_up_to(left)
    return jax.tree.structure(params).unflatten(
        [found.get(path, share) for (path, _), share in zip(named, shares, strict=True)]
    )


def _names(structure: Any, *, fn: str) -> tuple[str, ...]:
    if not isinstance(structure, Groups):
        raise TypeError(
            f"`{fn}` needs `structure` as `structure.Groups`, got {structure!r}. For "
            "other structures leave it out."
        )
    return structure.names


def _matched(
    paths: Sequence[str], densities: Mapping[str, Density], *, fn: str
) -> dict[str, Density]:
    """The density of each path, or name, that an expression matches."""
    by_path: dict[str, list[str]] = {path: [] for path in paths}
    for regex, value in densities.items():
        checks.unit_interval(value, fn=fn, name=f"densities[{regex!r}]")
        predicate = by_name(regex)
        hits = [path for path in paths if predicate(path, None)]
        if not hits:
            raise ValueError(
                f"`{fn}` needs every expression to find a leaf, but {regex!r} finds "
                f"none of: {', '.join(paths)}."
            )
        for path in hits:
            by_path[path].append(regex)
    checks.raise_all(
        (f"{path}: {', '.join(r)}" for path, r in by_path.items() if len(r) > 1),
        f"`{fn}` needs one expression for a leaf",
    )
    return {path: densities[r[0]] for path, r in by_path.items() if r}
