"""The laws that hold everywhere, over transforms, trees and dtypes.

Each factor is varied by itself: every tree as written, and one tree under `jit`, `vmap`
and in bfloat16. References are NumPy's.
"""

import math
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import algebra, masking, packing, score, select, stacking, where
from tests import trees

pytestmark = pytest.mark.optimized

SHAPES = [(), (0,), (1,), (31,), (32,), (33,), (3, 5, 7), (2, 0, 5), (1025,)]

# What holds for one container holds for others of the same leaves.
ALIKE = ("tuple", "namedtuple", "linen", "nnx")
CASES = [
    *((n, "float32", "jit") for n in trees.NAMES if n not in ALIKE),
    *(pytest.param((n, "float32", "jit"), marks=pytest.mark.slow) for n in ALIKE),
    ("odd_leaves", "bfloat16", "jit"),
    ("tuple", "float32", "eager"),
    ("nested_dict", "bfloat16", "jit"),
    ("nested_dict", "float32", "vmap"),
]


@pytest.fixture(params=CASES, ids="-".join)
def case(request, transforms):
    """A tree of parameters, a random mask of its floats, and a transformation."""
    name, dtype, transform = request.param
    params = trees.make(name, dtype)
    return params, half_of(params), transforms[transform]


def half_of(params, *, seed=0):
    """A random mask of the floating leaves, made without the library's selection."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (
            jax.device_put(rng.random(x.shape) < 0.5)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else None
        ),
        params,
    )


def arrays(mask):
    """The leaves of a mask that are there, in NumPy."""
    return [np.asarray(m) for m in jax.tree.leaves(mask)]


def member(tree, i):
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x)[i]), tree)


# Masks onto parameters.


def by_every_way(params, mask):
    """The parameters under everything, the mask, the mask twice, and its bits."""
    everything = masking.everything(params, where=where.floating)
    once = masking.apply(params, mask)
    twice, bits = masking.apply(once, mask), masking.apply(params, packing.pack(mask))
    return masking.apply(params, everything), once, twice, bits


def test_everything_leaves_all_as_it_is_and_twice_is_once(case):
    params, mask, transform = case
    whole, once, twice, bits = transform(by_every_way)(params, mask)
    trees.assert_same(whole, params)
    trees.assert_same(twice, once)
    trees.assert_same(bits, once)
    chex.assert_trees_all_equal_shapes_and_dtypes(once, params)
    for (value, kept), (_, result) in zip(
        trees.pairs(params, mask), trees.pairs(params, once), strict=True
    ):
        expected = value if kept is None else np.where(kept, value, 0)
        np.testing.assert_array_equal(trees.to_numpy(result), expected)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_removed_entries_are_exactly_zero(case, bad):
    params, mask, transform = case

    def spoil(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.device_put(np.full(x.shape, bad, x.dtype)) if floating else x

    spoilt = jax.tree.map(spoil, params)
    for out in transform(by_every_way)(spoilt, mask)[1:]:
        for (_, kept), (_, result) in zip(
            trees.pairs(params, mask), trees.pairs(params, out), strict=True
        ):
            if kept is not None:
                removed = trees.to_numpy(result)[~np.asarray(kept)]
                np.testing.assert_array_equal(removed, 0)
                assert not np.signbit(removed).any()


@pytest.mark.parametrize("incoming", [1.0, math.inf, math.nan])
@pytest.mark.parametrize(
    ("dtype", "transform"),
    [("float32", "jit"), ("bfloat16", "jit"), ("float32", "eager")],
)
def test_gradients_at_removed_entries_are_exactly_zero(
    dtype, transform, incoming, transforms
):
    params = trees.make("tuple", dtype)
    mask = half_of(params)
    cotangents = jax.tree.map(
        lambda x: jax.device_put(np.full(x.shape, incoming, x.dtype)), params
    )

    def pull(params, mask, cotangents):
        _, vjp = jax.vjp(lambda p: masking.apply(p, mask), params)
        return vjp(cotangents)[0]

    gradients = transforms[transform](pull)(params, mask, cotangents)
    for gradient, kept in trees.pairs(gradients, mask):
        kept = np.asarray(kept)
        np.testing.assert_array_equal(gradient[~kept], 0)
        np.testing.assert_array_equal(gradient[kept], np.float32(incoming))


# One bit an entry.


@pytest.mark.parametrize(
    ("shape", "transform"),
    [*((shape, "jit") for shape in SHAPES), ((33,), "eager"), ((3, 5, 7), "vmap")],
)
def test_unpack_undoes_pack(shape, transform, transforms):
    flags = np.random.default_rng(0).random(shape) < 0.5
    mask = {"w": jax.device_put(flags), "left_alone": None}
    back = transforms[transform](lambda m: packing.unpack(packing.pack(m)))(mask)
    trees.assert_same(back, mask)


# Sets.


def set_laws(a, b):
    """Both sides of De Morgan's laws, and what a mask shares with its complement."""
    neither = algebra.complement(algebra.union(a, b))
    others = algebra.complement(a), algebra.complement(b)
    return (
        (neither, algebra.intersection(*others)),
        (algebra.complement(algebra.intersection(a, b)), algebra.union(*others)),
        algebra.density(a) + algebra.density(others[0]),
        algebra.overlap(a, others[0]),
        algebra.count(others[0]),
    )


