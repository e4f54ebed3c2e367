"""Merged networks: by hand, against NumPy, and what the papers' rules imply.

Most task vectors here are multiples of 1/8, so that sums of a few are exact, also in
bfloat16, and magnitudes are often equal.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import algebra, bank, metrics, packing, stacking, where
from maskjax.recipes import merging
from tests import trees
from tests.reference import merging as reference
from tests.reference.selection import quota

K = 4
SHAPES = {"a": (6, 10), "b": (10, 3), "bias": (10,)}
SIZE = 100
KEY = jax.random.key(3)


def drawn(seed, *lead, dtype="float32"):
    """Multiples of 1/8 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    whole = {n: rng.integers(-8, 9, (*lead, *s)) for n, s in SHAPES.items()}
    return {n: (x / 8).astype(jnp.dtype(dtype)) for n, x in whole.items()}


def listed(stack):
    """The members of a stack, in float64."""
    wide = {n: trees.to_numpy(x).astype(np.float64) for n, x in stack.items()}
    size = len(next(iter(wide.values())))
    return [{n: x[i] for n, x in wide.items()} for i in range(size)]


def alone(tree):
    return {n: trees.to_numpy(x).astype(np.float64) for n, x in tree.items()}


def flat(tree):
    return np.concatenate([np.ravel(trees.to_numpy(x)) for x in tree.values()])


def fine_tuned(seed):
    """A start, and a network all of whose parameters changed by less than a half."""
    rng = np.random.default_rng(seed)
    start = {n: rng.normal(size=s).astype("float32") for n, s in SHAPES.items()}
    change = {n: rng.uniform(-0.4, 0.9, s) for n, s in SHAPES.items()}
    return start, {n: (w * (1 + change[n])).astype("f4") for n, w in start.items()}


def stacked(*networks):
    return jax.tree.map(lambda *x: np.stack(x), *networks)


@functools.partial(jax.jit, static_argnames="scope")
def ties_of(vectors, density, *, scope="global"):
    how = {"density": density, "scope": scope}
    return merging.ties(vectors, **how), merging.ties_masks(vectors, **how)


def test_two_tasks_by_hand():
    start = {"w": jnp.array([1.0, 1.0, 1.0, 1.0])}
    networks = {"w": jnp.array([[4.0, 1.0, 2.0, 1.0], [1.0, 3.0, -1.0, 1.0]])}
    vectors = merging.task_vectors(start, networks)
    np.testing.assert_array_equal(vectors["w"], [[3, 0, 1, 0], [0, 2, -2, 0]])
    merged = merging.total(vectors)
    np.testing.assert_array_equal(merged["w"], [3, 2, -1, 0])
    # |tau_1| = 3 0 1 0 and |tau - tau_1| = 0 2 2 0; |tau_2| = 0 2 2 0, 3 0 1 0.
    masks = merging.tall_masks(vectors, merged, threshold=0.6)
    np.testing.assert_array_equal(masks["w"], [[1, 0, 0, 1], [0, 1, 1, 1]])
    at_half = merging.tall_masks(vectors, merged, threshold=0.5)  # 1 >= 0.5 * 2
    np.testing.assert_array_equal(at_half["w"][0], [1, 0, 1, 1])
    for task, expected in ((0, [4, 1, 1, 1]), (1, [1, 3, 0, 1])):
        found = merging.network(start, merged, stacking.take(masks, task))
        np.testing.assert_array_equal(found["w"], expected)
    both = merging.consensus(at_half)
    np.testing.assert_array_equal(both["w"], [0, 0, 1, 1])
    found = merging.network(start, merged, both, scale=0.5)
    np.testing.assert_array_equal(found["w"], [1, 1, 0.5, 1])
    # Two of four stay: 3, 1 and 2, -2. Of 1 and -2 the sum is negative: -2 alone.
    np.testing.assert_array_equal(
        merging.ties(vectors, density=0.5)["w"], [3, 2, -2, 0]
    )
    np.testing.assert_array_equal(merging.mean(vectors)["w"], [1.5, 1, -0.5, 0])


