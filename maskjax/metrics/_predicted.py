"""Predictions and the truth about them: checked, also as far as their values are known.

Values are read if they are not traced. Traced ones can't be complained about: each
check then gives a flag, False where it fails, and the metric is nan there.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from maskjax._core import checks, dtypes
from maskjax._core.trees import Array

# What rounding may do to a sum of probabilities, as in scikit-learn: sqrt(eps).
_SLACK = float(np.sqrt(np.finfo(np.float32).eps))


def floating(values: ArrayLike, name: str, *, fn: str) -> Array:
    """A floating array of at least 32 bits."""
    array = jnp.asarray(values)
    checks.floating(array, fn=fn, name=name)
    return array.astype(dtypes.at_least_float32(array.dtype))


def settled(ok: Array, complaint: Callable[[], str]) -> Array:
    """The flags, or an error if they are known and one is False."""
    if not isinstance(ok, Tracer) and not ok.all():
        raise ValueError(complaint())
    return ok


def valid(value: Array, ok: Array) -> Array:
    """The value, nan where a check has failed."""
    return jnp.where(ok, value, jnp.nan)


def outputs(values: ArrayLike, name: str, *, fn: str) -> Array:
    """A floating array [..., C] with something in it."""
    array = floating(values, name, fn=fn)
    if not array.ndim or not array.size:
        raise ValueError(
            f"`{fn}` needs `{name}` of shape [..., C], not empty, got {array.shape}."
        )
    return array


def probabilities(
    values: ArrayLike, *, fn: str, logs: bool = False
) -> tuple[Array, Array]:
    """Probabilities [..., C] or their logarithms, and flags [...]; nan is let pass."""
    array = outputs(values, "probs", fn=fn)
    slack = max(_SLACK, float(jnp.finfo(jnp.asarray(values).dtype).eps) ** 0.5)
    ok, sums, least = _sums(array, logs=logs, slack=slack)

    def complaint() -> str:
        at = np.unravel_index(int(jnp.argmin(ok)), ok.shape)
        what = "logarithms of probabilities" if logs else "probabilities"
        cure = "`jax.nn.log_softmax`" if logs else "`jax.nn.softmax`"
        return (
            f"`{fn}` needs `probs` as {what}, at least 0 and with a sum of 1 over the "
            f"last axis, got a sum of {float(sums[at]):g} and a least of "
            f"{float(least[at]):g}. Of logits take {cure}."
        )

    return array, settled(ok, complaint)


@functools.partial(jax.jit, static_argnames=("logs", "slack"))
def _sums(array: Array, *, logs: bool, slack: float) -> tuple[Array, Array, Array]:
    """Whether they are probabilities; their sum, and the least, [...]."""
    plain = jnp.exp(array) if logs else array
    sums, least = plain.sum(-1), plain.min(-1)
    return ~((abs(sums - 1) > slack) | (least < 0)), sums, least


def labels(
    given: ArrayLike, lead: tuple[int, ...], *, classes: int, fn: str
) -> tuple[Array, Array]:
    """Labels of shape `lead`, clipped, and flags; they may have been of its end."""
    array = jnp.asarray(given)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"`{fn}` needs `labels` as an integer array, got {checks.kind_of(array)}."
        )
    _fit(array, lead, "labels", fn=fn)
    clipped, ok = _clipped(array, lead, classes=classes)

    def complaint() -> str:
        return (
            f"`{fn}` needs `labels` in [0, {classes}), got labels from {array.min()} "
            f"to {array.max()}."
        )

    return clipped, settled(ok, complaint)


@functools.partial(jax.jit, static_argnames=("lead", "classes"))
def _clipped(
    array: Array, lead: tuple[int, ...], *, classes: int
) -> tuple[Array, Array]:
    """Labels of shape `lead` as the nearest classes, and whether they are these."""
    if array.dtype.itemsize < 4:  # which may not reach as far as the classes
        array = array.astype(jnp.int32)
    array = jnp.broadcast_to(array, lead)
    clipped = jnp.clip(array, 0, classes - 1)
    return clipped.astype(jnp.int32), clipped == array


def winner(outputs: Array) -> Array:
    """The class of the largest output, of equal ones the first."""
    return jnp.argmax(outputs, axis=-1).astype(jnp.int32)


def scores(values: ArrayLike, name: str, *, fn: str) -> Array:
    """Floating [..., B] with something in it, and not more than can be counted."""
    array = floating(values, name, fn=fn)
    if not array.ndim or not array.size:
        raise ValueError(
            f"`{fn}` needs `{name}` of shape [..., B], not empty, got {array.shape}."
        )
    countable(array.shape[-1], fn=fn)
    return array


def flags(given: ArrayLike, lead: tuple[int, ...], name: str, *, fn: str) -> Array:
    """Booleans of shape `lead`, or of its end."""
    array = jnp.asarray(given)
    if not jnp.issubdtype(array.dtype, jnp.bool_):
        raise TypeError(
            f"`{fn}` needs `{name}` as a boolean array, got {checks.kind_of(array)}."
        )
    _fit(array, lead, name, fn=fn)
    return jnp.broadcast_to(array, lead)


def trailing(values: ArrayLike, lead: tuple[int, ...], name: str, *, fn: str) -> Array:
    """Floating numbers of shape `lead`, or of its end."""
    array = floating(values, name, fn=fn)
    _fit(array, lead, name, fn=fn)
    return jnp.broadcast_to(array, lead)


def _fit(array: Array, lead: tuple[int, ...], name: str, *, fn: str) -> None:
    if not array.ndim or array.shape != lead[-array.ndim :]:
        raise ValueError(
            f"`{fn}` needs `{name}` with one entry for each sample, of shape {lead} or "
            f"its last axes, got {array.shape}."
        )
    countable(lead[-1], fn=fn)


def countable(size: int, *, fn: str) -> None:
    """Whether integers reach as far as the number of samples."""
    if size >= 2**31 - 1 and not dtypes.wide_integers():
        raise ValueError(
            f"`{fn}` needs 64-bit integers to count {size} samples. Set "
            "`jax_enable_x64`."
        )


def whole() -> Any:
    """The dtype to count in: float32 would stop at 2**24."""
    return jnp.dtype("int64" if dtypes.wide_integers() else "int32")


def count(flags: Array) -> Array:
    """How many are True along the last axis, exactly."""
    return jnp.sum(flags, axis=-1, dtype=whole())


def share(flags: Array, dtype: Any) -> Array:
    """The fraction that is True along the last axis: an exact count, divided."""
    return count(flags).astype(dtype) / flags.shape[-1]


def ties(ordered: Array) -> tuple[Array, Array]:
    """Of values in order [..., n], the run of equal ones that each is in.

    Returns:
        Where it begins, and ends (the index after the last), each [..., n].
    """
    size = ordered.shape[-1]
    edge = jnp.ones((*ordered.shape[:-1], 1), bool)
    new = ordered[..., 1:] != ordered[..., :-1]
    at = jnp.broadcast_to(jnp.arange(size, dtype=whole()), ordered.shape)
    begin = jnp.where(jnp.concatenate([edge, new], -1), at, 0)
    end = jnp.where(jnp.concatenate([new, edge], -1), at + 1, size)
    axis = ordered.ndim - 1
    return lax.cummax(begin, axis=axis), lax.cummin(end, axis=axis, reverse=True)


def before(values: Array, dtype: Any) -> Array:
    """Sums of all that come before each index, [..., n + 1] of [..., n]."""
    sums = jnp.cumsum(values, axis=-1, dtype=dtype)
    return jnp.concatenate([jnp.zeros((*values.shape[:-1], 1), dtype), sums], -1)


def at(values: Array, index: Array) -> Array:
    """The values at an index of the last axis, for each."""
    return jnp.take_along_axis(values, index, axis=-1)