def both_forms(a, b):
    return set_laws(a, b), set_laws(packing.pack(a), packing.pack(b))


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        *((name, "jit") for name in trees.NAMES if name not in ALIKE),
        *(("tuple", "eager"), ("tuple", "vmap")),
        *(pytest.param(name, "jit", marks=pytest.mark.slow) for name in ALIKE),
    ],
)
def test_masks_are_sets(name, transform, transforms):
    params = trees.make(name)
    pair = half_of(params), half_of(params, seed=2)
    for found in transforms[transform](both_forms)(*pair):
        first, second, total, shared, removed = found
        trees.assert_same(*first)
        trees.assert_same(*second)
        for got, x, y in zip(
            arrays(packing.unpack(first[0])), *map(arrays, pair), strict=True
        ):
            np.testing.assert_array_equal(got, ~(x | y))
        np.testing.assert_allclose(total, 1, rtol=1e-6)
        assert float(shared) == 0
        assert int(removed) == sum((~m).sum() for m in arrays(pair[0]))


# Selection.


@pytest.mark.parametrize(
    ("name", "dtype", "transform", "scope"),
    [
        ("tuple", "float32", "eager", "leaf"),
        ("odd_leaves", "bfloat16", "eager", "global"),
        ("nested_dict", "float32", "vmap", "global"),
    ],
)
def test_top_k_keeps_exactly_round_density_n(name, dtype, transform, scope, transforms):
    scores = score.magnitude(trees.make(name, dtype), where=where.floating)
    choose = transforms[transform](lambda s, d: select.top_k(s, density=d, scope=scope))
    for density in (0.0, 0.3, 0.5, 1.0):
        mask = choose(scores, jax.device_put(np.float32(density)))
        kept = [(m.size, int(m.sum())) for m in arrays(mask)]
        if scope == "global":
            kept = [tuple(map(sum, zip(*kept, strict=True)))]
        for n, k in kept:
            assert k == math.floor(density * n + 0.5)


@pytest.mark.parametrize("name", trees.NAMES)
def test_a_mask_has_the_structure_and_shapes_of_its_parameters(name):
    def prune(params):
        mask = select.top_k(score.magnitude(params), density=0.5)
        return mask, maskjax.apply(params, mask)

    params = trees.make(name)
    mask, out = jax.eval_shape(prune, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, params)
    for original, kept in trees.pairs(params, mask):
        if where.kernels("", original):
            assert kept.shape == original.shape
            assert kept.dtype == bool
        else:
            assert kept is None


TIES = {
    "all_equal": np.ones(37),
    "zeros_of_both_signs": np.where(np.arange(37) % 2, 0.0, -0.0),
    "few_values": np.arange(37) % 3 - 1.0,
    "nothing_but_nan": np.full(37, np.nan),
    "infinities": np.where(np.arange(37) % 2, np.inf, -np.inf),
}


@pytest.mark.parametrize(
    ("dtype", "transform"),
    [("float32", "jit"), ("bfloat16", "jit"), ("float32", "vmap")],
)
def test_top_k_keeps_exactly_k_under_ties(dtype, transform, transforms):
    choose = transforms[transform](
        lambda scores, density: select.top_k({"w": scores}, density=density)["w"]
    )
    for scores in TIES.values():
        for k in (0, 1, 18, 36, 37):
            given = jax.device_put(scores.astype(jnp.dtype(dtype)))
            mask = np.asarray(choose(given, jax.device_put(np.float32(k / 37))))
            assert mask.sum() == k
            for value in np.unique(scores):  # the first of equals
                equal = mask[(scores == value) | np.isnan(scores)]
                assert not (np.diff(equal.astype(int)) > 0).any()


