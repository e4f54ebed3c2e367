"""Densities that go by the outliers among the scores of a layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maskjax import score
from maskjax._core import blame, checks, dtypes, layout, placement, trees
from maskjax._core.trees import Array, Density, Params, Path, Predicate, Scores
from maskjax.where import kernels


def owl(
    params: Params,
    input_norms: Params,
    *,
    density: Density,
    spread: float = 0.08,
    outlier: float = 5.0,
    layer: Callable[[Path], Hashable] | None = None,
    where: Predicate = kernels,
) -> Scores:
    """OWL densities: layers with more outliers stay denser.

    An entry is an outlier if its score |w| * norm is more than `outlier` times the mean
    score of its layer. The densities of layers rise linearly with the fraction of their
    entries that are outliers, and all layers together keep `density`. Pass them to
    `select` with scope "layer" or "output", or to `sparsegpt.prune`.

    Args:
        params: Tree of arrays.
        input_norms: As in `score.wanda`: from `score.input_norms` or
            `calibration.norms`.
        density: The fraction of all chosen entries to keep, in [0, 1]: a number, or a
            scalar array that may be traced.
        spread: How far densities may be from `density`: that far, at least one is,
            unless all fractions are equal, or a density would leave [0, 1].
        outlier: How many times the mean score an outlier is above.
        layer: From the path of a leaf to the name of its layer: kernels of one name are
            one layer, and share a density. The paper's layers are the blocks of a
            transformer: `lambda path: path.split("/")[0]`, if that is where paths say
            which block it is. `None` makes each kernel a layer. In a stack each index
            is a layer, with the same index of stacks of the same name.
        where: Which leaves carry a mask, and what their axes mean.

    Returns:
        A tree like `params`: a density in [0, 1] where `where` chooses, else `None`;
        for a stack an array of a density for each index. Python numbers and NumPy
        arrays, unless something is traced, or `density` is an array.

    Raises:
        TypeError: If a chosen leaf or its norms are not floating, a number is none, or
            `layer` no function.
        ValueError: If density is outside [0, 1] or nan, `spread` or `outlier` negative
            or infinite, `where` chooses nothing, the norms do not fit, the axes of a
            leaf that may be a stack are not known, stacks of one name differ in
            their lengths, or scores are inf or nan. Traced scores are not looked at: a
            layer with such has no outliers.

    Example:
        >>> params = {"a": jnp.ones((2, 8)), "b": jnp.ones((2, 8)).at[0, 0].set(99.0)}
        >>> norms = {"a": jnp.ones((2, 1)), "b": jnp.ones((2, 1))}
        >>> shares = allocation.owl(params, norms, density=0.5)
        >>> {name: round(share, 4) for name, share in shares.items()}
        {'a': 0.42, 'b': 0.58}

    References:
        Yin et al., "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce
        for Pruning LLMs to High Sparsity", ICML 2024. arXiv:2310.05175, section 3.2.
    """
    fn = "maskjax.allocation.owl"
    checks.unit_interval(density, fn=fn, name="density")
    checks.not_negative(spread, fn=fn, name="spread")
    checks.not_negative(outlier, fn=fn, name="outlier")
    of = "(path) -> name"
    checks.function(layer, of, fn=fn, name="layer", optional=True)
    with blame.instead_of("maskjax.score.wanda", fn):
        scores = score.wanda(params, input_norms, where=where)
    leaves, treedef = jax.tree.flatten(scores, is_leaf=trees.is_mask_leaf)
    picks = [leaf is not None for leaf in leaves]
    axes = layout.stacks(params, picks, where, fn=fn, why="for the layers of a stack")
    paths = trees.paths(params)
    layers: dict[Hashable, list[int]] = {}
    for i in np.flatnonzero(picks):
        layers.setdefault(layer(paths[i]) if layer else paths[i], []).append(int(i))
    stacks = [() if own is None else own.stack for own in axes]
    _check_stacks(layers, paths, leaves, stacks, fn=fn)
    fractions, sizes, totals = [], [], {}
    for members in layers.values():
        own = [leaves[i] for i in members]
        along = tuple(stacks[i] for i in members)
        found, sums = _outliers(own, jnp.float32(outlier), stacks=along)
        fractions.append(found)
        totals |= zip((paths[i] for i in members), sums, strict=True)
        each = [math.prod(fractions[-1].shape)] * len(own)
        sizes.append(sum(x.size // max(n, 1) for x, n in zip(own, each, strict=True)))
    _check_finite(totals, fn=fn)
    shares = _spread(fractions, sizes, density, float(spread))
    densities: list[Any] = [None] * len(leaves)
    for members, share in zip(layers.values(), shares, strict=True):
        for i in members:
            densities[i] = share
    return treedef.unflatten(densities)


def _check_finite(totals: Mapping[Path, Any], *, fn: str) -> None:
    """Raise if sums of scores whose values are known are inf or nan."""
    known = {path: sums for path, sums in totals.items() if checks.is_readable(sums)}
    checks.raise_all(
        (
            f"{path}: scores sum up to {sums[~np.isfinite(sums)].flat[0]}"
            for path, sums in jax.device_get(known).items()
            if not np.isfinite(sums).all()
        ),
        f"`{fn}` needs finite scores |w| * norm",
    )


def _check_stacks(
    layers: Mapping[Hashable, Sequence[int]],
    paths: Sequence[Path],
    leaves: Sequence[Any],
    stacks: Sequence[tuple[int, ...]],
    *,
    fn: str,
) -> None:
    """Raise unless the leaves of each layer stack equally many."""
    lengths = [
        () if leaf is None else tuple(leaf.shape[axis] for axis in own)
        for leaf, own in zip(leaves, stacks, strict=True)
    ]
    checks.raise_all(
        (
            f"{name}: " + ", ".join(f"{paths[i]} {lengths[i]}" for i in members)
            for name, members in layers.items()
            if len({lengths[i] for i in members}) > 1
        ),
        f"`{fn}` needs leaves of one `layer` that stack equally many",
    )


@functools.partial(jax.jit, static_argnames="stacks")
def _outliers(
    scores: Sequence[Array], outlier: Array, *, stacks: tuple[tuple[int, ...], ...]
) -> tuple[Array, list[Array]]:
    """The fraction of outliers in a layer, [*stack], of all its leaves together.

    And the sums of the scores of each leaf, [*stack].
    """
    lead = len(stacks[0])
    moved = [
        jnp.moveaxis(x, own, range(lead)) for x, own in zip(scores, stacks, strict=True)
    ]
    shape = moved[0].shape[:lead]
    size = max(sum(math.prod(x.shape[lead:]) for x in moved), 1)
    totals = [jnp.sum(x, axis=tuple(range(lead, x.ndim))) for x in moved]
    level = outlier.astype(totals[0].dtype) * sum(totals) / size
    with dtypes.counting(size):
        counts = jnp.zeros(shape, dtypes.counts(size))
        for x in moved:
            above = x > jnp.expand_dims(level, tuple(range(lead, x.ndim)))
            counts += dtypes.summed(above, lead, counts.dtype)
        return dtypes.ratio(counts, size, jnp.float32), totals


def _spread(
    fractions: Sequence[Array], sizes: Sequence[int], density: Density, spread: float
) -> list[Any]:
    """A density for each fraction: linear in it, and with the mean that is wanted."""
    known = not any(isinstance(x, Tracer) for x in fractions)
    known = known and all(x.is_fully_addressable for x in fractions)
    if known and not isinstance(density, jax.Array):
        np_fractions = [np.asarray(x, np.float64) for x in fractions]
        found = _linear(np, np_fractions, sizes, float(density), spread)
        return [float(x) if not np.ndim(x) else x for x in found]
    density = jnp.asarray(density, jnp.float32)
    fractions = placement.whole(list(fractions))
    return _linear(jnp, fractions, sizes, density, spread)


def _linear(
    xp: Any, fractions: Sequence[Any], sizes: Sequence[int], density: Any, spread: float
) -> list[Any]:
    """In NumPy or JAX."""
    every = xp.concatenate([x.reshape(-1) for x in fractions])
    low, high = xp.min(every), xp.max(every)
    places = (every - low) / xp.where(high > low, high - low, 1)
    weights = np.repeat(np.asarray(sizes, np.float64), [x.size for x in fractions])
    weights = xp.asarray(weights / max(weights.sum(), 1), every.dtype)
    mean = xp.sum(places * weights)
    tiny = np.finfo(np.float32).tiny
    # How much the densities of the fewest and of the most outliers differ.
    most = spread / xp.maximum(mean, 1 - mean)
    most = xp.minimum(most, density / xp.maximum(mean, tiny))
    most = xp.minimum(most, (1 - density) / xp.maximum(1 - mean, tiny))
    shares = xp.clip(density + most * (places - mean), 0, 1)
    ends = np.cumsum([x.size for x in fractions])[:-1]
    parts = xp.split(shares, ends)
    return [part.reshape(x.shape) for part, x in zip(parts, fractions, strict=True)]
