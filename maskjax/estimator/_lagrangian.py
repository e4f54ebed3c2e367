"""A term that holds a quantity at its target, with multipliers that are learned."""

from __future__ import annotations

import jax.numpy as jnp

from maskjax._core import checks, dtypes
from maskjax._core.trees import Array
from maskjax.estimator._straight import straight_through


def lagrangian(excess: Array, multipliers: Array) -> Array:
    """A term for the loss that drives a quantity to a target.

    It is `lambda_1 excess + lambda_2 excess^2`. The gradients of the multipliers have
    the opposite sign, so that any optimizer that lowers the loss raises them as long as
    the constraint is violated: train `(parameters, multipliers)` together, with one
    call of `jax.grad`. Give the multipliers a learning rate of their own
    (`optax.partition`); the papers take ten times or more that of the weights.

    Where a target is far, let it move there over the first steps, such as
    `target = optax.linear_schedule(1.0, 0.3, steps // 2)`.

    Args:
        excess: By how much the constraint is violated, such as
            `algebra.expected_density(...) - target`. A floating scalar; or an array,
            with a constraint for each entry.
        multipliers: [2, *excess.shape], lambda_1 and lambda_2. Start with zeros.

    Returns:
        A scalar, the sum over all constraints, float32 or float64.

    Raises:
        TypeError: If an argument is not a floating array.
        ValueError: If the multipliers are of another shape, or one of both has nan
            (unless traced: then the term is nan).

    Example:
        >>> excess, multipliers = jnp.float32(0.5), jnp.array([1.0, 2.0])
        >>> print(estimator.lagrangian(excess, multipliers))
        1.0
        >>> jax.grad(estimator.lagrangian, argnums=(0, 1))(excess, multipliers)
        (Array(3., dtype=float32), Array([-0.5 , -0.25], dtype=float32))

    References:
        Xia et al., "Structured Pruning Learns Compact and Accurate Models" (CoFi), ACL
        2022. arXiv:2204.00408. Bhaskar et al., "Finding Transformer Circuits with Edge
        Pruning", NeurIPS 2024. arXiv:2406.16778.
    """
    fn = "maskjax.estimator.lagrangian"
    checks.floating(excess, fn=fn, name="excess")
    checks.floating(multipliers, fn=fn, name="multipliers")
    checks.of_shape(multipliers, (2, *excess.shape), fn=fn, name="multipliers")
    checks.together(fn=fn, excess=excess, multipliers=multipliers)
    for name, value in {"excess": excess, "multipliers": multipliers}.items():
        checks.no_nan(value, fn=fn, name=name)
    dtype = dtypes.widest(excess, multipliers)
    both = straight_through(multipliers, -multipliers).astype(dtype)
    excess = jnp.asarray(excess).astype(dtype)
    return jnp.sum(both[0] * excess + both[1] * jnp.square(excess))
