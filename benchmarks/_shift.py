"""Data to be unsure of: turned images, unknown classes, drawings, and few numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn import datasets

from benchmarks import _tasks
from benchmarks._data import Data
from benchmarks._episodes import TURNS, Classes

HELD_OUT = (8, 9)
CUBIC_NOISE = 3.0


class Partly(NamedTuple):
    """Images of some classes to learn, and of others that are unlike them all."""

    known: Data  # labels are from 0 on, in the order of the classes that are left
    unknown: np.ndarray  # [N, H, W]: all images of the others, of both parts
    classes: tuple[int, ...]  # those that are left


class Numbers(NamedTuple):
    """Numbers [N] to predict from [N, D], float32, less `mean` and over `deviation`.

    Add the logarithm of the deviation to a negative log-likelihood, and multiply errors
    by it, for those of the targets as they were.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    mean: float = 0.0
    deviation: float = 1.0

    def standardized(self) -> "Numbers":
        """Inputs and targets of mean 0 and deviation 1 over the training part."""
        mean, deviation = float(self.y_train.mean()), float(self.y_train.std())
        of = self.x_train.mean(0), self.x_train.std(0)
        x_train, x_test = ((x - of[0]) / of[1] for x in (self.x_train, self.x_test))
        y_train, y_test = ((y - mean) / deviation for y in (self.y_train, self.y_test))
        mean = self.mean + self.deviation * mean
        parts = x_train, y_train, x_test, y_test
        return Numbers(self.name, *parts, mean, self.deviation * deviation)


def rotations(images: np.ndarray, angles: Sequence[float]) -> np.ndarray:
    """Images [N, H, W] turned by each angle, counterclockwise, [A, N, H, W]."""
    return np.stack([_tasks.turned(images, angle) for angle in angles])


def held_out(data: Data, classes: Sequence[int] = HELD_OUT) -> Partly:
    """Images without some classes, and those of these.

    A `ValueError` is raised if none would be left, or none was taken.
    """
    there = np.unique(data.y_train)
    kept = [int(label) for label in there if label not in classes]
    if not 0 < len(kept) < len(there):
        raise ValueError(
            f"Some of the classes {there.tolist()} are held out, and not all, got "
            f"{list(classes)}."
        )
    parts, unknown = [], []
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        inside = np.isin(y, kept)
        labels = np.searchsorted(kept, y[inside]).astype(y.dtype)
        parts += [x[inside], labels]
        unknown.append(x[~inside])
    known = Data(data.name, *parts)
    return Partly(known, np.concatenate(unknown), tuple(kept))


def drawings(characters: Classes, shape: tuple[int, int]) -> np.ndarray:
    """All drawings of Omniglot's characters, upright, as images of a shape, [N, H, W].

    The characters come with their turns, as `_episodes.omniglot` reads them.
    """
    parts = [part[: len(part) // TURNS] for part in (characters.train, characters.test)]
    rows = np.concatenate(parts).reshape(-1, parts[0].shape[-1])
    size = round(rows.shape[-1] ** 0.5)
    return resized(rows.reshape(-1, size, size), shape)


def resized(images: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Images [N, H, W] of another shape: each pixel the mean of the area it covers."""
    down, across = (
        _areas(old, new) for old, new in zip(images.shape[1:], shape, strict=True)
    )
    return np.einsum("ij,njk,lk->nil", down, images, across).astype(images.dtype)


def diabetes(*, seed: int, share: float = 0.1) -> Numbers:
    """Scikit-learn's diabetes data, 442 patients: the disease's progress in a year.

    A share of it, drawn by the seed, is to test with.
    """
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    x, y = x.astype(np.float32), y.astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = np.split(order, [round(share * len(y))])
    return Numbers("diabetes of scikit-learn", x[train], y[train], x[test], y[test])


def cubic(*, seed: int, points: int = 20) -> Numbers:
    """Points of x**3 with noise of deviation 3, x from -4 to 4 (arXiv:1612.01474).

    What is to test with is the curve itself, without noise, from -6 to 6.
    """
    rng = np.random.default_rng(seed)
    x = rng.uniform(-4, 4, size=(points, 1)).astype(np.float32)
    noise = CUBIC_NOISE * rng.normal(size=points)
    y = (x[:, 0] ** 3 + noise).astype(np.float32)
    grid = np.linspace(-6, 6, 241, dtype=np.float32)[:, None]
    return Numbers("x**3", x, y, grid, grid[:, 0] ** 3)


def _areas(old: int, new: int) -> np.ndarray:
    """How much of each old pixel is in each new one, [new, old]; rows sum to 1."""
    ends = np.linspace(0, old, new + 1)
    low, high = ends[:-1, None], ends[1:, None]
    pixels = np.arange(old)
    covered = np.minimum(high, pixels + 1) - np.maximum(low, pixels)
    return np.maximum(covered, 0) * new / old
