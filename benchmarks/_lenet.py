"""The 300-100 network ("LeNet-300-100") of the demos on pruning, trained by Adam."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import maskjax
from benchmarks import _train
from benchmarks._data import Data
from maskjax import algebra

LEARNING_RATE = 1.2e-3  # as Frankle & Carbin (2019) train this network
MODEL = _train.MLP()
SETTINGS = {
    "network": "300-100",
    "optimizer": "adam, cosine",
    "learning_rate": LEARNING_RATE,
    "batch_size": _train.BATCH_SIZE,
    "inputs": "0 to 1",
}


def init(keys: jax.Array, data: Data) -> Any:
    """Random parameters [K, ...], one network for each key."""
    return _train.draw(lambda key: MODEL.fresh(key, data.x_train), keys)


def masked_logits(member: _train.Member, x: jax.Array) -> jax.Array:
    """Logits [B, 10] of a member whose `rest` is its mask."""
    return MODEL.logits(maskjax.apply(member.params, member.rest), x)


def adam(epochs: int, data: Data) -> optax.GradientTransformation:
    """Adam; the learning rate falls to 0 over so many epochs."""
    return optax.adam(_train.cosine(LEARNING_RATE, epochs, data.x_train))


def training(epochs: int, data: Data) -> tuple[Any, Callable[..., Any]]:
    """Functions `(params, masks) -> states` and `(states, key) -> (states, losses)`."""
    start, step = _train.under_masks(MODEL.logits, adam(epochs, data))
    epoch = _train.epoch_of(step, data.x_train, data.y_train)
    return jax.jit(jax.vmap(start)), epoch


@jax.jit
@jax.vmap
def kept_and_removed(params: Any, mask: Any) -> tuple[jax.Array, jax.Array]:
    """How many weights the mask keeps, and the largest of those that it removes."""
    return algebra.count(mask), _train.largest_removed(params, mask)
