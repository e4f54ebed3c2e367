"""Calibration: whether predictions are right as often as their probabilities say."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from maskjax._core import checks, placement
from maskjax._core.stored import stored
from maskjax._core.trees import Array
from maskjax.metrics import _predicted
from maskjax.metrics._samples import Samples, samples

Binning = Literal["equal-width", "equal-mass"]
Of = Literal["top-label", "class-wise"]


@stored("maskjax.metrics.Reliability")
class Reliability(NamedTuple):
    """Samples in bins by their confidence, for a reliability diagram; a pytree.

    Attributes:
        count: [..., bins], integers: the number of samples in each bin.
        confidence: [..., bins]: their mean probability; nan in an empty bin.
        accuracy: [..., bins]: the fraction that is right; nan in an empty bin.
    """

    count: Array
    confidence: Array
    accuracy: Array


def reliability(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = 15,
    binning: Binning = "equal-width",
    of: Of = "top-label",
    where: ArrayLike | None = None,
) -> Reliability:
    """Confidence and accuracy of predictions, in bins of similar confidence.

    Bins of several batches are put together by `pooled`. Pixels are samples, too: take
    `probs.reshape(-1, C)` and `labels.ravel()`.

    Args:
        probs: [..., B, C], probabilities.
        labels: [B] or [..., B], integers in [0, C).
        bins: The number of bins.
        binning: `"equal-width"`: bin i holds probabilities in (i / bins,
            (i + 1) / bins]; 0 is in the first bin. `"equal-mass"`: bins of equal size
            as far as ties allow; tied samples share a bin. (A sample that is greater
            than k of the B samples is in bin floor(k * bins / B).)
        of: `"top-label"`: bin the largest probability of each sample (the first of
            equal ones); it is right if its class is the label. `"class-wise"`: bin the
            probabilities of each class apart; one is right if its class is the label.
        where: [B] or [..., B], booleans: the samples that count. `None`: all. What is
            ignored may be anything, such as labels of -100 or predictions of nan.

    Returns:
        Arrays [..., bins], or [..., C, bins] class-wise. Counts are exact. Confidence
        and accuracy are nan where a probability is nan or, under `jit`, where one is
        no probability or a label is outside the classes.

    Raises:
        TypeError: If the probabilities are not floating, the labels not integers, or
            `bins` is no whole number.
        ValueError: If there are no samples, the shapes do not fit, an option is not
            one of those above, or, outside of `jit`, values are no probabilities or
            labels are outside the classes.

    Example:
        >>> probs = jnp.array([[0.75, 0.25], [0.875, 0.125], [0.5, 0.5]])
        >>> bins = metrics.reliability(probs, jnp.array([0, 1, 0]), bins=2)
        >>> print(bins.count, bins.confidence[1], bins.accuracy[1])
        [1 2] 0.8125 0.5

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
        arXiv:1706.04599, section 2.
    """
    fn = "maskjax.metrics.reliability"
    binned = _binned(probs, labels, bins, binning, of, where, fn=fn)
    count, sums, right, ok = binned
    some = jnp.maximum(count, 1).astype(sums.dtype)
    ok = (count > 0) & ok[..., None]
    confidence, accuracy = sums / some, right.astype(sums.dtype) / some
    return Reliability(
        count, _predicted.valid(confidence, ok), _predicted.valid(accuracy, ok)
    )


def expected_calibration_error(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = 15,
    binning: Binning = "equal-width",
    of: Of = "top-label",
    where: ArrayLike | None = None,
) -> Array:
    """The mean difference between confidence and accuracy (ECE).

    It is the mean, over samples, of |accuracy - confidence| of the sample's bin.
    Class-wise, it is the mean of this over classes. The mean over batches would be too
    large, because an accuracy of few samples is far from their confidence by chance:
    see `pooled`.

    Args:
        probs: [..., B, C], probabilities.
        labels: [B] or [..., B], integers in [0, C).
        bins: The number of bins.
        binning: `"equal-width"` or `"equal-mass"`, as in `reliability`.
        of: `"top-label"` or `"class-wise"`, as in `reliability`.
        where: [B] or [..., B], booleans: the samples that count. `None`: all. What is
            ignored may be anything, such as labels of -100 or predictions of nan.

    Returns:
        [...], float32, from 0 to 1. nan if no sample counts, where a probability is nan
        or, under `jit`, where one is no probability or a label is outside the classes.

    Raises:
        TypeError: If the probabilities are not floating, the labels not integers, or
            `bins` is no whole number.
        ValueError: If there are no samples, the shapes do not fit, an option is not
            one of those above, or, outside of `jit`, values are no probabilities or
            labels are outside the classes.

    Example:
        >>> probs = jnp.array([[0.75, 0.25], [0.875, 0.125], [0.5, 0.5]])
        >>> print(metrics.expected_calibration_error(probs, jnp.array([0, 1, 0])))
        0.5416...

    References:
        Guo et al., arXiv:1706.04599, section 2 (equal width, top label); Nixon et al.,
        "Measuring Calibration in Deep Learning", 2019. arXiv:1904.01685, section 4
        (equal mass, class-wise).
    """
    fn = "maskjax.metrics.expected_calibration_error"
    count, sums, right, ok = _binned(probs, labels, bins, binning, of, where, fn=fn)
    apart = abs(right.astype(sums.dtype) - sums).sum(-1)
    error = _predicted.valid(apart / count.sum(-1).astype(sums.dtype), ok)
    return error.mean(-1) if of == "class-wise" else error


def pooled(bins: Reliability) -> Reliability:
    """Bins of several batches, or groups of samples, as those of all samples together.

    Args:
        bins: Arrays [N, ..., bins], from `reliability`: of N batches, with bins of
            equal width. (Those of equal mass end at other places in each batch.)

    Returns:
        Arrays [..., bins]. A bin is nan if it is empty in all batches, or nan in one
        that has samples there.

    Raises:
        TypeError: If `bins` is not a `Reliability`.
        ValueError: If there is no axis of batches, or no batch.

    Example:
        >>> probs = jnp.array([[[0.75, 0.25]], [[0.75, 0.25]]])  # two batches of one
        >>> labels = jnp.array([[0], [1]])
        >>> bins = metrics.reliability(probs, labels, bins=2)
        >>> print(metrics.pooled(bins).accuracy)
        [nan 0.5]
        >>> print(metrics.calibration_error(metrics.pooled(bins)))
        0.25
        >>> print(metrics.calibration_error(bins).mean())  # too large
        0.5
    """
    fn = "maskjax.metrics.pooled"
    _are_bins(bins, 2, "[N, ..., bins]", fn=fn)
    return _pooled(bins)


def calibration_error(bins: Reliability) -> Array:
    """The mean difference between confidence and accuracy of samples in bins (ECE).

    Of one batch `expected_calibration_error` is the same.

    Args:
        bins: Arrays [..., bins], from `reliability` or `pooled`.

    Returns:
        [...], float32, from 0 to 1: one for each class if the bins are class-wise. nan
        if there are no samples, or a bin that has samples is nan.

    Raises:
        TypeError: If `bins` is not a `Reliability`.
        ValueError: If there are no bins.

    Example:
        >>> probs = jnp.array([[0.75, 0.25], [0.875, 0.125], [0.5, 0.5]])
        >>> bins = metrics.reliability(probs, jnp.array([0, 1, 0]))
        >>> print(metrics.calibration_error(bins))
        0.5416...
    """
    _are_bins(bins, 1, "[..., bins]", fn="maskjax.metrics.calibration_error")
    return _calibration_error(bins)


def temperature(
    logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
    """The temperature T for which softmax(logits / T) fits the labels best.

    The negative log-likelihood of softmax(b * logits) is convex in b = 1 / T. Its slope
    is the mean expected logit minus the mean logit of the labels. The root of the slope
    is found by bisection to the last bit, so that any data take the same number of
    steps and no starting point or learning rate is needed.

    Fit it to data that the network was not trained on. For an ensemble, pass the
    logarithms of its mean probabilities as logits.

    Args:
        logits: [..., B, C], floating; -inf for classes that are impossible.
        labels: [B] or [..., B], integers in [0, C).
        where: [B] or [..., B], booleans: the samples that count. `None`: all. What is
            ignored may be anything, such as labels of -100 or predictions of nan.

    Returns:
        [...], float32. 2**-64 (the lower limit) if the loss keeps falling as T goes to
        0, as when no sample is wrong; inf if uniform predictions are best; 1 if every
        T gives the same loss, as where no sample counts. nan where a logit is nan or
        +inf, the logit of a label is -inf, or, under `jit`, a label is outside the
        classes. Its gradient is 0.

    Raises:
        TypeError: If the logits are not floating, or the labels not integers.
        ValueError: If there are no samples, the shapes do not fit, or, outside of
            `jit`, a label is outside the classes.

    Example:
        >>> logits = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0]])
        >>> t = metrics.temperature(logits, jnp.array([0, 1, 0]))
        >>> print(jax.nn.softmax(logits / t)[0])  # right in two of three cases
        [0.666... 0.333...]

    References:
        Guo et al., arXiv:1706.04599, section 4.2.
    """
    fn = "maskjax.metrics.temperature"
    given = samples(logits, labels, fn=fn, kind="outputs", name="logits", where=where)
    return _temperature(*given[:3])


@jax.jit
def _temperature(logits: Array, labels: Array, ok: Array) -> Array:
    # Ignored samples have equal logits, and so no part in the slope.
    below = logits - logits.max(-1, keepdims=True)  # nan if one is +inf
    can = jnp.isfinite(below)
    own = _predicted.at(below, labels[..., None])[..., 0]
    ok &= ~jnp.isnan(below).any(-1) & jnp.isfinite(own)
    below = jnp.where(can, below, 0)

    def slope(b: Array) -> Array:
        p = jax.nn.softmax(jnp.where(can, b[..., None, None] * below, -jnp.inf))
        return ((p * below).sum(-1) - own).mean(-1)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        over = slope(middle) > 0
        return jnp.where(over, low, middle), jnp.where(over, middle, high)

    dtype = logits.dtype
    low, high = (jnp.full(ok.shape[:-1], 2.0**power, dtype) for power in (-64, 64))
    steps = jnp.finfo(dtype).nmant + 7  # 2**7 >= log2(2**64 / 2**-64)
    low, high = placement.vary_like((low, high), logits, labels)
    ends = lax.fori_loop(0, steps, halve, (low, high))
    best = jnp.where(slope(high) > 0, jnp.sqrt(ends[0]) * jnp.sqrt(ends[1]), high)
    fitted = jnp.where(slope(jnp.zeros_like(low)) < 0, 1 / best, jnp.inf)
    fitted = jnp.where((below == 0).all((-2, -1)), 1, fitted)
    return _predicted.valid(fitted, ok.all(-1))


def _are_bins(bins: Reliability, least: int, shape: str, *, fn: str) -> None:
    if not isinstance(bins, Reliability):
        raise TypeError(
            f"`{fn}` needs `bins` as a `Reliability`, got {checks.kind_of(bins)}."
        )
    found = jnp.shape(bins.count)
    if len(found) < least or 0 in found:
        raise ValueError(
            f"`{fn}` needs `bins` of shape {shape}, not empty, got {found}."
        )


@jax.jit
def _pooled(bins: Reliability) -> Reliability:
    some = bins.count > 0
    weights = bins.count.astype(bins.accuracy.dtype)
    count = bins.count.sum(0, dtype=bins.count.dtype)
    divisor = jnp.where(count > 0, count.astype(weights.dtype), jnp.nan)

    def mean(values: Array) -> Array:
        return jnp.where(some, weights * values, 0).sum(0) / divisor

    return Reliability(count, mean(bins.confidence), mean(bins.accuracy))


@jax.jit
def _calibration_error(bins: Reliability) -> Array:
    weights = bins.count.astype(bins.accuracy.dtype)
    apart = weights * abs(bins.accuracy - bins.confidence)
    return jnp.where(bins.count > 0, apart, 0).sum(-1) / weights.sum(-1)


def _binned(
    probs: ArrayLike,
    labels: ArrayLike,
    bins: int,
    binning: Binning,
    of: Of,
    where: ArrayLike | None,
    *,
    fn: str,
) -> tuple[Array, Array, Array, Array]:
    """For each bin: samples, the sum of their probabilities, right ones; and flags."""
    checks.at_least(bins, 1, fn=fn, name="bins")
    checks.one_of(binning, ("equal-width", "equal-mass"), fn=fn, name="binning")
    checks.one_of(of, ("top-label", "class-wise"), fn=fn, name="of")
    given = samples(probs, labels, fn=fn, where=where)
    return _in_bins(given, bins=bins, binning=binning, of=of)


@functools.partial(jax.jit, static_argnames=("bins", "binning", "of"))
def _in_bins(
    given: Samples, *, bins: int, binning: Binning, of: Of
) -> tuple[Array, Array, Array, Array]:
    probs, labels, ok, where = given
    ok, size = ok.all(-1), given.count
    if of == "top-label":
        sure, right = probs.max(-1), _predicted.winner(probs) == labels
    else:
        sure = jnp.moveaxis(probs, -1, -2)
        right = jax.nn.one_hot(labels, probs.shape[-1], dtype=bool, axis=-2)
        ok = ok[..., None]
        if where is not None:
            where, size = (
                jnp.broadcast_to(where[..., None, :], sure.shape),
                size[..., None],
            )
    ok &= ~jnp.isnan(sure).any(-1)
    place, ends = sure, np.arange(bins + 1) / bins
    ends[0], ends[-1] = -np.inf, np.inf
    if binning == "equal-mass":
        place, sure, right, where = _by_rank(sure, right, where)
        whole, rest = divmod(size, bins)
        ends = [i * whole - (-i * rest // bins) - 1 for i in range(bins + 1)]
    ends = jnp.asarray(ends, place.dtype)
    ends = ends.reshape(*ends.shape, *(1,) * (place.ndim + 1 - ends.ndim))

    def of_bin(bounds: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        low, high = bounds
        inside = (place > low) & (place <= high)
        if where is not None:
            inside &= where
        return (
            _predicted.count(inside),
            jnp.where(inside, sure, 0).sum(-1),
            _predicted.count(inside & right),
        )

    # One bin at a time: memory for the samples, not for samples times bins.
    parts = lax.map(of_bin, (ends[:-1], ends[1:]))
    count, sums, hits = (jnp.moveaxis(part, 0, -1) for part in parts)
    return count, sums, hits, ok


def _by_rank(
    sure: Array, right: Array, where: Array | None
) -> tuple[Array, Array, Array, Array | None]:
    """Samples from the least sure to the surest, and how many are less sure than each.

    Ignored samples come last.
    """
    sure, right = placement.gathered(sure, -1), placement.gathered(right, -1)
    keys = _predicted.keys(sure, where)
    if where is None:
        keys, sure, right = lax.sort((keys, sure, right), num_keys=1)
    else:
        where = placement.gathered(where, -1)
        keys, sure, right, where = lax.sort((keys, sure, right, where), num_keys=1)
    place, _ = _predicted.ties(keys)
    return place, sure, right, where
