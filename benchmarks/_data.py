"""Images to learn from: a file of MNIST, or the digits that scikit-learn ships."""

import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn import datasets, model_selection

CLASSES = 10

_EXPECTED = (
    "Expected Keras' mnist.npz: a NumPy .npz file with x_train and x_test, uint8 "
    "images of shape [N, 28, 28], and y_train and y_test, integer labels 0 to 9 of "
    "shape [N]."
)


class DataError(ValueError):
    """A data file that can't be used; the message is for whoever named it."""

    def __init__(self, path: pathlib.Path, *found: str, expected: str = _EXPECTED):
        lines = "\n".join(f"  {problem}" for problem in found)
        super().__init__(f"Can't use the data file {path}. {expected}\nFound:\n{lines}")


class Data(NamedTuple):
    """Images of ten classes, [N, H, W] float32 from 0 to 1, and labels [N], int32."""

    name: str  # where they are from
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.x_train.shape[1:]

    def first(self, count: int) -> "Data":
        """So many images of each part."""
        return Data(self.name, *(x[:count] for x in self[1:]))

    def _images(self, fn: Callable[[np.ndarray], np.ndarray]) -> "Data":
        return self._replace(x_train=fn(self.x_train), x_test=fn(self.x_test))

    def standardized(self) -> "Data":
        """Pixels of mean 0 and deviation 1 over the training images, as one number."""
        mean, deviation = self.x_train.mean(), self.x_train.std() or 1.0
        return self._images(lambda x: (x - mean) / deviation)

    def flat(self) -> "Data":
        """Images as rows, [N, H * W]."""
        return self._images(lambda x: x.reshape(len(x), -1))


def load(path: pathlib.Path | None) -> Data:
    """The images of a file, or the digits of scikit-learn where there is none.

    A file that is not as it should be raises a `DataError`.
    """
    return _digits() if path is None else _mnist(path)


def _digits() -> Data:
    x, y = datasets.load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8).astype(np.float32) / 16
    x_train, x_test, y_train, y_test = model_selection.train_test_split(
        x, y.astype(np.int32), test_size=0.2, random_state=0, stratify=y
    )
    return Data("digits of scikit-learn", x_train, y_train, x_test, y_test)


def _mnist(path: pathlib.Path) -> Data:
    arrays, scaled, problems = _read(path), {}, []
    for name, array in arrays.items():
        if name.startswith("x"):
            right = array.dtype == np.uint8 and array.shape[1:] == (28, 28)
            scale = lambda x: x.astype(np.float32) / 255  # noqa: E731
        else:
            right = array.dtype.kind in "iu" and array.ndim == 1
            scale = lambda x: x.astype(np.int32)  # noqa: E731
        if right:
            scaled[name] = scale(array)
        else:
            problems.append(f"{name}: {array.dtype} of shape {list(array.shape)}")
    problems = problems or [*_unlike(arrays, "train"), *_unlike(arrays, "test")]
    if problems:
        raise DataError(path, *problems)
    return Data(path.name, **scaled)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(path, "a folder" if path.is_dir() else "no such file")
    if problem := no_archive(path):
        raise DataError(path, problem)
    try:
        with path.open("rb") as file, np.load(file) as archive:
            missing = [name for name in Data._fields[1:] if name not in archive]
            if not missing:
                return {name: archive[name] for name in Data._fields[1:]}
            there = ", ".join(archive) or "no arrays"
            problems = [f"no {', '.join(missing)}", f"it holds {there}"]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(path, unreadable(error)) from error
    raise DataError(path, *problems)


def no_archive(path: pathlib.Path) -> str | None:
    """What a file is that is not an archive of arrays, for the user."""
    if zipfile.is_zipfile(path):
        return None
    with path.open("rb") as file:
        array = file.read(6) == b"\x93NUMPY"
    return "a single array" if array else "not readable: no .npz archive"


def unreadable(error: Exception) -> str:
    """Why an archive cannot be read, without NumPy's advice to unpickle it."""
    objects = "pickle" in str(error)
    return f"not readable: {'it holds Python objects' if objects else error}"


def _unlike(arrays: dict[str, np.ndarray], part: str) -> list[str]:
    """What is wrong between images and labels of the right kinds."""
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if not len(x):
        return [f"x_{part}: no images"]
    if len(x) != len(y):
        return [f"{len(x)} images in x_{part}, {len(y)} labels in y_{part}"]
    if y.min() < 0 or y.max() >= CLASSES:
        return [f"y_{part}: labels from {y.min()} to {y.max()}"]
    return []
