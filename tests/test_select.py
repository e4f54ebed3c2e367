"""Selection against a stable descending sort in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import algebra, packing, select
from maskjax.structure import Block, Entries, NofM, Units
from tests import trees
from tests.reference import selection

FLOATS = ["float32", "bfloat16", "float16"]
SPECIAL = [math.inf, -math.inf, math.nan, 0.0, -0.0, 1.0, -1.0]
SHAPES = {"a": (4, 6), "b": (2, 8, 4), "c": (4, 2)}


def special_scores(dtype, *, seed=0):
    """Scores with ties, both zeros, infinities, nan and subnormal numbers."""
    rng = np.random.default_rng(seed)
    tiny = float(jnp.finfo(dtype).smallest_subnormal)
    pool = np.array([*SPECIAL, tiny, -tiny, 3 * tiny, 2 * tiny, *rng.normal(size=9)])
    return {
        name: jnp.asarray(rng.choice(pool, size=shape), dtype)
        for name, shape in SHAPES.items()
    }


def plain_scores(dtype="float32", *, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape), dtype)
        for name, shape in SHAPES.items()
    }


def alive_half(*, seed=5):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.random(s) < 0.5) for name, s in SHAPES.items()}


def wide(x):
    return np.asarray(x).astype(np.float64)


def reference(scores, density, *, scope="leaf", structure=None, within=None):
    """The whole of `select.top_k`, from the parts in `tests.reference.selection`."""
    structure = structure or Entries()
    leaves = [wide(x) for x in scores.values()]
    alive = [np.ones(x.shape, bool) for x in leaves]
    if within is not None:
        alive = [
            np.broadcast_to(np.asarray(m), x.shape)
            for m, x in zip(within.values(), leaves, strict=True)
        ]
    both = list(zip(leaves, alive, strict=True))
    if isinstance(structure, Entries):
        masks = selection.top_k(leaves, density, scope=scope, alive=alive)
    elif isinstance(structure, NofM):
        n, m, axis = structure.n, structure.m, structure.axis
        allowed = [selection.best_of_groups(x, n, m, axis, a) for x, a in both]
        masks = selection.top_k(
            leaves, density, scope=scope, alive=alive, allowed=allowed
        )
    else:
        if isinstance(structure, Block):
            pools = [selection.blocks(x, structure.shape, a) for x, a in both]
        else:
            pools = [selection.units(x, structure.axis, a) for x, a in both]
        masks = selection.top_k(
            [p for p, _ in pools], density, scope=scope, alive=[s for _, s in pools]
        )
        if isinstance(structure, Block):
            masks = [selection.tile(m, structure.shape) for m in masks]
        if within is not None:
            masks = [m & a for m, a in zip(masks, alive, strict=True)]
    return dict(zip(scores, masks, strict=True))


def assert_masks_equal(mask, expected):
    assert mask.keys() == expected.keys()
    for name in expected:
        assert mask[name].dtype == bool
        np.testing.assert_array_equal(mask[name], expected[name], err_msg=name)


@pytest.mark.parametrize("within", [None, alive_half()], ids=["all", "within"])
@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_top_k_is_a_stable_descending_sort(dtype, scope, within):
    choose = jax.jit(
        lambda s, d: select.top_k(s, density=d, scope=scope, within=within)
    )
    for seed in range(4):
        scores = special_scores(dtype, seed=seed)
        for density in (0.0, 0.125, 0.375, 0.5, 0.8125, 1.0):
            mask = choose(scores, jnp.float32(density))
            expected = reference(scores, density, scope=scope, within=within)
            assert_masks_equal(mask, expected)


@pytest.mark.parametrize("within", [None, alive_half()], ids=["all", "within"])
@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_top_k_is_a_stable_descending_sort_in_float64(scope, within, x64):
    choose = jax.jit(
        lambda s, d: select.top_k(s, density=d, scope=scope, within=within)
    )
    for seed in range(2):
        scores = special_scores("float64", seed=seed)
        for density in (0.0, 0.3, 0.5, 1.0):
            mask = choose(scores, jnp.float64(density))
            expected = reference(scores, density, scope=scope, within=within)
            assert_masks_equal(mask, expected)


def test_float64_scores_that_float32_confuses_are_told_apart(x64):
    scores = {"w": 1 + jnp.arange(8.0, dtype="float64")[::-1] * 2.0**-50}
    mask = select.top_k(scores, density=0.5)["w"]
    np.testing.assert_array_equal(mask, np.arange(8) < 4)


STRUCTURES = [
    NofM(1, 2),
    NofM(2, 4, axis=-2),
    NofM(3, 4, axis=0),
    NofM(0, 2, axis=-1),
    Block((2, 2)),
    Block((4, 1)),
    Units(),
    Units(axis=-2),
    Units(axis=0),
]
FITTING = {"a": (4, 6), "b": (4, 8, 4)}


@pytest.mark.parametrize("with_within", [False, True], ids=["all", "within"])
@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_structured_top_k_agrees_with_the_reference(structure, scope, with_within):
    rng = np.random.default_rng(3)
    scores = {k: jnp.asarray(rng.normal(size=s), "float32") for k, s in FITTING.items()}
    within = None
    if with_within:
        within = {k: jnp.asarray(rng.random(s) < 0.4) for k, s in FITTING.items()}
    choose = jax.jit(
        lambda s, d: select.top_k(
            s, density=d, scope=scope, structure=structure, within=within
        )
    )
    for density in (0.0, 0.25, 0.5, 1.0):
        mask = choose(scores, jnp.float32(density))
        expected = reference(
            scores, density, scope=scope, structure=structure, within=within
        )
        if with_within:
            mask = {k: jnp.broadcast_to(m, FITTING[k]) for k, m in mask.items()}
        else:
            expected = {
                k: m if isinstance(structure, Units) else np.broadcast_to(m, FITTING[k])
                for k, m in expected.items()
            }
        assert_masks_equal(mask, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("structure", [NofM(1, 2), Block((2, 2)), Units()], ids=str)
def test_structures_rank_narrow_floats_with_specials(structure, dtype):
    scores = {"w": special_scores(dtype)["b"]}
    if not isinstance(structure, NofM):  # means of infinities are nan: ties all over
        scores = {"w": jnp.nan_to_num(scores["w"], posinf=4.0, neginf=-4.0)}
        scores = {"w": jnp.round(scores["w"] * 4) / 4}  # exact means
    mask = select.top_k(scores, density=0.5, structure=structure)
    assert_masks_equal(mask, reference(scores, 0.5, structure=structure))


def test_a_shared_within_counts_every_entry_that_it_covers(transform):
    scores = plain_scores()
    within = {
        "a": jnp.array([[True], [False], [True], [True]]),
        "b": jnp.ones((1, 1, 1), bool),
        "c": jnp.array([[True, False]]),
    }
    for scope in ("leaf", "global"):
        choose = transform(
            lambda s, scope=scope: select.top_k(
                s, density=0.5, scope=scope, within=within
            )
        )
        assert_masks_equal(
            choose(scores), reference(scores, 0.5, scope=scope, within=within)
        )


def test_within_may_be_packed():
    scores, within = plain_scores(), alive_half()
    mask = select.top_k(scores, density=0.5, within=packing.pack(within))
    assert_masks_equal(mask, select.top_k(scores, density=0.5, within=within))


def test_what_lies_outside_within_is_never_kept_even_if_it_is_best():
    scores = {"w": jnp.array([jnp.inf, 5.0, jnp.nan, -jnp.inf, 1.0])}
    within = {"w": jnp.array([False, False, True, True, False])}
    mask = select.top_k(scores, density=1.0, within=within)["w"]
    np.testing.assert_array_equal(mask, [False, False, True, True, False])
    mask = select.top_k(scores, density=0.5, within=within)["w"]
    np.testing.assert_array_equal(mask, [False, False, False, True, False])


def test_an_empty_within_keeps_nothing(transform):
    within = jax.tree.map(lambda s: jnp.zeros(s.shape, bool), plain_scores())
    choose = transform(lambda s: select.top_k(s, density=1.0, within=within))
    assert algebra.count(choose(plain_scores())) == 0


def test_a_tree_of_densities_counts_each_leaf_with_its_own(transform):
    scores = plain_scores()
    densities = {"a": 0.25, "b": 0.5, "c": 1.0}
    choose = transform(lambda s: select.top_k(s, density=densities))
    expected = selection.top_k([wide(x) for x in scores.values()], [0.25, 0.5, 1.0])
    assert_masks_equal(choose(scores), dict(zip(scores, expected, strict=True)))


def test_leaves_that_are_none_stay_none():
    scores = {"w": jnp.arange(4.0), "b": None}
    density = {"w": 0.5, "b": None}
    for d in (0.5, density):
        mask, cutoff = select.top_k(scores, density=d, return_cutoff=True)
        assert mask["b"] is None
        assert cutoff["b"] is None
        np.testing.assert_array_equal(mask["w"], [False, False, True, True])


def test_leaves_of_different_dtypes_are_ranked_together(transform):
    scores = {
        "a": jnp.array([1.0, 4.0, -2.0]),
        "b": jnp.array([3.0, 0.5, 2.0], jnp.bfloat16),
        "c": jnp.array([5.0, -1.0], jnp.float16),
    }
    near = {name: leaf[0] for name, leaf in scores.items()}
    for guess in (None, near):
        choose = transform(
            lambda s, guess=guess: select.top_k(
                s, density=0.5, scope="global", guess=guess, return_cutoff=True
            )
        )
        mask, cutoff = choose(scores)
        assert_masks_equal(mask, reference(scores, 0.5, scope="global"))
        assert {k: c.dtype for k, c in cutoff.items()} == {
            k: s.dtype for k, s in scores.items()
        }


def test_leaves_of_different_dtypes_may_be_given_guesses():
    scores = {"a": jnp.arange(5.0), "b": jnp.arange(7.0, dtype=jnp.bfloat16)}
    near = {"a": jnp.float32(2.0), "b": jnp.bfloat16(2.0)}
    mask = select.top_k(scores, density=0.5, guess=near)
    assert_masks_equal(mask, reference(scores, 0.5))


def test_float32_and_float64_leaves_are_ranked_together(x64):
    scores = {
        "a": jnp.array([1.0, 4.0, -2.0], "float32"),
        "b": jnp.array([3.0, 0.5, 2.0, -5.0], "float64"),
    }
    mask = select.top_k(scores, density=0.5, scope="global")
    assert_masks_equal(mask, reference(scores, 0.5, scope="global"))


GUESSES = {
    "exact": None,
    "nan": math.nan,
    "inf": math.inf,
    "minus_inf": -math.inf,
    "far": 1e30,
    "zero": 0.0,
    "close": 0.41,
}


@pytest.mark.parametrize("within", [None, alive_half()], ids=["all", "within"])
@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_guess_never_changes_the_mask(dtype, scope, within):
    def choose(scores, density, near):
        return select.top_k(
            scores,
            density=density,
            scope=scope,
            within=within,
            guess=near,
            return_cutoff=True,
        )

    choose, first = jax.jit(choose), jax.jit(lambda s, d: choose(s, d, None))
    for scores in (plain_scores(dtype), special_scores(dtype)):
        for density in (0.0, 0.3, 1.0):
            density = jnp.float32(density)
            expected, cutoff = first(scores, density)
            for guess in GUESSES.values():
                near = (
                    cutoff
                    if guess is None
                    else jax.tree.map(lambda s, g=guess: s.dtype.type(g), cutoff)
                )
                mask, _ = choose(scores, density, near)
                assert_masks_equal(mask, expected)


@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize("structure", [Entries(), Block((2, 2)), Units()], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cutoff_separates_what_is_kept_from_what_is_not(dtype, structure, scope):
    choose = jax.jit(
        lambda s, d: select.top_k(
            s, density=d, scope=scope, structure=structure, return_cutoff=True
        )
    )
    for seed in range(4):
        scores = plain_scores(dtype, seed=seed)
        for density in (0.2, 0.5, 0.9):
            mask, cutoff = choose(scores, jnp.float32(density))
            for name, leaf in scores.items():
                decisions = trees.to_numpy(structure.pool(leaf))
                kept = np.asarray(mask[name])
                if isinstance(structure, Block):
                    kept = kept[..., :: structure.shape[0], :: structure.shape[1]]
                at = trees.to_numpy(cutoff[name])
                assert at.shape == ()
                assert not (decisions[kept] < at).any()
                assert not (decisions[~kept] > at).any()


def test_the_cutoff_separates_with_within(transform):
    scores, within = plain_scores(), alive_half()
    choose = transform(
        lambda s: select.top_k(s, density=0.5, within=within, return_cutoff=True)
    )
    mask, cutoff = choose(scores)
    for name, leaf in scores.items():
        kept, alive = np.asarray(mask[name]), np.asarray(within[name])
        assert (np.asarray(leaf)[kept] >= cutoff[name]).all()
        assert (np.asarray(leaf)[alive & ~kept] <= cutoff[name]).all()


def test_no_gradient_reaches_the_scores_through_the_cutoff():
    def cut(scores):
        return select.top_k({"w": scores}, density=0.5, return_cutoff=True)[1]["w"]

    np.testing.assert_array_equal(jax.grad(cut)(jnp.arange(4.0)), np.zeros(4))


def test_vmap_over_guesses_and_structures():
    scores = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 6)), "f4")}
    near = {"w": jnp.array([0.0, jnp.nan, 1e9], "float32")}
    for structure in (Entries(), NofM(2, 4), Block((2, 2)), Units()):

        def choose(s, n, structure=structure):
            return select.top_k(s, density=0.5, guess=n, structure=structure)

        mapped = jax.vmap(choose)(scores, near)
        for i in range(3):
            one = {"w": scores["w"][i]}
            assert_masks_equal(
                {"w": mapped["w"][i]}, reference(one, 0.5, structure=structure)
            )


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (0, 3), (2, 0, 5), (0, 3, 4)])
@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_leaves_of_any_shape_can_be_selected_from(shape, scope):
    scores = {"a": jnp.zeros(shape), "b": jnp.arange(4.0)}
    mask = select.top_k(scores, density=0.75, scope=scope)
    assert_masks_equal(mask, reference(scores, 0.75, scope=scope))


@pytest.mark.parametrize("shape", [(70_000,), (33, 5), (3, 40, 33), (257, 64)])
def test_every_way_of_cutting_an_array_into_rows_counts_the_same(shape):
    scores = {"w": jnp.asarray(np.random.default_rng(0).normal(size=shape), "f4")}
    assert_masks_equal(select.top_k(scores, density=0.1), reference(scores, 0.1))


def test_adversarial_scores_do_not_defeat_the_search():
    exponents = jnp.arange(-120.0, 120.0)
    scores = {"w": jnp.concatenate([2.0**exponents, -(2.0**exponents)])}
    for k in (1, 5, 240, 479):
        expected = reference(scores, k / 480)
        assert_masks_equal(select.top_k(scores, density=k / 480), expected)


# Threshold, Bernoulli, random.


@pytest.mark.parametrize("dtype", FLOATS)
def test_threshold_keeps_what_reaches_it(dtype, every_transform):
    scores = {"w": special_scores(dtype)["b"], "b": None}
    mask = every_transform(lambda s, at: select.threshold(s, at=at))(
        scores, jnp.float32(0.0)
    )
    assert mask["b"] is None
    with np.errstate(invalid="ignore"):
        normal = np.abs(wide(scores["w"])) >= float(jnp.finfo(dtype).tiny)
        expected = wide(scores["w"]) >= 0
    zero = wide(scores["w"]) == 0
    special = ~np.isfinite(wide(scores["w"]))
    sure = normal | zero | special  # a backend may flush subnormal numbers to zero
    np.testing.assert_array_equal(np.asarray(mask["w"])[sure], expected[sure])


def test_bernoulli_keeps_each_entry_with_its_probability(transform):
    p = {"w": jnp.repeat(jnp.array([0.0, 0.2, 0.7, 1.0]), 4000).reshape(4, -1)}
    mask = transform(lambda key: select.bernoulli(p, key=key))(jax.random.key(3))
    rates = np.asarray(mask["w"]).mean(axis=1)
    assert rates[0] == 0
    assert rates[3] == 1
    deviations = 5 * np.sqrt(0.25 / 4000)
    np.testing.assert_allclose(rates[1:3], [0.2, 0.7], atol=deviations)


def test_bernoulli_gives_leaves_of_one_shape_different_masks():
    p = {"a": jnp.full(64, 0.5), "b": jnp.full(64, 0.5, jnp.bfloat16), "c": None}
    mask = select.bernoulli(p, key=jax.random.key(0))
    assert mask["c"] is None
    assert (mask["a"] != mask["b"]).any()


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_random_has_an_exact_count_and_no_favourites(scope):
    params = {"a": jnp.ones((5, 5)), "b": jnp.ones((4, 5)), "bias": jnp.ones(5)}
    draw = jax.jit(
        jax.vmap(lambda k: select.random(params, density=0.4, scope=scope, key=k))
    )
    masks = draw(jax.random.split(jax.random.key(0), 2000))
    assert masks["bias"] is None
    a, b = (np.asarray(masks[name]).reshape(2000, -1) for name in ("a", "b"))
    if scope == "leaf":
        assert (a.sum(1) == 10).all()
        assert (b.sum(1) == 8).all()
    both = np.concatenate([a, b], axis=1)
    assert (both.sum(1) == 18).all()
    deviation = 5 * np.sqrt(0.4 * 0.6 / 2000)
    np.testing.assert_allclose(both.mean(0), 0.4, atol=deviation)
