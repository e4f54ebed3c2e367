"""Scores from the parameters' values alone, or from no values at all."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskjax._core import checks, placement, trees
from maskjax._core.trees import Array, Params, Predicate, Scores
from maskjax.where import kernels


def magnitude(params: Params, *, where: Predicate = kernels) -> Scores:
    """The absolute value of each parameter.

    Args:
        params: Tree of arrays.
        where: Which leaves are scored.

    Returns:
        Scores |w|, in the parameters' dtypes.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If `where` chooses nothing.

    Example:
        >>> score.magnitude({"w": jnp.array([[3.0, -4.0]])})
        {'w': Array([[3., 4.]], dtype=float32)}

    References:
        Han et al., "Learning both Weights and Connections for Efficient Neural
        Networks", NeurIPS 2015. arXiv:1506.02626, section 3.
    """
    weights = checks.chosen_leaves(params, where, fn="maskjax.score.magnitude")
    return trees.map_mask(jnp.abs, weights)


def movement(params: Params, initial: Params, *, where: Predicate = kernels) -> Scores:
    """How far each parameter has moved since initialization.

    Args:
        params: Tree of arrays.
        initial: The same parameters earlier, of the same structure and shapes.
        where: Which leaves are scored.

    Returns:
        Scores |w - w0|, in the parameters' dtypes.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If the trees differ in structure or shapes, or `where` chooses
            nothing.

    Example:
        >>> score.movement({"w": jnp.array([[3.0, 4.0]])}, {"w": jnp.ones((1, 2))})
        {'w': Array([[2., 3.]], dtype=float32)}

    References:
        Zhou et al., "Deconstructing Lottery Tickets", NeurIPS 2019. arXiv:1905.01067,
        section 2 ("movement").
    """
    fn = "maskjax.score.movement"
    weights = checks.chosen_leaves(params, where, fn=fn)
    names = ("params", "initial")
    checks.same_shapes(params, initial, fn=fn, names=names, is_leaf=None)
    return trees.map_mask(lambda w, w0: jnp.abs(w - w0), weights, initial)


def random(params: Params, *, where: Predicate = kernels, key: Array) -> Scores:
    """A uniform draw in [0, 1) for each parameter.

    Args:
        params: Tree of arrays.
        where: Which leaves are scored.
        key: A typed key; every leaf gets its own.

    Returns:
        Scores in float32 for parameters of any dtype, so that ties are rare. They are
        sharded as the parameters are, and drawn where they are.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not a typed key.
        ValueError: If `where` chooses nothing.

    Example:
        >>> scores = score.random({"w": jnp.ones((2, 3))}, key=jax.random.key(0))
        >>> scores["w"].shape
        (2, 3)
    """
    fn = "maskjax.score.random"
    checks.typed_key(key, fn=fn)
    picks = checks.chosen(params, where, fn=fn)
    checks.beside(params, fn=fn, key=key)
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        [
            placement.uniform(jax.random.fold_in(key, i), w) if pick else None
            for i, (w, pick) in enumerate(zip(leaves, picks, strict=True))
        ]
    )
