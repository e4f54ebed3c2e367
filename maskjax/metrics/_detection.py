"""Whether scores tell apart: out-of-distribution from not, and wrong from right."""

import fractions
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from maskjax._core import checks
from maskjax._core.trees import Array
from maskjax.metrics import _predicted
from maskjax.select._search import order_key

_PARTS = 40_000  # whose square fits into 32 bits


class RiskCoverage(NamedTuple):
    """A risk-coverage curve; a pytree.

    Attributes:
        coverage: [B]: 1 / B, 2 / B, ..., 1: the fraction of samples that is answered.
        risk: [..., B]: the mean loss of so many samples, the surest.
    """

    coverage: Array
    risk: Array


def auroc(scores: ArrayLike, labels: ArrayLike) -> Array:
    """The area under the ROC curve: how often the positive of a pair scores higher.

    The probability that a positive sample scores higher than a negative one, if equal
    by half (midranks).

    Args:
        scores: [..., B], floating: higher is more likely positive. For out-of-
            distribution detection an uncertainty, `metrics.entropy` for one.
        labels: [B] or [..., B], booleans: True is positive (out of distribution).

    Returns:
        [...], float32: exact counts, divided. nan if one of the two kinds is missing,
        or a score is nan.

    Raises:
        TypeError: If the scores are not floating, or the labels not booleans.
        ValueError: If there are no samples, or the shapes do not fit.

    Example:
        >>> scores = jnp.array([0.1, 0.4, 0.4, 0.8])
        >>> print(metrics.auroc(scores, jnp.array([False, False, True, True])))
        0.875

    References:
        Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27,
        2006, section 7.
    """
    return _auroc(*_scored(scores, labels, fn="maskjax.metrics.auroc"))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> Array:
    """The area under the precision-recall curve (AUPR), as steps.

    The mean, over positive samples, of the precision of calling positive whatever
    scores at least as high. So does scikit-learn's `average_precision_score`.

    Args:
        scores: As in `auroc`.
        labels: As in `auroc`.

    Returns:
        [...], float32, above 0 to 1. nan if there is no positive sample, or a score is
        nan.

    Raises:
        TypeError: As in `auroc`.
        ValueError: As in `auroc`.

    Example:
        >>> labels = jnp.array([False, False, True, True])
        >>> print(metrics.average_precision(jnp.array([0.1, 0.4, 0.4, 0.8]), labels))
        0.8333...
    """
    fn = "maskjax.metrics.average_precision"
    return _average_precision(*_scored(scores, labels, fn=fn))


def fpr_at_tpr(scores: ArrayLike, labels: ArrayLike, *, tpr: float = 0.95) -> Array:
    """The false positive rate where so many positives are found, 95 % by default.

    The least fraction of negatives with scores of at least t, over all thresholds t
    that a fraction `tpr` of the positives reaches, or more: the first such point of
    scikit-learn's `roc_curve(..., drop_intermediate=False)`, without interpolation.

    Args:
        scores: As in `auroc`.
        labels: As in `auroc`.
        tpr: True positive rate, a Python number in [0, 1] that is a fraction of at most
            40,000 parts: how many positives it comes to is an exact count.

    Returns:
        [...], float32. nan if one of the two kinds is missing, or a score is nan.

    Raises:
        TypeError: As in `auroc`, or if `tpr` is no Python number.
        ValueError: As in `auroc`, or if `tpr` is not in [0, 1], or not such a fraction.

    Example:
        >>> scores = jnp.array([0.1, 0.4, 0.4, 0.8])
        >>> print(metrics.fpr_at_tpr(scores, jnp.array([False, False, True, True])))
        0.5
    """
    fn = "maskjax.metrics.fpr_at_tpr"
    if not isinstance(tpr, numbers.Real):  # an array is none
        raise TypeError(
            f"`{fn}` needs `tpr` as a Python number, got {checks.kind_of(tpr)}."
        )
    checks.unit_interval(tpr, fn=fn, name="tpr")
    part = fractions.Fraction(str(tpr)).limit_denominator(_PARTS)
    if abs(float(part) - float(tpr)) > 1e-7:  # as a float32 may be
        raise ValueError(
            f"`{fn}` needs `tpr` as a fraction of at most {_PARTS:,} parts, got {tpr}."
        )
    return _fpr_at_tpr(*_scored(scores, labels, fn=fn), *part.as_integer_ratio())


