"""Shared pieces of training: K networks side by side, one program for all of them.

A *member* is one network in training. `states` are members stacked along a leading axis
[K, ...].
"""

import functools
from collections.abc import Callable, Iterable, Sequence
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
Step = Callable[..., tuple[Any, Array]]
Predict = Callable[[Any, Array], Array]

BATCH_SIZE = 128


class Member(NamedTuple):
    """One network in training."""

    params: Any  # what is learned: parameters, or the scores of masks
    opt_state: Any
    rest: Any = None  # what else belongs to it: its mask, weights, density, key


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

    @nn.nowrap
    def fresh(self, key: Array, x: Array) -> Any:
        """Parameters at random, for images [N, H * W]."""
        return self.init(key, x[:1])["params"]

    @nn.nowrap
    def logits(self, params: Any, x: Array) -> Array:
        """Logits [B, 10] of images [B, H * W]."""
        return self.apply({"params": params}, x)


def accuracy(logits: Array, y: Array) -> Array:
    """The fraction of a batch that is told right."""
    return jnp.mean(logits.argmax(-1) == y, dtype=jnp.float32)


def cross_entropy(logits: Array, y: Array) -> Array:
    """The mean over a batch."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def draw(init: Callable[..., Any], *args: Any) -> Any:
    """Members at random, one for each entry [K] of the arguments, keys among them.

    One after the other, unlike `vmap`: random bits for many keys at once take twice as
    long to compile, which is more than drawing them takes.
    """
    return jax.jit(lambda args: lax.map(lambda one: init(*one), args))(args)


def glorot(
    rng: np.random.Generator, widths: Sequence[int], *lead: int
) -> dict[str, dict[str, Array]]:
    """Parameters [*lead, ...] of an `MLP`: Glorot's uniform kernels, and biases of 0.

    By NumPy: `jax.random` takes longer to compile than training small networks takes.
    """
    params = {}
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        bound = (6 / (a + b)) ** 0.5
        kernel = np.float32(rng.uniform(-bound, bound, (*lead, a, b)))
        layer = {"kernel": kernel, "bias": np.zeros((*lead, b), np.float32)}
        params[f"Dense_{i}"] = jax.tree.map(jnp.asarray, layer)
    return params


def orders(
    networks: int, samples: int, *, epochs: int, size: int, seed: Any
) -> np.ndarray:
    """Rows of samples, [K, epochs, steps, size], shuffled in every epoch, by NumPy.

    What is left over of an epoch is left out. The seed may be a NumPy generator.
    """
    steps = samples // size
    rows = np.tile(np.arange(samples, dtype=np.int32), (networks, epochs, 1))
    rows = np.random.default_rng(seed).permuted(rows, axis=-1)
    return rows[..., : steps * size].reshape(networks, epochs, steps, size)


@functools.partial(jax.jit, static_argnums=(1, 2), static_argnames=("size", "whole"))
def batches(
    key: Array, samples: int, steps: int, *, size: int = BATCH_SIZE, whole: bool = False
) -> Array:
    """Rows [steps, size] of shuffled epochs, one after the other.

    What is left over of an epoch is in a batch with the next one's, or, if batches are
    whole, in none.
    """
    size = min(size, samples)
    used = samples // size * size if whole else samples
    keys = jax.random.split(key, -(-steps * size // used))
    epochs = lax.map(lambda key: jax.random.permutation(key, samples)[:used], keys)
    return epochs.ravel()[: steps * size].reshape(steps, size)


def begin(
    optimizer: optax.GradientTransformation, params: Any, rest: Any = None
) -> Member:
    """A member before its first step."""
    return Member(params, optimizer.init(params), rest)


def descend(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation
    | Callable[[Any], optax.GradientTransformation],
    *,
    has_aux: bool = False,
) -> Step:
    """The training step of one network, `(member, *batch) -> (member, loss)`.

    Args:
        loss: `(params, rest, *batch) -> scalar`.
        optimizer: Of what is learned; or a function that makes it of `rest`.
        has_aux: The loss returns `(scalar, rest)`, the `rest` of the next step.
    """

    def step(member: Member, *batch: Any) -> tuple[Member, Array]:
        params, opt_state, rest = member
        update = optimizer(rest).update if callable(optimizer) else optimizer.update
        valued = jax.value_and_grad(loss, has_aux=has_aux)
        value, gradients = valued(params, rest, *batch)
        value, rest = value if has_aux else (value, rest)
        updates, opt_state = update(gradients, opt_state, params)
        return Member(optax.apply_updates(params, updates), opt_state, rest), value

    return step


def scan(step: Step, member: Any, rows: Array, *data: Array) -> tuple[Any, Array]:
    """The member after many steps, and the losses [steps].

    The batches are `rows` [steps, B] of `data`, arrays [N, ...] of all samples.
    """
    return lax.scan(lambda m, rows: step(m, *(x[rows] for x in data)), member, rows)


def steps_per_epoch(x: Array, size: int = BATCH_SIZE) -> int:
    """How many minibatches an epoch has; what is left over waits for the next one."""
    return max(len(x) // size, 1)


def epochs_of(steps: int, x: Array) -> int:
    """How many whole epochs make at least so many steps."""
    return -(-steps // steps_per_epoch(x))


def cosine(rate: float, epochs: int, x: Array) -> optax.Schedule:
    """A learning rate that falls to 0 over so many epochs."""
    return optax.cosine_decay_schedule(rate, epochs * steps_per_epoch(x))


@functools.partial(jax.jit, static_argnums=1)
def _shuffled(keys: Array, samples: int) -> Array:
    """Rows [K, samples]. A program of its own, compiled once for all trainings."""
    return jax.vmap(lambda key: jax.random.permutation(key, samples))(keys)


def epoch_of(
    step: Step, x: Array, y: Array, *, size: int = BATCH_SIZE, groups: int = 1
) -> Callable[..., tuple[Any, Array]]:
    """One epoch of all members, `(states, key) -> (states, mean losses [K])`.

    A step from `descend` is made on shuffled minibatches of so many images. The members
    are so many groups, one after the other, that see the same images in the same order;
    within a group every member has its own order.
    """
    steps, size = steps_per_epoch(x, size), min(size, len(x))

    def of_member(member: Any, rows: Array, x: Array, y: Array) -> tuple[Any, Array]:
        member, losses = scan(step, member, rows, x, y)
        return member, losses.mean()

    of_all = jax.jit(jax.vmap(of_member, in_axes=(0, 0, None, None)))
    x, y = jnp.asarray(x), jnp.asarray(y)

    def epoch(states: Any, key: Array) -> tuple[Any, Array]:
        each = jax.random.split(key, len(jax.tree.leaves(states)[0]) // groups)
        rows = _shuffled(each, len(x))[:, : steps * size]
        rows = jnp.tile(rows.reshape(len(each), steps, size), (groups, 1, 1))
        # Waiting keeps the progress bar honest.
        return jax.block_until_ready(of_all(states, rows, x, y))

    return epoch


def epochs_by(
    epoch: Callable[..., Any], states: Any, epochs: Iterable[int], *, key: Array
) -> Any:
    """Members after epochs of these numbers, as from `Context.track`."""
    for i in epochs:
        states, _ = epoch(states, jax.random.fold_in(key, i))
    return states


def accuracy_of(predict: Predict, x: Array, y: Array) -> Callable[[Any], Array]:
    """A function from states to accuracies [K] on these images, compiled once.

    What one network says is `predict(member, x)`, logits.
    """

    def of_member(member: Any, x: Array, y: Array) -> Array:
        return accuracy(predict(member, x), y)

    of_all = jax.jit(jax.vmap(of_member, in_axes=(0, None, None)))
    x, y = jnp.asarray(x), jnp.asarray(y)
    return lambda states: of_all(states, x, y)


def fit(
    step: Step,
    predict: Predict,
    states: Any,
    data: Data,
    epochs: Iterable[int],
    *,
    key: Array,
) -> tuple[Any, np.ndarray]:
    """Trained members, and accuracies [1 + epochs, K] before and after every epoch."""
    epoch = epoch_of(step, data.x_train, data.y_train)
    accuracy = accuracy_of(predict, data.x_test, data.y_test)
    curve = [accuracy(states)]
    for i in epochs:
        states = epochs_by(epoch, states, [i], key=key)
        curve.append(accuracy(states))
    return states, np.stack(curve)


def under_masks(
    logits: Predict, optimizer: optax.GradientTransformation
) -> tuple[Callable[..., Member], Step]:
    """Functions `(params, mask) -> member` and `(member, x, y) -> (member, loss)`.

    A member's `rest` is its mask, and its parameters are exactly masked throughout.
    """

    def start(params: Any, mask: Any) -> Member:
        return begin(optimizer, maskjax.apply(params, mask), mask)

    def loss(params: Any, mask: Any, x: Array, y: Array) -> Array:
        return cross_entropy(logits(maskjax.apply(params, mask), x), y)

    return start, descend(loss, optimizer)


def largest_removed(params: Any, mask: Any) -> Array:
    """The largest magnitude among the weights that a mask removes."""
    rest = maskjax.apply(params, algebra.complement(mask))
    kernels = jax.tree.leaves(score.magnitude(rest))  # not biases, which have no mask
    return jnp.stack([leaf.max() for leaf in kernels]).max()


def same_bits(before: Any, after: Any) -> bool:
    """Whether two trees have the same leaves, to the bit."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
