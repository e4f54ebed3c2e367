"""Predicted classes: how certain they are, and how much members disagree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maskjax._core.trees import Array
from maskjax.metrics import _predicted


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
def _entropy(probs: Array, ok: Array) -> Array:
    # The logarithm of 1 at 0: its derivative there is no infinity, which times the
    # derivative of a softmax, 0, would be nan.
    log = jnp.log(jnp.where(_predicted.is_tiny(probs), 1, probs))
    return _predicted.valid((probs * -log).sum(-1), ok)


@jax.jit
def _mutual_information(probs: Array, ok: Array) -> Array:
    return _predicted.valid(_information(probs), ok.all(0))


@jax.custom_jvp
def _information(probs: Array) -> Array:
    mean = probs.mean(0, keepdims=True)
    # With mean q and p = q (1 + d), each term is p log(p / q) - p + q, which is at
    # least 0; the p - q add up to 0 over members.
    d = (probs - mean) / jnp.where(mean > 0, mean, 1)
    log_ratio = jnp.log1p(jnp.where(d > -1, d, 0))  # d rounds to -1 for tiny p
    terms = mean * ((1 + d) * log_ratio - d)
    return jnp.maximum(terms, 0).sum(-1).mean(0)


@_information.defjvp
def _by_probs(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The derivative by p is log(p / q) / M; that of the terms squares tiny means."""
    ((probs,), (moved,)) = primals, tangents
    mean = probs.mean(0, keepdims=True)
    known = ~(_predicted.is_tiny(probs) | _predicted.is_tiny(mean))
    apart = (probs - mean) / jnp.where(known, mean, 1)
    near = abs(apart) < 0.5
    far = jnp.log(jnp.where(known, probs, 1)) - jnp.log(jnp.where(known, mean, 1))
    log_ratio = jnp.where(near, jnp.log1p(jnp.where(near, apart, 0)), far)
    slope = jnp.where(known, log_ratio, 0) * moved
    return _information(probs), slope.sum(-1).mean(0)


@jax.jit
def _disagreement(outputs: Array) -> Array:
    members, (votes, known) = outputs.shape[0], _votes(outputs)
    pairs = (votes * (members - votes)).sum(-1)
    return _predicted.share(pairs, members * (members - 1.0), known, outputs.dtype)


@jax.jit
def _variation_ratio(outputs: Array) -> Array:
    members, (votes, known) = outputs.shape[0], _votes(outputs)
    return _predicted.share(members - votes.max(-1), members, known, outputs.dtype)


def _votes(outputs: Array) -> tuple[Array, Array]:
    """How many members predict each class, [..., C], and whether no output is nan."""
    chosen = jax.nn.one_hot(
        _predicted.winner(outputs), outputs.shape[-1], dtype=jnp.int32
    )
    votes = chosen.sum(0, dtype=jnp.int32).astype(outputs.dtype)
    return votes, ~jnp.isnan(outputs).any((0, -1))


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
