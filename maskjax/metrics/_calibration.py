"""Calibration: whether predictions are right as often as their probabilities say."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from maskjax._core import checks, placement
from maskjax._core.trees import Array
from maskjax.metrics import _predicted
from maskjax.select._keys import order_key

Binning = Literal["equal-width", "equal-mass"]
Of = Literal["top-label", "class-wise"]


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
) -> Reliability:
    """Confidence and accuracy of predictions, in bins of similar confidence.

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
    count, sums, right, ok = _binned(probs, labels, bins, binning, of, fn=fn)
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
) -> Array:
    """The mean difference between confidence and accuracy (ECE).

    It is the mean, over samples, of |accuracy - confidence| of the sample's bin.
    Class-wise, it is the mean of this over classes.

    Args:
        probs: [..., B, C], probabilities.
        labels: [B] or [..., B], integers in [0, C).
        bins: The number of bins.
        binning: `"equal-width"` or `"equal-mass"`, as in `reliability`.
        of: `"top-label"` or `"class-wise"`, as in `reliability`.

    Returns:
        [...], float32, from 0 to 1. nan where a probability is nan or, under `jit`,
        where one is no probability or a label is outside the classes.

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
    _, sums, right, ok = _binned(probs, labels, bins, binning, of, fn=fn)
    apart = abs(right.astype(sums.dtype) - sums).sum(-1) / jnp.shape(probs)[-2]
    error = _predicted.valid(apart, ok)
    return error.mean(-1) if of == "class-wise" else error


def temperature(logits: ArrayLike, labels: ArrayLike) -> Array:
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

    Returns:
        [...], float32. 2**-64 (the lower limit) if the loss keeps falling as T goes to
        0, as when no sample is wrong; inf if uniform predictions are best; 1 if every
        T gives the same loss. nan where a logit is nan or +inf, the logit of a label is
        -inf, or, under `jit`, a label is outside the classes.

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
    array = _predicted.outputs(logits, "logits", fn=fn)
    *lead, classes = array.shape
    given, ok = _predicted.labels(labels, tuple(lead), classes=classes, fn=fn)
    return _temperature(array, given, ok)


@jax.jit
def _temperature(logits: Array, labels: Array, ok: Array) -> Array:
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


def _binned(
    probs: ArrayLike,
    labels: ArrayLike,
    bins: int,
    binning: Binning,
    of: Of,
    *,
    fn: str,
) -> tuple[Array, Array, Array, Array]:
    """For each bin: samples, the sum of their probabilities, right ones; and flags."""
    checks.at_least(bins, 1, fn=fn, name="bins")
    checks.one_of(binning, ("equal-width", "equal-mass"), fn=fn, name="binning")
    checks.one_of(of, ("top-label", "class-wise"), fn=fn, name="of")
    array, fine = _predicted.probabilities(probs, fn=fn)
    *lead, classes = array.shape
    given, known = _predicted.labels(labels, tuple(lead), classes=classes, fn=fn)
    return _in_bins(array, given, fine & known, bins=bins, binning=binning, of=of)


@functools.partial(jax.jit, static_argnames=("bins", "binning", "of"))
def _in_bins(
    probs: Array, labels: Array, ok: Array, *, bins: int, binning: Binning, of: Of
) -> tuple[Array, Array, Array, Array]:
    ok = ok.all(-1)
    if of == "top-label":
        sure, right = probs.max(-1), _predicted.winner(probs) == labels
    else:
        sure = jnp.moveaxis(probs, -1, -2)
        right = jax.nn.one_hot(labels, probs.shape[-1], dtype=bool, axis=-2)
        ok = ok[..., None]
    ok &= ~jnp.isnan(sure).any(-1)
    place, ends = sure, np.arange(bins + 1) / bins
    ends[0], ends[-1] = -np.inf, np.inf
    if binning == "equal-mass":
        sure, right = placement.gathered(sure, -1), placement.gathered(right, -1)
        keys = order_key(sure, None)
        keys, sure, right = lax.sort((keys, sure, right), num_keys=1)
        place, _ = _predicted.ties(keys)  # how many samples are less
        ends = [-(-i * sure.shape[-1] // bins) - 1 for i in range(bins + 1)]
    ends = jnp.asarray(ends, place.dtype)

    def of_bin(bounds: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        low, high = bounds
        inside = (place > low) & (place <= high)
        return (
            _predicted.count(inside),
            jnp.where(inside, sure, 0).sum(-1),
            _predicted.count(inside & right),
        )

    # One bin at a time: memory for the samples, not for samples times bins.
    parts = lax.map(of_bin, (ends[:-1], ends[1:]))
    count, sums, hits = (jnp.moveaxis(part, 0, -1) for part in parts)
    return count, sums, hits, ok
