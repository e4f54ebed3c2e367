"""Neuron subnetworks: whole neurons of a random layer kept or removed, nothing else.

A network of H random neurons says s * sum_h m_h u_h relu(w_h . x): the mask m keeps
neurons, and one number s scales the sum. Weights can't be chosen one by one, so that a
neuron subnetwork is no better than a linear function of the same random features,
which is why it can't be a single ReLU neuron of many inputs unless it is very large.
Malach et al., arXiv:2002.00585, section 3.

Shapes: N samples, D inputs, H neurons. `outputs` are [N, H], u_h relu(w_h . x_n).

    >>> outputs = jnp.array([[1.0, 0.0, 5.0], [0.0, 1.0, 5.0]])
    >>> kept = neuron.greedy(outputs, jnp.array([3.0, 3.0]), budget=2)
    >>> kept, neuron.scale(kept, outputs, jnp.array([3.0, 3.0]))
    (Array([False, False,  True], dtype=bool), Array(0.6, dtype=float32))
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import estimator, initializer
from maskjax._core import checks
from maskjax._core.trees import Array

__all__ = ["error", "greedy", "learned", "ridge", "scale"]


def scale(mask: Array, outputs: Array, y: Array) -> Array:
    """The number by which the kept neurons' sum is nearest to the targets.

    Args:
        mask: [H], boolean, or floating (a soft mask).
        outputs: [N, H], floating.
        y: [N].

    Returns:
        A scalar, of either sign; 0 if the sum is 0.

    Raises:
        TypeError: If `outputs` or `y` is not floating.
        ValueError: If the shapes do not fit.

    Example:
        >>> outputs = jnp.array([[1.0, 2.0], [2.0, 1.0]])
        >>> neuron.scale(jnp.array([True, True]), outputs, jnp.array([6.0, 6.0]))
        Array(2., dtype=float32)
    """
    _fit(mask, outputs, y, fn="scale")
    total = outputs @ mask.astype(outputs.dtype)
    return _ratio(total @ y, total @ total)


def error(mask: Array, outputs: Array, y: Array) -> Array:
    """What of the targets the kept neurons miss, at the best scale.

    Args:
        mask: [H], boolean, or floating: it is differentiable in a soft mask.
        outputs: [N, H], floating.
        y: [N].

    Returns:
        The mean squared error as a fraction of the targets' mean square, in [0, 1].

    Raises:
        TypeError: As in `scale`.
        ValueError: As in `scale`.

    Example:
        >>> outputs = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> neuron.error(jnp.array([True, False]), outputs, jnp.array([1.0, 1.0]))
        Array(0.5, dtype=float32)
    """
    _fit(mask, outputs, y, fn="error")
    total = outputs @ mask.astype(outputs.dtype)
    return 1 - _ratio((total @ y) ** 2, (total @ total) * (y @ y))


def greedy(outputs: Array, y: Array, *, budget: int) -> Array:
    """The neurons that, one by one, each leave the smallest error.

    As in matching pursuit, but that all neurons share one scale, which is the best one
    at every step. Where the error is smallest in the end, there it stops.

    Args:
        outputs: [N, H], floating.
        y: [N].
        budget: How many neurons to keep at most; a larger one is never worse.

    Returns:
        [H], boolean: True keeps.

    Raises:
        TypeError: As in `scale`, or if `budget` is no whole number.
        ValueError: As in `scale`, or if `budget` is below 1.

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
    """The neurons of the highest scores, which are trained straight through the choice.

    It is edge-popup with a neuron in place of a weight, on all samples in each step;
    the best choice along the way is kept.

    Args:
        outputs: [N, H], floating.
        y: [N].
        budget: How many neurons to keep, exactly; at most H.
        optimizer: A transformation of optax.
        steps: How many steps to train.
        key: A typed key, for the first scores.

    Returns:
        [H], boolean: True keeps.

    Raises:
        TypeError: As in `scale`, if a number is not whole, or the key not a typed key.
        ValueError: As in `scale`, or if `budget` or `steps` is out of range.

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

    def loss(scores: Array) -> tuple[Array, Array]:
        mask = estimator.top_k({"h": scores}, density=budget / n)["h"]
        return error(mask, outputs, y), mask > 0

    def step(carry: Any, _: None) -> tuple[Any, None]:
        scores, state, best, kept = carry
        (value, mask), slope = jax.value_and_grad(loss, has_aux=True)(scores)
        kept, best = jnp.where(value < best, mask, kept), jnp.minimum(value, best)
        updates, state = optimizer.update(slope, state, scores)
        return (scores + updates, state, best, kept), None

    scores = initializer.uniform()(key, (n,), outputs.dtype)
    start = scores, optimizer.init(scores), jnp.full((), jnp.inf, y.dtype)
    carry, _ = lax.scan(step, (*start, jnp.zeros(n, bool)), length=steps + 1)
    return carry[-1]


def ridge(outputs: Array, y: Array, *, penalty: float) -> Array:
    """What a neuron subnetwork is held against: a weight for each neuron, all free.

    Args:
        outputs: [N, H], floating.
        y: [N].
        penalty: What the mean squared error is charged for the weights' squares.

    Returns:
        [H], weights: a soft mask, for `error`.

    Raises:
        TypeError: As in `scale`.
        ValueError: As in `scale`.

    Example:
        >>> outputs = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> neuron.ridge(outputs, jnp.array([3.0, 2.0]), penalty=0.0)
        Array([3., 1.], dtype=float32)
    """
    _fit(None, outputs, y, fn="ridge")
    n, h = outputs.shape
    if h <= n:
        square = outputs.T @ outputs + n * penalty * jnp.eye(h, dtype=outputs.dtype)
        return jnp.linalg.solve(square, outputs.T @ y)
    square = outputs @ outputs.T + n * penalty * jnp.eye(n, dtype=outputs.dtype)
    return outputs.T @ jnp.linalg.solve(square, y)


@functools.partial(jax.jit, static_argnames="budget")
def _greedy(outputs: Array, y: Array, *, budget: int) -> Array:
    sizes, fits = jnp.sum(outputs**2, axis=0), y @ outputs
    n = len(sizes)

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        left, total = carry
        # Of the sum with each neuron: its product with y, and its square.
        product = total @ y + fits
        square = total @ total + 2 * (total @ outputs) + sizes
        gain = jnp.where(left, _ratio(product**2, square), -jnp.inf)
        best = jnp.argmax(gain)
        return (left.at[best].set(False), total + outputs[:, best]), (best, gain[best])

    start = jnp.ones(n, bool), jnp.zeros_like(y)
    _, (order, gains) = lax.scan(step, start, length=min(budget, n))
    return jnp.zeros(n, bool).at[order].set(jnp.arange(len(gains)) <= gains.argmax())


def _ratio(above: Array, below: Array) -> Array:
    """A quotient that is 0, and has no slope, where there is nothing below."""
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
