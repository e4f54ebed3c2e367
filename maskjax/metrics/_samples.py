"""Predictions of samples with their labels, checked, and samples that do not count."""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maskjax._core import checks, dtypes
from maskjax._core.trees import Array
from maskjax.metrics import _predicted

Kind = Literal["probs", "logs", "outputs"]


class Samples(NamedTuple):
    """Predictions of samples and their labels; ignored samples hold harmless ones."""

    outputs: Array  # [..., B, C]
    labels: Array  # [..., B], classes, or [..., B, C], probabilities of classes
    ok: Array  # [..., B]: predictions and labels are what they should be
    where: Array | None  # [..., B]: the samples that count; None: all of them

    @property
    def count(self) -> Any:
        """How many samples count: an integer, or [...]."""
        return _predicted.count_where(self.where, self.outputs.shape[-2])

    def mean(self, values: Array) -> Array:
        """The mean of numbers [..., B] of the samples that count."""
        return _predicted.mean_where(values, self.where)


def samples(
    outputs: ArrayLike,
    labels: ArrayLike,
    *,
    fn: str,
    kind: Kind = "probs",
    name: str = "probs",
    where: ArrayLike | None = None,
    soft: bool = False,
) -> Samples:
    """Check predictions and labels; `soft` lets labels be probabilities of classes."""
    array = _predicted.outputs(outputs, name, fn=fn)
    *lead, classes = array.shape
    lead = tuple(lead)
    if not lead:
        raise ValueError(
            f"`{fn}` needs `{name}` of shape [..., B, C], for samples and classes, got "
            f"{array.shape}. {_predicted.TWO_CLASSES}"
        )
    truth = dtypes.as_array(labels)
    soft = soft and truth.ndim > 1 and checks.is_floating(truth)
    counted = None
    if where is not None:
        counted = _predicted.flags(where, lead, "where", fn=fn)
        # An ignored sample can't raise, and reaches neither a result nor a gradient.
        equal = {"probs": 1 / classes, "logs": -math.log(classes), "outputs": 0.0}
        array = _replaced(array, counted, equal[kind], classes=True)
        truth = _replaced(truth, counted, 1 / classes if soft else 0, classes=soft)
    ok = True
    if kind != "outputs":
        slack = _predicted.slack_of(outputs)
        ok = _predicted.are_probabilities(
            array, name, fn=fn, slack=slack, logs=kind == "logs"
        )
    if soft:
        truth, known = _soft(truth, array.shape, fn=fn)
    else:
        truth, known = _predicted.labels(truth, lead, classes=classes, fn=fn)
    return Samples(array, truth, known & ok, counted)


def _soft(labels: Array, shape: tuple[int, ...], *, fn: str) -> tuple[Array, Array]:
    """Labels that are probabilities, broadcast to [..., B, C], and flags [..., B]."""
    if labels.shape != shape[-labels.ndim :]:
        raise ValueError(
            f"`{fn}` needs soft `labels` of shape {shape} or its last axes, got "
            f"{labels.shape}."
        )
    slack = _predicted.slack_of(labels)
    labels = labels.astype(dtypes.at_least_float32(labels.dtype))
    ok = _predicted.are_probabilities(labels, "labels", fn=fn, slack=slack)
    return jnp.broadcast_to(labels, shape), jnp.broadcast_to(ok, shape[:-1])


@functools.partial(jax.jit, static_argnames=("value", "classes"))
def _replaced(array: Array, where: Array, value: float, *, classes: bool) -> Array:
    """The array with a value in place of ignored samples.

    An array that fits only the last axes of the samples is broadcast to all of them.
    One that does not fit at all is left as it is: a check is to come.
    """
    shape = (*where.shape, array.shape[-1]) if classes else where.shape
    if not array.ndim or array.shape != shape[-array.ndim :]:
        return array
    if classes:
        where = where[..., None]
    return jnp.where(
        where, jnp.broadcast_to(array, shape), jnp.asarray(value, array.dtype)
    )
