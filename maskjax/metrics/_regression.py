"""Regression: predicted normal distributions, and mixtures of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import erf
from jax.typing import ArrayLike

from maskjax._core import checks, dtypes
from maskjax._core.trees import Array
from maskjax.metrics import _predicted


def gaussian_nll(mean: ArrayLike, variance: ArrayLike, targets: ArrayLike) -> Array:
    """The negative log-likelihood of targets under normal distributions, in nats.

    It is the logarithm of a density, so it may be below 0, and it depends on the unit
    of the targets. If targets were divided by a number, add the logarithm of that
    number to get the result for the original targets.

    Args:
        mean: [...], floating.
        variance: [...] or a scalar, above 0.
        targets: [...], floating.

    Returns:
        [...], float32, one for each target. nan where an argument is nan or, under
        `jit`, a variance is not above 0.

    Raises:
        TypeError: If an argument is not floating.
        ValueError: If the shapes differ, there are no targets, or, outside of `jit`, a
            variance is not above 0.

    Example:
        >>> nll = metrics.gaussian_nll(jnp.zeros(2), 1.0, jnp.array([0.0, 2.0]))
        >>> print(nll)
        [0.9189385 2.9189386]
        >>> print(nll + jnp.log(10.0))  # if targets were divided by 10
        [3.2215...
    """
    fn = "maskjax.metrics.gaussian_nll"
    return _gaussian_nll(*_gaussians(mean, variance, targets, fn=fn))


def mixture_nll(
    means: ArrayLike, variances: ArrayLike, targets: ArrayLike, *, event_ndim: int = 0
) -> Array:
    """The negative log-likelihood of targets under equal mixtures of normals, in nats.

    It is at most the mean over members. With a constant variance, the inverse of the
    precision, it is the likelihood of MC-dropout (arXiv:1506.02142).

    Args:
        means: [M, ...], floating.
        variances: [M, ...] or a scalar, above 0.
        targets: [...], floating.
        event_ndim: How many of the last axes belong to one target. Its numbers are
            independent within a member, but not in the mixture.

    Returns:
        [...] without the last `event_ndim` axes, float32, one for each target. nan
        where an argument is nan or, under `jit`, a variance is not above 0.

    Raises:
        TypeError: If an array is not floating, or `event_ndim` is no whole number.
        ValueError: If the shapes do not fit, there are no targets, the targets have
            fewer axes than `event_ndim`, or, outside of `jit`, a variance is not
            above 0.

    Example:
        >>> means, variances = jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1))
        >>> print(metrics.mixture_nll(means, variances, jnp.array([0.0])))
        [1.4189385]
    """
    fn = "maskjax.metrics.mixture_nll"
    given = _gaussians(means, variances, targets, fn=fn, members=True)
    checks.at_least(event_ndim, 0, fn=fn, name="event_ndim")
    if event_ndim > given[2].ndim:
        raise ValueError(
            f"`{fn}` needs `event_ndim` of at most {given[2].ndim}, the axes of "
            f"`targets`, got {event_ndim}."
        )
    return _mixture_nll(*given, event_ndim=event_ndim)


def gaussian_crps(mean: ArrayLike, variance: ArrayLike, targets: ArrayLike) -> Array:
    """The continuous ranked probability score of targets under normal distributions.

    It is the integral of the squared difference between the predicted distribution
    function and the step at the target. It has the unit of the targets, and approaches
    the absolute error as the variance goes to 0.

    Args:
        mean: [...], floating.
        variance: [...] or a scalar, above 0.
        targets: [...], floating.

    Returns:
        [...], float32, one for each target, at least 0. nan where an argument is nan
        or, under `jit`, a variance is not above 0.

    Raises:
        TypeError: If an argument is not floating.
        ValueError: If the shapes differ, there are no targets, or, outside of `jit`, a
            variance is not above 0.

    Example:
        >>> print(metrics.gaussian_crps(jnp.zeros(2), 1.0, jnp.array([0.0, 2.0])))
        [0.2336... 1.4527...]

    References:
        Gneiting & Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation",
        JASA 102, 2007, equation 21 (they give its negative).
    """
    fn = "maskjax.metrics.gaussian_crps"
    return _gaussian_crps(*_gaussians(mean, variance, targets, fn=fn))


def mixture_crps(means: ArrayLike, variances: ArrayLike, targets: ArrayLike) -> Array:
    """The continuous ranked probability score of targets under mixtures of normals.

    Args:
        means: [M, ...], floating.
        variances: [M, ...] or a scalar, above 0.
        targets: [...], floating.

    Returns:
        [...], float32, one for each target, at least 0. nan where an argument is nan
        or, under `jit`, a variance is not above 0.

    Raises:
        TypeError: If an argument is not floating.
        ValueError: If the shapes do not fit, there are no targets, or, outside of
            `jit`, a variance is not above 0.

    Example:
        >>> means, variances = jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1))
        >>> print(metrics.mixture_crps(means, variances, jnp.array([0.0])))
        [0.3594...]

    References:
        Grimit et al., "The continuous ranked probability score for circular variables
        and its application to mesoscale forecast ensemble verification", QJRMS 132,
        2006, equation 5.
    """
    fn = "maskjax.metrics.mixture_crps"
    return _mixture_crps(*_gaussians(means, variances, targets, fn=fn, members=True))


def interval_coverage(
    lower: ArrayLike,
    upper: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    """The fraction of targets that are in their predicted intervals (PICP).

    Of calibrated intervals for 95 % it is .95. A wide interval covers more, so compare
    widths too.

    Args:
        lower: [..., B], floating: where the intervals begin.
        upper: [..., B], floating: where they end. Both ends are inside.
        targets: [B] or [..., B], floating.
        where: [B] or [..., B], booleans: the targets that count. `None`: all. What is
            ignored may be anything.

    Returns:
        [...], float32: the number of covered targets divided by the number that count,
        correctly rounded for up to 2^24 targets. An interval whose end is below its
        begin covers nothing. nan if no target counts, or an argument is nan.

    Raises:
        TypeError: If an argument is not floating, or `where` not boolean.
        ValueError: If there are no targets, or the shapes do not fit.

    Example:
        >>> mean, deviation = jnp.zeros(3), jnp.array([1.0, 1.0, 2.0])
        >>> half = 1.96 * deviation  # of a normal distribution, for 95 %
        >>> targets = jnp.array([0.0, 3.0, 3.0])
        >>> print(metrics.interval_coverage(mean - half, mean + half, targets))
        0.6666667
        >>> draws = jax.random.normal(jax.random.key(0), (1000, 3))  # of an ensemble
        >>> ends = jnp.quantile(draws, jnp.array([0.025, 0.975]), axis=0)
        >>> print(metrics.interval_coverage(*ends, targets))
        0.33333334
    """
    fn = "maskjax.metrics.interval_coverage"
    low = _predicted.scores(lower, "lower", fn=fn)
    high = _predicted.scores(upper, "upper", fn=fn)
    if high.shape != low.shape:
        raise ValueError(
            f"`{fn}` needs `upper` of shape {low.shape}, like `lower`, got "
            f"{high.shape}."
        )
    y = _predicted.trailing(targets, low.shape, "targets", fn=fn)
    if where is not None:
        where = _predicted.flags(where, low.shape, "where", fn=fn)
    return _interval_coverage(low, high, y, where)


@jax.jit
def _interval_coverage(
    lower: Array, upper: Array, targets: Array, where: Array | None
) -> Array:
    dtype = jnp.result_type(lower.dtype, upper.dtype, targets.dtype)
    lower, upper, targets = (x.astype(dtype) for x in (lower, upper, targets))
    covered = (lower <= targets) & (targets <= upper)
    known = ~(jnp.isnan(lower) | jnp.isnan(upper) | jnp.isnan(targets))
    if where is not None:
        covered, known = covered & where, known | ~where
    size = _predicted.count_where(where, targets.shape[-1])
    return _predicted.share(_predicted.count(covered), size, known.all(-1), dtype)


@jax.jit
def _gaussian_nll(mean: Array, variance: Array, targets: Array) -> Array:
    return _nll(*_shaped(mean, variance, targets))


@functools.partial(jax.jit, static_argnames="event_ndim")
def _mixture_nll(
    means: Array, variances: Array, targets: Array, *, event_ndim: int
) -> Array:
    nll = _nll(*_shaped(means, variances, targets))
    nll = nll.sum(tuple(range(nll.ndim - event_ndim, nll.ndim)))
    return float(np.log(len(nll))) - jax.nn.logsumexp(-nll, axis=0)


@jax.jit
def _gaussian_crps(mean: Array, variance: Array, targets: Array) -> Array:
    mean, variance, targets = _shaped(mean, variance, targets)
    # Half the expected distance between two draws is deviation / sqrt(pi).
    within = jnp.sqrt(variance) * float(1 / np.sqrt(np.pi))
    return _distance(targets - mean, variance) - within


@jax.jit
def _mixture_crps(means: Array, variances: Array, targets: Array) -> Array:
    means, variances, targets = _shaped(means, variances, targets)

    def to_others(member: tuple[Array, Array]) -> Array:
        mean, variance = (value[None] for value in member)
        return _distance(means - mean, variances + variance).mean(0)

    # One member at a time: memory for M pairs, not for M * M.
    within = lax.map(to_others, (means, variances)).mean(0)
    return _distance(targets - means, variances).mean(0) - within / 2


def _nll(mean: Array, variance: Array, targets: Array) -> Array:
    deviation, apart = jnp.sqrt(variance), targets - mean
    # Where the square would overflow. Derivatives there could be 0 times infinity, as
    # of a member that has no part in a mixture.
    far = abs(apart) > float(jnp.finfo(mean.dtype).max) ** 0.5 * deviation
    z = jnp.where(far, 0, apart) / deviation
    nll = z * z / 2 + jnp.log(deviation) + float(np.log(2 * np.pi) / 2)
    return jnp.where(far, jnp.inf, nll)


def _distance(mean: Array, variance: Array) -> Array:
    """The expectation of |X| for normal X."""
    deviation = jnp.sqrt(variance)
    # So far out that the rest vanishes; its derivatives could be 0 times infinity.
    far = abs(mean) > 100 * deviation
    near = jnp.where(far, 0, mean)
    z = near / deviation * float(np.sqrt(0.5))
    spread = deviation * jnp.exp(-(z**2)) * float(np.sqrt(2 / np.pi))
    return jnp.where(far, abs(mean), near * erf(z) + spread)


def _gaussians(
    mean: ArrayLike,
    variance: ArrayLike,
    targets: ArrayLike,
    *,
    fn: str,
    members: bool = False,
) -> tuple[Array, Array, Array]:
    """The three as arrays, if they fit and no variance is known to be 0 or less."""
    names = ("means", "variances") if members else ("mean", "variance")
    mu = _predicted.floating(mean, names[0], fn=fn)
    var = _predicted.floating(variance, names[1], fn=fn)
    y = _predicted.floating(targets, "targets", fn=fn)
    lead = f"[M, ...], M members of `targets`' {y.shape}" if members else f"{y.shape}"
    own = mu.shape[1:] if members and mu.ndim else mu.shape
    if own != y.shape or mu.ndim != y.ndim + members or not mu.size:
        raise ValueError(
            f"`{fn}` needs `{names[0]}` of shape {lead}, not empty, got {mu.shape}."
        )
    if var.shape not in ((), mu.shape):
        raise ValueError(
            f"`{fn}` needs `{names[1]}` of shape {mu.shape}, like `{names[0]}`, or a "
            f"scalar, got {var.shape}."
        )
    # A variance of nan is no error; the result is nan.
    _predicted.require(
        _none_below(var),
        lambda: f"`{fn}` needs `{names[1]}` above 0, got {float(var.min()):g}.",
    )
    return mu, var, y


@jax.jit
def _none_below(variance: Array) -> Array:
    return ~(variance <= 0).any()


def _shaped(mean: Array, variance: Array, targets: Array) -> tuple[Array, ...]:
    """Arrays of one dtype and rank; nan for variances that are not above 0."""
    dtype = dtypes.common(mean, targets)
    variance = _predicted.valid(variance, ~(variance <= 0))
    variance = jnp.broadcast_to(variance, mean.shape)
    if targets.ndim < mean.ndim:
        targets = targets[None]
    return tuple(array.astype(dtype) for array in (mean, variance, targets))
