"""The networks and the data that the questions about training share."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from benchmarks import _train
from maskjax import initializer

BATCH = 128
OPTIMIZER = optax.sgd(0.02, momentum=0.9)

Params = dict[str, dict[str, jax.Array]]


def init(key: jax.Array, widths: Sequence[int]) -> Params:
    """He-normal kernels and biases of 0."""
    return {
        f"layer_{i}": {
            "kernel": jax.random.normal(jax.random.fold_in(key, i), (a, b))
            * (2 / a) ** 0.5,
            "bias": jnp.zeros(b),
        }
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
    }


def forward(params: Params, x: jax.Array) -> jax.Array:
    """What some layers yield, with ReLUs between them."""
    for i, name in enumerate(sorted(params)):
        x = jax.nn.relu(x) if i else x
        x = x @ params[name]["kernel"] + params[name]["bias"]
    return x


def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean cross-entropy of a multilayer perceptron with ReLUs."""
    return _train.cross_entropy(forward(params, x), y)


def plain_loss(params: Params, rest: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The `loss` of a network that has nothing else, for `_train.descend`."""
    del rest
    return loss(params, x, y)


def signed(widths: Sequence[int]) -> list[jax.Array]:
    """Kernels of signed constants, for a network without biases."""
    draw = initializer.signed_constant()
    each = enumerate(zip(widths, widths[1:], strict=False))
    return [draw(jax.random.key(i), shape) for i, shape in each]


def bare(weights: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Logits of a ReLU network without biases."""
    for w in weights[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ weights[-1]


def times(mask: Any, params: Params) -> Params:
    """Parameters times a mask of floats; `None` leaves one alone."""
    return jax.tree.map(
        lambda m, p: p if m is None else m * p,
        mask,
        params,
        is_leaf=lambda m: m is None,
    )


def batches(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Noisy images of ten random classes, [count, B, 784], and their labels."""
    prototype_key, label_key, noise_key = jax.random.split(key, 3)
    prototypes = jax.random.uniform(prototype_key, (10, 784))
    labels = jax.random.randint(label_key, (count, BATCH), 0, 10)
    noise = 0.5 * jax.random.normal(noise_key, (count, BATCH, 784))
    return jnp.clip(prototypes[labels] + noise, 0, 1), labels


def mapped(members: int, fn: Callable[..., Any], in_axes: Any = 0) -> Callable:
    """The function of one member, or of several side by side."""
    return fn if members == 1 else jax.vmap(fn, in_axes)


def keys(members: int) -> jax.Array:
    """A key for one member, or keys for several."""
    return jax.random.key(0) if members == 1 else seeds(members)


def seeds(count: int) -> jax.Array:
    """So many keys."""
    return jax.random.split(jax.random.key(0), count)


def over_batches(step: Callable[..., Any]) -> Callable[..., Any]:
    """`(member, *data) -> (member, losses)`: a step for each batch [steps, B, ...]."""
    return lambda member, *data: lax.scan(lambda m, b: step(m, *b), member, data)


def at(tree: Any, i: Any) -> Any:
    """A tree's i-th member, or several of them by a slice."""
    return jax.tree.map(lambda leaf: leaf[i], tree)
