"""One weight out of random ones: neuron by neuron, and as fast as the proofs say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax.theory import gadget, subset_sum
from tests import trees
from tests.reference import theory as reference

NAMES = ("factor", "greedy", "product", "subset_sum")
SINGLE = ("factor", "product")
TRACEABLE = ("factor", "greedy", "product")


def drawn(i, k, o, *, seed=0, most=0.8):
    """A block for each of I inputs, and the weights wanted, float32."""
    rng = np.random.default_rng(seed)
    shapes = ((i, k), 1), ((i, k, o), 1), ((i, o), most)
    return tuple(np.float32(rng.uniform(-m, m, s)) for s, m in shapes)


def off(v, u, w, mask, *, nonnegative=False):
    """The larger error of both signs, [I, O]."""
    positive, negative = (np.abs(g - np.float64(w)) for g in gadget.gains(v, u, mask))
    return positive if nonnegative else np.maximum(positive, negative)


@pytest.mark.parametrize("construction", NAMES)
def test_a_block_by_hand(construction):
    # Neurons fire on +, +, -, -; the weight wanted is 0.5.
    v = np.float32([[0.5, 1.0, -0.25, -1.0]])
    u = np.float32([[[0.875], [0.375], [-0.75], [-0.5]]])
    w = np.float32([[0.5]])
    expected = {
        "factor": [1, 0, 1, 0],  # v near +-0.5, and u near +-1
        "product": [1, 0, 0, 1],  # of 0.4375 and 0.375; of 0.1875 and 0.5
        "subset_sum": [1, 0, 0, 1],
        "greedy": [1, 0, 0, 1],
    }
    found = gadget.choose(v, u, w, construction=construction)
    np.testing.assert_array_equal(np.ravel(found), expected[construction])
    positive, negative = gadget.gains(v, u, found)
    assert (positive, negative) == (
        0.4375,
        0.1875 if expected[construction][2] else 0.5,
    )
    half = gadget.choose(v, u, w, construction=construction, nonnegative=True)
    np.testing.assert_array_equal(np.ravel(half), [1, 0, 0, 0])
    assert gadget.gains(v, u, half)[1] == 0


@pytest.mark.parametrize("construction", NAMES)
@pytest.mark.parametrize(
    ("nonnegative", "transform"),
    [
        (False, lambda f: f),
        (True, lambda f: f),
        ([True, False, False], lambda f: f),
        ([True, False, False], jax.jit),
    ],
)
def test_choices_agree_with_the_reference(construction, nonnegative, transform):
    v, u, w = drawn(3, 10, 4)
    choose = functools.partial(
        gadget.choose, construction=construction, nonnegative=nonnegative
    )
    found = (transform(choose) if construction in TRACEABLE else choose)(v, u, w)
    assert found.dtype == bool
    assert found.shape == u.shape
    found = np.asarray(found)
    never = np.broadcast_to(nonnegative, 3)
    v, u, w = (np.float64(x) for x in (v, u, w))
    for i, o in np.ndindex(w.shape):
        expected = set()
        for sign in (1, -1)[: 1 if never[i] else 2]:
            expected |= reference.block(
                v[i], u[i, :, o], w[i, o], construction, sign=sign
            )
        assert set(np.flatnonzero(found[i, :, o]).tolist()) == expected


@pytest.mark.parametrize("nonnegative", [True, [True, False, True, True, True]])
def test_tied_weights_have_the_subsets_of_others(nonnegative):
    rng = np.random.default_rng(1)
    v = np.broadcast_to(np.float32(rng.uniform(-1, 1, 18)), (5, 18))
    u = np.broadcast_to(np.float32(rng.uniform(-1, 1, (18, 3))), (5, 18, 3))
    w = np.float32(rng.uniform(-0.5, 0.5, (5, 3)))
    how = {"construction": "subset_sum", "nonnegative": nonnegative}
    tied = gadget.choose(v, u, w, **how)
    alone = [
        gadget.choose(
            v[i : i + 1], u[i : i + 1], w[i : i + 1], **how | {"nonnegative": n}
        )
        for i, n in enumerate(np.broadcast_to(nonnegative, 5).tolist())
    ]
    np.testing.assert_array_equal(tied, np.concatenate(alone))


@pytest.mark.parametrize("construction", NAMES)
def test_a_weight_of_zero_keeps_nothing(construction):
    v, u, w = drawn(3, 10, 4)
    found = gadget.choose(v, u, np.zeros_like(w), construction=construction)
    assert not np.asarray(found).any()


@pytest.mark.parametrize("construction", SINGLE)
def test_one_neuron_at_most_for_each_sign(construction):
    v, u, w = drawn(3, 10, 4, seed=4)
    found = np.asarray(gadget.choose(v, u, w, construction=construction))
    fires = np.asarray(v)[..., None] > 0
    for side in (found & fires, found & ~fires):
        assert side.sum(1).max() == 1


def test_the_fewest_within_a_tolerance_are_within_it_and_fewer():
    v, u, w = drawn(3, 36, 4, most=0.4)
    least = gadget.choose(v, u, w, construction="subset_sum")
    few = gadget.choose(v, u, w, construction="subset_sum", tolerance=0.02)
    assert off(v, u, w, few).max() <= 0.02
    assert off(v, u, w, least).max() <= off(v, u, w, few).max()
    assert 2 * np.asarray(few).sum() < np.asarray(least).sum()


@pytest.mark.parametrize("construction", ["product", "subset_sum"])
def test_more_neurons_never_make_it_worse(construction):
    v, u, w = drawn(4, 20, 5, seed=2)
    errors = []
    for k in (1, 5, 20):
        some = v[:, :k], u[:, :k], w
        errors.append(off(*some, gadget.choose(*some, construction=construction)))
    for fewer, more in zip(errors, errors[1:], strict=False):
        assert (more <= fewer + 1e-7).all()  # chosen in float32, measured in float64


@pytest.mark.parametrize(
    ("construction", "most", "slope"), [("product", 0.5, -1), ("factor", 1, -0.5)]
)
def test_errors_fall_by_a_power_of_the_width(construction, most, slope):
    # Over eight seeds, of 400 weights each; products near 1 are rare, so that the power
    # is that of weights of at most 1/2, as in the proof.
    widths, errors = (64, 256, 1024), np.zeros((8, 3))
    for seed in range(8):
        for j, k in enumerate(widths):
            v, u, w = drawn(20, k, 20, seed=seed, most=most)
            mask = gadget.choose(v, u, w, construction=construction, nonnegative=True)
            errors[seed, j] = off(v, u, w, mask, nonnegative=True).mean()
    slopes = np.polyfit(np.log(widths), np.log(errors).T, 1)[0]
    assert abs(slopes.mean() / slope - 1) < 0.1
    assert abs(slopes / slope - 1).max() < 0.3


def test_errors_of_sums_fall_exponentially():
    widths, errors = (8, 14, 20, 26), []
    for k in widths:
        found = []
        for seed in range(4):
            v, u, w = drawn(10, k, 12, seed=seed, most=0.5)
            mask = gadget.choose(v, u, w, construction="subset_sum", nonnegative=True)
            found.append(np.median(off(v, u, w, mask, nonnegative=True)))
        errors.append(np.mean(found))
    # Half of the neurons fire: half a bit and a little less for each.
    slope, offset = np.polyfit(widths, np.log2(errors), 1)
    assert -0.7 < slope < -0.3
    line = slope * np.array(widths) + offset
    assert abs(line - np.log2(errors)).max() < 1  # a line, not a power


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize(
    ("construction", "epsilon", "most"),
    [("product", 0.05, 0.45), ("factor", 0.25, 1), ("greedy", 2**-5, 1)],
)
def test_blocks_of_the_size_proven_succeed_as_often_as_promised(
    construction, epsilon, most, nonnegative
):
    delta = 0.1
    k = gadget.block_size(
        construction, epsilon=epsilon, delta=delta, nonnegative=nonnegative
    )
    v, u, w = drawn(300, k, 1, seed=3, most=most)  # a block for each weight
    if construction == "greedy":
        # Signs of v, signs of u and magnitudes of all sizes: as drawn, but their signs.
        v, u = np.sign(v), np.sign(u) * np.float32(2) ** (5 * np.abs(u) - 5)
    mask = gadget.choose(v, u, w, construction=construction, nonnegative=nonnegative)
    error = off(v, u, w, mask, nonnegative=nonnegative)
    assert (error <= epsilon).mean() >= 1 - delta
    if construction == "product":  # for which the constant is nearly the best
        few = v[:, : k // 4], u[:, : k // 4], w
        mask = gadget.choose(*few, construction=construction, nonnegative=nonnegative)
        error = off(*few, mask, nonnegative=nonnegative)
        assert (error <= epsilon).mean() < 1 - delta


def test_what_block_sizes_are():
    # ln(2 / 0.01) / (0.05 ln(2) / 2) = 305.8; ln(1 / 0.01) * 16 / 0.25 = 294.7;
    # 4 * 5 * ln(2 * 5 * 2 / 0.01) = 152.02.
    size = functools.partial(gadget.block_size, delta=0.01)
    assert size("product", epsilon=0.05) == 306
    assert size("factor", epsilon=0.5, nonnegative=True) == 295
    assert size("greedy", epsilon=2**-5) == 153


@pytest.mark.parametrize("construction", NAMES)
def test_weights_out_of_reach_are_told(construction):
    v = np.float32([[0.5, 1.0, -1.0]])
    u = np.broadcast_to(np.float32([[[0.5], [0.5], [-0.5]]]), (1, 3, 4))
    # Products 0.25 and 0.5 where x > 0, 0.5 where x < 0.
    w = np.float32([[0.5, 0.6, 0.75, -0.125]])
    told = functools.partial(gadget.beyond, v, u, w, construction=construction)
    one = construction in SINGLE
    np.testing.assert_array_equal(told(nonnegative=True), [[False, one, one, True]])
    np.testing.assert_array_equal(told(), [[False, True, True, True]])
    np.testing.assert_array_equal(told(nonnegative=[True]), told(nonnegative=True))


@pytest.mark.parametrize("construction", TRACEABLE)
def test_choosing_compiles_once(construction):
    choose = jax.jit(functools.partial(gadget.choose, construction=construction))
    for seed in range(2):
        choose(*drawn(2, 5, 3, seed=seed))
    assert choose._cache_size() == 1


@pytest.mark.parametrize("construction", NAMES)
def test_bfloat16_will_do(construction):
    arrays = [x.astype(jnp.bfloat16) for x in drawn(2, 6, 3)]
    found = gadget.choose(*arrays, construction=construction)
    assert np.asarray(found).any()


def test_subset_sums_need_values_that_are_known():
    choose = functools.partial(gadget.choose, construction="subset_sum")
    with pytest.raises(TypeError, match="traced"):
        jax.jit(choose)(*drawn(1, 4, 1))


def test_arrays_that_do_not_fit_are_refused():
    v, u, w = drawn(2, 5, 3)
    given = (v[0], u, w), (v, u[:, :4], w), (v, u, w[:1]), (v[:, :0], u[:, :0], w)
    message = r"`inner` \[I, k\], `outer` \[I, k, O\] and `target` \[I, O\], got \("
    for arrays in given:
        for call in (gadget.choose, gadget.beyond):
            with pytest.raises(ValueError, match=message):
                call(*arrays, construction="product")
    with pytest.raises(TypeError, match="needs floating arrays, got:\n  outer: int32"):
        gadget.choose(v, u.astype(np.int32), w, construction="product")
    for wrong in ([True], 1, "yes"):
        with pytest.raises(
            ValueError, match="`nonnegative` as a boolean, or 2 of them"
        ):
            gadget.choose(v, u, w, construction="product", nonnegative=wrong)


def test_unknown_constructions_and_numbers_out_of_range_are_refused():
    v, u, w = drawn(2, 5, 3)
    with pytest.raises(ValueError, match="'greedy' or 'product' or 'subset_sum', got"):
        gadget.choose(v, u, w, construction="magic")
    with pytest.raises(ValueError, match="as 'subset_sum' where it gets a `tolerance`"):
        gadget.choose(v, u, w, construction="greedy", tolerance=0.1)
    with pytest.raises(ValueError, match="'factor' or 'greedy' or 'product', got 'sub"):
        gadget.block_size("subset_sum", epsilon=0.1, delta=0.1)
    for epsilon, delta in ((0, 0.1), (0.6, 0.1), (0.1, 0), (0.1, 1)):
        with pytest.raises(ValueError, match=r"`epsilon` in \(0, 0.5\] and `delta` in"):
            gadget.block_size("product", epsilon=epsilon, delta=delta)


def test_a_block_too_wide_for_an_exact_search_is_refused():
    v, u, w = drawn(1, 60, 1)
    with pytest.raises(ValueError, match="GiB to search all subsets of 60 coefficient"):
        gadget.choose(abs(v), u, w, construction="subset_sum")


def test_the_walk_of_a_block_is_that_of_its_products():
    v, u, w = drawn(1, 40, 3)
    found = gadget.choose(v, u, w, construction="greedy", nonnegative=True)
    terms = np.where(v[0, :, None] > 0, v[0, :, None] * u[0], 0).T
    walked = subset_sum.greedy(w[0][:, None], terms)
    trees.assert_same(np.asarray(found)[0].T, np.asarray(walked.mask)[:, 0])


def test_neurons_that_never_fire_do_not_count_as_large():
    # By hand, in bins from 2**-5, 2**-6, and less: the second alone is the weight.
    v = np.float32([[1.0, 1.0, -1.0]])
    u = np.float32([[[2.0**-8], [2.0**-5], [0.0]]])
    w = np.float32([[2.0**-5]])
    how = {"construction": "greedy", "nonnegative": True, "bins": 3}
    found = gadget.choose(v, u, w, **how)
    np.testing.assert_array_equal(np.ravel(found), [False, True, False])
    assert off(v, u, w, found, nonnegative=True) == 0


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_walk_is_as_near_where_all_is_small(nonnegative):
    v, u, w = drawn(3, 40, 4)
    choose = functools.partial(
        gadget.choose, construction="greedy", nonnegative=nonnegative, bins=5
    )
    plain = np.asarray(choose(v, u, w))
    for power in (-30, -8, 8):
        scale = np.float32(2.0**power)
        trees.assert_same(np.asarray(choose(v, u * scale, w * scale)), plain)
    for i, o in np.ndindex(w.shape):  # as without those that do not fire
        for sign in (1, -1)[: 1 if nonnegative else 2]:
            (h,) = np.nonzero(sign * v[i] > 0)
            kept, _ = reference.greedy(w[i, o], v[i, h] * u[i, h, o], 5)
            assert set(np.flatnonzero(plain[i, h, o]).tolist()) == kept
