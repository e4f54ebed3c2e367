"""Neuron subnetworks: random networks from which only whole neurons are removed.

The output of H random neurons is s * sum_h m_h u_h relu(w_h . x), where the mask m
keeps neurons and one number s scales the sum. This is a linear function of random
features, so it can't do better than linear regression on them. In particular, it can't
approximate a single ReLU neuron of many inputs unless it is very large. Malach et al.,
arXiv:2002.00585, section 3.

Shapes: N samples, D inputs, H neurons. `outputs` are [N, H], u_h relu(w_h . x_n).

    >>> outputs = jnp.array([[1.0, 0.0, 5.0], [0.0, 1.0, 5.0]])
    >>> kept = neuron.greedy(outputs, jnp.array([3.0, 3.0]), budget=2)
    >>> kept, neuron.scale(kept, outputs, jnp.array([3.0, 3.0]))
    (Array([False, False,  True], dtype=bool), Array(0.6, dtype=float32))
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import estimator, initializer
from maskjax._core import checks, placement
from maskjax._core.trees import Array

__all__ = ["error", "greedy", "learned", "ridge", "scale"]


def scale(mask: Array, outputs: Array, y: Array) -> Array:
    """The scale for which the kept neurons' sum is nearest to the targets.

    Args:
        mask: [H], boolean, or floating (a soft mask).
        outputs: [N, H], floating.
        y: [N], floating.

    Returns:
        A scalar, positive or negative; 0 if the sum is 0.

    Raises:
        TypeError: If `outputs` or `y` is not floating.
        ValueError: If the shapes do not fit.

    Example:
        >>> outputs = jnp.array([[1.0, 2.0], [2.0, 1.0]])
        >>> neuron.scale(jnp.array([True, True]), outputs, jnp.array([6.0, 6.0]))
        Array(2., dtype=float32)
    """
    _fit(mask, outputs, y, fn="scale")
    return _scale(mask, outputs, y)


def error(mask: Array, outputs: Array, y: Array) -> Array:
    """The error of the kept neurons at the best scale.

    Args:
        mask: [H], boolean, or floating (a soft mask, in which it is differentiable).
        outputs: [N, H], floating.
        y: [N], floating.

    Returns:
        The mean squared error divided by the targets' mean square, in [0, 1].

    Raises:
        TypeError: If `outputs` or `y` is not floating.
        ValueError: If the shapes do not fit.

    Example:
        >>> outputs = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> neuron.error(jnp.array([True, False]), outputs, jnp.array([1.0, 1.0]))
        Array(0.5, dtype=float32)
    """
    _fit(mask, outputs, y, fn="error")
    return _error(mask, outputs, y)


def greedy(outputs: Array, y: Array, *, budget: int) -> Array:
    """Neurons added one by one, each time the one that leaves the smallest error.

    This is matching pursuit, except that all neurons share one scale, which is the best
    one at every step. The result is the prefix with the smallest error.

    Args:
        outputs: [N, H], floating.
        y: [N], floating.
        budget: The largest number of neurons to keep. A larger budget is never worse.

    Returns:
        [H], boolean: True keeps.

    Raises:
        TypeError: If `outputs` or `y` is not floating, or `budget` is no whole number.
        ValueError: If the shapes do not fit, or `budget` is below 1.

    Example:
        >>> outputs = jnp.array([[1.0, 0.0, 3.0], [0.0, 1.0, 0.0]])
        >>> neuron.greedy(outputs, jnp.array([1.0, 1.0]), budget=2)
        Array([ True,  True, False], dtype=bool)
    """
    fn = _fit(None, outputs, y, fn="greedy")
    checks.at_least(budget, 1, fn=fn, name="budget")
    return _greedy(outputs, y, budget=budget)


def learned(
    outputs: Array, y: Array, *, budget: int, optimizer: Any, steps: int, key: Array
) -> Array:
    """The neurons with the highest scores, which are trained by straight-through steps.

    This is edge-popup with neurons in place of weights. Every step uses all samples.
    The result is the best choice of all steps.

    Args:
        outputs: [N, H], floating.
        y: [N], floating.
        budget: How many neurons to keep, exactly; at most H.
        optimizer: An optax gradient transformation.
        steps: How many steps to train.
        key: A typed key, for the initial scores.

    Returns:
        [H], boolean: True keeps.

    Raises:
        TypeError: If `outputs` or `y` is not floating, a number is not whole, or the
            key is not a typed key.
        ValueError: If the shapes do not fit, or `budget` or `steps` is out of range.

    Example:
        >>> outputs = jnp.array([[1.0, 0.0, 3.0], [0.0, 1.0, 0.0]])
        >>> neuron.learned(
        ...     outputs,
        ...     jnp.array([1.0, 1.0]),
        ...     budget=2,
        ...     optimizer=optax.sgd(0.5),
        ...     steps=20,
        ...     key=jax.random.key(0),
        ... )
        Array([ True,  True, False], dtype=bool)

    References:
        Ramanujan et al., arXiv:1911.13299, section 3.
    """
    fn = _fit(None, outputs, y, fn="learned")
    checks.typed_key(key, fn=fn)
    checks.at_least(budget, 1, fn=fn, name="budget")
    checks.at_least(steps, 1, fn=fn, name="steps")
    n = outputs.shape[1]
    if budget > n:
        raise ValueError(f"`{fn}` needs `budget` of at most {n} neurons, got {budget}.")
    scores = initializer.uniform()(key, (n,), outputs.dtype)
    return _learned(scores, outputs, y, budget=budget, optimizer=optimizer, steps=steps)


def ridge(outputs: Array, y: Array, *, penalty: float) -> Array:
    """Ridge regression on the neurons' outputs: a baseline with a weight per neuron.

    Args:
        outputs: [N, H], floating.
        y: [N], floating.
        penalty: The factor of the squared weights, which are added to the mean squared
            error.

    Returns:
        [H], weights. Pass them to `error` as a soft mask.

    Raises:
        TypeError: If `outputs` or `y` is not floating.
        ValueError: If the shapes do not fit.

    Example:
        >>> outputs = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> neuron.ridge(outputs, jnp.array([3.0, 2.0]), penalty=0.0)
        Array([3., 1.], dtype=float32)
    """
    _fit(None, outputs, y, fn="ridge")
    return _ridge(outputs, y, penalty)


@jax.jit
def _scale(mask: Array, outputs: Array, y: Array) -> Array:
    mask, outputs, y = placement.whole((mask, outputs, y))
    total = outputs @ mask.astype(outputs.dtype)
    return _ratio(total @ y, total @ total)


@jax.jit
def _error(mask: Array, outputs: Array, y: Array) -> Array:
    mask, outputs, y = placement.whole((mask, outputs, y))
    total = outputs @ mask.astype(outputs.dtype)
    return 1 - _ratio((total @ y) ** 2, (total @ total) * (y @ y))


@functools.partial(jax.jit, static_argnames="budget")
def _greedy(outputs: Array, y: Array, *, budget: int) -> Array:
    outputs, y = placement.whole((outputs, y))
    sizes, fits = jnp.sum(outputs**2, axis=0), y @ outputs
    n = len(sizes)

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        left, total = carry
        # The product with y, and the square, of the sum with each neuron added.
        product = total @ y + fits
        square = total @ total + 2 * (total @ outputs) + sizes
        gain = jnp.where(left, _ratio(product**2, square), -jnp.inf)
        best = jnp.argmax(gain)
        return (left.at[best].set(False), total + outputs[:, best]), (best, gain[best])

    start = placement.vary_like((jnp.ones(n, bool), jnp.zeros_like(y)), outputs, y)
    _, (order, gains) = lax.scan(step, start, length=min(budget, n))
    return jnp.zeros(n, bool).at[order].set(jnp.arange(len(gains)) <= gains.argmax())


@functools.partial(jax.jit, static_argnames=("budget", "optimizer", "steps"))
def _learned(
    scores: Array, outputs: Array, y: Array, *, budget: int, optimizer: Any, steps: int
) -> Array:
    outputs, y = placement.whole((outputs, y))
    n = outputs.shape[1]

    def loss(scores: Array) -> tuple[Array, Array]:
        mask = estimator.top_k({"h": scores}, density=budget / n)["h"]
        return _error(mask, outputs, y), mask > 0

    def step(carry: Any, _: None) -> tuple[Any, None]:
        scores, state, best, kept = carry
        (value, mask), slope = jax.value_and_grad(loss, has_aux=True)(scores)
        kept, best = jnp.where(value < best, mask, kept), jnp.minimum(value, best)
        updates, state = optimizer.update(slope, state, scores)
        return (scores + updates, state, best, kept), None

    start = scores, optimizer.init(scores), jnp.full((), jnp.inf, y.dtype)
    start = placement.vary_like((*start, jnp.zeros(n, bool)), scores, outputs, y)
    carry, _ = lax.scan(step, start, length=steps + 1)
    return carry[-1]


@jax.jit
def _ridge(outputs: Array, y: Array, penalty: Any) -> Array:
    outputs, y = placement.whole((outputs, y))
    n, h = outputs.shape
    if h <= n:
        square = outputs.T @ outputs + n * penalty * jnp.eye(h, dtype=outputs.dtype)
        return jnp.linalg.solve(square, outputs.T @ y)
    square = outputs @ outputs.T + n * penalty * jnp.eye(n, dtype=outputs.dtype)
    return outputs.T @ jnp.linalg.solve(square, y)


def _ratio(above: Array, below: Array) -> Array:
    """A quotient that is 0, with gradient 0, where the denominator is 0."""
    some = below > 0
    return jnp.where(some, above / jnp.where(some, below, 1), 0)


def _fit(mask: Any, outputs: Any, y: Any, *, fn: str) -> str:
    fn = f"maskjax.theory.neuron.{fn}"
    for name, array in (("outputs", outputs), ("y", y)):
        checks.floating(array, fn=fn, name=name)
    shapes = [tuple(a.shape) for a in (outputs, y)]
    if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1] or 0 in shapes[0]:
        raise ValueError(
            f"`{fn}` needs `outputs` [N, H] and `y` [N], got {shapes[0]} and "
            f"{shapes[1]}."
        )
    if mask is not None and tuple(mask.shape) != shapes[0][1:]:
        raise ValueError(
            f"`{fn}` needs `mask` [{shapes[0][1]}], one for each neuron, got "
            f"{tuple(mask.shape)}."
        )
    return fn
