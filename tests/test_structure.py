"""What is kept or removed together."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import optim, select, structure
from maskjax.structure import Block, Entries, NofM, Units
from tests.reference import selection

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(4, 8, 12)).astype("float32")
KEY = jax.random.key(0)

GROUPS = [(1, 2), (2, 4), (4, 4), (0, 4), (3, 4)]
FAST = [(2, 4, -1), (1, 2, -2), (3, 4, 0)]
GRID = [(n, m, axis) for n, m in GROUPS for axis in (-1, -2, 0, 2)]


@pytest.mark.parametrize(
    "groups", [FAST, pytest.param(GRID, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_density_of_n_over_m_keeps_exactly_n_of_every_m(groups):
    @jax.jit
    def choose(scores):
        return [
            select.top_k(scores, density=n / m, structure=NofM(n, m, axis))
            for n, m, axis in groups
        ]

    for (n, m, axis), mask in zip(groups, choose(SCORES), strict=True):
        lines = np.moveaxis(np.asarray(mask), axis, -1).reshape(-1, m)
        assert (lines.sum(axis=1) == n).all()
        expected = selection.best_of_groups(SCORES, n, m, axis)
        np.testing.assert_array_equal(mask, expected)


def test_n_of_m_holds_under_ties_and_nan():
    nan, inf = np.nan, np.inf
    scores = np.array([[nan, 1, 1, 1, nan, nan, nan, -inf]], "float32")
    mask = select.top_k({"w": scores}, density=0.5, structure=NofM(2, 4, axis=-1))["w"]
    expected = [[False, True, True, False, True, False, False, True]]
    np.testing.assert_array_equal(mask, expected)


def test_n_of_m_never_keeps_more_than_n_and_prunes_further_within():
    scores = SCORES[0, :, :6]
    for density in (0.125, 0.3, 0.8, 1.0):
        mask = select.top_k({"w": scores}, density=density, structure=NofM(2, 4, -2))[
            "w"
        ]
        groups = np.asarray(mask).T.reshape(-1, 4)
        assert (groups.sum(axis=1) <= 2).all()
        assert groups.sum() == min(round(density * 48), 24)


def test_blocks_pool_to_means_and_spread_to_whole_tiles():
    scores, shapes = SCORES[:2, :4, :6], [(2, 3), (1, 6), (4, 1), (4, 6), (1, 1)]

    @jax.jit
    def pool_and_spread(scores):
        pooled = [Block(shape, (-2, -1)).pool(scores) for shape in shapes]
        return pooled, [
            Block(s, (-2, -1)).spread(p > 0)
            for s, p in zip(shapes, pooled, strict=True)
        ]

    for shape, pooled, spread in zip(shapes, *pool_and_spread(scores), strict=True):
        means, _ = selection.blocks(scores, shape)
        np.testing.assert_allclose(pooled, means, rtol=1e-5, atol=1e-6)
        expected = selection.tile(np.asarray(pooled) > 0, shape)
        np.testing.assert_array_equal(spread, expected)


def test_units_pool_to_means_and_share_an_axis_of_one():
    axes = (-1, -2, 0)
    pool = jax.jit(lambda scores: [Units(axis).pool(scores) for axis in axes])
    for axis, pooled in zip(axes, pool(SCORES), strict=True):
        means, _ = selection.units(SCORES, axis)
        np.testing.assert_allclose(pooled, means, rtol=1e-5, atol=1e-6)
        assert pooled.size == SCORES.shape[axis]


def test_dead_entries_do_not_enter_a_mean():
    scores = np.array([[1.0, np.nan], [3.0, 2.5]], "float32")
    alive = np.array([[True, False], [True, True]])
    pools = jax.jit(lambda *x: [Units(-1).pool(*x), Block((2, 1), (-2, -1)).pool(*x)])
    for pooled in pools(scores, alive):
        np.testing.assert_array_equal(pooled, [[2.0, 2.5]])


@pytest.mark.parametrize("pattern", [Block((64, 1), (-2, -1)), Units(-1)], ids=str)
def test_means_of_bfloat16_are_taken_in_float32(pattern):
    # 257 is no bfloat16: a sum in bfloat16 would stop at 256.
    scores = np.ones((64, 2), jnp.bfloat16)
    scores[0, 1] = 1.25
    pooled = np.asarray(jax.jit(pattern.pool)(scores))
    assert pooled.dtype == "float32"
    np.testing.assert_array_equal(pooled.ravel(), [1.0, 1 + 0.25 / 64])


VALUES = [Entries(), NofM(2, 4, -2), Block((2, 2), (-2, -1)), Units(-1)]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_structures_are_values(value):
    again = type(value)(**dataclasses.asdict(value))
    assert value == again
    assert hash(value) == hash(again)


def test_equal_structures_compile_once_and_leaves_may_be_empty():
    def choose(scores, pattern):
        return select.top_k(scores, density=0.0, structure=pattern)

    choose = jax.jit(choose, static_argnums=1)
    scores = {str(s): np.ones(s, "float32") for s in ((0, 4), (4, 0), (4, 4))}
    for value in VALUES:
        again = type(value)(**dataclasses.asdict(value))
        for pattern in (value, again):
            mask = choose(scores, pattern)
            assert not any(np.asarray(m).any() for m in mask.values())
    assert choose._cache_size() == len(VALUES)


# Structures that are none.

PARAMS = {"w": np.ones((4, 4), "float32")}
MASK = {"w": np.ones((4, 4), bool)}
REWIRING = {"rate": 0.5, "every": 1, "key": KEY}
TAKERS = {
    "select.top_k": lambda s: select.top_k(PARAMS, density=0.5, structure=s),
    "select.drop": lambda s: select.drop(PARAMS, MASK, rate=0.5, structure=s),
    "select.shrink": lambda s: select.shrink(PARAMS, MASK, density=0.5, structure=s),
    "select.grow": lambda s: select.grow(PARAMS, MASK, density=0.5, structure=s),
    "select.iterative_top_k": lambda s: select.iterative_top_k(
        lambda p: p, PARAMS, density=0.5, rounds=2, structure=s
    ),
    "optim.prune": lambda s: optim.prune(0.5, structure=s),
    "optim.rigl": lambda s: optim.rigl(0.5, structure=s, **REWIRING),
    "optim.set_": lambda s: optim.set_(0.5, structure=s, **REWIRING),
}


@dataclasses.dataclass(frozen=True)
class Own(Units):
    """A structure of a user."""


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize(
    ("given", "got", "write"),
    [
        (Units, "the class `Units`", "structure.Units()"),
        (NofM, "the class `NofM`", "structure.NofM(2, 4)"),
        (Block, "the class `Block`", "structure.Block((4, 4))"),
        (Own, "the class `Own`", "Own()"),
        ("1:4", "str '1:4'", "structure.NofM(1, 4)"),
        ("units", "str 'units'", "structure.Units()`, `structure.Block((4, 4))` or "),
        (structure, "module <module 'maskjax.structure'", "structure.Units()`, "),
        (None, "NoneType None", "structure.Units()`, "),
    ],
    ids=["Units", "NofM", "Block", "own", "pattern", "word", "module", "none"],
)
def test_what_is_no_structure_is_refused_with_what_to_write(name, given, got, write):
    with pytest.raises(TypeError, match=f"`maskjax.{name}` needs `structure` as") as at:
        TAKERS[name](given)
    assert f"got {got}" in str(at.value)
    assert f"Write `{write}" in str(at.value)


@pytest.mark.parametrize("axis", ["out", 1.0, True, None, (), ("inputs", "outputs")])
def test_an_axis_is_a_role_or_a_whole_number(axis):
    for name, make in (
        ("Units", Units),
        ("NofM", lambda axis: NofM(2, 4, axis)),
        ("Block", lambda axis: Block((2, 2), (axis, axis))),
    ):
        match = f"`maskjax.structure.{name}` needs `ax.s` as one of the words stack, "
        with pytest.raises(ValueError, match=match):
            make(axis)


@pytest.mark.parametrize("axes", [("inputs", 0), "inputs", (0,), [0, 1]])
def test_a_block_has_two_axes_of_a_kind(axes):
    with pytest.raises(ValueError, match="Block` needs `axes` as two roles or two wh"):
        Block((2, 2), axes)


def test_without_a_leaf_roles_have_no_numbers():
    scores = np.ones((2, 2), "f4")
    for pattern in (Units(), Block((2, 2))):
        with pytest.raises(ValueError, match="numbers for axes where no leaf is known"):
            pattern.pool(scores)


@pytest.mark.parametrize("shape", [2, [2, 2], None, "22"])
def test_the_shape_of_a_block_is_a_tuple(shape):
    with pytest.raises(ValueError, match="Block` needs two positive whole numbers"):
        Block(shape, (-2, -1))


def test_numbers_may_be_those_of_numpy_and_not_booleans():
    two, four = np.int64(2), np.int32(4)
    assert NofM(two, four) == NofM(2, 4)
    assert str(NofM(two, four)) == str(NofM(2, 4))
    assert Block((two, four)) == Block((2, 4))
    for n in (True, 2.0, "2"):
        with pytest.raises(ValueError, match=f"0 <= n <= m and m >= 1, got n={n!r}, m"):
            NofM(n, 4)
        with pytest.raises(ValueError, match="Block` needs two positive whole numbers"):
            Block((n, 4))


@pytest.mark.parametrize(("n", "m"), [(0, 3), (1, 1), (1, 16), (2, 4), (4, 8), (3, 11)])
def test_patterns_of_n_of_m_are_all_there_are_once_in_order(n, m):
    found = NofM(n, m).patterns()
    every = [p for p in itertools.product([True, False], repeat=m) if sum(p) == n]
    np.testing.assert_array_equal(found, every)  # as numbers, from high to low
    assert found.dtype == bool
    # Each entry is in as many patterns as any other.
    np.testing.assert_array_equal(found.sum(0), len(every) * n // m)
    assert NofM(n, m, axis=0).patterns() is found  # enumerated once
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = True


def test_too_many_patterns_are_an_error_that_says_how_many():
    fn = "`maskjax.structure.NofM.patterns` needs n and m with at most 256 patterns"
    for n, m, count in [(8, 16, 12_870), (5, 11, 462)]:
        with pytest.raises(ValueError, match=f"{fn}, got n={n}, m={m}.*have {count}"):
            NofM(n, m).patterns()
