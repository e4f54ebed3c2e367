"""What lives or dies together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import select
from maskjax.structure import Block, Entries, NofM, Units
from tests import trees
from tests.reference import selection


def random_scores(shape, *, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


@pytest.mark.parametrize("axis", [-1, -2, 0, 2])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 4), (0, 4), (3, 4)])
def test_a_density_of_n_over_m_keeps_exactly_n_of_every_m(n, m, axis, transform):
    scores = random_scores((4, 8, 12))
    choose = transform(
        lambda s: select.top_k(s, density=n / m, structure=NofM(n, m, axis))
    )
    mask = choose({"w": scores})["w"]
    groups = np.moveaxis(np.asarray(mask), axis, -1).reshape(-1, m)
    assert (groups.sum(axis=1) == n).all()
    expected = selection.best_of_groups(np.asarray(scores), n, m, axis)
    np.testing.assert_array_equal(mask, expected)


def test_n_of_m_holds_under_ties_and_nan():
    scores = jnp.array([[jnp.nan, 1.0, 1.0, 1.0, jnp.nan, jnp.nan, jnp.nan, -jnp.inf]])
    mask = select.top_k({"w": scores}, density=0.5, structure=NofM(2, 4, axis=-1))["w"]
    expected = [[False, True, True, False, True, False, False, True]]
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("density", [0.125, 0.3, 0.8, 1.0])
def test_n_of_m_never_keeps_more_than_n_and_prunes_further_within(density):
    scores = random_scores((8, 6))
    mask = select.top_k({"w": scores}, density=density, structure=NofM(2, 4))["w"]
    groups = np.asarray(mask).T.reshape(-1, 4)
    assert (groups.sum(axis=1) <= 2).all()
    assert mask.sum() == min(round(density * 48), 24)


@pytest.mark.parametrize("shape", [(2, 3), (1, 6), (4, 1), (4, 6), (1, 1)])
def test_blocks_are_constant_and_counted(shape, transform):
    scores = random_scores((2, 4, 6))
    choose = transform(lambda s: select.top_k(s, density=0.5, structure=Block(shape)))
    mask = np.asarray(choose({"w": scores})["w"])
    height, width = shape
    tiles = mask.reshape(2, 4 // height, height, 6 // width, width)
    any_, all_ = tiles.any(axis=(2, 4)), tiles.all(axis=(2, 4))
    np.testing.assert_array_equal(any_, all_)
    assert any_.sum() == selection.quota(0.5, any_.size)


@pytest.mark.parametrize("axis", [-1, -2, 0])
def test_units_share_an_axis_of_one(axis, transform):
    scores = random_scores((3, 4, 5))
    choose = transform(lambda s: select.top_k(s, density=0.6, structure=Units(axis)))
    mask = choose({"w": scores})["w"]
    expected_shape = [1, 1, 1]
    expected_shape[axis] = scores.shape[axis]
    assert mask.shape == tuple(expected_shape)
    means, _ = selection.units(np.asarray(scores), axis)
    (expected,) = selection.top_k([means], 0.6)
    np.testing.assert_array_equal(mask, expected)


def test_dead_entries_do_not_enter_a_mean():
    scores = jnp.array([[1.0, jnp.nan], [3.0, 2.5]])
    alive = jnp.array([[True, False], [True, True]])
    np.testing.assert_array_equal(Units().pool(scores, alive), [[2.0, 2.5]])
    np.testing.assert_array_equal(Block((2, 1)).pool(scores, alive), [[2.0, 2.5]])


@pytest.mark.parametrize("structure", [Block((64, 1)), Units()], ids=str)
def test_means_of_bfloat16_are_taken_in_float32(structure):
    # 257 is no bfloat16: a sum in bfloat16 would stop at 256.
    scores = jnp.ones((64, 2), jnp.bfloat16).at[0, 1].set(1.25)
    pooled = structure.pool(scores)
    assert pooled.dtype == jnp.float32
    np.testing.assert_array_equal(pooled.ravel(), [1.0, 1 + 0.25 / 64])


@pytest.mark.parametrize(
    "structure", [Entries(), NofM(2, 4), Block((2, 2)), Units()], ids=str
)
def test_structures_are_values_that_compile_once(structure):
    @jax.jit
    def choose(scores):
        return select.top_k(scores, density=0.5, structure=structure)

    for seed in range(2):
        choose({"w": random_scores((4, 4), seed=seed)})
    assert choose._cache_size() == 1
    assert structure == type(structure)(**vars(structure))
    assert hash(structure) == hash(type(structure)(**vars(structure)))


@pytest.mark.parametrize(
    "structure", [Entries(), NofM(1, 2), Block((1, 1)), Units()], ids=str
)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_structures_accept_leaves_without_entries(structure, shape):
    mask = select.top_k({"w": jnp.ones(shape)}, density=0.0, structure=structure)["w"]
    assert not trees.to_numpy(mask).any()
