"""What kernels meet, one row and one place of a window after the other."""

import itertools

import numpy as np


def gram(rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The sum of x x^T over rows x, [n, d]."""
    total = np.zeros((rows.shape[1],) * 2)
    for i, row in enumerate(np.asarray(rows, np.float64)):
        weight = 1.0 if weights is None else weights[i]
        if weight:
            total += weight * np.outer(row, row)
    return total


def windows(
    image: np.ndarray,
    window: tuple[int, ...],
    *,
    strides: tuple[int, ...],
    pads: list[tuple[int, int]],
    between: tuple[int, ...] = (1, 1),
    apart: tuple[int, ...] = (1, 1),
) -> np.ndarray:
    """[batch, positions of the output, *window, features] of an image NHWC.

    Args:
        image: The image.
        window: How many places the window has.
        strides: How far it goes from one position to the next.
        pads: Zeros around the image.
        between: How far apart the image's pixels are put before, with zeros between.
        apart: How far apart the places of the window are.
    """
    batch, height, width, features = image.shape
    full = ((height - 1) * between[0] + 1, (width - 1) * between[1] + 1)
    wide = np.zeros((batch, *full, features))
    wide[:, :: between[0], :: between[1]] = image
    wide = np.pad(wide, [(0, 0), *pads, (0, 0)])
    reach = [(n - 1) * step + 1 for n, step in zip(window, apart, strict=True)]
    starts = [
        range(0, n - r + 1, stride)
        for n, r, stride in zip(wide.shape[1:3], reach, strides, strict=True)
    ]
    found = []
    for i, j in itertools.product(*starts):
        rows = i + apart[0] * np.arange(window[0])
        columns = j + apart[1] * np.arange(window[1])
        found.append(wide[:, rows[:, None], columns[None]])
    return np.stack(found, axis=1)