def every_rule(start, networks, thresholds, density):
    vectors = merging.task_vectors(start, networks)
    merged = merging.total(vectors)
    masks = merging.tall_masks(vectors, merged, threshold=thresholds)
    return {
        "vectors": vectors,
        "total": merged,
        "mean": merging.mean(vectors),
        "masks": masks,
        "consensus": merging.consensus(masks, least=3),
        "ties": merging.ties(vectors, density=density),
        "ties by leaf": merging.ties(vectors, density=density, scope="leaf"),
        "network": merging.network(start, merged, scale=0.25),
    }


# One factor at a time; all pairs are among the slow tests.
@pytest.mark.parametrize(
    ("transform", "dtype"),
    [
        *(("eager", "float32"), ("jit", "bfloat16"), ("vmap", "float32")),
        *(
            pytest.param(transform, dtype, marks=pytest.mark.slow)
            for transform, dtype in (
                *(("jit", "float32"), ("eager", "bfloat16"), ("vmap", "bfloat16")),
            )
        ),
    ],
)
def test_all_rules_agree_with_the_reference(transform, dtype, transforms):
    start, networks = drawn(0, dtype=dtype), drawn(1, K, dtype=dtype)
    thresholds, density = [0.25, 0.5, 0.0, 1.0], 0.3
    found = transforms[transform](every_rule)(
        start, networks, np.float32(thresholds), np.float32(density)
    )
    taus = reference.vectors(alone(start), listed(networks))
    merged = reference.total(taus)
    masks = reference.tall_masks(taus, merged, thresholds)
    exact = {
        "total": merged,
        "consensus": reference.consensus(masks, 3),
        "network": {n: w + merged[n] / 4 for n, w in alone(start).items()},
        "mean": {n: x / K for n, x in merged.items()},
    }
    for name, expected in exact.items():
        for leaf, x in expected.items():
            assert found[name][leaf].dtype == (bool if name == "consensus" else dtype)
            np.testing.assert_array_equal(trees.to_numpy(found[name][leaf]), x, name)
    for i, (tau, mask) in enumerate(zip(taus, masks, strict=True)):
        for leaf in SHAPES:
            vector = trees.to_numpy(found["vectors"][leaf])[i]
            np.testing.assert_array_equal(vector, tau[leaf])
            np.testing.assert_array_equal(found["masks"][leaf][i], mask[leaf])
    for name, scope in (("ties", "global"), ("ties by leaf", "leaf")):
        expected = reference.ties(taus, density, scope=scope)
        for leaf in SHAPES:
            x = trees.to_numpy(found[name][leaf])
            np.testing.assert_allclose(x, expected[leaf], rtol=2**-8)
            assert (x != 0).any()
            assert (x == 0).any()


# --- TALL-masks and Consensus


def test_one_task_is_itself_to_the_bit_where_no_parameter_changed_much():
    start, tuned = fine_tuned(0)
    vectors = merging.task_vectors(start, stacked(tuned))
    merged = merging.total(vectors)
    for at in (0.0, 0.4, 1.0, 7.0):
        masks = merging.tall_masks(vectors, merged, threshold=at)
        assert all(np.all(m) for m in masks.values())
        found = merging.network(start, merged, stacking.take(masks, 0))
        trees.assert_same(found, jax.tree.map(jnp.asarray, tuned))
    far = {n: w * np.float32(1e-3) - 5 for n, w in tuned.items()}
    vectors = merging.task_vectors(start, stacked(far))
    found = merging.network(start, merging.total(vectors))
    for name, w in far.items():  # rounded, twice
        np.testing.assert_allclose(found[name], w, rtol=3e-7)


