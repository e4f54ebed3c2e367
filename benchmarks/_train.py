"""Shared pieces of training: K networks side by side, one program for all of them.

A *member* is one network with whatever differs between networks: parameters, mask,
density, optimizer state. `states` are members stacked along a leading axis [K, ...].
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import maskjax
from benchmarks._data import Data
from maskjax import algebra, score

Array = jax.Array
Step = Callable[[Any, Array, Array], tuple[Any, Array]]

BATCH_SIZE = 128


class MLP(nn.Module):
    """The 300-100 network that the papers use on MNIST ("LeNet-300-100")."""

    widths: tuple[int, ...] = (300, 100, 10)
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits [B, 10] of images [B, H * W]."""
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width, self.use_bias, kernel_init=self.kernel_init)(x))
        return nn.Dense(self.widths[-1], self.use_bias, kernel_init=self.kernel_init)(x)


def cross_entropy(logits: Array, y: Array) -> Array:
    """The mean over a batch."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def draw(init: Callable[..., Any], *args: Any) -> Any:
    """Members at random, one for each entry [K] of the arguments, keys among them.

    It is `vmap`, but one after the other: random bits for many keys at once take twice
    as long to compile, which is more than drawing them takes.
    """
    return jax.jit(lambda args: lax.map(lambda one: init(*one), args))(args)


def orders(
    networks: int, samples: int, *, epochs: int, size: int, seed: int
) -> np.ndarray:
    """Rows of samples, [K, epochs, steps, size], shuffled in every epoch.

    By NumPy: `jax.random` takes longer to compile than training small networks takes.
    What is left over of an epoch is left out.
    """
    steps = samples // size
    rows = np.tile(np.arange(samples, dtype=np.int32), (networks, epochs, 1))
    rows = np.random.default_rng(seed).permuted(rows, axis=-1)
    return rows[..., : steps * size].reshape(networks, epochs, steps, size)


def steps_per_epoch(x: Array) -> int:
    """How many minibatches an epoch has; what is left over waits for the next one."""
    return max(len(x) // BATCH_SIZE, 1)


def epochs_of(steps: int, x: Array) -> int:
    """How many whole epochs make at least so many steps."""
    return -(-steps // steps_per_epoch(x))


def epoch_of(step: Step, x: Array, y: Array) -> Callable[..., tuple[Any, Array]]:
    """One epoch of shuffled minibatches for all members, compiled once.

    Args:
        step: `(member, x, y) -> (member, loss)`, of one network and one batch.
        x: [N, ...], the training images.
        y: [N], their labels.

    Returns:
        A function `(states, key) -> (states, losses [K])`, the losses averaged over the
        epoch. Every member sees the images in an order of its own.
    """
    steps = steps_per_epoch(x)
    size = min(BATCH_SIZE, len(x))

    def of_member(member: Any, key: Array, x: Array, y: Array) -> tuple[Any, Array]:
        order = jax.random.permutation(key, len(x))[: steps * size]
        member, losses = lax.scan(
            lambda member, batch: step(member, x[batch], y[batch]),
            member,
            order.reshape(steps, size),
        )
        return member, losses.mean()

    of_all = jax.jit(jax.vmap(of_member, in_axes=(0, 0, None, None)))
    x, y = jnp.asarray(x), jnp.asarray(y)

    def epoch(states: Any, key: Array) -> tuple[Any, Array]:
        keys = jax.random.split(key, jax.tree.leaves(states)[0].shape[0])
        # Waiting keeps the progress bar honest.
        return jax.block_until_ready(of_all(states, keys, x, y))

    return epoch


def accuracy_of(
    predict: Callable[[Any, Array], Array], x: Array, y: Array
) -> Callable[[Any], Array]:
    """How many of the images each member gets right, compiled once.

    Args:
        predict: `(member, x) -> logits`, of one network.
        x: [N, ...], images.
        y: [N], their labels.

    Returns:
        A function from states to accuracies [K].
    """

    def of_member(member: Any, x: Array, y: Array) -> Array:
        return jnp.mean(predict(member, x).argmax(-1) == y, dtype=jnp.float32)

    of_all = jax.jit(jax.vmap(of_member, in_axes=(0, None, None)))
    x, y = jnp.asarray(x), jnp.asarray(y)
    return lambda states: of_all(states, x, y)


class Masked(NamedTuple):
    """A member that trains under a mask."""

    params: Any
    mask: Any
    opt_state: optax.OptState


def under_masks(
    logits: Callable[[Any, Array], Array], optimizer: optax.GradientTransformation
) -> tuple[Callable[..., Masked], Step]:
    """What makes a member of parameters and a mask, and what trains it a step.

    Args:
        logits: `(params, x) -> logits`.
        optimizer: Of the parameters.

    Returns:
        Functions `(params, mask) -> member` and `(member, x, y) -> (member, loss)`; the
        members' parameters are exactly masked.
    """

    def start(params: Any, mask: Any) -> Masked:
        return Masked(maskjax.apply(params, mask), mask, optimizer.init(params))

    def step(member: Masked, x: Array, y: Array) -> tuple[Masked, Array]:
        def loss(params: Any) -> Array:
            return cross_entropy(logits(maskjax.apply(params, member.mask), x), y)

        value, gradients = jax.value_and_grad(loss)(member.params)
        updates, opt_state = optimizer.update(gradients, member.opt_state)
        params = optax.apply_updates(member.params, updates)
        params = maskjax.apply(params, member.mask)
        return Masked(params, member.mask, opt_state), value

    return start, step


def largest_removed(params: Any, mask: Any) -> Array:
    """The largest magnitude among the weights that a mask removes."""
    rest = maskjax.apply(params, algebra.complement(mask))
    kernels = jax.tree.leaves(score.magnitude(rest))  # not biases, which have no mask
    return jnp.stack([leaf.max() for leaf in kernels]).max()


def fit(
    step: Step,
    predict: Callable[[Any, Array], Array],
    states: Any,
    data: Data,
    epochs: Iterable[int],
    *,
    key: Array,
) -> tuple[Any, np.ndarray]:
    """Train, with a look at the test images before, and after every epoch.

    Args:
        step: As in `epoch_of`.
        predict: As in `accuracy_of`.
        states: Members to begin with.
        data: What to learn.
        epochs: Their numbers, as from `Context.track`.
        key: For the order of the images.

    Returns:
        The trained members, and accuracies [1 + epochs, K].
    """
    epoch = epoch_of(step, data.x_train, data.y_train)
    accuracy = accuracy_of(predict, data.x_test, data.y_test)
    curve = [accuracy(states)]
    for i in epochs:
        states, _ = epoch(states, jax.random.fold_in(key, i))
        curve.append(accuracy(states))
    return states, np.stack(curve)
