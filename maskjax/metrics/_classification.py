"""Predicted classes: how good and how certain, and how much members disagree."""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jax.typing import ArrayLike

from maskjax._core.trees import Array
from maskjax.metrics import _predicted


def accuracy(outputs: ArrayLike, labels: ArrayLike) -> Array:
    """The fraction of samples whose label is predicted.

    The prediction is the class of the largest output, the first of equal ones.

    Args:
        outputs: [..., B, C], floating: probabilities or logits.
        labels: [B] or [..., B], integers in [0, C).

    Returns:
        [...], float32: an exact count divided by B. nan where an output is nan or,
        under `jit`, a label is outside the classes.

    Raises:
        TypeError: If the outputs are not floating, or the labels not integers.
        ValueError: If there are no samples, the shapes do not fit, or, outside of
            `jit`, a label is outside the classes.

    Example:
        >>> probs = jnp.array([[0.75, 0.25], [0.5, 0.5]])
        >>> print(metrics.accuracy(probs, jnp.array([0, 1])))
        0.5
    """
    fn = "maskjax.metrics.accuracy"
    array = _predicted.outputs(outputs, "outputs", fn=fn)
    given, ok = _predicted.labels(
        labels, array.shape[:-1], classes=array.shape[-1], fn=fn
    )
    return _accuracy(array, given, ok)


def negative_log_likelihood(
    probs: ArrayLike, labels: ArrayLike, *, logs: bool = False
) -> Array:
    """The mean of -log p(label), in nats.

    For an ensemble, pass the members' mean: `probs.mean(0)`, or in logarithms
    `jax.nn.logsumexp(log_probs, 0, b=1 / M)`. It is at most the mean over members.

    Args:
        probs: [..., B, C], probabilities.
        labels: [B] or [..., B], integers in [0, C).
        logs: Whether `probs` are logarithms of probabilities, as
            `jax.nn.log_softmax` gives. Use them where probabilities may be too small
            for their dtype.

    Returns:
        [...], float32; inf where a label has probability 0. nan where a probability is
        nan or, under `jit`, where one is no probability or a label is outside the
        classes.

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
    """
    fn = "maskjax.metrics.negative_log_likelihood"
    array, given, ok = _labeled(probs, labels, fn=fn, logs=logs)
    return _negative_log_likelihood(array, given, ok, logs=logs)