@pytest.mark.parametrize("traced", [False, True])
def test_counts_are_exact_where_float32_loses_integers(traced):
    n = 2**24 + 2**19 + 3
    scores = {"w": jax.device_put(np.zeros(n, jnp.bfloat16))}
    if traced:
        density = np.float32(0.987)
        share = Fraction(*float(density).as_integer_ratio())
    else:
        share = Fraction(2**24 + 1, n)
        density = float(share)
    k = math.floor(share * n + Fraction(1, 2))
    assert k % 2 == 1
    assert k != int(np.float32(density) * np.float32(n) + np.float32(0.5))
    given = jax.device_put(density) if traced else density
    mask = select.top_k(scores, density=given)
    assert int(algebra.count(mask)) == k
    kept = np.asarray(mask["w"])
    assert kept[:k].all()  # ties keep the lowest index, exactly
    assert not kept[k:].any()


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_permuting_entries_permutes_the_mask(scope):
    scores = jax.tree.map(lambda x: np.abs(np.asarray(x)), trees.make("tuple"))
    rng = np.random.default_rng(1)
    orders = jax.tree.map(lambda s: rng.permutation(s.size), scores)

    def shuffled(tree):
        return jax.tree.map(
            lambda x, o: jax.device_put(np.asarray(x).ravel()[o].reshape(x.shape)),
            tree,
            orders,
        )

    def choose(scores):
        return select.top_k(jax.tree.map(jnp.asarray, scores), density=0.3, scope=scope)

    trees.assert_same(choose(shuffled(scores)), shuffled(choose(scores)))


# Mapping.


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_vmap_of_top_k_is_top_k_of_each(scope):
    members = [trees.make("odd_leaves", "bfloat16", seed=i) for i in range(4)]
    members = [score.magnitude(m, where=where.floating) for m in members]
    stacked = jax.tree.map(lambda *x: jax.device_put(np.stack(x)), *members)
    densities = jax.device_put(np.array([0.0, 0.25, 0.6, 1.0], np.float32))

    def choose(scores, density):
        return select.top_k(scores, density=density, scope=scope)

    mapped = jax.jit(jax.vmap(choose))(stacked, densities)
    for i, each in enumerate(members):
        expected = choose(each, densities[i])
        trees.assert_same(member(mapped, i), expected)
    counts = {sum(m[i].sum() for m in arrays(mapped)) for i in range(4)}
    assert len(counts) == 4


def test_vmap_over_keys_gives_each_member_its_own_mask():
    params = trees.make("linen")
    keys = jax.random.split(jax.random.key(0), 3)

    def draw(key):
        return select.random(params, density=0.5, key=key)

    mapped, drawn = jax.jit(jax.vmap(draw))(keys), jax.jit(draw)
    masks = [arrays(member(mapped, i)) for i in range(3)]
    for i in range(3):
        trees.assert_same(member(mapped, i), drawn(keys[i]))
        for j in range(i):
            pairs = list(zip(masks[i], masks[j], strict=True))
            both = sum((a & b).sum() for a, b in pairs)
            either = sum((a | b).sum() for a, b in pairs)
            assert 0.1 < both / either < 0.6  # 1 / 3 of independent halves


def test_vmap_of_apply_is_apply_of_each():
    params = trees.make("linen")
    stack = stacking.stack([half_of(params, seed=i) for i in range(3)])
    mapped = jax.vmap(masking.apply, in_axes=(None, 0))(params, stack)
    for i in range(3):
        expected = masking.apply(params, stacking.take(stack, i))
        trees.assert_same(member(mapped, i), expected)


# Compilation.


def _top_k(scores, density, guess):
    return select.top_k(scores, density=density, guess=guess, return_cutoff=True)


def _refined(params, stack, i):
    mask = stacking.take(stack, i)
    scores = score.magnitude(params, where=where.floating)
    refined = select.top_k(scores, density=0.5, within=mask)
    return algebra.count(mask), algebra.count(refined), masking.apply(params, mask)


def test_nothing_recompiles_when_a_density_or_a_guess_moves():
    scores = score.magnitude(trees.make("nested_dict"))
    choose = jax.jit(chex.assert_max_traces(_top_k, n=1))
    guess = jax.tree.map(lambda s: jax.device_put(np.asarray(s).ravel()[0]), scores)
    counts = set()
    for d in (0.1, 0.5, 0.9):
        density = jax.tree.map(lambda s, d=d: jax.device_put(np.float32(d)), scores)
        mask, guess = choose(scores, density, guess)
        counts.add(sum(m.sum() for m in arrays(mask)))
    assert len(counts) == 3
    assert choose._cache_size() == 1


def test_nothing_recompiles_when_a_task_or_a_mask_moves():
    params = trees.make("linen")
    stack = stacking.stack([half_of(params, seed=i) for i in range(3)])
    refine = jax.jit(chex.assert_max_traces(_refined, n=1))
    counts = {
        tuple(map(int, refine(params, stack, jax.device_put(np.int32(i)))[:2]))
        for i in range(3)
    }
    assert len(counts) > 1
    assert refine._cache_size() == 1
