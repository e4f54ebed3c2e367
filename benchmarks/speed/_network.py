"""The network and the data that the questions about training share."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

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
    logits = forward(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


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


def dense_init(params: Params) -> tuple[Params, optax.OptState]:
    """The state of ordinary training."""
    return params, OPTIMIZER.init(params)


def descend(
    objective: Callable[..., jax.Array], state: tuple[Any, optax.OptState], *data: Any
) -> tuple[tuple[Any, optax.OptState], jax.Array]:
    """One step of gradient descent on what `objective` takes first."""
    params, opt_state = state
    value, gradients = jax.value_and_grad(objective)(params, *data)
    updates, opt_state = OPTIMIZER.update(gradients, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), value


class Training:
    """A loop that goes on from where the last call ended; buffers are donated."""

    def __init__(self, step: Callable[..., Any], state: Any, *rest: Any):
        self._step, self._rest = step, rest
        self._state = jax.tree.map(jnp.array, state)  # a copy: it will be donated

    def __call__(self) -> Any:
        """Run, and give what a check may read before the next call."""
        self._state, value = self._step(self._state, *self._rest)
        return self._state, value


def shapes(tree: Any) -> list[list[int]]:
    """The shapes of a tree's leaves."""
    return [list(leaf.shape) for leaf in jax.tree.leaves(tree)]
