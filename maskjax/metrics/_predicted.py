"""Checks of predictions and labels, and counting that stays exact.

A check of values raises outside of `jit`. Under `jit` values are unknown, so each check
returns flags instead, False where it fails, and the metric is nan there.
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

from maskjax._core import checks, dtypes, placement
from maskjax._core.trees import Array
from maskjax.select._keys import order_key

# How far a sum of probabilities may be from 1: sqrt(eps), as in scikit-learn.
_SLACK = float(np.sqrt(np.finfo(np.float32).eps))

TWO_CLASSES = (
    "Of probabilities p of one of two classes, as `jax.nn.sigmoid` gives, take "
    "`jnp.stack([1 - p, p], axis=-1)`."
)


def floating(values: ArrayLike, name: str, *, fn: str) -> Array:
    """A floating array of at least 32 bits."""
    array = dtypes.as_array(values)
    checks.floating(array, fn=fn, name=name)
    return array.astype(dtypes.at_least_float32(array.dtype))


def require(fine: Array, complaint: Callable[[], str]) -> None:
    """Raise if a flag has a value, and it is False."""
    if not isinstance(fine, Tracer) and not fine:
        raise ValueError(complaint())


def valid(value: Array, ok: Array) -> Array:
    """The value, nan where a flag is False."""
    return jnp.where(ok, value, jnp.nan)


def outputs(values: ArrayLike, name: str, *, fn: str) -> Array:
    """A floating array [..., C] that is not empty."""
    array = floating(values, name, fn=fn)
    if not array.ndim or not array.size:
        raise ValueError(
            f"`{fn}` needs `{name}` of shape [..., C], not empty, got {array.shape}."
        )
    return array


def slack_of(values: ArrayLike) -> float:
    """How far a sum of probabilities may be from 1, by the format they come in."""
    return max(_SLACK, float(jnp.finfo(dtypes.as_array(values).dtype).eps) ** 0.5)


def probabilities(values: ArrayLike, *, fn: str) -> tuple[Array, Array]:
    """Probabilities [..., C] and flags [...]; nan may pass."""
    array = outputs(values, "probs", fn=fn)
    return array, are_probabilities(array, "probs", fn=fn, slack=slack_of(values))


def are_probabilities(
    array: Array, name: str, *, fn: str, slack: float, logs: bool = False
) -> Array:
    """Flags [...] of probabilities [..., C] or their logarithms; nan may pass."""
    ok, fine, sums, least = _sums(array, logs=logs, slack=slack)

    def complaint() -> str:
        at = np.unravel_index(int(jnp.argmin(ok)), ok.shape)
        what = "logarithms of probabilities" if logs else "probabilities"
        cure = f"Of logits take `jax.nn.{'log_' if logs else ''}softmax`."
        if not logs and 0 <= array.min() and array.max() <= 1:
            cure += f" {TWO_CLASSES}"
        return (
            f"`{fn}` needs `{name}` as {what}, at least 0 and with a sum of 1 over the "
            f"last axis, got a sum of {float(sums[at]):g} and a least of "
            f"{float(least[at]):g}. {cure}"
        )

    require(fine, complaint)
    return ok


@functools.partial(jax.jit, static_argnames=("logs", "slack"))
def _sums(array: Array, *, logs: bool, slack: float) -> tuple[Array, ...]:
    """Flags [...], whether all are True, and the sums and minima of probabilities."""
    plain = jnp.exp(array) if logs else array
    sums, least = plain.sum(-1), plain.min(-1)
    ok = ~((abs(sums - 1) > slack) | (least < 0))
    return ok, ok.all(), sums, least


def labels(
    given: ArrayLike, lead: tuple[int, ...], *, classes: int, fn: str
) -> tuple[Array, Array]:
    """Labels of shape `lead`, clipped to the classes, and flags.

    Labels may have only the last axes of `lead`; they are broadcast.
    """
    array = dtypes.as_array(given)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        soft = " Of soft labels take `jnp.argmax(labels, -1)`." * (array.ndim > 1)
        raise TypeError(
            f"`{fn}` needs `labels` as an integer array, got {checks.kind_of(array)}."
            f"{soft}"
        )
    _fit(array, lead, "labels", fn=fn)
    clipped, ok, fine = _clipped(array, lead, classes=classes)

    def complaint() -> str:
        return (
            f"`{fn}` needs `labels` in [0, {classes}), got labels from {array.min()} "
            f"to {array.max()}. To ignore samples, say which count: "
            "`where=labels >= 0`."
        )

    require(fine, complaint)
    return clipped, ok


@functools.partial(jax.jit, static_argnames=("lead", "classes"))
def _clipped(
    array: Array, lead: tuple[int, ...], *, classes: int
) -> tuple[Array, Array, Array]:
    """The nearest classes of shape `lead`, flags, and whether all are True."""
    if array.dtype.itemsize < 4:  # it may be too narrow for the number of classes
        array = array.astype(jnp.int32)
    array = jnp.broadcast_to(array, lead)
    clipped = jnp.clip(array, 0, classes - 1)
    ok = clipped == array
    return clipped.astype(jnp.int32), ok, ok.all()


def winner(outputs: Array) -> Array:
    """The class of the largest output, the first of equal ones."""
    return jnp.argmax(outputs, axis=-1).astype(jnp.int32)


def scores(values: ArrayLike, name: str, *, fn: str) -> Array:
    """A floating array [..., B] that is neither empty nor too large to count."""
    array = floating(values, name, fn=fn)
    if not array.ndim or not array.size:
        raise ValueError(
            f"`{fn}` needs `{name}` of shape [..., B], not empty, got {array.shape}."
        )
    countable(array.shape[-1], fn=fn)
    return array


def flags(given: ArrayLike, lead: tuple[int, ...], name: str, *, fn: str) -> Array:
    """Booleans broadcast to `lead`; they may have only its last axes."""
    array = dtypes.as_array(given)
    if not jnp.issubdtype(array.dtype, jnp.bool_):
        raise TypeError(
            f"`{fn}` needs `{name}` as a boolean array, got {checks.kind_of(array)}."
        )
    _fit(array, lead, name, fn=fn)
    return jnp.broadcast_to(array, lead)


def trailing(values: ArrayLike, lead: tuple[int, ...], name: str, *, fn: str) -> Array:
    """Floating numbers broadcast to `lead`; they may have only its last axes."""
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
    """Raise if integers can't count so many samples."""
    if size >= 2**31 - 1 and not dtypes.wide_integers():
        raise ValueError(
            f"`{fn}` needs 64-bit integers to count {size} samples. Set "
            "`jax_enable_x64`."
        )


