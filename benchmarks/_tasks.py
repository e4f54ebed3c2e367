"""Sequences of tasks made of one data set."""

import numpy as np
from scipy import ndimage

from benchmarks._data import CLASSES, Data


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


def turned(images: np.ndarray, angle: float) -> np.ndarray:
    """Images [N, H, W] turned about their middle, counterclockwise in degrees.

    Between pixels it is linear, and 0 beyond the edge.
    """
    how = {"order": 1, "mode": "grid-constant", "reshape": False}
    return ndimage.rotate(images, angle, axes=(1, 2), **how)
