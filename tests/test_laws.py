"""The laws that hold everywhere, over transforms, trees and dtypes."""

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

SHAPES = [
    (),
    (0,),
    (1,),
    (31,),
    (32,),
    (33,),
    (3, 5, 7),
    (2, 0),
    (0, 3),
    (2, 0, 5),
    (0, 3, 4),
    (64, 3),
    (1025,),
]

over_trees = pytest.mark.parametrize("name", trees.NAMES)
over_dtypes = pytest.mark.parametrize("dtype", trees.DTYPES)


def random_mask(shape, *, density=0.5, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape) < density)


def half_of(params, *, seed=0):
    """A random mask of the floating leaves, made without the library's selection."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (
            jnp.asarray(rng.random(x.shape) < 0.5)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else None
        ),
        params,
    )


# Masks onto parameters.


@over_dtypes
@over_trees
def test_everything_leaves_all_as_it_is(name, dtype, every_transform):
    params = trees.make(name, dtype)
    mask = masking.everything(params, where=where.floating)
    trees.assert_same(every_transform(masking.apply)(params, mask), params)


@over_dtypes
@over_trees
def test_apply_keeps_structure_dtypes_and_kept_entries(name, dtype, every_transform):
    params = trees.make(name, dtype)
    mask = half_of(params)
    out = every_transform(masking.apply)(params, mask)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, params)
    for (value, kept), (_, result) in zip(
        trees.pairs(params, mask), trees.pairs(params, out), strict=True
    ):
        expected = value if kept is None else np.where(kept, value, 0)
        np.testing.assert_array_equal(trees.to_numpy(result), expected)


@over_dtypes
@over_trees
def test_apply_twice_is_apply_once(name, dtype, every_transform):
    params = trees.make(name, dtype)
    mask = half_of(params)
    apply = every_transform(masking.apply)
    once = apply(params, mask)
    trees.assert_same(apply(once, mask), once)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@over_dtypes
@over_trees
def test_removed_entries_are_exactly_zero(name, dtype, bad, transform):
    params = trees.make(name, dtype)
    mask = half_of(params)
    spoilt = jax.tree.map(
        lambda x: jnp.full_like(x, bad) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        params,
    )
    out = transform(masking.apply)(spoilt, mask)
    for (_, kept), (_, result) in zip(
        trees.pairs(params, mask), trees.pairs(params, out), strict=True
    ):
        if kept is not None:
            removed = trees.to_numpy(result)[~np.asarray(kept)]
            np.testing.assert_array_equal(removed, 0)
            assert not np.signbit(removed).any()


@pytest.mark.parametrize("incoming", [1.0, math.inf, math.nan])
@over_dtypes
@over_trees
def test_gradients_at_removed_entries_are_exactly_zero(
    name, dtype, incoming, transform
):
    params = trees.make(name, dtype)
    mask = half_of(params)
    floating, treedef = jax.tree.flatten(params)
    chosen = [jnp.issubdtype(x.dtype, jnp.floating) for x in floating]

    def pull(params, mask):
        def of_floats(floats):
            rest = iter(floats)
            leaves = [
                next(rest) if c else x for x, c in zip(floating, chosen, strict=True)
            ]
            out = jax.tree.leaves(masking.apply(treedef.unflatten(leaves), mask))
            return [x for x, c in zip(out, chosen, strict=True) if c]

        floats = [x for x, c in zip(jax.tree.leaves(params), chosen, strict=True) if c]
        out, vjp = jax.vjp(of_floats, floats)
        return vjp([jnp.full_like(x, incoming) for x in out])[0]

    gradients = transform(pull)(params, mask)
    kept = [m for _, m in trees.pairs(params, mask) if m is not None]
    for gradient, m in zip(gradients, kept, strict=True):
        gradient, m = trees.to_numpy(gradient), np.asarray(m)
        np.testing.assert_array_equal(gradient[~m], 0)
        np.testing.assert_array_equal(gradient[m], np.float32(incoming))


# One bit an entry.


@pytest.mark.parametrize("shape", SHAPES)
def test_unpack_undoes_pack(shape, every_transform):
    mask = {"w": random_mask(shape), "left_alone": None}
    back = every_transform(lambda m: packing.unpack(packing.pack(m)))(mask)
    trees.assert_same(back, mask)


@over_trees
def test_a_packed_mask_applies_like_the_mask(name, transform):
    params = trees.make(name)
    mask = half_of(params)
    out = transform(masking.apply)(params, packing.pack(mask))
    trees.assert_same(out, masking.apply(params, mask))


# Sets.


@pytest.mark.parametrize("packed", [False, True])
@over_trees
def test_de_morgan(name, packed, every_transform):
    params = trees.make(name)
    masks = half_of(params, seed=1), half_of(params, seed=2)
    a, b = (packing.pack(m) if packed else m for m in masks)

    def both_sides(a, b):
        return (
            algebra.complement(algebra.union(a, b)),
            algebra.intersection(algebra.complement(a), algebra.complement(b)),
            algebra.complement(algebra.intersection(a, b)),
            algebra.union(algebra.complement(a), algebra.complement(b)),
        )

    first, second, third, fourth = every_transform(both_sides)(a, b)
    trees.assert_same(first, second)
    trees.assert_same(third, fourth)
    neither = [
        ~(np.asarray(x) | np.asarray(y))
        for x, y in zip(*(jax.tree.leaves(m) for m in masks), strict=True)
    ]
    for x, y in zip(jax.tree.leaves(packing.unpack(first)), neither, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("packed", [False, True])
@over_trees
def test_a_mask_and_its_complement_make_up_everything(name, packed, transform):
    params = trees.make(name)
    mask = packing.pack(half_of(params)) if packed else half_of(params)

    def measure(mask):
        other = algebra.complement(mask)
        total = algebra.density(mask) + algebra.density(other)
        return total, algebra.overlap(mask, other), algebra.count(other)

    total, shared, removed = transform(measure)(mask)
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert shared == 0
    kept = jax.tree.leaves(packing.unpack(mask))
    assert removed == sum((~np.asarray(m)).sum() for m in kept)


# Selection.


@pytest.mark.parametrize("scope", ["leaf", "global"])
@over_dtypes
@over_trees
def test_top_k_keeps_exactly_round_density_n(name, dtype, scope):
    scores = score.magnitude(trees.make(name, dtype), where=where.floating)
    choose = jax.jit(lambda s, d: select.top_k(s, density=d, scope=scope))
    for density in (0.0, 0.3, 0.5, 1.0):
        mask = choose(scores, jnp.float32(density))
        kept = [(s.size, int(m.sum())) for s, m in trees.pairs(scores, mask)]
        if scope == "global":
            kept = [tuple(map(sum, zip(*kept, strict=True)))]
        for n, k in kept:
            assert k == math.floor(density * n + 0.5)


@over_dtypes
@over_trees
def test_a_mask_has_the_structure_and_shapes_of_its_parameters(name, dtype):
    @jax.jit
    def prune(params):
        mask = select.top_k(score.magnitude(params), density=0.5)
        return mask, maskjax.apply(params, mask)

    params = trees.make(name, dtype)
    mask, out = prune(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, params)
    for original, m in zip(
        jax.tree.leaves(params), (m for _, m in trees.pairs(params, mask)), strict=True
    ):
        if where.kernels("", original):
            assert m.shape == original.shape
            assert m.dtype == bool
        else:
            assert m is None


TIES = {
    "all_equal": np.ones(37),
    "zeros_of_both_signs": np.where(np.arange(37) % 2, 0.0, -0.0),
    "few_values": np.arange(37) % 3 - 1.0,
    "nothing_but_nan": np.full(37, np.nan),
    "infinities": np.where(np.arange(37) % 2, np.inf, -np.inf),
}


@pytest.mark.parametrize("mapped", [False, True])
@over_dtypes
def test_top_k_keeps_exactly_k_under_ties(dtype, mapped):
    def choose(scores, density):
        return select.top_k({"w": scores}, density=density)["w"]

    def only_member(scores, density):
        return jax.vmap(choose)(scores[None], density[None])[0]

    choose_compiled = jax.jit(only_member if mapped else choose)
    for scores in TIES.values():
        for k in (0, 1, 18, 36, 37):
            mask = np.asarray(
                choose_compiled(jnp.asarray(scores, dtype), jnp.float32(k / 37))
            )
            assert mask.sum() == k
            for value in np.unique(scores):  # the first of equals
                equal = mask[(scores == value) | np.isnan(scores)]
                assert not (np.diff(equal.astype(int)) > 0).any()


@pytest.mark.parametrize("traced", [False, True])
def test_counts_are_exact_where_float32_loses_integers(traced):
    n = 2**24 + 2**19 + 3
    scores = {"w": jnp.zeros(n, jnp.bfloat16)}
    if traced:
        density = jnp.float32(0.987)
        share = Fraction(*float(density).as_integer_ratio())
    else:
        share = Fraction(2**24 + 1, n)
        density = float(share)
    k = math.floor(share * n + Fraction(1, 2))
    assert k % 2 == 1
    assert k != int(np.float32(density) * np.float32(n) + np.float32(0.5))
    if traced:
        mask = jax.jit(lambda s, d: select.top_k(s, density=d))(scores, density)
    else:
        mask = jax.jit(lambda s: select.top_k(s, density=density))(scores)
    assert algebra.count(mask) == k
    kept = np.asarray(mask["w"])
    assert kept[:k].all()  # ties keep the lowest index, exactly
    assert not kept[k:].any()


@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize("name", ["nested_dict", "tuple"])
def test_permuting_entries_permutes_the_mask(name, scope):
    scores = score.magnitude(trees.make(name))
    rng = np.random.default_rng(1)
    orders = jax.tree.map(lambda s: rng.permutation(s.size), scores)

    def shuffled(tree):
        return jax.tree.map(lambda x, o: x.ravel()[o].reshape(x.shape), tree, orders)

    choose = jax.jit(lambda s: select.top_k(s, density=0.3, scope=scope))
    trees.assert_same(choose(shuffled(scores)), shuffled(choose(scores)))


# Mapping.


@pytest.mark.parametrize("scope", ["leaf", "global"])
@over_dtypes
def test_vmap_of_top_k_is_top_k_of_each(dtype, scope):
    members = [trees.make("odd_leaves", dtype, seed=i) for i in range(4)]
    members = [score.magnitude(m, where=where.floating) for m in members]
    densities = jnp.array([0.0, 0.25, 0.6, 1.0])

    @jax.jit
    def choose(scores, density):
        return select.top_k(scores, density=density, scope=scope)

    mapped = jax.vmap(choose)(
        jax.tree.map(lambda *x: jnp.stack(x), *members), densities
    )
    for i, member in enumerate(members):
        expected = choose(member, densities[i])
        trees.assert_same(jax.tree.map(lambda x, i=i: x[i], mapped), expected)
    assert len({int(algebra.count(stacking.take(mapped, i))) for i in range(4)}) == 4


def test_vmap_over_keys_gives_each_member_its_own_mask():
    params = trees.make("linen")
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def draw(key):
        return select.random(params, density=0.5, key=key)

    mapped = jax.vmap(draw)(keys)
    for i in range(3):
        trees.assert_same(stacking.take(mapped, i), draw(keys[i]))
    for i in range(3):
        for j in range(i):
            shared = algebra.overlap(*(stacking.take(mapped, m) for m in (i, j)))
            assert 0.1 < shared < 0.6  # 1 / 3 of independent halves


def test_vmap_of_apply_is_apply_of_each():
    params = trees.make("linen")
    stack = stacking.stack([half_of(params, seed=i) for i in range(3)])
    mapped = jax.vmap(masking.apply, in_axes=(None, 0))(params, stack)
    for i in range(3):
        expected = masking.apply(params, stacking.take(stack, i))
        trees.assert_same(jax.tree.map(lambda x, i=i: x[i], mapped), expected)


# Compilation.


def test_nothing_recompiles_when_a_density_moves():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def choose(scores, density):
        return select.top_k(scores, density=density, scope="global")

    chex.clear_trace_counter()
    scores = score.magnitude(trees.make("nested_dict"))
    counts = {
        int(algebra.count(choose(scores, jnp.float32(d)))) for d in (0.1, 0.5, 0.9)
    }
    assert len(counts) == 3
    assert choose._cache_size() == 1


def test_nothing_recompiles_when_a_tree_of_densities_or_a_guess_moves():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def choose(scores, density, guess):
        return select.top_k(scores, density=density, guess=guess, return_cutoff=True)

    chex.clear_trace_counter()
    scores = score.magnitude(trees.make("nested_dict"))
    near = jax.tree.map(lambda s: s.ravel()[0], scores)
    for d in (0.1, 0.9):
        density = jax.tree.map(lambda s, d=d: jnp.float32(d), scores)
        _, near = choose(scores, density, near)
    assert choose._cache_size() == 1


def test_nothing_recompiles_when_a_task_or_a_count_moves():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def member(params, stack, i):
        mask = stacking.take(stack, i)
        refined = select.top_k(
            score.magnitude(params, where=where.floating), density=0.5, within=mask
        )
        return algebra.count(mask), algebra.count(refined)

    chex.clear_trace_counter()
    params = trees.make("linen")
    stack = stacking.stack([half_of(params, seed=i) for i in range(3)])
    counts = {tuple(map(int, member(params, stack, jnp.int32(i)))) for i in range(3)}
    assert len(counts) > 1
    assert member._cache_size() == 1


def test_nothing_recompiles_on_the_second_call_of_apply():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def apply(params, mask):
        return masking.apply(params, mask)

    chex.clear_trace_counter()
    params = trees.make("equinox")
    for seed in range(3):
        apply(params, half_of(params, seed=seed))
    assert apply._cache_size() == 1