def whole() -> Any:
    """The dtype to count in; float32 is exact only up to 2**24."""
    return jnp.dtype("int64" if dtypes.wide_integers() else "int32")


def count(flags: Array) -> Array:
    """How many flags are True along the last axis, exactly."""
    return jnp.sum(flags, axis=-1, dtype=whole())


def is_tiny(probs: Array) -> Array:
    """Flags of probabilities that are 0, or so small that CPUs take them for 0."""
    return probs < jnp.finfo(probs.dtype).tiny


def count_where(where: Array | None, size: int) -> Any:
    """How many of `size` samples count: `size` if there are no flags, else [...]."""
    return size if where is None else count(where)


def mean_where(values: Array, where: Array | None) -> Array:
    """The mean of the numbers that count along the last axis; nan if none does."""
    if where is None:
        return values.mean(-1)
    return jnp.where(where, values, 0).sum(-1) / count(where).astype(values.dtype)


def share(part: Array, whole: Any, ok: Array, dtype: Any) -> Array:
    """A count divided by another one, as in `ratio`; nan where a flag is False."""
    return valid(dtypes.ratio(part, whole, dtype), ok)


def keys(values: Array, where: Array | None, *, downwards: bool = False) -> Array:
    """Integers in the order of the values; those that do not count come last."""
    key = order_key(values, None)
    key = -key if downwards else key
    if where is None:
        return key
    return jnp.where(placement.gathered(where, -1), key, jnp.iinfo(key.dtype).max)


def ties(ordered: Array) -> tuple[Array, Array]:
    """The run of equal values that each of the sorted values [..., n] is in.

    Returns:
        The index where the run begins, and the index after its end, each [..., n].
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
    """Sums of all values before each index, from [..., n] to [..., n + 1]."""
    return jnp.cumulative_sum(values, axis=-1, dtype=dtype, include_initial=True)


def at(values: Array, index: Array) -> Array:
    """Values gathered along the last axis."""
    return jnp.take_along_axis(values, index, axis=-1)