def test_tasks_that_changed_different_entries_are_all_recovered_to_the_bit():
    start, tuned = fine_tuned(1)
    owner = {n: np.random.default_rng(2).integers(0, K, s) for n, s in SHAPES.items()}
    networks = stacked(
        *({n: np.where(owner[n] == t, tuned[n], w) for n, w in start.items()}
          for t in range(K))
    )  # fmt: skip
    vectors = merging.task_vectors(start, networks)
    merged = merging.total(vectors)
    for at in (0.01, 0.5, 50.0):
        masks = merging.tall_masks(vectors, merged, threshold=at)
        tasks = bank.from_stack(masks)
        for t in range(K):
            found = merging.network(start, merged, bank.take(tasks, t))
            trees.assert_same(found, jax.tree.map(lambda x, t=t: x[t], networks))
        for name, who in owner.items():
            expected = who == np.arange(K).reshape(K, *[1] * who.ndim)
            np.testing.assert_array_equal(masks[name], expected)


def test_a_higher_threshold_keeps_less_and_two_tasks_cover_everything_at_1():
    vectors = drawn(5, 2)
    merged = merging.total(vectors)
    masks = [
        merging.tall_masks(vectors, merged, threshold=at) for at in (0, 0.3, 1, 1.5)
    ]
    assert all(np.all(m) for m in masks[0].values())
    for low, high in zip(masks, masks[1:], strict=False):
        assert not np.any(flat(high) & ~flat(low))
        assert flat(high).sum() < flat(low).sum()
    for name, m in masks[2].items():
        equal = np.abs(vectors[name][0]) == np.abs(vectors[name][1])
        assert equal.any()
        np.testing.assert_array_equal(np.asarray(m).sum(0), np.where(equal, 2, 1))


def test_the_parts_of_a_vector_add_up_and_what_a_mask_removes_is_the_start():
    start, vectors = drawn(0), drawn(1, K)
    merged = merging.total(vectors)
    mask = stacking.take(merging.tall_masks(vectors, merged, threshold=0.5), 1)
    part, rest = (
        merging.network(start, merged, m) for m in (mask, algebra.complement(mask))
    )
    for name, w in start.items():
        moved = (np.asarray(part[name]) - w) + (np.asarray(rest[name]) - w)
        np.testing.assert_array_equal(moved, merged[name])
    odd = {"w": jnp.float32([-0.0, 1e-3, 2.0, 5.0])}
    step = {"w": jnp.float32([np.inf, np.nan, 1.0, 1.0])}
    kept = {"w": np.array([False, False, False, True])}
    for given in (kept, packing.pack(jax.tree.map(jnp.asarray, kept))):
        found = np.asarray(merging.network(odd, step, given)["w"])
        assert found[:3].tobytes() == np.asarray(odd["w"])[:3].tobytes()
        assert found[3] == 6


def test_a_masked_network_is_the_merged_one_with_the_start_as_fill():
    start, vectors = drawn(0), drawn(1, K)
    merged = merging.total(vectors)
    masks = merging.tall_masks(vectors, merged, threshold=0.3)
    packed = jax.vmap(packing.pack)(masks)
    params = merging.network(start, merged)
    filled = stacking.map(lambda m: maskjax.apply(params, m, start), packed)
    found = stacking.map(lambda m: merging.network(start, merged, m), masks)
    trees.assert_same(filled, found)


def test_storage_is_one_vector_and_a_bit_for_each_entry_and_task():
    start = {"w": np.zeros((64, 96), "f4")}
    vectors = merging.task_vectors(start, {"w": np.ones((20, 64, 96), "f4")})
    merged = merging.total(vectors)
    tasks = bank.from_stack(merging.tall_masks(vectors, merged, threshold=0.2))
    n = 64 * 96
    stored = sum(x.nbytes for x in jax.tree.leaves((merged, tasks.masks)))
    assert stored == 4 * n + 20 * n // 8
    assert metrics.bits_per_task((merged, tasks.masks), tasks=20) * 20 == 8 * stored


