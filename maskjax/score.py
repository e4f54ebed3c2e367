"""Scores: how much each parameter is worth. Higher is kept.

Every function takes parameters and returns a tree of their structure whose leaves are
floating arrays of the parameter's shape, or `None` where `where` does not choose.

    >>> score.magnitude({"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.zeros(2)})
    {'bias': None, 'kernel': Array([[1., 2.]], dtype=float32)}
"""

import jax
import jax.numpy as jnp

from maskjax import _checks
from maskjax._tree import Array, Params, Predicate, Scores
from maskjax.where import kernels

__all__ = ["magnitude", "movement", "random"]


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
    picks = _checks.chosen(params, where, fn="maskjax.score.magnitude")
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        [jnp.abs(w) if pick else None for w, pick in zip(leaves, picks, strict=True)]
    )


def movement(params: Params, initial: Params, *, where: Predicate = kernels) -> Scores:
    """How far each parameter has come from where it began.

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
    picks = _checks.chosen(params, where, fn=fn)
    names = ("params", "initial")
    pairs = _checks.same_shapes(params, initial, fn=fn, names=names, is_leaf=None)
    treedef = jax.tree.structure(params)
    return treedef.unflatten(
        [
            jnp.abs(w - w0) if pick else None
            for (_, w, w0), pick in zip(pairs, picks, strict=True)
        ]
    )


def random(params: Params, *, where: Predicate = kernels, key: Array) -> Scores:
    """A uniform draw in [0, 1) for each parameter.

    Args:
        params: Tree of arrays.
        where: Which leaves are scored.
        key: A typed key; every leaf gets its own.

    Returns:
        Scores in float32, whatever the parameters' dtypes, so that ties are rare.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not a typed key.
        ValueError: If `where` chooses nothing.

    Example:
        >>> scores = score.random({"w": jnp.ones((2, 3))}, key=jax.random.key(0))
        >>> scores["w"].shape
        (2, 3)
    """
    fn = "maskjax.score.random"
    _checks.typed_key(key, fn=fn)
    picks = _checks.chosen(params, where, fn=fn)
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        [
            jax.random.uniform(jax.random.fold_in(key, i), w.shape) if pick else None
            for i, (w, pick) in enumerate(zip(leaves, picks, strict=True))
        ]
    )