def risk_coverage(confidence: ArrayLike, losses: ArrayLike) -> RiskCoverage:
    """The risk of answering only for the surest samples, for every number of them.

    Which of equally sure samples are answered is left to chance: the risk is what it
    then is on average, and does not depend on their order.

    Args:
        confidence: [..., B], floating: higher is surer, as `probs.max(-1)`.
        losses: [B] or [..., B]: booleans, True is wrong, or floating, any loss.

    Returns:
        The curve; its risk is nan where a confidence is nan. Once samples may be among
        those answered whose loss is inf or nan, so is the risk.

    Raises:
        TypeError: If the confidence is not floating, or the losses neither this nor
            booleans.
        ValueError: If there are no samples, or the shapes do not fit.

    Example:
        >>> wrong = jnp.array([False, True, False, True])
        >>> curve = metrics.risk_coverage(jnp.array([0.9, 0.6, 0.8, 0.7]), wrong)
        >>> print(curve.coverage, curve.risk)
        [0.25 0.5  0.75 1.  ] [0.         0.         0.33333334 0.5       ]

    References:
        El-Yaniv & Wiener, "On the Foundations of Noise-free Selective Classification",
        JMLR 11, 2010, section 2; Geifman et al., "Bias-Reduced Uncertainty Estimation
        for Deep Neural Classifiers", ICLR 2019. arXiv:1805.08206, section 3.
    """
    return _curve(*_lost(confidence, losses, fn="maskjax.metrics.risk_coverage"))


def aurc(confidence: ArrayLike, losses: ArrayLike) -> Array:
    """The area under the risk-coverage curve: the mean of its risks.

    Args:
        confidence: As in `risk_coverage`.
        losses: As in `risk_coverage`.

    Returns:
        [...], float32: lower is better; confidence that says nothing has the mean loss.
        nan where a confidence is nan, and inf or nan as its risks are.

    Raises:
        TypeError: As in `risk_coverage`.
        ValueError: As in `risk_coverage`.

    Example:
        >>> wrong = jnp.array([False, True, False, True])
        >>> print(metrics.aurc(jnp.array([0.9, 0.6, 0.8, 0.7]), wrong))
        0.2083...

    References:
        Geifman et al., arXiv:1805.08206, section 3.
    """
    return _aurc(*_lost(confidence, losses, fn="maskjax.metrics.aurc"))


@jax.jit
def _auroc(scores: Array, positive: Array) -> Array:
    ranked = _rank(scores, positive)
    lower = _predicted.at(_before(ranked), ranked.begin)  # positives
    others = (ranked.begin - lower).astype(ranked.dtype)
    # Of all pairs, those that the positive wins, and that it loses.
    won = _mean(others, ranked.positive) / ranked.negatives
    lost = _mean(lower.astype(ranked.dtype), ~ranked.positive) / ranked.positives
    return _settle((1 + (won - lost)) / 2, ranked)


@jax.jit
def _average_precision(scores: Array, positive: Array) -> Array:
    ranked = _rank(scores, positive)
    hits, called = _called(ranked)
    precision = hits.astype(ranked.dtype) / called.astype(ranked.dtype)
    return _settle(_mean(precision, ranked.positive), ranked)


