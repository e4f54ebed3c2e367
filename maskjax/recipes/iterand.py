"""IteRand: draw removed weights anew while the mask is learned (Chijiwa et al., 2021).

Pruning Randomly Initialized Neural Networks with Iterative Randomization, NeurIPS 2021,
arXiv:2106.09269. The weights below a mask are never trained, but those that it removes
can be replaced at no cost: nothing that the network says depends on them. So scores get
to choose among more weights than there are.

Algorithm: every so many steps (in the paper some hundreds or thousands, `lax.cond`)
  1. each weight that the mask removes is, with some probability, drawn anew
  2. everything else goes on: scores, mask, optimizer
It goes with any recipe that learns a mask on random weights: edge_popup, meta_ticket.

    >>> from maskjax.recipes import iterand
    >>> weights, draw = {"w": jnp.zeros((2, 2))}, initializer.signed_constant()
    >>> mask, key = {"w": jnp.array([[True, False], [False, True]])}, jax.random.key(0)
    >>> abs(iterand.redraw(weights, mask, draw, key=key)["w"])
    Array([[0., 1.],
           [1., 0.]], dtype=float32)
"""

import jax
import jax.numpy as jnp

from maskjax import initializer, masking, packing, select
from maskjax._core import checks
from maskjax._core.trees import Array, Density, Mask, Params, map_mask

__all__ = ["redraw"]


def redraw(
    weights: Params,
    mask: Mask,
    draw: initializer.Initializer,
    *,
    probability: Density = 1.0,
    mix: Density = 1.0,
    key: Array,
) -> Params:
    """The weights, drawn anew where a mask removes them.

    Args:
        weights: Tree of arrays.
        mask: A mask of the weights' shapes: True keeps, `None` leaves all as they are.
        draw: `(key, shape, dtype) -> array`, as the weights were drawn at first.
        probability: With which a removed weight is drawn anew, each on its own.
        mix: It then becomes sqrt(1 - mix^2) old + mix new, which has the variance of
            either. Below 1 this is the "asymptotic" way of Meta-ticket's code.
        key: A typed key; every leaf gets its own.

    Returns:
        A tree like `weights`; under the mask, the same network to the bit.

    Raises:
        TypeError: If the mask is not boolean, a weight under it not floating, or the
            key not typed.
        ValueError: If the mask does not fit the weights or has no leaf, or if
            `probability` or `mix` is outside [0, 1].

    Example:
        >>> weights = {"w": jnp.zeros((1, 3))}
        >>> mask = {"w": jnp.array([[True, False, True]])}
        >>> draw = lambda key, shape, dtype: jnp.full(shape, 5.0, dtype)
        >>> iterand.redraw(weights, mask, draw, mix=0.6, key=jax.random.key(0))
        {'w': Array([[0., 3., 0.]], dtype=float32)}
    """
    fn = "maskjax.recipes.iterand.redraw"
    checks.typed_key(key, fn=fn)
    checks.unit_interval(probability, fn=fn, name="probability")
    checks.unit_interval(mix, fn=fn, name="mix")
    checks.boolean(mask, fn=fn)
    pairs = checks.mask_of(mask, weights, fn=fn, names=("weights", "mask"))
    masked = {path for path, _, leaf in pairs if leaf is not None}
    if not masked:
        raise ValueError(f"`{fn}` needs `mask` with at least one leaf, got none.")
    masked_weights = map_mask(lambda _, w: w, mask, weights)
    checks.floating_scores(masked_weights, fn=fn, name="weights")
    kept = packing.unpack(mask)
    drawing, chance = jax.random.split(key)
    chosen = lambda path, _: path in masked  # noqa: E731
    new = initializer.redraw(weights, draw, where=chosen, key=drawing)

    def mixed(_: Array, old: Array, new: Array) -> Array:
        share = jnp.asarray(mix).astype(old.dtype)
        return jnp.sqrt(1 - share**2) * old + share * new

    fill = map_mask(mixed, kept, weights, new)  # 1.
    spare = 1.0 - jnp.asarray(probability, jnp.float32)
    spared = map_mask(lambda _, w: jnp.full(w.shape, spare), kept, weights)
    spared = select.bernoulli(spared, key=chance)
    kept = map_mask(jnp.logical_or, kept, spared)
    return masking.apply(weights, kept, fill)
