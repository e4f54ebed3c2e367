"""Scores against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import score, where
from tests import trees

over_trees = pytest.mark.parametrize("name", trees.NAMES)
over_dtypes = pytest.mark.parametrize("dtype", trees.DTYPES)


def assert_scored(params, scores, formula):
    """Chosen leaves follow the formula, in their dtype; the others are None."""
    for i, (value, result) in enumerate(trees.pairs(params, scores)):
        original = jax.tree.leaves(params)[i]
        if where.kernels("", original):
            assert result.dtype == original.dtype
            np.testing.assert_array_equal(trees.to_numpy(result), formula(i, value))
        else:
            assert result is None


@over_dtypes
@over_trees
def test_magnitude_is_the_absolute_value(name, dtype, every_transform):
    params = trees.make(name, dtype)
    scores = every_transform(score.magnitude)(params)
    assert_scored(params, scores, lambda i, value: np.abs(value))


@over_dtypes
@over_trees
def test_movement_is_the_distance_from_the_start(name, dtype, every_transform):
    params, initial = trees.make(name, dtype), trees.make(name, dtype, seed=1)
    scores = every_transform(score.movement)(params, initial)
    first = jax.tree.leaves(initial)

    def formula(i, value):
        now = jax.tree.leaves(params)[i]
        exact = value.astype(np.float64) - trees.to_numpy(first[i])
        rounded = np.asarray(exact).astype(now.dtype)
        return np.abs(trees.to_numpy(rounded))

    assert_scored(params, scores, formula)


@over_trees
def test_random_scores_are_uniform_and_float32(name, transform):
    params = trees.make(name, "bfloat16")
    scores = transform(lambda key: score.random(params, key=key))(jax.random.key(0))
    for i, (value, result) in enumerate(trees.pairs(params, scores)):
        if where.kernels("", jax.tree.leaves(params)[i]):
            assert result.dtype == jnp.float32
            assert result.shape == value.shape
            assert (result >= 0).all()
            assert (result < 1).all()
        else:
            assert result is None


def test_random_scores_differ_between_leaves_and_keys():
    params = {"a": jnp.ones((40, 50)), "b": jnp.ones((40, 50))}
    scores = score.random(params, key=jax.random.key(0))
    assert (scores["a"] != scores["b"]).mean() > 0.99
    other = score.random(params, key=jax.random.key(1))
    assert (scores["a"] != other["a"]).mean() > 0.99
    assert abs(scores["a"].mean() - 0.5) < 5 * np.sqrt(1 / 12 / 2000)
    trees.assert_same(scores, score.random(params, key=jax.random.key(0)))


def test_where_chooses_what_is_scored():
    params = trees.make("nested_dict")
    only = where.matching("^out/")
    for scores in (
        score.magnitude(params, where=only),
        score.movement(params, params, where=only),
        score.random(params, where=only, key=jax.random.key(0)),
    ):
        assert scores["conv"]["kernel"] is None
        assert scores["out"]["kernel"] is not None
        assert scores["out"]["bias"] is not None
