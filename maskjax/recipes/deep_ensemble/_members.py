"""Networks drawn and trained apart, with a key each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskjax import stacking
from maskjax._core import checks
from maskjax._core.trees import Array, Params

_FN = "maskjax.recipes.deep_ensemble"


def init(draw: Callable[[Array], Params], *, keys: Array) -> Params:
    """Parameters of M networks: 1.

    Args:
        draw: `key -> params`.
        keys: [M], typed, one for each member: `jax.random.split(key, M)`.

    Returns:
        A tree of arrays [M, ...].

    Raises:
        TypeError: If the keys are not typed.
        ValueError: If there are no keys, or two members have the same one and keys are
            not traced.

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
    """Train each network on the same data with its own key: 2.

    Args:
        fit: `(params, *data, key) -> params`, pure: a whole training or one step. It
            may return more than parameters. It uses the key to shuffle: see `order`.
        params: [M, ...], from `init`, or anything else that `fit` takes.
        *data: Passed on to `fit`, the same for every member.
        keys: [M], typed, and not those of `init`.
        batch_size: How many members to train at a time; memory is needed for that many.
            `None`: all. On a CPU, 1 is a little faster for large kernels and slower for
            small ones.

    Returns:
        What `fit` returns, [M, ...].

    Raises:
        TypeError: If the keys are not typed.
        ValueError: If two members have the same key and keys are not traced, there are
            not M keys, or `batch_size` is below 1.

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
    """Which samples each step uses: all of them in every epoch, shuffled anew: 2.

    Args:
        samples: N.
        size: B, of a batch, at most N. Every epoch leaves out the last N % B samples.
        epochs: How many, at least 1.
        key: A typed key, the member's.

    Returns:
        [epochs * (N // B), B], int32.

    Raises:
        TypeError: If the key is not typed, or a count is not a whole number.
        ValueError: If a count is below 1, or `size` is above `samples`.

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

    def epoch(key: Array) -> Array:
        chosen = jax.random.permutation(key, samples)[: steps * size]
        return chosen.reshape(steps, size)

    drawn = jax.vmap(epoch)(jax.random.split(key, epochs))
    return drawn.reshape(epochs * steps, size).astype(jnp.int32)
