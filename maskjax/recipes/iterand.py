"""IteRand: draw removed weights anew while the mask is learned (Chijiwa et al., 2021).

Pruning Randomly Initialized Neural Networks with Iterative Randomization, NeurIPS 2021,
arXiv:2106.09269. The weights under a learned mask are never trained. Those that the
mask removes do not affect the network's output, so they can be replaced at no cost, and
the scores get to choose among more weights than the network has.

Algorithm: every few hundred or thousand steps (with `lax.cond`, or between epochs)
  1. each weight that the mask removes is, with some probability, drawn anew
  2. scores, mask and optimizer go on unchanged
It combines with any recipe that learns a mask on random weights: `edge_popup`,
`supermask`, `meta_ticket`.

    >>> from maskjax.recipes import iterand
    >>> draw, weights = initializer.signed_constant(), {"w": jnp.zeros((2, 2))}
    >>> mask, key = {"w": jnp.array([[True, False], [False, True]])}, jax.random.key(0)
    >>> abs(iterand.redraw(draw, weights, mask, key=key)["w"])
    Array([[0., 1.],
           [1., 0.]], dtype=float32)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskjax import initializer, masking, packing, select
from maskjax._core import blame, checks, layout, trees
from maskjax._core.trees import (
    Array,
    Density,
    Mask,
    Params,
    Predicate,
    map_mask,
)
from maskjax.where import kernels

__all__ = ["redraw"]


def redraw(
    draw: initializer.Initializer,
    weights: Params,
    mask: Mask,
    *,
    probability: Density = 1.0,
    mix: Density = 1.0,
    where: Predicate = kernels,
    key: Array,
) -> Params:
    """The weights, with those that a mask removes drawn anew.

    Args:
        draw: An initializer, `(key, shape, dtype) -> array`, usually the one that the
            weights come from.
        weights: Tree of arrays. Leaves without a mask are passed through uncopied.
        mask: A mask of the weights, packed or not: True keeps. A leaf that is `None`
            leaves its weights as they are.
        probability: The probability that a removed weight is drawn anew, independently
            of the others. May be traced.
        mix: The share of the new weight, which becomes sqrt(1 - mix^2) old + mix new;
            that has the same variance. Below 1 this is the "asymptotic" way of
            Meta-ticket's code. May be traced.
        where: What the axes of the masked weights mean, as in `initializer.redraw`. It
            chooses none: weights with a mask are drawn.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree like `weights`. Weights that the mask keeps are unchanged, bit for bit.

    Raises:
        TypeError: If the mask is not boolean, a weight under it not floating, `draw`
            or `where` not a function, or the key not a typed key.
        ValueError: If the mask does not fit the weights or has no leaf; if the axes of
            a masked leaf are not known, unless `draw` is `initializer.elementwise`; if
            `draw` refuses a leaf's shape; or if `probability` or `mix` is outside
            [0, 1].

    Example:
        >>> weights = {"w": jnp.zeros((1, 3))}
        >>> mask = {"w": jnp.array([[True, False, True]])}
        >>> draw = lambda key, shape, dtype: jnp.full(shape, 5.0, dtype)
        >>> iterand.redraw(draw, weights, mask, mix=0.6, key=jax.random.key(0))
        {'w': Array([[0., 3., 0.]], dtype=float32)}
    """
    fn = "maskjax.recipes.iterand.redraw"
    checks.typed_key(key, fn=fn)
    checks.unit_interval(probability, fn=fn, name="probability")
    checks.unit_interval(mix, fn=fn, name="mix")
    checks.predicate(where, fn=fn)
    mask = checks.spread(weights, mask)
    checks.boolean(mask, fn=fn)
    checks.shaped_like(weights, mask, fn=fn, names=("weights", "mask"))
    masked = {path for path, leaf in trees.mask_leaves(mask)[0] if leaf is not None}
    if not masked:
        raise ValueError(f"`{fn}` needs `mask` with at least one leaf, got none.")
    masked_weights = map_mask(lambda _, w: w, mask, weights)
    checks.floating_scores(masked_weights, fn=fn, name="weights")
    kept = packing.unpack(mask)
    drawing, chance = jax.random.split(key)
    chosen = layout.Among(frozenset(masked), where)
    with blame.instead_of("maskjax.initializer.redraw", fn):
        new = initializer.redraw(draw, weights, where=chosen, key=drawing)

    def mixed(_: Array, old: Array, new: Array) -> Array:
        share = jnp.asarray(mix).astype(old.dtype)
        return jnp.sqrt(1 - share**2) * old + share * new

    fill = map_mask(mixed, kept, weights, new)  # 1.
    spare = 1.0 - jnp.asarray(probability, jnp.float32)
    spared = map_mask(lambda _, w: jnp.full(w.shape, spare), kept, weights)
    spared = select.bernoulli(spared, key=chance)
    kept = map_mask(jnp.logical_or, kept, spared)
    return masking.apply(weights, kept, fill)
