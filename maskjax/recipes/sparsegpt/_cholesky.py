"""Cholesky factors, also where the compiler makes a program of many megabytes."""

import jax.numpy as jnp
from jax import lax

from maskjax._core.trees import Array

# On TPU XLA unrolls the factorization: one of 2048 x 2048 is 22 MB of code, which takes
# 20 s to compile, and twice as many rows take four times as long. As a loop over blocks
# it is 3 MB.
_BLOCK, _UNROLLED = 128, 512


def cholesky(x: Array) -> Array:
    """The lower factor of [d, d], of which the lower triangle is read.

    It is not finite if the matrix is not positive definite.
    """
    if x.shape[0] <= _UNROLLED:
        return _plain(x)
    return lax.platform_dependent(x, tpu=blocked, default=_plain)


def _plain(x: Array) -> Array:
    return lax.linalg.cholesky(x, symmetrize_input=False)


def blocked(x: Array) -> Array:
    """The same, by a loop over blocks of columns."""
    d = x.shape[0]
    extra = -d % _BLOCK
    x = jnp.pad(x, ((0, extra), (0, extra)))
    place = jnp.arange(d + extra, dtype=jnp.int32)
    x += jnp.diag(jnp.asarray(place >= d, x.dtype))
    one = jnp.eye(_BLOCK, dtype=x.dtype)

    def step(lower: Array, start: Array) -> tuple[Array, None]:
        known = lax.dynamic_slice_in_dim(lower, start, _BLOCK)
        left = lax.dynamic_slice_in_dim(x, start, _BLOCK, axis=1)
        left -= jnp.matmul(lower, known.T, precision="highest")
        own = _plain(lax.dynamic_slice_in_dim(left, start, _BLOCK))
        how = {"left_side": True, "lower": True}
        inverse = lax.linalg.triangular_solve(own, one + 0 * own, **how)
        below = jnp.matmul(left, inverse.T, precision="highest")
        below = jnp.where((place >= start + _BLOCK)[:, None], below, 0)
        new = lax.dynamic_update_slice_in_dim(below, own, start, axis=0)
        return lax.dynamic_update_slice_in_dim(lower, new, start, axis=1), None

    starts = jnp.arange(0, d + extra, _BLOCK, dtype=jnp.int32)
    lower, _ = lax.scan(step, jnp.zeros_like(x), starts)
    return lower[:d, :d]
