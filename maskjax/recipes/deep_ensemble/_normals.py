"""Normal distributions that networks output, and their mixture."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from maskjax._core import checks, dtypes
from maskjax._core.trees import Array

_FN = "maskjax.recipes.deep_ensemble"


def gaussian(outputs: Array, *, floor: float | None = None) -> tuple[Array, Array]:
    """The mean and the variance that a network outputs: 2.

    Args:
        outputs: [..., 2 * D], floating: D means, then D numbers whose softplus is the
            variance.
        floor: Added to the softplus, so that the logarithm of the variance is finite.
            `None`: 1e-6, but for float16 outputs 64 / 65504, so that gradients fit into
            float16 (for any format, at least 64 divided by its largest number).

    Returns:
        Two arrays [..., D], at least float32: the means, and variances above 0.

    Raises:
        TypeError: If the outputs are not floating.
        ValueError: If the last axis is not even.

    Example:
        >>> deep_ensemble.gaussian(jnp.array([3.0, 0.0]))
        (Array([3.], dtype=float32), Array([0.693...], dtype=float32))
    """
    return _normals(outputs, floor, fn=f"{_FN}.gaussian")


def gaussian_loss(
    outputs: Array, targets: Array, *, floor: float | None = None
) -> Array:
    """The negative log-likelihood of a network's normals, without its constant: 2.

    Args:
        outputs: [..., 2 * D], floating: what `gaussian` takes.
        targets: [..., D].
        floor: Added to the softplus that makes variances, as in `gaussian`.

    Returns:
        [..., D], at least float32: log(variance) / 2 plus (target - mean)^2 / (2 *
        variance).

    Raises:
        TypeError: If the outputs are not floating.
        ValueError: If the last axis of `outputs` is not even, or the shapes do not fit.

    Example:
        >>> deep_ensemble.gaussian_loss(jnp.array([3.0, 0.5413]), jnp.array([3.0]))
        Array([...], dtype=float32)

    References:
        Lakshminarayanan et al., arXiv:1612.01474, equation 1.
    """
    fn = f"{_FN}.gaussian_loss"
    mean, variance = _normals(outputs, floor, fn=fn)
    checks.of_shape(targets, mean.shape, fn=fn, name="targets")
    apart = jnp.asarray(targets, mean.dtype) - mean
    return 0.5 * jnp.log(variance) + apart**2 / (2 * variance)


def mixture(means: Array, variances: Array) -> tuple[Array, Array]:
    """The mean and the variance of the mixture of members' normals: 3.

    Args:
        means: [M, ...], floating.
        variances: [M, ...], floating.

    Returns:
        Two arrays [...]: the mean, and the mean variance plus the variance of means.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> deep_ensemble.mixture(jnp.array([1.0, 3.0]), jnp.array([0.5, 1.5]))
        (Array(2., dtype=float32), Array(2., dtype=float32))
    """
    checks.of_shape(variances, means.shape, fn=f"{_FN}.mixture", name="variances")
    # The paper subtracts mean squares, which cancel if means are large.
    return jnp.mean(means, 0), jnp.mean(variances, 0) + jnp.var(means, 0)


def _normals(outputs: Array, floor: float | None, *, fn: str) -> tuple[Array, Array]:
    checks.floating(outputs, fn=fn, name="outputs")
    if not outputs.ndim or not outputs.shape[-1] or outputs.shape[-1] % 2:
        raise ValueError(
            f"`{fn}` needs `outputs` with an even last axis, got shape {outputs.shape}."
        )
    if floor is None:
        floor = max(1e-6, 64 / float(jnp.finfo(outputs.dtype).max))
    wide = outputs.astype(dtypes.at_least_float32(outputs.dtype))
    mean, raw = jnp.split(wide, 2, axis=-1)
    return mean, jax.nn.softplus(raw) + floor
