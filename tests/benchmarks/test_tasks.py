"""Sequences of tasks: every class once, the same for the same seed, turned as told."""

import numpy as np
import pytest

from benchmarks import _data, _tasks


@pytest.fixture(scope="module")
def digits():
    return _data.load(None)


def numbered(*, shape=(5, 4), images=30):
    """Images that say which they are, of classes 0 to 9 in turn."""
    x = np.zeros((images, *shape), np.float32)
    x[:, 0, 0] = np.arange(images)
    y = (np.arange(images) % 10).astype(np.int32)
    return _data.Data("numbered", x, y, x[::-1], y[::-1])


# Classes as tasks.


@pytest.mark.parametrize(("classes", "tasks"), [(1, 10), (2, 5), (3, 3), (5, 2)])
def test_a_split_has_every_class_in_one_task(digits, classes, tasks):
    parts = _tasks.split(digits, classes=classes)
    for x, y in ((parts.x_train, parts.y_train), (parts.x_test, parts.y_test)):
        assert x.shape == (tasks, y.shape[1], 8, 8)
        assert x.dtype == np.float32
        assert y.dtype == np.int32
        for task, labels in enumerate(y):
            own = np.arange(task * classes, (task + 1) * classes)
            np.testing.assert_array_equal(np.unique(labels), own)


def test_a_split_keeps_images_with_their_labels_in_order():
    data = numbered()
    parts = _tasks.split(data)
    for x, y in ((parts.x_train, parts.y_train), (parts.x_test, parts.y_test)):
        np.testing.assert_array_equal(x[..., 0, 0] % 10, y)
    assert parts.x_train.shape == (5, 6, 5, 4)
    assert (np.diff(parts.x_train[..., 0, 0]) > 0).all()
    assert (np.diff(parts.x_test[..., 0, 0]) < 0).all()


def test_tasks_of_a_split_are_as_large_as_the_smallest():
    data = numbered()
    short = data._replace(x_train=data.x_train[:24], y_train=data.y_train[:24])
    parts = _tasks.split(short)  # of classes 4 to 9 there are two images, of others 3
    assert parts.x_train.shape[:2] == (5, 4)
    np.testing.assert_array_equal(parts.x_train[0, :, 0, 0], [0, 1, 10, 11])
    assert parts.x_test.shape[:2] == (5, 6)


# Permutations.


def test_permutations_are_of_all_pixels_and_the_first_is_none():
    orders = _tasks.permutations(numbered(), 6)
    assert orders.shape == (6, 20)
    assert orders.dtype == np.int32
    np.testing.assert_array_equal(orders[0], np.arange(20))
    np.testing.assert_array_equal(np.sort(orders, axis=1), orders[[0] * 6])
    assert len({tuple(order) for order in orders.tolist()}) == 6


def test_a_task_is_the_same_whatever_their_number():
    few, many = (_tasks.permutations(numbered(), n) for n in (3, 12))
    np.testing.assert_array_equal(few, many[:3])


# Rotations.


@pytest.mark.parametrize("shape", [(8, 8), (7, 7)])
@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 4])
def test_right_angles_hit_pixels_exactly(shape, quarters):
    x = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    turned = _tasks.turned(x, 90 * quarters)
    np.testing.assert_array_equal(turned, np.rot90(x, quarters, axes=(1, 2)))
    assert turned.dtype == x.dtype


def test_half_a_turn_fits_images_that_are_not_square():
    x = np.random.default_rng(0).random((3, 5, 8))
    np.testing.assert_array_equal(_tasks.turned(x, 180), np.rot90(x, 2, axes=(1, 2)))
    np.testing.assert_array_equal(_tasks.turned(x, 0), x)


def test_a_blob_keeps_its_mass_and_goes_where_it_should():
    size, middle = 21, 10
    down, right = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    # Right of the middle: turned counterclockwise by 30 degrees it is up there.
    blob = np.exp(-((down - middle) ** 2 + (right - middle - 5) ** 2) / 8)[None]
    for angle in (30, 45, 200):
        turned = _tasks.turned(blob, angle)
        np.testing.assert_allclose(turned.sum(), blob.sum(), rtol=0.01)
        at = [(turned[0] * where).sum() / turned.sum() for where in (down, right)]
        radians = np.deg2rad(angle)
        wanted = middle - 5 * np.sin(radians), middle + 5 * np.cos(radians)
        np.testing.assert_allclose(at, wanted, atol=0.05)


def test_digits_lose_little_when_turned(digits):
    sums = digits.x_test.sum()
    for angle in (15, 45, 75, 120):
        turned = _tasks.turned(digits.x_test, angle)
        assert 0.85 * sums < turned.sum() < 1.05 * sums
        assert 0 <= turned.min() <= turned.max() <= 1 + 1e-6


def test_pixels_beyond_the_edge_are_black():
    turned = _tasks.turned(np.ones((1, 8, 8)), 45)[0]
    assert turned[0, 0] == turned[-1, -1] == turned[0, -1] == turned[-1, 0] == 0
    np.testing.assert_allclose(turned[3:5, 3:5], 1)