def test_consensus_of_any_number_packed_or_not():
    masks = jax.tree.map(lambda x: jnp.asarray(x > 0), drawn(3, K))
    packed = jax.vmap(packing.pack)(masks)
    each = stacking.unstack(masks)
    for least in range(1, K + 1):
        expected = reference.consensus(listed(masks), least)
        for given in (masks, packed, bank.from_stack(masks, capacity=9).masks):
            found = merging.consensus(given, least=least)
            for name, m in expected.items():
                np.testing.assert_array_equal(found[name], m)
    trees.assert_same(merging.consensus(masks, least=1), algebra.union(*each))
    trees.assert_same(merging.consensus(masks, least=K), algebra.intersection(*each))
    counts = bank.from_stack(masks).counts
    trees.assert_same(merging.consensus(packed), jax.tree.map(lambda c: c >= 2, counts))


def test_consensus_ties_is_a_composition():
    vectors = drawn(6, K)
    merged = merging.ties(vectors, density=0.5)
    masks = merging.tall_masks(vectors, merged, threshold=0.4)
    expected = reference.tall_masks(listed(vectors), alone(merged), [0.4] * K)
    for i, mask in enumerate(expected):
        for name, m in mask.items():
            np.testing.assert_array_equal(masks[name][i], m)


# --- TIES


@pytest.mark.parametrize(
    ("scope", "numbers"),
    [
        *(("global", (1, 2, 3)), ("leaf", (2,))),
        pytest.param("leaf", (1, 3, 4), marks=pytest.mark.slow),
        pytest.param("global", (4,), marks=pytest.mark.slow),
    ],
)
def test_ties_of_copies_of_one_is_its_trimmed_self(scope, numbers):
    one = drawn(7)
    for density in (0.0, 0.2, 0.5, 1.0):
        (expected,) = reference.trimmed([alone(one)], density, scope=scope)
        kept = np.concatenate([np.ravel(x) for x in expected.values()]) != 0
        for copies in numbers:
            merged, masks = ties_of(stacked(*[one] * copies), density, scope=scope)
            for name, x in expected.items():
                rtol = 2e-7 if copies == 3 else 0
                np.testing.assert_allclose(merged[name], x, rtol=rtol)
            for i in range(copies):
                each = flat({n: m[i] for n, m in masks.items()})
                np.testing.assert_array_equal(each, kept)
        if scope == "global" and (flat(one) != 0).sum() >= quota(density, SIZE):
            assert kept.sum() == quota(density, SIZE)  # among many equal magnitudes


def test_ties_counts_are_exact_if_all_magnitudes_are_equal():
    signs = {n: np.where(x > 0, 0.5, -0.5).astype("f4") for n, x in drawn(8, K).items()}
    for density in (0.2, 0.33):
        _, masks = ties_of(signs, density)
        kept = np.stack([flat({n: m[i] for n, m in masks.items()}) for i in range(K)])
        first = np.arange(SIZE) < quota(density, SIZE)  # the first of equals
        assert not kept[:, ~first].any()
        sums = sum(flat({n: x[i] for n, x in signs.items()}) for i in range(K))
        assert ((kept.sum(0) >= K / 2 + 1) == (first & (sums != 0))).all()


def test_ties_commutes_with_negation_and_cancels_to_0():
    vectors = drawn(9, K)
    merged, masks = ties_of(vectors, 0.4)
    negated, same = ties_of(jax.tree.map(np.negative, vectors), 0.4)
    trees.assert_same(masks, same)
    for name, x in merged.items():
        np.testing.assert_array_equal(x, -np.asarray(negated[name]))
    opposite = stacked(drawn(2), jax.tree.map(np.negative, drawn(2)))
    merged, masks = ties_of(opposite, 1.0)
    assert not flat(merged).any()
    assert not flat(masks).any()


def test_the_mean_is_over_those_that_a_mask_keeps_and_reads_no_other():
    vectors = {"w": jnp.float32([[1, np.nan, 4], [3, 2, np.inf]])}
    masks = {"w": jnp.array([[True, False, False], [True, True, False]])}
    for given in (masks, jax.vmap(packing.pack)(masks)):
        np.testing.assert_array_equal(merging.mean(vectors, given)["w"], [2, 2, 0])
    shared = {"w": jnp.array([[True], [False]])}  # one decision for a whole leaf
    found = merging.mean({"w": jnp.float32([[1, 2], [5, 6]])}, shared)
    np.testing.assert_array_equal(found["w"], [1, 2])
    plain = drawn(1, K)
    whole = {**{n: jnp.ones((K, *s), bool) for n, s in SHAPES.items()}, "bias": None}
    trees.assert_same(merging.mean(plain, whole), merging.mean(plain))


