"""Small tasks of one kind, to learn from how to learn: sinusoids, and few-shot images.

An episode is a support set, to adapt to, and a query set, to be judged by; both are
pairs of arrays. They are drawn on the device, B at a time, all from one array of random
numbers: numbers for many keys take long to compile.
"""

import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from benchmarks._data import Data, DataError, no_archive, unreadable

Set = tuple[Array, Array]
Episodes = tuple[Set, Set]

# Of the digits, those that a quarter turn makes something else of, and not one another.
HELD_OUT = (2, 4, 7)
HELD_OUT_SHARE = 0.2  # of Omniglot's characters
TURNS = 4

_EXPECTED = (
    "Expected a NumPy .npz file of Omniglot with images, uint8 [N, 28, 28], and "
    "character, integers of shape [N] that say which is drawn, equally often each."
)


class Classes(NamedTuple):
    """Images by class, [C, N, D] float32 from 0 to 1: N images of each of C classes."""

    name: str  # where they are from
    train: np.ndarray
    test: np.ndarray  # of other classes


def sinusoids(key: Array, *, tasks: int, shots: int, queries: int) -> Episodes:
    """Points of sine waves: amplitudes 0.1 to 5, phases 0 to pi, inputs -5 to 5.

    Two pairs of inputs and targets, [tasks, n, 1] each (arXiv:1703.03400): `shots`
    points of each wave to adapt to, and `queries` to be judged by.
    """
    numbers = jax.random.uniform(key, (tasks, 2 + shots + queries, 1))
    amplitude, phase, x = numbers[:, :1], numbers[:, 1:2], numbers[:, 2:]
    x = 10 * x - 5
    y = (0.1 + 4.9 * amplitude) * jnp.sin(x - jnp.pi * phase)
    return (x[:, :shots], y[:, :shots]), (x[:, shots:], y[:, shots:])


def images(
    key: Array, classes: Array, *, tasks: int, ways: int, shots: int, queries: int
) -> Episodes:
    """Images of some of the classes [C, N, D], at random and without repetition.

    Two pairs of images [tasks, ways * n, D] and labels from 0 to ways - 1: `shots` of
    each class to adapt to, and `queries` to be judged by. A `ValueError` is raised if
    there are not so many classes, or images of a class.
    """
    count, each = classes.shape[:2]
    if not 0 < ways <= count:
        raise ValueError(
            f"An episode needs 1 to {count} ways, one a class, got {ways}."
        )
    if not 0 < shots <= shots + queries <= each:
        raise ValueError(
            f"An episode needs at least 1 shot and, with queries, at most the {each} "
            f"images of a class, got {shots} shots and {queries} queries."
        )
    numbers = jax.random.uniform(key, (tasks, count + ways * each))
    which, rows = numbers[:, :count], numbers[:, count:].reshape(tasks, ways, each)
    which = lax.top_k(which, ways)[1][..., None]
    rows = lax.top_k(rows, shots + queries)[1]
    y = jnp.broadcast_to(jnp.arange(ways)[:, None], rows.shape)

    def part(chosen: slice) -> Set:
        x = classes[which, rows[..., chosen]]
        return x.reshape(tasks, -1, x.shape[-1]), y[..., chosen].reshape(tasks, -1)

    return part(slice(shots)), part(slice(shots, None))


def digits(data: Data) -> Classes:
    """Digits and their quarter turns as classes: few, and some alike (0, 6 and 9)."""
    x = np.concatenate([data.x_train, data.x_test])
    y = np.concatenate([data.y_train, data.y_test])
    least = np.bincount(y).min()
    by_class = np.stack([x[y == digit][:least] for digit in np.unique(y)])
    held = np.isin(np.unique(y), HELD_OUT)
    return Classes(data.name, _turned(by_class[~held]), _turned(by_class[held]))


def omniglot(path: pathlib.Path) -> Classes:
    """Characters of Omniglot and their quarter turns as classes; a fifth are held out.

    A file that is not as it should be raises a `DataError`.
    """
    unlike = functools.partial(DataError, path, expected=_EXPECTED)
    try:
        if problem := no_archive(path):
            raise unlike(problem)
        with path.open("rb") as file, np.load(file) as archive:
            drawn, which = archive["images"], archive["character"]
            counts = np.bincount(which)
    except DataError:
        raise
    except Exception as error:
        raise unlike(unreadable(error)) from error
    if drawn.dtype != np.uint8 or drawn.shape != (len(which), 28, 28):
        found = f"images: {drawn.dtype} of shape {list(drawn.shape)}"
        raise unlike(f"{found}, for {len(which)} characters")
    if len(counts) < 10 or len(set(counts)) != 1:
        raise unlike(f"drawings of each character: {set(counts)}")
    order = np.argsort(which, kind="stable").reshape(len(counts), -1)
    by_class = drawn[order].astype(np.float32) / 255
    shuffled = by_class[np.random.default_rng(0).permutation(len(by_class))]
    held = round(HELD_OUT_SHARE * len(by_class))
    return Classes(path.name, _turned(shuffled[held:]), _turned(shuffled[:held]))


def _turned(by_class: np.ndarray) -> np.ndarray:
    """Classes [C, N, H, W] and their turns by 90, 180 and 270 degrees, as rows."""
    turns = [np.rot90(by_class, turn, axes=(2, 3)) for turn in range(TURNS)]
    return np.concatenate([x.reshape(*x.shape[:2], -1) for x in turns])