def brier_score(probs: ArrayLike, labels: ArrayLike) -> Array:
    """The mean squared distance between probabilities and one-hot labels.

    It sums over all classes and is from 0 to 2. For two classes it is twice the score
    that considers one class only, as scikit-learn's does.

    Args:
        probs: [..., B, C], probabilities.
        labels: [B] or [..., B], integers in [0, C).

    Returns:
        [...], float32. nan where a probability is nan or, under `jit`, where one is no
        probability or a label is outside the classes.

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
    return _brier_score(*_labeled(probs, labels, fn="maskjax.metrics.brier_score"))


def entropy(probs: ArrayLike) -> Array:
    """The entropy of predicted probabilities in nats: how uncertain they are.

    The predictive entropy of an ensemble is `entropy(probs.mean(0))`.

    Args:
        probs: [..., C], probabilities.

    Returns:
        [...], float32, from 0 to log(C). nan where a probability is nan or, under
        `jit`, no probability.

    Raises:
        TypeError: If the probabilities are not floating.
        ValueError: If there are none, or, outside of `jit`, values are no
            probabilities.

    Example:
        >>> print(metrics.entropy(jnp.array([[1.0, 0.0], [0.5, 0.5]])))
        [0.        0.6931...]
    """
    return _entropy(*_predicted.probabilities(probs, fn="maskjax.metrics.entropy"))


def expected_entropy(probs: ArrayLike) -> Array:
    """The mean entropy of the members in nats: how uncertain each one is.

    Args:
        probs: [M, ..., C], probabilities of M members.

    Returns:
        [...], float32, from 0 to log(C). nan where a probability is nan or, under
        `jit`, no probability.

    Raises:
        TypeError: If the probabilities are not floating.
        ValueError: If there are none, there is no axis of members, or, outside of
            `jit`, values are no probabilities.

    Example:
        >>> probs = jnp.array([[[1.0, 0.0]], [[0.5, 0.5]]])
        >>> print(metrics.expected_entropy(probs))
        [0.3465...]
    """
    array, ok = _members(probs, fn="maskjax.metrics.expected_entropy")
    return _entropy(array, ok).mean(0)


def mutual_information(probs: ArrayLike) -> Array:
    """How much the members disagree, in nats.

    It is the mutual information between the predicted class and the member: the
    predictive entropy minus the expected entropy, or the mean of KL(member || mean).
    (The disagreement of arXiv:1612.01474 is M times this.) It is computed as a sum of
    terms that are at least 0, because a difference of entropies would lose small
    values.

    Args:
        probs: [M, ..., C], probabilities of M members.

    Returns:
        [...], float32, from 0 to the smaller of log(M) and log(C). nan where a
        probability is nan or, under `jit`, no probability.

    Raises:
        TypeError: If the probabilities are not floating.
        ValueError: If there are none, there is no axis of members, or, outside of
            `jit`, values are no probabilities.

    Example:
        >>> probs = jnp.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
        >>> print(metrics.mutual_information(probs))
        [0.6931... 0.       ]

    References:
        Depeweg et al., "Decomposition of Uncertainty in Bayesian Deep Learning", ICML
        2018. arXiv:1710.07283, section 3.
    """
    return _mutual_information(
        *_members(probs, fn="maskjax.metrics.mutual_information")
    )


def disagreement(outputs: ArrayLike) -> Array:
    """The fraction of pairs of members that predict different classes.

    A member predicts the class of its largest output, the first of equal ones.

    Args:
        outputs: [M, ..., C], probabilities or logits of M members, M at least 2.

    Returns:
        [...], float32, from 0 to 1. nan where an output is nan.

    Raises:
        TypeError: If the outputs are not floating.
        ValueError: If there are none, or fewer than two members.

    Example:
        >>> probs = jnp.array([[[0.75, 0.25]], [[1.0, 0.0]], [[0.25, 0.75]]])
        >>> print(metrics.disagreement(probs))
        [0.6666...]

    References:
        Fort et al., "Deep Ensembles: A Loss Landscape Perspective", 2019.
        arXiv:1912.02757, section 3.
    """
    fn = "maskjax.metrics.disagreement"
    return _disagreement(_voters(outputs, 2, fn=fn))


def variation_ratio(outputs: ArrayLike) -> Array:
    """The fraction of members that do not predict the most frequent class.

    A member predicts the class of its largest output, the first of equal ones.

    Args:
        outputs: [M, ..., C], probabilities or logits of M members.

    Returns:
        [...], float32, from 0 to 1 - 1 / M. nan where an output is nan.

    Raises:
        TypeError: If the outputs are not floating.
        ValueError: If there are none, or there is no axis of members.

    Example:
        >>> probs = jnp.array([[[0.75, 0.25]], [[1.0, 0.0]], [[0.25, 0.75]]])
        >>> print(metrics.variation_ratio(probs))
        [0.3333...]

    References:
        Gal, "Uncertainty in Deep Learning", PhD thesis, Cambridge 2016, section 3.3.1.
    """
    fn = "maskjax.metrics.variation_ratio"
    return _variation_ratio(_voters(outputs, 1, fn=fn))


@jax.jit
def _accuracy(outputs: Array, labels: Array, ok: Array) -> Array:
    right = _predicted.winner(outputs) == labels
    ok &= ~jnp.isnan(outputs).any(-1)
    return _predicted.valid(_predicted.share(right, outputs.dtype), ok.all(-1))


@functools.partial(jax.jit, static_argnames="logs")
def _negative_log_likelihood(
    probs: Array, labels: Array, ok: Array, *, logs: bool
) -> Array:
    own = _predicted.at(probs, labels[..., None])[..., 0]
    return _predicted.valid(-(own if logs else jnp.log(own)).mean(-1), ok.all(-1))


@jax.jit
def _brier_score(probs: Array, labels: Array, ok: Array) -> Array:
    truth = jax.nn.one_hot(labels, probs.shape[-1], dtype=probs.dtype)
    return _predicted.valid(((probs - truth) ** 2).sum(-1).mean(-1), ok.all(-1))


@jax.jit
def _entropy(probs: Array, ok: Array) -> Array:
    return _predicted.valid(entr(probs).sum(-1), ok)


@jax.jit
def _mutual_information(probs: Array, ok: Array) -> Array:
    mean = probs.mean(0, keepdims=True)
    # With mean q and p = q (1 + d), each term is p log(p / q) - p + q, which is at
    # least 0; the p - q add up to 0 over members.
    d = (probs - mean) / jnp.where(mean > 0, mean, 1)
    log_ratio = jnp.log1p(jnp.where(d > -1, d, 0))  # d rounds to -1 for tiny p
    terms = mean * ((1 + d) * log_ratio - d)
    return _predicted.valid(jnp.maximum(terms, 0).sum(-1).mean(0), ok.all(0))


@jax.jit
def _disagreement(outputs: Array) -> Array:
    members, votes = outputs.shape[0], _votes(outputs)
    return (votes * (members - votes)).sum(-1) / (members * (members - 1.0))


@jax.jit
def _variation_ratio(outputs: Array) -> Array:
    members = outputs.shape[0]
    return (members - _votes(outputs).max(-1)) / members


def _votes(outputs: Array) -> Array:
    """How many members predict each class, [..., C]; nan if an output is nan."""
    chosen = jax.nn.one_hot(
        _predicted.winner(outputs), outputs.shape[-1], dtype=jnp.int32
    )
    known = ~jnp.isnan(outputs).any((0, -1))
    votes = chosen.sum(0, dtype=jnp.int32).astype(outputs.dtype)
    return _predicted.valid(votes, known[..., None])


def _labeled(
    probs: ArrayLike, labels: ArrayLike, *, fn: str, logs: bool = False
) -> tuple[Array, Array, Array]:
    """Probabilities [..., B, C], labels [..., B], and flags of valid samples."""
    array, fine = _predicted.probabilities(probs, fn=fn, logs=logs)
    *lead, classes = array.shape
    given, known = _predicted.labels(labels, tuple(lead), classes=classes, fn=fn)
    return array, given, fine & known


def _members(probs: ArrayLike, *, fn: str) -> tuple[Array, Array]:
    """Probabilities [M, ..., C], and whether they are valid, [M, ...]."""
    array, ok = _predicted.probabilities(probs, fn=fn)
    _with_members(array, "probs", 1, fn=fn)
    return array, ok


def _voters(outputs: ArrayLike, least: int, *, fn: str) -> Array:
    array = _predicted.outputs(outputs, "outputs", fn=fn)
    _with_members(array, "outputs", least, fn=fn)
    return array


def _with_members(array: Array, name: str, least: int, *, fn: str) -> None:
    if array.ndim < 2 or array.shape[0] < least:
        raise ValueError(
            f"`{fn}` needs `{name}` of shape [M, ..., C], with at least {least} "
            f"members, got {array.shape}."
        )