# --- DARE


@jax.jit
def dropped(vectors, density, key):
    return merging.dare(vectors, density=density, key=key)


def test_dare_keeps_an_entry_exactly_rescaled_or_drops_it_to_0():
    vectors = drawn(4, K)
    vectors["a"][0, 0, :2] = np.inf, np.nan
    for density in (0.1, 0.5):
        found = dropped(vectors, np.float32(density), KEY)
        for name, v in vectors.items():
            x, scaled = np.asarray(found[name]), v / np.float32(density)
            assert np.all((x == scaled) | np.isnan(v) | (x == 0))
            assert (x != 0).any()
    trees.assert_same(
        dropped(vectors, np.float32(1), KEY), jax.tree.map(jnp.asarray, vectors)
    )
    assert not flat(dropped(vectors, np.float32(0), KEY)).any()
    lost = {"w": jnp.full((64,), jnp.nan)}
    kept = np.isnan(merging.dare(lost, density=0.5, key=KEY)["w"])
    np.testing.assert_array_equal(
        merging.dare(lost, density=0.5, key=KEY)["w"][~kept], 0
    )
    assert 0 < kept.sum() < 64


def test_dare_is_unbiased_for_every_entry_and_draws_each_on_its_own():
    vectors, density, many = (
        {n: np.ones((2, *s), "f4") for n, s in SHAPES.items()},
        0.3,
        900,
    )
    keys = jax.random.split(KEY, many)
    draw = jax.jit(
        jax.vmap(lambda key: merging.dare(vectors, density=density, key=key))
    )
    found = draw(keys)
    kept = np.concatenate([np.reshape(x, (many, -1)) for x in found.values()], 1) != 0
    # The expectation is P(kept) * v / density: what is left is that P is the density.
    spread = np.sqrt(density * (1 - density))
    assert abs(kept.mean() - density) < 4 * spread / np.sqrt(kept.size)
    each = np.abs(kept.mean(0) - density) * np.sqrt(many) / spread
    assert each.max() < 5
    # Entries are independent, in leaves, between them, and between tasks.
    score = (kept - density) / spread
    together = score.T @ score / np.sqrt(many)
    np.fill_diagonal(together, 0)
    assert np.abs(together).max() < 6
    one = merging.dare(vectors, density=density, key=keys[5])
    trees.assert_same(jax.tree.map(lambda x: x[5], found), one)


# --- laws of all


def test_tasks_may_come_in_any_order():
    vectors, order = drawn(1, K), np.array([2, 0, 3, 1])
    moved = {n: x[order] for n, x in vectors.items()}

    @jax.jit
    def rules(vectors, thresholds):
        merged = merging.total(vectors)
        masks = merging.tall_masks(vectors, merged, threshold=thresholds)
        ties = merging.ties_masks(vectors, density=0.3)
        whole = merged, merging.consensus(masks), merging.mean(vectors, ties)
        return whole, (masks, ties)

    at = np.float32([0.2, 0.4, 0.5, 0.9])
    whole, each = rules(vectors, at)
    others, permuted = rules(moved, at[order])
    trees.assert_same(whole, others)
    trees.assert_same(jax.tree.map(lambda x: x[order], each), permuted)


def test_one_program_serves_all_thresholds_densities_and_scales():
    rule = jax.jit(lambda *given: every_rule(*given))
    start, networks = drawn(0), drawn(1, K)
    first, second = (
        rule(start, networks, np.float32([at] * K), np.float32(density))
        for at, density in ((0.2, 0.1), (0.6, 0.9))
    )
    assert rule._cache_size() == 1
    assert flat(first["masks"]).sum() > flat(second["masks"]).sum()


