"""Sequences of tasks made of one data set."""

import numpy as np

from benchmarks._data import CLASSES, Data


def split(data: Data, *, classes: int = 2) -> Data:
    """Consecutive classes as tasks: 0 and 1, 2 and 3, ...; labels stay as they are.

    Args:
        data: Images of ten classes.
        classes: How many in a task; what is left over is in none.

    Returns:
        The same, every array with a leading axis of K tasks. They have as many images
        each as the smallest of them, the first ones.
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


def rotated(data: Data, tasks: int, *, largest: float = 180.0) -> Data:
    """Turned images as tasks, from 0 degrees on in equal steps; labels stay.

    Args:
        data: Images.
        tasks: K, how many angles.
        largest: What K steps come to, in degrees counterclockwise; the last task's
            angle is one step less, so that 360 and 0 are not two tasks.

    Returns:
        The same, every array with a leading axis of K tasks.
    """
    angles = np.arange(tasks) * (largest / tasks)

    def every(x: np.ndarray) -> np.ndarray:
        return np.stack([turned(x, angle) for angle in angles])

    def labels(y: np.ndarray) -> np.ndarray:
        return np.tile(y, (tasks, 1))

    return Data(
        data.name,
        every(data.x_train),
        labels(data.y_train),
        every(data.x_test),
        labels(data.y_test),
    )


def turned(images: np.ndarray, angle: float) -> np.ndarray:
    """Images [N, H, W] turned about their middle, counterclockwise in degrees.

    Between pixels it is linear, and 0 beyond the edge.
    """
    height, width = images.shape[1:]
    sine, cosine = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    middle = (height - 1) / 2, (width - 1) / 2
    down, right = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    down, right = down - middle[0], right - middle[1]
    # Where each pixel is from. Rounding lets right angles hit pixels exactly.
    rows = np.round(cosine * down + sine * right + middle[0], 9)
    columns = np.round(cosine * right - sine * down + middle[1], 9)
    framed = np.pad(images, ((0, 0), (1, 2), (1, 2)))
    rows, columns = (
        np.clip(where, -1, size) + 1
        for where, size in ((rows, height), (columns, width))
    )
    top, left = rows.astype(int), columns.astype(int)
    below, beside = rows - top, columns - left
    return sum(
        framed[:, top + i, left + j]
        * ((below if i else 1 - below) * (beside if j else 1 - beside))
        for i in (0, 1)
        for j in (0, 1)
    ).astype(images.dtype)
