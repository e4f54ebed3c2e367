"""Predicted classes: how good they are, by their labels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maskjax._core.trees import Array
from maskjax.metrics import _predicted
from maskjax.metrics._samples import Samples, samples


def accuracy(
    outputs: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
    """The fraction of samples whose label is predicted.

    The prediction is the class of the largest output, the first of equal ones.

    Args:
        outputs: [..., B, C], floating: probabilities or logits.
        labels: [B] or [..., B], integers in [0, C).
        where: [B] or [..., B], booleans: the samples that count. `None`: all. What is
            ignored may be anything, such as labels of -100 or predictions of nan.

    Returns:
        [...], float32: the number of right samples divided by the number of samples
        that count, correctly rounded for up to 2^24 samples. nan if no sample counts,
        an output is nan or, under `jit`, a label is outside the classes.

    Raises:
        TypeError: If the outputs are not floating, or the labels not integers.
        ValueError: If there are no samples, the shapes do not fit, or, outside of
            `jit`, a label is outside the classes.

    Example:
        >>> probs = jnp.array([[0.75, 0.25], [0.5, 0.5]])
        >>> print(metrics.accuracy(probs, jnp.array([0, 1])))
        0.5
        >>> labels = jnp.array([0, -100])
        >>> print(metrics.accuracy(probs, labels, where=labels != -100))
        1.0
    """
    fn = "maskjax.metrics.accuracy"
    kind = "outputs"
    return _accuracy(samples(outputs, labels, fn=fn, kind=kind, name=kind, where=where))


def negative_log_likelihood(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    logs: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    """The mean of -log p(label), in nats.

    With soft labels q it is the cross-entropy, the mean of -sum(q * log p). For an
    ensemble, pass the members' mean: `probs.mean(0)`, or in logarithms
    `jax.nn.logsumexp(log_probs, 0, b=1 / M)`. It is at most the mean over members.

    Args:
        probs: [..., B, C], probabilities.
        labels: [B] or [..., B], integers in [0, C); or soft labels [B, C] or
            [..., B, C], floating, the probabilities that each sample has.
        logs: Whether `probs` are logarithms of probabilities, as
            `jax.nn.log_softmax` gives. Use them where probabilities may be too small
            for their dtype, and to train: the gradient by a probability is -1 / p,
            which float16 can't hold for small p.
        where: [B] or [..., B], booleans: the samples that count. `None`: all. What is
            ignored may be anything, such as labels of -100 or predictions of nan.

    Returns:
        [...], float32; inf where a label has probability 0, and the gradient by that
        probability is then 0. (Numbers too small to be normal count as 0.) nan if no
        sample counts, where a probability is nan or, under `jit`, where one is no
        probability or a label is outside the classes.

    Raises:
        TypeError: If the probabilities are not floating, or the labels not integers.
        ValueError: If there are no samples, the shapes do not fit, or, outside of
            `jit`, values are no probabilities or labels are outside the classes.

    Example:
        >>> probs = jnp.array([[0.5, 0.5], [0.25, 0.75]])
        >>> print(metrics.negative_log_likelihood(probs, jnp.array([0, 1])))
        0.4904...
        >>> log_probs = jax.nn.log_softmax(jnp.array([[200.0, 0.0]]))
        >>> print(metrics.negative_log_likelihood(log_probs, jnp.array([1]), logs=True))
        200.0
        >>> soft = jnp.array([[0.75, 0.25], [0.0, 1.0]])
        >>> print(metrics.negative_log_likelihood(probs, soft))
        0.4904...
    """
    fn = "maskjax.metrics.negative_log_likelihood"
    kind = "logs" if logs else "probs"
    given = samples(probs, labels, fn=fn, kind=kind, where=where, soft=True)
    return _negative_log_likelihood(given, logs=logs)


def brier_score(
    probs: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
    """The mean squared distance between probabilities and one-hot or soft labels.

    It sums over all classes and is from 0 to 2. For two classes it is twice the score
    that considers one class only, as scikit-learn's does.

    Args:
        probs: [..., B, C], probabilities.
        labels: [B] or [..., B], integers in [0, C); or soft labels [B, C] or
            [..., B, C], floating, the probabilities that each sample has.
        where: [B] or [..., B], booleans: the samples that count. `None`: all. What is
            ignored may be anything, such as labels of -100 or predictions of nan.

    Returns:
        [...], float32. nan if no sample counts, where a probability is nan or, under
        `jit`, where one is no probability or a label is outside the classes.

    Raises:
        TypeError: If the probabilities are not floating, or the labels not integers.
        ValueError: If there are no samples, the shapes do not fit, or, outside of
            `jit`, values are no probabilities or labels are outside the classes.

    Example:
        >>> probs = jnp.array([[0.5, 0.5], [0.25, 0.75]])
        >>> print(metrics.brier_score(probs, jnp.array([0, 1])))
        0.3125

    References:
        Brier, "Verification of forecasts expressed in terms of probability", Monthly
        Weather Review 78, 1950, equation 2.
    """
    fn = "maskjax.metrics.brier_score"
    return _brier_score(samples(probs, labels, fn=fn, where=where, soft=True))


@jax.jit
def _accuracy(given: Samples) -> Array:
    outputs = given.outputs
    right = _predicted.winner(outputs) == given.labels
    if given.where is not None:
        right &= given.where
    ok = (given.ok & ~jnp.isnan(outputs).any(-1)).all(-1)
    return _predicted.share(_predicted.count(right), given.count, ok, outputs.dtype)


@functools.partial(jax.jit, static_argnames="logs")
def _negative_log_likelihood(given: Samples, *, logs: bool) -> Array:
    probs, labels, ok, _ = given
    if labels.ndim == probs.ndim:
        log = probs if logs else _log(probs)
        each = jnp.where(labels > 0, labels * jnp.where(labels > 0, log, 0), 0).sum(-1)
        each = _predicted.valid(each, ~jnp.isnan(labels + probs).any(-1))
    else:
        own = _predicted.at(probs, labels[..., None])[..., 0]
        each = own if logs else _log(own)
    return _predicted.valid(-given.mean(each), ok.all(-1))


@jax.jit
def _brier_score(given: Samples) -> Array:
    probs, truth, ok, _ = given
    if truth.ndim < probs.ndim:
        truth = jax.nn.one_hot(truth, probs.shape[-1], dtype=probs.dtype)
    apart = ((probs - truth.astype(probs.dtype)) ** 2).sum(-1)
    return _predicted.valid(given.mean(apart), ok.all(-1))


def _log(probs: Array) -> Array:
    """Logarithms; -inf at 0, where the derivative is 0."""
    tiny = _predicted.is_tiny(probs)
    return jnp.where(tiny, -jnp.inf, jnp.log(jnp.where(tiny, 1, probs)))
