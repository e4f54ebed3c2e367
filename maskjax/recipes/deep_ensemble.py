"""Deep ensembles: networks trained apart (Lakshminarayanan et al., NeurIPS 2017).

arXiv:1612.01474.

Algorithm (numbers match the comments below):
  1. draw M networks, 5 say, each from a key of its own
  2. train each on all data, in an order of its own (no bagging), on a proper scoring
     rule: cross-entropy, or for regression the negative log-likelihood of a normal
     distribution of which the network yields mean and variance
  3. optionally add the loss of an adversarial example nearby: a step along the sign of
     the gradient, 1 % of a feature's range
  4. predict the mean of the members' probabilities, or the mixture of their normals

Departures from the paper:
  * the learning rate is yours; the 0.1 that the paper states for Adam is large

As masks: M networks are one that is M times as wide under block-diagonal masks, `wide`.

    >>> from maskjax.recipes import deep_ensemble
    >>> draw = lambda key: {"w": jax.random.normal(key, (3, 2))}
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> params = deep_ensemble.init(draw, keys=keys)
    >>> net = lambda params, x: x @ params["w"]
    >>> outputs = deep_ensemble.predict(net, params, jnp.ones((5, 3)))
    >>> mean, variance = deep_ensemble.gaussian(outputs)  # [4, 5, 1] each
    >>> mean, variance = deep_ensemble.mixture(mean, variance)
    >>> mean.shape
    (5, 1)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import stacking
from maskjax._core import checks
from maskjax._core.trees import Array, Params
from maskjax.recipes._wide import Wide, blocks, wide

__all__ = [
    "Wide",
    "adversarial",
    "blocks",
    "gaussian",
    "gaussian_loss",
    "init",
    "mixture",
    "order",
    "predict",
    "smoothed",
    "train",
    "wide",
]

_FN = "maskjax.recipes.deep_ensemble"


def init(draw: Callable[[Array], Params], *, keys: Array) -> Params:
    """Parameters of M networks: 1.

    Args:
        draw: `key -> params`.
        keys: [M], typed: one for each member, `jax.random.split(key, M)`.

    Returns:
        A tree of arrays [M, ...].

    Raises:
        TypeError: If the keys are not typed.
        ValueError: If there is none, or two members have one key, where keys are not
            traced.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> draw = lambda key: {"w": jax.random.normal(key, (2, 2))}
        >>> deep_ensemble.init(draw, keys=keys)["w"].shape
        (3, 2, 2)
    """
    checks.own_keys(keys, fn=f"{_FN}.init")
    return jax.vmap(draw)(keys)


def train(
    fit: Callable[..., Any],
    params: Params,
    *data: Any,
    keys: Array,
    batch_size: int | None = None,
) -> Any:
    """Each network trained on the same data, with its own key: 2.

    Args:
        fit: `(params, *data, key) -> params`, pure, a whole training or one step; it
            may return more. The order of the data follows from the key: `order`.
        params: [M, ...], from `init`, or whatever `fit` takes and returns.
        *data: Passed on to `fit`, the same for every member.
        keys: [M], typed, and not those of `init`.
        batch_size: How many members at a time: memory for that many. `None`: all. On a
            CPU 1 is a little faster for large kernels, and slower for small ones.

    Returns:
        What `fit` returns, [M, ...].

    Raises:
        TypeError: If the keys are not typed.
        ValueError: If two members have one key, where keys are not traced, their number
            is not M, or `batch_size` is below 1.

    Example:
        >>> fit = lambda params, x, key: params + jax.random.permutation(key, x)
        >>> keys = jax.random.split(jax.random.key(1), 2)
        >>> x = jnp.arange(3.0)
        >>> deep_ensemble.train(fit, jnp.zeros((2, 3)), x, keys=keys).sum(1)
        Array([3., 3.], dtype=float32)
    """
    checks.own_keys(keys, fn=f"{_FN}.train")

    def member(each: dict[str, Any], *data: Any) -> Any:
        return fit(each["params"], *data, key=each["keys"])

    stack = {"keys": keys, "params": params}
    return stacking.map(member, stack, *data, batch_size=batch_size)


def order(samples: int, *, size: int, epochs: int = 1, key: Array) -> Array:
    """The samples of each step: every epoch all of them, in an order of its own: 2.

    Args:
        samples: N.
        size: B, of a batch, at most N. What is left at the end of an epoch is left out.
        epochs: How many, at least 1.
        key: A typed key, the member's.

    Returns:
        [epochs * (N // B), B], int32.

    Raises:
        TypeError: If the key is not typed, or a count no whole number.
        ValueError: If a count is below 1, or `size` above `samples`.

    Example:
        >>> steps = deep_ensemble.order(6, size=3, key=jax.random.key(0))
        >>> jnp.sort(steps.ravel())
        Array([0, 1, 2, 3, 4, 5], dtype=int32)
    """
    fn = f"{_FN}.order"
    checks.typed_key(key, fn=fn)
    for value, name in ((samples, "samples"), (size, "size"), (epochs, "epochs")):
        checks.at_least(value, 1, fn=fn, name=name)
    if size > samples:
        raise ValueError(f"`{fn}` needs `size` of at most {samples}, got {size}.")
    steps = samples // size
    epoch = lambda key: jax.random.permutation(key, samples)[: steps * size]  # noqa: E731
    drawn = jax.vmap(epoch)(jax.random.split(key, epochs))
    return drawn.reshape(epochs * steps, size).astype(jnp.int32)


def predict(
    apply: Callable[..., Any],
    params: Params,
    *inputs: Any,
    batch_size: int | None = None,
) -> Any:
    """What each member says.

    Args:
        apply: `(params, *inputs) -> output`.
        params: [M, ...].
        *inputs: The same for every member.
        batch_size: As in `stacking.map`.

    Returns:
        The outputs with a leading axis, [M, ...].

    Example:
        >>> net = lambda params, x: params * x
        >>> deep_ensemble.predict(net, jnp.array([1.0, 2.0]), jnp.float32(3.0))
        Array([3., 6.], dtype=float32)
    """
    return stacking.map(apply, params, *inputs, batch_size=batch_size)


def gaussian(outputs: Array, *, floor: float = 1e-6) -> tuple[Array, Array]:
    """The mean and the variance of a network's normal distributions: 2.

    Args:
        outputs: [..., 2 * D], floating: D means, then what variances are made of.
        floor: Added to the softplus, so that the logarithm stays finite.

    Returns:
        Two arrays [..., D]: the means, and variances above 0.

    Raises:
        ValueError: If the last axis is not even.

    Example:
        >>> deep_ensemble.gaussian(jnp.array([3.0, 0.0]))
        (Array([3.], dtype=float32), Array([0.693...], dtype=float32))
    """
    if not outputs.ndim or not outputs.shape[-1] or outputs.shape[-1] % 2:
        raise ValueError(
            f"`{_FN}.gaussian` needs `outputs` with an even last axis, got shape "
            f"{outputs.shape}."
        )
    mean, raw = jnp.split(outputs, 2, axis=-1)
    return mean, jax.nn.softplus(raw) + floor


def gaussian_loss(outputs: Array, targets: Array, *, floor: float = 1e-6) -> Array:
    """The negative log-likelihood of a network's normals, without its constant: 2.

    Args:
        outputs: As in `gaussian`.
        targets: [..., D].
        floor: As in `gaussian`.

    Returns:
        [..., D]: log(variance) / 2 + (target - mean) ** 2 / (2 * variance).

    Raises:
        ValueError: As in `gaussian`, or if the shapes do not fit.

    Example:
        >>> deep_ensemble.gaussian_loss(jnp.array([3.0, 0.5413]), jnp.array([3.0]))
        Array([...], dtype=float32)

    References:
        Lakshminarayanan et al., arXiv:1612.01474, equation 1.
    """
    mean, variance = gaussian(outputs, floor=floor)
    checks.of_shape(targets, mean.shape, fn=f"{_FN}.gaussian_loss", name="targets")
    return 0.5 * jnp.log(variance) + (targets - mean) ** 2 / (2 * variance)


def mixture(means: Array, variances: Array) -> tuple[Array, Array]:
    """The mean and the variance of the mixture of members' normals: 4.

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
    # As a sum of two that are not negative: mean squares cancel where means are large.
    return jnp.mean(means, 0), jnp.mean(variances, 0) + jnp.var(means, 0)


def adversarial(loss: Callable[[Array], Array], x: Array, *, step: Any) -> Array:
    """Inputs moved to where the loss is larger, by the fast gradient sign method: 3.

    Args:
        loss: `x -> scalar`.
        x: Floating.
        step: How far: a number, or an array that broadcasts to `x`: 1 % of each
            feature's range.

    Returns:
        x + step * sign(gradient), no longer a function of parameters (arXiv:1412.6572).

    Example:
        >>> deep_ensemble.adversarial(lambda x: -x.sum(), jnp.ones(2), step=0.25)
        Array([0.75, 0.75], dtype=float32)
    """
    moved = x + jnp.asarray(step, x.dtype) * jnp.sign(jax.grad(loss)(x))
    return lax.stop_gradient(moved)


def smoothed(loss: Callable[..., Array], *, step: Any) -> Callable[..., Array]:
    """A loss plus that of adversarial examples: 3.

    Args:
        loss: `(params, x, *rest) -> scalar`.
        step: As in `adversarial`.

    Returns:
        A loss of the same arguments.

    Example:
        >>> loss = lambda params, x: params * x.sum()
        >>> print(deep_ensemble.smoothed(loss, step=0.5)(2.0, jnp.ones(1)))
        5.0
    """

    def both(params: Params, x: Array, *rest: Any) -> Array:
        near = adversarial(lambda x: loss(params, x, *rest), x, step=step)
        return loss(params, x, *rest) + loss(params, near, *rest)

    return both
