"""Regression with MC-dropout: moments, likelihood, and the precision of the noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from maskjax import metrics
from maskjax._core import checks
from maskjax._core.trees import Array
from maskjax.recipes.mc_dropout._masks import below_one

_FN = "maskjax.recipes.mc_dropout."


def moments(outputs: Array, *, precision: Any) -> tuple[Array, Array]:
    """The mean and the variance of the members' prediction: 3.

    Args:
        outputs: [T, ...], floating: the members' outputs in a regression.
        precision: tau, of the noise in the observations, in the units of `outputs`: if
            targets were divided by a deviation d, it is tau * d^2. `math.inf`: no
            noise.

    Returns:
        Two arrays [...]: the mean, and 1 / tau plus the variance over the T members.

    Raises:
        TypeError: If the outputs are not floating.

    Example:
        >>> mc_dropout.moments(jnp.array([[1.0], [3.0]]), precision=2.0)
        (Array([2.], dtype=float32), Array([1.5], dtype=float32))

    References:
        Gal & Ghahramani, arXiv:1506.02142, section 4, equation 6 and below.
    """
    checks.floating(outputs, fn=_FN + "moments", name="outputs")
    return _moments(outputs, precision)


def log_likelihood(
    outputs: Array, targets: Array, *, precision: Any, event_ndim: int = 0
) -> Array:
    """The log-likelihood of targets under the mixture of all members: 4.

    It is at least the mean of the members' own log-likelihoods.

    Args:
        outputs: [T, ...], floating: the members' outputs.
        targets: [...], floating.
        precision: tau, of the noise in the observations, finite. If targets were
            divided by a deviation, subtract its logarithm to get the log-likelihood of
            the original ones.
        event_ndim: How many of the last axes belong to one sample, as in
            `metrics.mixture_nll`.

    Returns:
        [...], one for each sample: the shape of the targets without the last
        `event_ndim` axes.

    Raises:
        TypeError: If the outputs or the targets are not floating.
        ValueError: If the outputs are not T times the shape of the targets, or if
            `metrics.mixture_nll` raises.

    Example:
        >>> outputs, targets = jnp.zeros((5, 1)), jnp.zeros(1)
        >>> mc_dropout.log_likelihood(outputs, targets, precision=1.0)
        Array([-0.918...], dtype=float32)

    References:
        Gal & Ghahramani, arXiv:1506.02142, equation 8 of the appendix.
    """
    fn = _FN + "log_likelihood"
    checks.floating(outputs, fn=fn, name="outputs")
    checks.floating(targets, fn=fn, name="targets")
    wanted = *outputs.shape[:1], *targets.shape
    checks.of_shape(outputs, wanted, fn=fn, name="outputs")
    variance = (1 / jnp.asarray(precision)).astype(outputs.dtype)
    variance = jnp.broadcast_to(variance, outputs.shape)
    return -metrics.mixture_nll(outputs, variance, targets, event_ndim=event_ndim)


def precision(*, rate: Any, length_scale: Any, samples: int, weight_decay: Any) -> Any:
    """The precision tau of the noise that a weight decay implies: 2.

    Args:
        rate: The probability that a unit is dropped, in [0, 1).
        length_scale: l, of the prior on the weights; 0.01 in the authors' code.
        samples: N, the size of the training set.
        weight_decay: lambda, the factor of the squared weights in a loss whose other
            part is the mean over the samples of (target - output)^2 / 2.

    Returns:
        (1 - rate) * l^2 / (2 * N * lambda).

    Raises:
        TypeError: If the rate is not a number.
        ValueError: If the rate is outside [0, 1), or `samples` is below 1.

    Example:
        >>> how = {"rate": 0.5, "length_scale": 1.0, "samples": 100}
        >>> mc_dropout.precision(**how, weight_decay=0.25)
        0.01

    References:
        Gal & Ghahramani, arXiv:1506.02142, section 4.
    """
    fn = _FN + "precision"
    return _quotient(rate, length_scale, samples, weight_decay, fn=fn)


def weight_decay(*, rate: Any, length_scale: Any, samples: int, precision: Any) -> Any:
    """The weight decay that gives the noise a precision; the inverse of `precision`: 2.

    Args:
        rate: The probability that a unit is dropped, in [0, 1).
        length_scale: l, of the prior on the weights.
        samples: N, the size of the training set.
        precision: tau, of the noise.

    Returns:
        lambda = (1 - rate) * l^2 / (2 * N * tau), for kernels; biases do not decay.

    Raises:
        TypeError: If the rate is not a number.
        ValueError: If the rate is outside [0, 1), or `samples` is below 1.

    Example:
        >>> how = {"rate": 0.5, "length_scale": 1.0, "samples": 100}
        >>> mc_dropout.weight_decay(**how, precision=0.01)
        0.25
    """
    return _quotient(rate, length_scale, samples, precision, fn=_FN + "weight_decay")


@jax.jit
def _moments(outputs: Array, precision: Any) -> tuple[Array, Array]:
    noise = (1 / jnp.asarray(precision)).astype(outputs.dtype)
    return jnp.mean(outputs, 0), noise + jnp.var(outputs, 0)


def _quotient(rate: Any, length: Any, samples: Any, divisor: Any, *, fn: str) -> Any:
    below_one(rate, fn=fn)
    checks.at_least(samples, 1, fn=fn, name="samples", traceable=True)
    return (1 - rate) * length**2 / (2 * samples * divisor)
