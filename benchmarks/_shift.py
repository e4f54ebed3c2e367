"""Images to be unsure of: unknown classes, and drawings."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks._data import Data
from benchmarks._episodes import TURNS, Classes

HELD_OUT = (8, 9)


class Partly(NamedTuple):
    """Images of some classes to learn, and of others that are unlike them all."""

    known: Data  # labels are from 0 on, in the order of the classes that are left
    unknown: np.ndarray  # [N, H, W]: all images of the others, of both parts


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
    return Partly(Data(data.name, *parts), np.concatenate(unknown))


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


def _areas(old: int, new: int) -> np.ndarray:
    """How much of each old pixel is in each new one, [new, old]; rows sum to 1."""
    ends = np.linspace(0, old, new + 1)
    low, high = ends[:-1, None], ends[1:, None]
    pixels = np.arange(old)
    covered = np.minimum(high, pixels + 1) - np.maximum(low, pixels)
    return np.maximum(covered, 0) * new / old