def test_coefficients_are_differentiable_and_weigh_tasks():
    start, vectors = drawn(0), drawn(1, K)
    shares = jnp.float32([0.5, 0.25, -1.0, 2.0])
    found = merging.total(vectors, shares)
    for name, v in vectors.items():
        expected = np.tensordot(np.float64(shares), np.float64(v), 1)
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-6)

    def total(shares):
        params = merging.network(start, merging.total(vectors, shares))
        return sum(jnp.sum(x) for x in params.values())

    slopes = jax.jit(jax.grad(total))(shares)
    sums = [flat({n: v[i] for n, v in vectors.items()}).sum() for i in range(K)]
    np.testing.assert_allclose(slopes, sums, rtol=1e-5, atol=1e-5)


def test_sums_of_many_narrow_numbers_do_not_stall():
    many = {"w": jnp.ones((300, 2), jnp.bfloat16)}
    np.testing.assert_array_equal(trees.to_numpy(merging.total(many)["w"]), 300)
    np.testing.assert_array_equal(trees.to_numpy(merging.mean(many)["w"]), 1)


def test_which_leaves_are_merged():
    start = {"w": np.ones((2, 2), "f4"), "steps": np.int32(3), "mean": np.ones(2, "f4")}
    networks = jax.tree.map(lambda x: np.stack([x + 1, x + 2]), start)
    vectors = merging.task_vectors(start, networks)
    assert vectors["steps"] is None
    found = merging.network(start, merging.total(vectors))
    assert found["steps"] is start["steps"]
    np.testing.assert_array_equal(found["mean"], 4)
    some = where.floating & ~where.statistics
    vectors = merging.task_vectors(start, {**networks, "mean": None}, where=some)
    merged = merging.ties(merging.dare(vectors, density=1, key=KEY), density=1)
    assert merged["mean"] is vectors["mean"] is None
    masks = merging.tall_masks(vectors, merged, threshold=0.4)
    assert masks["mean"] is merging.consensus(masks)["mean"] is None
    found = merging.network(start, merged, stacking.take(masks, 0))
    assert found["mean"] is start["mean"]
    np.testing.assert_array_equal(found["w"], 2.5)


def merged_tree(start, networks):
    vectors = merging.task_vectors(start, networks)
    kept = merging.dare(vectors, density=0.5, key=KEY)
    merged = merging.ties(kept, density=0.4)
    masks = merging.tall_masks(vectors, merged, threshold=0.4)
    both = merging.consensus(masks)
    return vectors, masks, merging.network(start, merged, both)


@pytest.mark.parametrize("name", trees.NAMES)
def test_trees_of_every_kind_keep_structure_and_dtypes(name):
    for dtype in trees.DTYPES:
        start = trees.make(name, dtype)
        networks = jax.tree.map(lambda *x: jnp.stack(x), start, start)
        vectors, masks, found = jax.eval_shape(merged_tree, start, networks)
        assert found == jax.eval_shape(lambda w: w, start)
        for w, v in trees.pairs(start, vectors):
            if v is None:
                assert w.dtype == np.int32
            else:
                assert v.shape == (2, *w.shape)
        assert jax.tree.structure(masks) == jax.tree.structure(vectors)


# --- bad input

START = {"w": np.ones((2, 3), "f4"), "b": np.ones(3, "f4")}
NETS = {"w": np.ones((K, 2, 3), "f4"), "b": np.ones((K, 3), "f4")}
MASKS = {"w": np.ones((K, 2, 3), bool), "b": np.ones((K, 3), bool)}

TASKS = functools.partial(merging.task_vectors, START)
NET = functools.partial(merging.network, START)
TALL = functools.partial(merging.tall_masks, NETS, START)
DARE = functools.partial(merging.dare, NETS, key=KEY)

