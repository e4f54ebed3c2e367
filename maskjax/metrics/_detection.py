"""Detection: how well scores separate two kinds of samples, and right from wrong."""

from __future__ import annotations

import fractions
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from maskjax._core import checks, dtypes, placement
from maskjax._core.stored import stored
from maskjax._core.trees import Array
from maskjax.metrics import _predicted

_PARTS = 40_000  # its square fits into 32 bits


@stored("maskjax.metrics.RiskCoverage")
class RiskCoverage(NamedTuple):
    """A risk-coverage curve; a pytree.

    Attributes:
        coverage: [B]: 1 / B, 2 / B, ..., 1, the fraction of samples that is answered.
        risk: [..., B]: the mean loss over that fraction, the most confident samples.
    """

    coverage: Array
    risk: Array


def auroc(
    scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
    """The area under the ROC curve.

    It is the probability that a positive sample scores higher than a negative one,
    where a tie counts half.

    Args:
        scores: [..., B], floating. Higher means more likely positive. To detect
            out-of-distribution samples, use an uncertainty such as `metrics.entropy`.
        labels: [B] or [..., B], booleans: True is positive (out of distribution).
        where: [B] or [..., B], booleans: the samples that count. `None`: all.

    Returns:
        [...], float32, from exact counts. nan if all samples that count are of one
        kind, or a score is nan.

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
    return _auroc(*_scored(scores, labels, where, fn="maskjax.metrics.auroc"))


def average_precision(
    scores: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
    """The area under the precision-recall curve (AUPR), by steps.

    It is the mean, over positive samples, of the precision at a threshold of the
    sample's score. scikit-learn's `average_precision_score` is the same.

    Args:
        scores: [..., B], floating. Higher means more likely positive.
        labels: [B] or [..., B], booleans: True is positive.
        where: [B] or [..., B], booleans: the samples that count. `None`: all.

    Returns:
        [...], float32, above 0 and up to 1. nan if no positive sample counts, or a
        score is nan.

    Raises:
        TypeError: If the scores are not floating, or the labels not booleans.
        ValueError: If there are no samples, or the shapes do not fit.

    Example:
        >>> labels = jnp.array([False, False, True, True])
        >>> print(metrics.average_precision(jnp.array([0.1, 0.4, 0.4, 0.8]), labels))
        0.8333...
    """
    fn = "maskjax.metrics.average_precision"
    return _average_precision(*_scored(scores, labels, where, fn=fn))


def fpr_at_tpr(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    tpr: float = 0.95,
    where: ArrayLike | None = None,
) -> Array:
    """The false positive rate at a given true positive rate.

    It is the lowest false positive rate of all thresholds whose true positive rate is
    at least `tpr`: the first such point of scikit-learn's
    `roc_curve(..., drop_intermediate=False)`, without interpolation.

    Args:
        scores: [..., B], floating. Higher means more likely positive.
        labels: [B] or [..., B], booleans: True is positive.
        tpr: The true positive rate, a Python number in [0, 1]. It is read as a fraction
            with a denominator of at most 40,000, so that the number of positives that
            it requires is exact.
        where: [B] or [..., B], booleans: the samples that count. `None`: all.

    Returns:
        [...], float32. nan if all samples that count are of one kind, or a score is
        nan.

    Raises:
        TypeError: If the scores are not floating, the labels not booleans, or `tpr` is
            no Python number.
        ValueError: If there are no samples, the shapes do not fit, `tpr` is not in
            [0, 1], or it is not such a fraction.

    Example:
        >>> scores = jnp.array([0.1, 0.4, 0.4, 0.8])
        >>> print(metrics.fpr_at_tpr(scores, jnp.array([False, False, True, True])))
        0.5
    """
    fn = "maskjax.metrics.fpr_at_tpr"
    if not isinstance(tpr, numbers.Real):  # an array is no Python number
        raise TypeError(
            f"`{fn}` needs `tpr` as a Python number, got {checks.kind_of(tpr)}."
        )
    checks.unit_interval(tpr, fn=fn, name="tpr")
    part = fractions.Fraction(str(tpr)).limit_denominator(_PARTS)
    if abs(float(part) - float(tpr)) > 1e-7:  # the error of a float32
        raise ValueError(
            f"`{fn}` needs `tpr` as a fraction of at most {_PARTS:,} parts, got {tpr}."
        )
    given = _scored(scores, labels, where, fn=fn)
    return _fpr_at_tpr(*given, *part.as_integer_ratio())


def risk_coverage(confidence: ArrayLike, losses: ArrayLike) -> RiskCoverage:
    """The mean loss if only the most confident samples are answered.

    Samples of equal confidence are in random order: the risk is the expected one, and
    does not depend on the order in which they are given.

    Args:
        confidence: [..., B], floating. Higher means more confident, as in
            `probs.max(-1)`.
        losses: [B] or [..., B], booleans (True is wrong) or floating, any loss.

    Returns:
        The curve. All risks are nan where a confidence is nan. If a loss is inf or nan,
        so is the risk from the first coverage that may include its sample.

    Raises:
        TypeError: If the confidence is not floating, or the losses are neither floating
            nor booleans.
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
    given = _lost(confidence, losses, None, fn="maskjax.metrics.risk_coverage")
    return _curve(*given[:2])


def aurc(
    confidence: ArrayLike, losses: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
    """The area under the risk-coverage curve: the mean of its risks.

    Args:
        confidence: [..., B], floating. Higher means more confident, as in
            `probs.max(-1)`.
        losses: [B] or [..., B], booleans (True is wrong) or floating, any loss.
        where: [B] or [..., B], booleans: the samples that count. `None`: all.

    Returns:
        [...], float32; lower is better. Confidence without information gives the mean
        loss. nan if no sample counts, or where a confidence is nan; inf or nan where a
        risk is.

    Raises:
        TypeError: If the confidence is not floating, or the losses are neither floating
            nor booleans.
        ValueError: If there are no samples, or the shapes do not fit.

    Example:
        >>> wrong = jnp.array([False, True, False, True])
        >>> print(metrics.aurc(jnp.array([0.9, 0.6, 0.8, 0.7]), wrong))
        0.2083...

    References:
        Geifman et al., arXiv:1805.08206, section 3.
    """
    return _aurc(*_lost(confidence, losses, where, fn="maskjax.metrics.aurc"))


@jax.jit
def _auroc(scores: Array, positive: Array, where: Array | None) -> Array:
    ranked = _rank(scores, positive, where)
    lower = _predicted.at(_before(ranked), ranked.begin)  # positives that score lower
    others = (ranked.begin - lower).astype(ranked.dtype)
    # The fractions of pairs that the positive wins, and that it loses.
    won = _mean(others, ranked.positive) / ranked.negatives
    lost = _mean(lower.astype(ranked.dtype), ranked.negative) / ranked.positives
    return _settle((1 + (won - lost)) / 2, ranked)


@jax.jit
def _average_precision(scores: Array, positive: Array, where: Array | None) -> Array:
    ranked = _rank(scores, positive, where)
    hits, called = _called(ranked)
    precision = hits.astype(ranked.dtype) / called.astype(ranked.dtype)
    return _settle(_mean(precision, ranked.positive), ranked)


@jax.jit
def _fpr_at_tpr(
    scores: Array, positive: Array, where: Array | None, parts: Array, of: Array
) -> Array:
    ranked = _rank(scores, positive, where)
    hits, called = _called(ranked)
    # ceil(positives * parts / of), written so that no product overflows.
    whole, rest = jnp.divmod(ranked.count, of)
    needed = whole * parts - (-rest * parts // of)
    enough = hits >= needed[..., None]
    false = jnp.where(enough, called - hits, called.shape[-1]).min(-1)
    false = jnp.where(needed > 0, false, 0)
    return _settle(false.astype(ranked.dtype) / ranked.negatives, ranked)


@jax.jit
def _aurc(confidence: Array, lost: Array, where: Array | None) -> Array:
    if where is None:
        return _curve(confidence, lost).risk.mean(-1)
    # Ignored samples, last and without loss, only add risks after those that count.
    confidence = jnp.where(where, confidence, 0)
    lost = jnp.where(where, lost, jnp.zeros((), lost.dtype))
    risk = _curve(confidence, lost, where).risk
    counted = _predicted.count(where)[..., None]
    answered = jnp.arange(risk.shape[-1], dtype=counted.dtype)
    return _mean(risk, jnp.broadcast_to(answered, risk.shape) < counted)


class _Ranked(NamedTuple):
    """Samples from the lowest score to the highest, and ignored ones after them."""

    positive: Array  # [..., B]: counts, and is positive
    negative: Array  # [..., B]: counts, and is not positive
    begin: Array  # where the run of equal scores begins
    end: Any  # the number of samples that count: an integer, or [...]
    count: Array  # the number of positives, [...]
    positives: Array  # the same as a float
    negatives: Array  # the number of negatives as a float
    known: Array  # whether no score is nan

    @property
    def dtype(self) -> Any:
        return self.negatives.dtype


def _scored(
    scores: ArrayLike, labels: ArrayLike, where: ArrayLike | None, *, fn: str
) -> tuple[Array, Array, Array | None]:
    array = _predicted.scores(scores, "scores", fn=fn)
    positive = _predicted.flags(labels, array.shape, "labels", fn=fn)
    if where is not None:
        where = _predicted.flags(where, array.shape, "where", fn=fn)
    return array, positive, where


def _rank(array: Array, positive: Array, where: Array | None) -> _Ranked:
    array, positive = placement.gathered(array, -1), placement.gathered(positive, -1)
    end = _predicted.count_where(where, array.shape[-1])
    if where is not None:
        where = placement.gathered(where, -1)
        array = jnp.where(where, array, 0)
        positive &= where
    keys = _predicted.keys(array, where)
    ordered, positive = lax.sort((keys, positive), num_keys=1)
    begin, _ = _predicted.ties(ordered)
    count = _predicted.count(positive)
    negative = ~positive
    if where is not None:
        place = jnp.arange(array.shape[-1], dtype=begin.dtype)
        negative &= jnp.broadcast_to(place, array.shape) < end[..., None]
    positives, negatives = (x.astype(array.dtype) for x in (count, end - count))
    known = ~jnp.isnan(array).any(-1)
    return _Ranked(positive, negative, begin, end, count, positives, negatives, known)


def _before(ranked: _Ranked) -> Array:
    return _predicted.before(ranked.positive, _predicted.whole())


def _called(ranked: _Ranked) -> tuple[Array, Array]:
    """For each sample how many score at least as high: positives, and all samples."""
    hits = ranked.count[..., None] - _predicted.at(_before(ranked), ranked.begin)
    end = ranked.end if isinstance(ranked.end, int) else ranked.end[..., None]
    return hits, end - ranked.begin


def _mean(values: Array, where: Array) -> Array:
    """The mean of the chosen values along the last axis; nan if there are none."""
    chosen = _predicted.count(where).astype(values.dtype)
    return jnp.where(where, values, 0).sum(-1) / chosen


def _settle(value: Array, ranked: _Ranked) -> Array:
    return _predicted.valid(value, ranked.known & (ranked.count > 0))


def _lost(
    confidence: ArrayLike, losses: ArrayLike, where: ArrayLike | None, *, fn: str
) -> tuple[Array, Array, Array | None]:
    array = _predicted.scores(confidence, "confidence", fn=fn)
    boolean = dtypes.as_array(losses).dtype == jnp.bool_
    check = _predicted.flags if boolean else _predicted.trailing
    if where is not None:
        where = _predicted.flags(where, array.shape, "where", fn=fn)
    return array, check(losses, array.shape, "losses", fn=fn), where


@jax.jit
def _curve(array: Array, lost: Array, where: Array | None = None) -> RiskCoverage:
    dtype = _predicted.whole() if lost.dtype == jnp.bool_ else lost.dtype
    array, lost = placement.gathered(array, -1), placement.gathered(lost, -1)
    keys = _predicted.keys(array, where, downwards=True)
    ordered, lost = lax.sort((keys, lost), num_keys=1)
    begin, end = _predicted.ties(ordered)
    sums = _predicted.before(lost, dtype)
    surer, upto = (_predicted.at(sums, i) for i in (begin, end))
    loss = jnp.where(upto == surer, 0, upto - surer)  # 0 if both are infinite
    size = array.shape[-1]
    answered = jnp.arange(1, size + 1, dtype=begin.dtype)
    number = jnp.broadcast_to(answered, array.shape)
    # Of `end - begin` equally confident samples, any `number - begin` are answered.
    drawn, equal, rest = (
        x.astype(array.dtype) for x in (number - begin, end - begin, loss)
    )
    total = surer.astype(array.dtype) + drawn * rest / equal
    risk = total / number.astype(array.dtype)
    # Both signs change where a value does, so that XLA divides: see `dtypes.ratio`.
    sign = jnp.where(array.reshape(-1, size)[0] < 0, -1, 1).astype(array.dtype)
    coverage = (sign * answered.astype(array.dtype)) / (sign * size)
    return RiskCoverage(
        coverage, _predicted.valid(risk, ~jnp.isnan(array).any(-1)[..., None])
    )
