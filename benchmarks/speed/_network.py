"""The networks and the data that the questions about training share."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

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
    return cross_entropy(forward(params, x), y)


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The mean over a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


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
