"""What the server knows between two rounds."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maskjax import select
from maskjax._core import checks, dtypes, placement
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params, Predicate, Scores, map_mask
from maskjax.recipes.fedpm._fingerprint import fingerprint
from maskjax.where import kernels

FN = "maskjax.recipes.fedpm."


@stored("maskjax.recipes.fedpm.FedPMState")
class FedPMState(NamedTuple):
    """What the server knows between two rounds; a pytree of fixed shapes.

    Of this a client needs `probabilities` and `round`.

    Attributes:
        probabilities: How likely each weight is kept, float32 or float64; `None` for
            leaves without a mask.
        kept: int32, how many masks since the last reset keep each weight.
        received: int32, how many masks these are.
        round: int32, how many rounds are over.
        refused: int32, how many messages were dropped under `jit` because they were of
            another round or another network, or made of scores with nan.
        network: [2], uint32, a fingerprint of the weights.
    """

    probabilities: Scores
    kept: Any
    received: Array
    round: Array
    refused: Array
    network: Array


def init(weights: Params, *, where: Predicate = kernels) -> FedPMState:
    """The server before the first round: each weight is kept with probability 1/2.

    Args:
        weights: Tree of arrays, the random weights that all clients have.
        where: Which leaves carry a mask. The others are not sent.

    Returns:
        The state, in arrays of its own, sharded as the weights are.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If `where` chooses nothing.

    Example:
        >>> state = fedpm.init({"w": jnp.ones((1, 2)), "b": jnp.ones(2)})
        >>> state.probabilities
        {'b': None, 'w': Array([[0.5, 0.5]], dtype=float32)}
    """
    chosen = checks.chosen_leaves(weights, where, fn=FN + "init")
    checks.together(fn=FN + "init", weights=chosen)

    def half(w: Array) -> Array:  # 1.
        dtype = dtypes.at_least_float32(w.dtype)
        return placement.made(jnp.full, w, static=(tuple(w.shape), 0.5, dtype))

    def none(w: Array) -> Array:
        return placement.zeros(w.shape, jnp.int32, w)

    return FedPMState(
        map_mask(half, chosen),
        map_mask(none, chosen),
        received=jnp.int32(0),
        round=jnp.int32(0),
        refused=jnp.int32(0),
        network=fingerprint(chosen),
    )


def mask(state: FedPMState, *, key: Array | None) -> Mask:
    """A mask to use the network with: a sample, or the rounded probabilities.

    The authors test a few samples, and average their accuracies. The probabilities
    themselves are a soft mask: `maskjax.apply(weights, state.probabilities)` is the
    mean network.

    Args:
        state: The server.
        key: A typed key, for a sample; `None` for the rounded mask, which keeps
            probabilities of one half or more.

    Returns:
        A mask: True keeps.

    Raises:
        TypeError: If `state` is not a `FedPMState`, or the key is not a typed key.

    Example:
        >>> state = fedpm.init({"w": jnp.ones((1, 2))})
        >>> fedpm.mask(state, key=None)
        {'w': Array([[ True,  True]], dtype=bool)}
    """
    fn = FN + "mask"
    require_state(state, fn=fn)
    if key is None:  # 7.
        return select.threshold(state.probabilities, at=0.5)
    checks.typed_key(key, fn=fn)
    return select.bernoulli(state.probabilities, key=key)


def require_state(state: Any, *, fn: str) -> None:
    """Raise if something is not the server's state."""
    if not isinstance(state, FedPMState):
        raise TypeError(
            f"`{fn}` needs `state` as a `FedPMState`, got {type(state).__name__}. "
            "`fedpm.init` makes the first."
        )
    if jnp.ndim(state.round):
        raise ValueError(
            f"`{fn}` needs a single state, got a stack of {jnp.shape(state.round)}. "
            f"{checks.BY_VMAP}"
        )


def of_network(state: FedPMState, weights: Params, *, fn: str) -> Params:
    """The weights that carry a mask; raise if they do not fit the state."""
    names = "weights", "state"
    pairs = checks.shaped_like(weights, state.probabilities, fn=fn, names=names)

    def differs(w: Any, p: Any) -> str | None:
        if p is None or p.shape == w.shape:
            return None
        return f"weights {w.shape}, state {p.shape}"

    needs = f"`{fn}` needs `weights` of the shapes in `state`"
    checks.every(differs, pairs, weights, needs)
    checks.floating_where_masked(pairs, weights, fn=fn, name="weights")
    leaves = [None if p is None else jnp.asarray(w) for w, p in pairs]
    return jax.tree.structure(weights).unflatten(leaves)