@jax.jit
def _fpr_at_tpr(scores: Array, positive: Array, parts: Array, of: Array) -> Array:
    ranked = _rank(scores, positive)
    hits, called = _called(ranked)
    # ceil(positives * parts / of), without a product that overflows.
    whole, rest = jnp.divmod(ranked.count, of)
    needed = whole * parts - (-rest * parts // of)
    enough = hits >= needed[..., None]
    false = jnp.where(enough, called - hits, called.shape[-1]).min(-1)
    false = jnp.where(needed > 0, false, 0)
    return _settle(false.astype(ranked.dtype) / ranked.negatives, ranked)


@jax.jit
def _aurc(confidence: Array, lost: Array) -> Array:
    return _curve(confidence, lost).risk.mean(-1)


class _Ranked(NamedTuple):
    """Samples from the lowest score to the highest."""

    positive: Array  # [..., B]
    begin: Array  # of those of an equal score
    count: Array  # of positives, [...]
    positives: Array  # the same as a float
    negatives: Array  # so too
    known: Array  # whether no score is nan

    @property
    def dtype(self) -> Any:
        return self.negatives.dtype


def _scored(scores: ArrayLike, labels: ArrayLike, *, fn: str) -> tuple[Array, Array]:
    array = _predicted.scores(scores, "scores", fn=fn)
    return array, _predicted.flags(labels, array.shape, "labels", fn=fn)


def _rank(array: Array, positive: Array) -> _Ranked:
    ordered, positive = lax.sort((order_key(array, None), positive), num_keys=1)
    begin, _ = _predicted.ties(ordered)
    count = _predicted.count(positive)
    positives, negatives = (
        x.astype(array.dtype) for x in (count, array.shape[-1] - count)
    )
    known = ~jnp.isnan(array).any(-1)
    return _Ranked(positive, begin, count, positives, negatives, known)


def _before(ranked: _Ranked) -> Array:
    return _predicted.before(ranked.positive, _predicted.whole())


def _called(ranked: _Ranked) -> tuple[Array, Array]:
    """For each sample how many score at least as high: positives, and in all."""
    hits = ranked.count[..., None] - _predicted.at(_before(ranked), ranked.begin)
    return hits, ranked.positive.shape[-1] - ranked.begin


def _mean(values: Array, where: Array) -> Array:
    """The mean along the last axis of those chosen, nan if there are none."""
    chosen = _predicted.count(where).astype(values.dtype)
    return jnp.where(where, values, 0).sum(-1) / chosen


def _settle(value: Array, ranked: _Ranked) -> Array:
    return _predicted.valid(value, ranked.known & (ranked.count > 0))


def _lost(confidence: ArrayLike, losses: ArrayLike, *, fn: str) -> tuple[Array, Array]:
    array = _predicted.scores(confidence, "confidence", fn=fn)
    boolean = jnp.asarray(losses).dtype == jnp.bool_
    check = _predicted.flags if boolean else _predicted.trailing
    return array, check(losses, array.shape, "losses", fn=fn)


@jax.jit
def _curve(array: Array, lost: Array) -> RiskCoverage:
    dtype = _predicted.whole() if lost.dtype == jnp.bool_ else lost.dtype
    ordered, lost = lax.sort((-order_key(array, None), lost), num_keys=1)
    begin, end = _predicted.ties(ordered)
    sums = _predicted.before(lost, dtype)
    surer, upto = (_predicted.at(sums, i) for i in (begin, end))
    loss = jnp.where(upto == surer, 0, upto - surer)  # also where both are infinite
    size = array.shape[-1]
    answered = jnp.arange(1, size + 1, dtype=begin.dtype)
    number = jnp.broadcast_to(answered, array.shape)
    # Of `end - begin` that are as sure, any `number - begin` may be the answered ones.
    drawn, equal, rest = (
        x.astype(array.dtype) for x in (number - begin, end - begin, loss)
    )
    total = surer.astype(array.dtype) + drawn * rest / equal
    risk = total / number.astype(array.dtype)
    return RiskCoverage(
        answered.astype(array.dtype) / size,
        _predicted.valid(risk, ~jnp.isnan(array).any(-1)[..., None]),
    )
