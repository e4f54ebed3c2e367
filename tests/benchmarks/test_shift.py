"""Data to be unsure of is what it says, and the same for the same seed."""

import numpy as np
import pytest

from benchmarks import _data, _episodes, _shift


@pytest.fixture(scope="module")
def digits():
    return _data.load(None)


@pytest.mark.parametrize("classes", [(8, 9), (0,), (3, 1, 7)])
def test_held_out_classes_are_in_no_part(digits, classes):
    part = _shift.held_out(digits, classes)
    kept = np.setdiff1d(np.arange(10), classes)
    known = part.known
    for x, y, old_x, old_y in (
        (known.x_train, known.y_train, digits.x_train, digits.y_train),
        (known.x_test, known.y_test, digits.x_test, digits.y_test),
    ):
        inside = ~np.isin(old_y, classes)
        np.testing.assert_array_equal(x, old_x[inside])
        np.testing.assert_array_equal(kept[y], old_y[inside])
        assert y.dtype == old_y.dtype
        np.testing.assert_array_equal(np.unique(y), np.arange(len(kept)))
    images = len(digits.x_train) + len(digits.x_test)
    assert len(part.unknown) + len(known.x_train) + len(known.x_test) == images


@pytest.mark.parametrize("classes", [(), (10,), tuple(range(10))])
def test_some_classes_are_held_out_and_not_all(digits, classes):
    with pytest.raises(ValueError, match=r"Some of the classes \[0, .* and not all"):
        _shift.held_out(digits, classes)


def test_drawings_are_upright_characters():
    upright = np.random.default_rng(0).random((5, 3, 28, 28)).astype(np.float32)
    turned = _episodes._turned(upright)
    characters = _episodes.Classes("drawn", turned, turned[::-1])
    images = _shift.drawings(characters, (28, 28))
    assert images.shape == (2 * 5 * 3, 28, 28)
    np.testing.assert_allclose(images[:15], upright.reshape(-1, 28, 28), rtol=1e-6)
    small = _shift.drawings(characters, (8, 8))
    assert small.shape == (30, 8, 8)
    np.testing.assert_allclose(small[:15].mean(), upright.mean(), rtol=1e-5)


@pytest.mark.parametrize("shape", [(7, 7), (8, 5), (28, 28), (40, 56)])
def test_resizing_keeps_means(shape):
    images = np.random.default_rng(0).random((4, 28, 28)).astype(np.float32)
    found = _shift.resized(images, shape)
    assert found.shape == (4, *shape)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean((1, 2)), images.mean((1, 2)), rtol=1e-5)
    assert images.min() <= found.min() <= found.max() <= images.max() + 1e-6
    np.testing.assert_allclose(_shift.resized(np.ones((1, 28, 28)), shape), 1)


def test_resizing_by_a_whole_number_is_a_mean_of_blocks():
    images = np.random.default_rng(0).random((4, 28, 28))
    blocks = images.reshape(4, 7, 4, 14, 2).mean((2, 4))
    np.testing.assert_allclose(_shift.resized(images, (7, 14)), blocks)
    twice = np.kron(images, np.ones((1, 2, 2)))
    np.testing.assert_allclose(_shift.resized(images, (56, 56)), twice)
