"""Episodes are what they say, and files and sizes that are not are refused."""

import re

import jax
import numpy as np
import pytest

from benchmarks import __main__ as demonstrate
from benchmarks import _data, _episodes

KEY = jax.random.key(0)


pytestmark = pytest.mark.usefixtures("loose")


def _labeled(classes=7, each=5):
    """Images that say which class they are of, and which of its images."""
    c, n = np.meshgrid(np.arange(classes), np.arange(each), indexing="ij")
    return np.stack([c, n], -1).astype(np.float32)


def test_sinusoids_are_waves_of_a_few_points():
    draw = jax.jit(lambda key: _episodes.sinusoids(key, tasks=50, shots=5, queries=7))
    (x, y), (others, values) = jax.device_get(draw(KEY))
    assert x.shape == y.shape == (50, 5, 1)
    assert others.shape == values.shape == (50, 7, 1)
    found = []
    for points, heights in zip(
        np.concatenate([x, others], 1)[..., 0],
        np.concatenate([y, values], 1)[..., 0],
        strict=True,
    ):
        # a sin(x - b) = a cos(b) sin(x) - a sin(b) cos(x): two unknowns, twelve points.
        basis = np.stack([np.sin(points), -np.cos(points)], 1)
        found.append(np.linalg.lstsq(basis, heights)[0])
        np.testing.assert_allclose(basis @ found[-1], heights, atol=1e-4)
    amplitudes, phases = (
        np.hypot(*np.transpose(found)),
        np.arctan2(*np.transpose(found)[::-1]),
    )
    for values, low, high in ((amplitudes, 0.1, 5), (phases, 0, np.pi), (x, -5, 5)):
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high
    again, _ = jax.device_get(draw(KEY))
    np.testing.assert_array_equal(again[0], x)
    other, _ = jax.device_get(draw(jax.random.key(1)))
    assert (other[0] != x).all()


def test_images_are_of_distinct_classes_and_never_the_same():
    how = {"tasks": 20, "ways": 3, "shots": 1, "queries": 2}
    draw = jax.jit(lambda key, data: _episodes.images(key, data, **how))
    batch = jax.device_get(draw(KEY, _labeled()))
    seen = set()
    for i in range(20):
        support, query = jax.tree.map(lambda a, i=i: np.asarray(a)[i], batch)
        assert support[0].shape == (3, 2)
        np.testing.assert_array_equal(support[1], [0, 1, 2])
        np.testing.assert_array_equal(query[1], [0, 0, 1, 1, 2, 2])
        classes = np.asarray(support[0][:, 0])
        assert len(set(classes)) == 3
        np.testing.assert_array_equal(query[0][:, 0], classes[np.asarray(query[1])])
        both = np.concatenate([support[0], query[0]])
        assert len({tuple(row) for row in both.tolist()}) == 9
        seen |= set(classes.tolist())
    assert seen == set(range(7))


@pytest.mark.parametrize("ways", [0, 8])
def test_more_ways_than_classes_are_refused(ways):
    complaint = re.escape(f"1 to 7 ways, one a class, got {ways}.")
    with pytest.raises(ValueError, match=complaint):
        _episodes.images(KEY, _labeled(), tasks=2, ways=ways, shots=1, queries=1)


@pytest.mark.parametrize(("shots", "queries"), [(0, 1), (3, 3), (1, -1)])
def test_more_images_than_a_class_has_are_refused(shots, queries):
    complaint = f"at most the 5 images of a class, got {shots} shots and {queries}"
    with pytest.raises(ValueError, match=complaint):
        _episodes.images(KEY, _labeled(), tasks=2, ways=2, shots=shots, queries=queries)


def test_digits_and_their_turns_are_classes():
    classes = _episodes.digits(_data.load(None))
    assert classes.train.shape[0] == 4 * 7
    assert classes.test.shape[0] == 4 * len(_episodes.HELD_OUT)
    upright, turned = classes.test[0, 0], classes.test[3, 0]
    np.testing.assert_array_equal(np.rot90(upright.reshape(8, 8)), turned.reshape(8, 8))


def _omniglot(**others):
    rng = np.random.default_rng(0)
    which = rng.permutation(np.repeat(np.arange(10), 3)).astype(np.int32)
    images = np.zeros((30, 28, 28), np.uint8)
    images[:, 0, 0] = which
    return {"images": images, "character": which} | others


def _saved(path, arrays):
    np.savez(path, **arrays)
    return path


def test_characters_are_split_into_those_to_learn_and_to_test(tmp_path):
    classes = _episodes.omniglot(_saved(tmp_path / "omniglot.npz", _omniglot()))
    assert classes.train.shape == (4 * 8, 3, 784)
    assert classes.test.shape == (4 * 2, 3, 784)
    upright = np.concatenate([classes.train[:8], classes.test[:2]])[..., 0] * 255
    assert sorted(upright[:, 0].round().tolist()) == list(range(10))
    np.testing.assert_array_equal(upright, upright[:, :1].repeat(3, axis=1))


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"images": np.zeros(3)}, "not readable"),
        (_omniglot(images=np.zeros((30, 28, 28))), "float64 of shape [30, 28, 28]"),
        (_omniglot(images=np.zeros((29, 28, 28), np.uint8)), "for 30 characters"),
        (_omniglot(character=np.zeros(30, np.int32)), "drawings of each character"),
        (_omniglot(character=np.repeat([0, 1, 2], 10)), "drawings of each character"),
        (_omniglot(character=np.ones(30)), "not readable"),
    ],
)
def test_a_file_that_is_not_omniglot_is_refused(arrays, found, tmp_path, capsys):
    path = _saved(tmp_path / "data.npz", arrays)
    out = tmp_path / "out"
    assert demonstrate.main(["--omniglot", str(path), "--out", str(out)]) == 2
    assert not out.exists()
    said = capsys.readouterr()
    assert not said.out
    assert f"Can't use the data file {path}. Expected a NumPy .npz" in said.err
    assert found in said.err
