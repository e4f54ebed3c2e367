"""Sequences of tasks made of one data set."""

from typing import Any

import jax
import numpy as np
from scipy import ndimage

from benchmarks import _train
from benchmarks._data import CLASSES, Data
from maskjax import metrics, where

# The network of Kang et al. (2022), who compare ways to learn permuted pixels. Each
# task has a last layer of its own, except where all weights are random.
WIDTHS, BATCH_SIZE, RETRAINED = (100, 100, 10), 10, 0.4  # of PackNet's epochs
HEAD_NAME = "Dense_2"
HEAD = where.matching(HEAD_NAME)


def split(data: Data, *, classes: int = 2) -> Data:
    """Consecutive classes as tasks: 0 and 1, 2 and 3, ...; labels stay as they are.

    Every array gets a leading axis of K tasks. They have as many images each as the
    smallest of them, the first ones. Classes that are left over are in none.
    """

    def parts(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = [
            np.flatnonzero(y // classes == task) for task in range(CLASSES // classes)
        ]
        size = min(map(len, chosen))
        rows = np.stack([row[:size] for row in chosen])
        return x[rows], y[rows]

    x_train, y_train = parts(data.x_train, data.y_train)
    return Data(data.name, x_train, y_train, *parts(data.x_test, data.y_test))


def permutations(data: Data, tasks: int) -> np.ndarray:
    """A fixed order of the pixels for each task, [K, H * W]; the first is as it is.

    Task i is the same whatever the number of tasks.
    """
    pixels = int(np.prod(data.x_train.shape[1:]))
    orders = [np.random.default_rng(i).permutation(pixels) for i in range(1, tasks)]
    return np.stack([np.arange(pixels), *orders]).astype(np.int32)


def logits(params: Any, x: Any) -> jax.Array:
    """What that network says; one whose weights are random has no biases."""
    return _train.MLP(WIDTHS, "bias" in params[HEAD_NAME]).logits(params, x)


def bits_of_weights(params: Any, tasks: int) -> tuple[float, float]:
    """Bits a task of that network: if each has one, and if they share all but heads."""
    whole = metrics.bits_per_task(params, tasks=1)
    head = metrics.bits_per_task(params[HEAD_NAME], tasks=1)
    return whole, (whole - head) / tasks + head


def turned(images: np.ndarray, angle: float) -> np.ndarray:
    """Images [N, H, W] turned about their middle, counterclockwise in degrees.

    Between pixels it is linear, and 0 beyond the edge.
    """
    how = {"order": 1, "mode": "grid-constant", "reshape": False}
    return ndimage.rotate(images, angle, axes=(1, 2), **how)