BAD = {
    "a list": (
        lambda: TASKS([START, START]),
        ValueError,
        "task_vectors` needs `networks` as a stack, got a list of 2.*stacking.stack",
    ),
    "one network": (
        lambda: TASKS(START),
        ValueError,
        r"task_vectors` needs `networks`.*one network\?.*b: float32 array of shape \(3",
    ),
    "another tree": (
        lambda: TASKS({"w": NETS["w"], "c": NETS["b"]}),
        ValueError,
        "task_vectors` needs `start` and `networks` of the same structure.*"
        "only in `start`: b.*only in `networks`: c",
    ),
    "another shape": (
        lambda: TASKS({**NETS, "w": np.ones((K, 3, 2), "f4")}),
        ValueError,
        r"task_vectors` needs `networks` like `start`.*w: float32 array of shape "
        r"\(4, 3, 2\), start float32 array of shape \(2, 3\)$",
    ),
    "another dtype": (
        lambda: TASKS({**NETS, "w": np.ones((K, 2, 3), "f2")}),
        ValueError,
        "task_vectors` needs `networks` like `start`.*w: float16.*start float32",
    ),
    "different K": (
        lambda: TASKS({**NETS, "w": np.ones((2, 2, 3), "f4")}),
        ValueError,
        "task_vectors` needs every leaf of `networks` with the same number.*w: 2",
    ),
    "no network": (
        lambda: TASKS({n: x[:0] for n, x in NETS.items()}),
        ValueError,
        "task_vectors` needs `networks` with at least one member",
    ),
    "None where merged": (
        lambda: TASKS({**NETS, "w": None}),
        ValueError,
        "task_vectors` needs `networks` like `start`.*w: NoneType None",
    ),
    "an integer leaf": (
        lambda: merging.task_vectors(
            {"n": np.ones(2, int)}, {"n": np.ones((2, 2), int)}, where=where.everything
        ),
        TypeError,
        "task_vectors` needs every leaf that `where` chooses to be a floating.*n: int",
    ),
    "nothing floating": (
        lambda: merging.task_vectors({"n": np.ones(2, int)}, {"n": None}),
        ValueError,
        "task_vectors` needs `where` to choose at least one leaf",
    ),
    "sum of no floats": (
        lambda: merging.total({"n": np.ones((2, 2), int)}),
        TypeError,
        "total` needs every leaf of `vectors` to be a floating array.*n: int",
    ),
    "coefficients": (
        lambda: merging.total(NETS, np.ones(3, "f4")),
        ValueError,
        r"total` needs `coefficients` of shape \(4,\)",
    ),
    "integer coefficients": (
        lambda: merging.total(NETS, np.ones(4, int)),
        TypeError,
        "total` needs `coefficients` as a floating array",
    ),
    "mean of one vector": (
        lambda: merging.mean({"w": np.float32(1)}),
        ValueError,
        "mean` needs every leaf of `vectors` with the same number of members.*w: None",
    ),
    "masks of another shape": (
        lambda: merging.mean(NETS, {**MASKS, "w": np.ones((K, 3, 3), bool)}),
        ValueError,
        r"mean` needs every leaf of `masks` shaped like.*w: masks \(4, 3, 3\)",
    ),
    "masks that are none": (
        lambda: merging.mean(NETS, NETS),
        TypeError,
        "mean` needs every leaf of `masks` to be a boolean",
    ),
    "one packed mask": (
        lambda: merging.consensus(packing.pack({"w": np.ones(3, bool)})),
        ValueError,
        "consensus` needs packed masks.*w: one mask, not a stack",
    ),
    "a stack of vectors": (
        lambda: NET(NETS),
        ValueError,
        "network` needs `vector` of the shapes of `start` .`total` and `mean`.*b: .*w:",
    ),
    "a vector of another tree": (
        lambda: NET({"w": START["w"]}),
        ValueError,
        "network` needs `start` and `vector` of the same structure.*only in `start`: b",
    ),
    "an integer vector": (
        lambda: NET({"w": np.ones((2, 3), int), "b": None}),
        ValueError,
        "network` needs `vector` of the shapes of.*w: int64.*start float32",
    ),
    "an integer start": (
        lambda: merging.network({"n": np.ones(2, int)}, {"n": np.ones(2, "f4")}),
        TypeError,
        "network` needs every leaf of `start` with a vector to be a floating.*n: int",
    ),
    "a stack of masks": (
        lambda: NET(START, MASKS),
        ValueError,
        "network` needs every leaf of `mask` shaped like.*stacking.map.*w: mask",
    ),
    "scale": (
        lambda: NET(START, scale="half"),
        TypeError,
        "network` needs `scale` as a number, got str 'half'",
    ),
    "no scale": (
        lambda: NET(START, scale=float("nan")),
        ValueError,
        "network` needs a finite `scale`, got nan",
    ),
    "many scales": (
        lambda: NET(START, scale=np.ones(2, "f4")),
        ValueError,
        r"network` needs `scale` of shape \(\), got \(2,\)",
    ),
    "a negative threshold": (
        lambda: TALL(threshold=-0.1),
        ValueError,
        r"tall_masks` needs `threshold` finite and at least 0, got -0.1",
    ),
    "an unknown threshold": (
        lambda: TALL(threshold=np.float32([0.1, 0.2, np.nan, 0.3])),
        ValueError,
        "tall_masks` needs `threshold` finite and at least 0, got .0.1.*nan",
    ),
    "thresholds of too many": (
        lambda: TALL(threshold=np.ones(5, "f4")),
        ValueError,
        r"tall_masks` needs `threshold` as one number, or one for each of 4 .*\(5,",
    ),
    "a threshold by name": (
        lambda: TALL(threshold="low"),
        TypeError,
        "tall_masks` needs `threshold` as a number or an array of them, got str 'low'",
    ),
    "merged of another shape": (
        lambda: merging.tall_masks(NETS, {**START, "b": NETS["b"]}, threshold=1.0),
        ValueError,
        r"tall_masks` needs.*of the same shapes.*b: .*\(3,\), merged \(4, 3\)",
    ),
    "merged of another tree": (
        lambda: merging.tall_masks(NETS, {"w": START["w"]}, threshold=1.0),
        ValueError,
        "tall_masks` needs.*of the same structure.*: b",
    ),
    "too few for a consensus": (
        lambda: merging.consensus({"w": np.ones((1, 3), bool)}),
        ValueError,
        "consensus` needs `least` of at most K, got 2 of 1 masks",
    ),
    "least of none": (
        lambda: merging.consensus(MASKS, least=0),
        ValueError,
        "consensus` needs `least` of at least 1, got 0",
    ),
    "half of the tasks": (
        lambda: merging.consensus(MASKS, least=0.5),
        TypeError,
        "consensus` needs `least` as a whole number, got float 0.5",
    ),
    "consensus of floats": (
        lambda: merging.consensus(NETS),
        TypeError,
        "consensus` needs every leaf of `masks` to be a boolean",
    ),
    "ties density": (
        lambda: merging.ties(NETS, density=1.2),
        ValueError,
        r"merging.ties` needs `density` in \[0, 1\], got 1.2",
    ),
    "ties percent": (
        lambda: merging.ties_masks(NETS, density="20"),
        TypeError,
        "ties_masks` needs `density` as a number",
    ),
    "ties scope": (
        lambda: merging.ties_masks(NETS, scope="task"),
        ValueError,
        "ties_masks` needs `scope` as 'leaf' or 'global'",
    ),
    "dare density 0": (
        lambda: DARE(density=0),
        ValueError,
        r"dare` needs `density` in \(0, 1\], got 0",
    ),
    "dare density": (
        lambda: DARE(density=1.5),
        ValueError,
        r"dare` needs `density` in \[0, 1\], got 1.5",
    ),
    "dare old key": (
        lambda: merging.dare(NETS, density=0.5, key=np.uint32([0, 1])),
        TypeError,
        "dare` needs `key` as a typed key",
    ),
    "dare of integers": (
        lambda: merging.dare({"n": np.ones(2, int)}, density=0.5, key=KEY),
        TypeError,
        "dare` needs every leaf of `vectors` to be a floating array or None.*n: int",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, kind, message = BAD[name]
    with pytest.raises(
        kind, match=re.compile("maskjax.recipes.*" + message, re.DOTALL)
    ):
        call()
