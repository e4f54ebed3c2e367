"""Data to be unsure of is what it says, and the same for the same seed."""

import numpy as np
import pytest

from benchmarks import _data, _episodes, _shift, _tasks


@pytest.fixture(scope="module")
def digits():
    return _data.load(None)


def test_rotations_are_turned_images(digits):
    angles = (0, 15, 90)
    turned = _shift.rotations(digits.x_test, angles)
    assert turned.shape == (3, *digits.x_test.shape)
    assert turned.dtype == np.float32
    np.testing.assert_array_equal(turned[0], digits.x_test)
    np.testing.assert_array_equal(turned[1], _tasks.turned(digits.x_test, 15))
    np.testing.assert_array_equal(turned[2], np.rot90(digits.x_test, axes=(1, 2)))


@pytest.mark.parametrize("classes", [(8, 9), (0,), (3, 1, 7)])
def test_held_out_classes_are_in_no_part(digits, classes):
    part = _shift.held_out(digits, classes)
    assert part.classes == tuple(c for c in range(10) if c not in classes)
    kept = np.array(part.classes)
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


def test_diabetes_is_split_by_seed():
    first, again, other = (_shift.diabetes(seed=seed) for seed in (0, 0, 1))
    assert first.x_train.shape == (398, 10)
    assert first.x_test.shape == (44, 10)
    assert first.y_train.shape == (398,)
    np.testing.assert_array_equal(first.x_test, again.x_test)
    assert (first.y_test != other.y_test).any()
    for data in (first, other):  # nobody is lost
        targets = np.sort(np.concatenate([data.y_train, data.y_test]))
        assert (targets.sum(), targets[0], targets[-1]) == (67243, 25, 346)


def test_the_cubic_has_noise_of_deviation_3():
    data = _shift.cubic(seed=0)
    assert data.x_train.shape == (20, 1)
    many = _shift.cubic(seed=1, points=20_000)
    assert -4 <= many.x_train.min() < -3.99
    assert 3.99 < many.x_train.max() <= 4
    noise = many.y_train - many.x_train[:, 0] ** 3
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 3], atol=0.1)
    np.testing.assert_allclose(data.y_test, data.x_test[:, 0] ** 3)
    assert (data.x_test[0], data.x_test[-1]) == (-6, 6)


@pytest.mark.parametrize("make", [_shift.diabetes, _shift.cubic])
def test_standardized_numbers_can_be_put_back(make):
    data = make(seed=0)
    scaled = data.standardized()
    for part in (scaled.x_train, scaled.y_train):
        np.testing.assert_allclose(part.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(part.std(0), 1, atol=1e-4)
        assert part.dtype == np.float32
    for new, old in ((scaled.y_train, data.y_train), (scaled.y_test, data.y_test)):
        back = scaled.mean + scaled.deviation * new
        np.testing.assert_allclose(back, old, rtol=1e-4, atol=1e-3)
    twice = scaled.standardized()
    np.testing.assert_allclose(twice.deviation, scaled.deviation, rtol=1e-4)
    assert data.deviation == 1
