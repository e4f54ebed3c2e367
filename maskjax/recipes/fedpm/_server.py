"""The server's part of a round: from messages to new probabilities."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from maskjax import stacking
from maskjax._core import checks, dtypes, placement
from maskjax._core.trees import Array, map_mask
from maskjax.recipes.fedpm._client import NO_ROUND, Message
from maskjax.recipes.fedpm._state import FN, FedPMState, require_state


def aggregate(
    state: FedPMState,
    messages: Message,
    *,
    participates: Array | None = None,
    prior: float = 1.0,
    reset_every: ArrayLike = 1,
    least: float = 0.01,
) -> FedPMState:
    """The server after a round: the mode of a Beta posterior for each weight.

    Masks are counted as `stacking.counts` does: packed masks are not unpacked, and on
    several devices bits travel, unless there are many clients.

    Args:
        state: The server, as it was when the round began.
        messages: A stack of K messages, as `jax.vmap` or `jax.shard_map` over clients
            gives it; `stacking.stack(messages)` makes one from a list.
        participates: [K], boolean, may be traced: whose masks count. Others are ignored
            whatever they hold. `None`: all.
        prior: Both parameters of the Beta prior, at least 1. 1 is the uniform one:
            probabilities are the means of the masks. Higher ones pull towards 1/2.
        reset_every: After so many rounds the prior is reset, and old masks no longer
            count. The first round resets too. A whole number, which may be traced; 1 in
            the authors' code. Where few clients take part in a round, a higher number
            lets masks of several rounds count.
        least: Probabilities are clipped to [least, 1 - least], in (0, 0.5) and not
            rounded to 0 or 1.

    Returns:
        The state, in arrays of its own. If no mask counts, the probabilities stay as
        they are; the round is over all the same.

    Raises:
        TypeError: If `state` or `messages` is of another type, a leaf is not a mask,
            `participates` is not boolean, or an option is not a number.
        ValueError: If the masks do not fit, the messages disagree about K, an option is
            out of range, or it is known that a message is of another round or another
            network, or was made of scores with nan. Under `jit` such messages are
            dropped, and counted in `refused`.

    Example:
        >>> weights, key = {"w": jnp.ones((1, 2))}, jax.random.key(0)
        >>> state, scores = fedpm.init(weights), {"w": jnp.array([[99.0, -99.0]])}
        >>> sent = fedpm.message(state, weights, scores, key=key)
        >>> state = fedpm.aggregate(state, stacking.stack([sent, sent]))
        >>> state.probabilities, state.received
        ({'w': Array([[0.99, 0.01]], dtype=float32)}, Array(2, dtype=int32))

    References:
        Isik, Pase et al., arXiv:2209.15328: Bayesian aggregation.
    """
    fn = FN + "aggregate"
    require_state(state, fn=fn)
    _check_messages(state, messages, fn=fn)
    if participates is not None:
        size = len(messages.round)
        checks.flags(participates, size, fn=fn, name="participates")
    _check_options(state, prior, least, fn=fn)
    checks.at_least(reset_every, 1, fn=fn, name="reset_every", traceable=True)
    given = {"state": state, "messages": messages, "participates": participates}
    checks.together(fn=fn, **given)
    _refuse(state, messages, participates, fn=fn)
    how = {"prior": float(prior), "least": float(least)}
    return _aggregated(state, messages, participates, reset_every, **how)


def _check_messages(state: FedPMState, messages: Any, *, fn: str) -> None:
    if not isinstance(messages, Message):
        raise TypeError(
            f"`{fn}` needs `messages` as a stack in one `Message`, got "
            f"{type(messages).__name__}. `stacking.stack` makes one from a list."
        )
    if not jnp.ndim(messages.round):
        raise ValueError(
            f"`{fn}` needs a stack of messages, got one. `stacking.stack([message])` "
            "is a stack of one."
        )
    size = checks.packed_stack(messages.mask, fn=fn)
    names = "state", "messages"
    checks.same_shapes(state.kept, messages.mask, fn=fn, names=names)
    checks.of_shape(messages.round, (size,), fn=fn, name="messages.round")
    checks.of_shape(messages.network, (size, 2), fn=fn, name="messages.network")


def _check_options(state: FedPMState, prior: Any, least: Any, *, fn: str) -> None:
    for name, value in {"prior": prior, "least": least}.items():
        if not checks.is_number(value):
            kind = checks.kind_of(value)
            raise TypeError(f"`{fn}` needs `{name}` as a Python number, got {kind}.")
    if not 1 <= prior < float("inf"):
        raise ValueError(f"`{fn}` needs `prior` of at least 1, finite, got {prior}.")
    if not 0 < least < 0.5:
        raise ValueError(f"`{fn}` needs `least` in (0, 0.5), got {least}.")
    for p in jax.tree.leaves(state.probabilities):
        if not 0 < p.dtype.type(least) < p.dtype.type(1 - least) < 1:
            raise ValueError(
                f"`{fn}` needs a higher `least`, got {least}: {p.dtype} rounds it to "
                f"0, or 1 - {least} to 1, and scores of those are infinite."
            )


def _refuse(
    state: FedPMState, messages: Message, participates: Any, *, fn: str
) -> None:
    """Raise if it is known that a message is of another round or network."""
    told = state.round, state.network, messages.round, messages.network, participates
    if not all(map(checks.is_readable, told)):
        return
    turn, network, turns, networks, some = jax.device_get(told)

    def why(k: int) -> str | None:
        if some is not None and not some[k]:
            return None
        if turns[k] == NO_ROUND:
            return f"client {k}: its scores were nan"
        if turns[k] != turn:
            return f"client {k}: round {turns[k]}, not {turn}"
        return f"client {k}: other weights" if np.any(networks[k] != network) else None

    needs = f"`{fn}` needs messages of this round and network"
    checks.raise_all(map(why, range(len(turns))), needs)


@functools.partial(jax.jit, static_argnames=("prior", "least"))
def _aggregated(
    state: FedPMState,
    messages: Message,
    participates: Array | None,
    reset_every: Array,
    *,
    prior: float,
    least: float,
) -> FedPMState:
    same = jnp.all(messages.network == state.network[None], axis=-1)
    fits = (messages.round == state.round) & same
    given = jnp.ones_like(fits) if participates is None else participates
    new = stacking.counts(messages.mask, fits & given)
    fresh = state.round % reset_every == 0  # 5.
    received = jnp.sum(fits & given, dtype=jnp.int32)
    received += jnp.where(fresh, 0, state.received)

    def total(old: Array, new: Array) -> Array:
        return jnp.where(fresh, 0, old) + placement.alike(new, old)

    def mode(p: Array, kept: Array) -> Array:  # 6.
        whole = received.astype(p.dtype) + 2 * (prior - 1)
        share = dtypes.ratio(kept.astype(p.dtype) + (prior - 1), whole, p.dtype)
        return jnp.where(received > 0, jnp.clip(share, least, 1 - least), p)

    kept = map_mask(total, state.kept, new)
    dropped = jnp.sum(given & ~fits, dtype=jnp.int32)
    return FedPMState(
        map_mask(mode, state.probabilities, kept),
        kept,
        received,
        state.round + 1,
        state.refused + dropped,
        jnp.copy(state.network),
    )
