"""A client's part of a round: where it starts, and what it sends."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logit

from maskjax import packing, select
from maskjax._core import checks, placement
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params, Scores, map_mask
from maskjax.recipes.fedpm._fingerprint import fingerprint
from maskjax.recipes.fedpm._state import FN, FedPMState, of_network, require_state

NO_ROUND = -1


@stored("maskjax.recipes.fedpm.Message")
class Message(NamedTuple):
    """What a client sends; a pytree. For K clients every array has a leading axis K.

    Attributes:
        mask: A packed mask, one bit a weight.
        round: int32, the round that it is for; -1, which is none, if a score was nan.
        network: [2], uint32, a fingerprint of the client's weights.
    """

    mask: Mask
    round: Array
    network: Array


def scores(state: FedPMState) -> Scores:
    """Where a client's training starts: the logits of the probabilities.

    Inside `jax.shard_map` make them each device's own, because JAX sums gradients by
    what all devices share: `jax.lax.pcast(scores, "clients", to="varying")`.

    Args:
        state: The server.

    Returns:
        A tree of scores, float32 or float64, `None` for leaves without a mask. In the
        first round all are 0, as `supermask.init` has them.

    Raises:
        TypeError: If `state` is not a `FedPMState`.

    Example:
        >>> fedpm.scores(fedpm.init({"w": jnp.ones((1, 2))}))
        {'w': Array([[0., 0.]], dtype=float32)}
    """
    require_state(state, fn=FN + "scores")

    def start(p: Array) -> Array:
        # SciPy's logit is a program of its own, in which a constant follows nothing.
        return placement.follow(logit(p), p)

    return map_mask(start, state.probabilities)  # 2.


def message(
    state: FedPMState, weights: Params, scores: Scores, *, key: Array
) -> Message:
    """What a client sends after training: one sample of its mask, a bit a weight.

    Inside `jax.shard_map`, every device needs the whole of its client's weights.

    Args:
        state: The server, as it was when the round began.
        weights: The client's random weights. Their fingerprint is sent along, so that
            the server notices a client that drew others.
        scores: The client's scores after training.
        key: A typed key, another one for each client and round.

    Returns:
        The message, in arrays of its own. A score that is nan would be a vote against
            its weight. Where scores are traced, such a message is of no round, so that
            `aggregate` refuses it.

    Raises:
        TypeError: If `state` is not a `FedPMState`, a leaf of `scores` or a weight with
            a mask is not floating, or the key is not a typed key.
        ValueError: If the weights or scores do not fit the state, or a score is known
            to be nan.

    Example:
        >>> weights = {"w": jnp.ones((1, 3))}
        >>> state, scores = fedpm.init(weights), {"w": jnp.array([[99.0, -99.0, 99.0]])}
        >>> sent = fedpm.message(state, weights, scores, key=jax.random.key(0))
        >>> packing.unpack(sent.mask)
        {'w': Array([[ True, False,  True]], dtype=bool)}

    References:
        Isik, Pase et al., arXiv:2209.15328.
    """
    fn = FN + "message"
    require_state(state, fn=fn)
    checks.typed_key(key, fn=fn)
    checks.floating_scores(scores, fn=fn)
    names = "state", "scores"
    checks.same_shapes(state.probabilities, scores, fn=fn, names=names)
    chosen = of_network(state, weights, fn=fn)
    given = {"state": state, "weights": chosen, "scores": scores, "key": key}
    checks.together(fn=fn, **given)
    checks.no_nan(scores, fn=fn, name="scores")
    return _message(state.round, chosen, scores, key)


@jax.jit
def _message(turn: Array, weights: Params, scores: Scores, key: Array) -> Message:
    mask = select.bernoulli(map_mask(jax.nn.sigmoid, scores), key=key)  # 4.
    lost = [jnp.any(jnp.isnan(s)) for s in jax.tree.leaves(scores)]
    turn = jnp.where(jnp.any(jnp.stack(lost)), NO_ROUND, turn)
    return Message(packing.pack(mask), turn, fingerprint(weights))
