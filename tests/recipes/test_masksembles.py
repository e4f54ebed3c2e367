"""Fixed masks that never fail: exact counts, overlap, thin members; and NumPy."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import algebra, packing, stacking, where
from maskjax.recipes import masksembles
from tests import trees
from tests.reference import masksembles as reference

MEMBERS = (1, 2, 4, 8, 16, 32)
SCALES = (1, 1.1, 1.5, 2, 3, 4, 6, 8)
CHANNELS = (1, 5, 10, 16, 32, 64, 100, 256, 1024)
LINKS = {"b": ["a", "a_bias"], "c": ["b", "b_bias"]}
N, WIDTHS = 4, {"a": (6, 16), "b": (16, 12), "c": (12, 3)}


def network(p, x):
    h = jax.nn.relu(x @ p["a"] + p["a_bias"][None])
    h = jax.nn.relu(h @ p["b"] + p["b_bias"][None])
    return h @ p["c"] + p["c_bias"][None]


def body(p, h):
    """What comes after the first layer."""
    h = jax.nn.relu(h @ p["b"] + p["b_bias"][None])
    return h @ p["c"] + p["c_bias"][None]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = WIDTHS | {f"{k}_bias": s[1:] for k, s in WIDTHS.items()}
    return {k: jnp.asarray(rng.normal(size=s), "float32") for k, s in shapes.items()}


@pytest.fixture(scope="module")
def stack(params):
    chosen = where.matching("^[bc]$")
    return masksembles.init(params, where=chosen, scale=2.0, key=jax.random.key(3))


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=(9, 6)), "float32")


@pytest.mark.parametrize("members", MEMBERS)
def test_every_plan_succeeds_with_the_papers_number_of_ones(members):
    for scale, channels in itertools.product(SCALES, CHANNELS):
        plan = masksembles.plan(channels, members=members, scale=scale)
        assert plan.ones == reference.ones(channels, members, scale)
        kinds = math.comb(channels, plan.ones)
        assert plan.distinct == min(members, kinds)
        assert plan.asked == 1 / scale
        assert math.isnan(plan.achieved) if members == 1 else 0 <= plan.achieved <= 1


SHAPES = [(1, 1), (1, 5), (2, 5), (4, 10), (4, 100), (32, 16)]


@pytest.mark.parametrize(("members", "channels"), SHAPES)
def test_masks_are_as_planned(members, channels):
    for i, scale in enumerate(SCALES):
        how = {"members": members, "scale": scale}
        plan = masksembles.plan(channels, **how)
        masks = masksembles.masks(channels, **how, key=jax.random.key(i))
        assert masks.dtype == bool
        masks = np.asarray(masks)
        assert masks.shape == (members, channels)
        assert (masks.sum(1) == plan.ones).all()
        assert masks.any(0).all()
        assert len(np.unique(masks, axis=0)) == plan.distinct
        if members > 1:
            pairs = math.comb(members, 2) * plan.ones
            assert reference.shared(masks) / pairs == pytest.approx(plan.achieved)


def test_without_scale_all_is_kept():
    assert masksembles.masks(7, members=3, scale=1, key=jax.random.key(0)).all()
    assert masksembles.plan(7, members=3, scale=1).achieved == 1


@pytest.mark.parametrize("channels", [3, 4, 5, 6])
def test_no_family_comes_closer_to_the_asked_overlap(channels):
    tried = 0
    for members, scale in itertools.product((2, 3, 4, 5, 8), SCALES):
        plan = masksembles.plan(channels, members=members, scale=scale)
        kinds = math.comb(channels, plan.ones)
        if math.comb(kinds, members % kinds) > 5000:
            continue
        pairs = math.comb(members, 2) * plan.ones
        possible = reference.every_overlap(channels, members, plan.ones)
        nearest = min(abs(shared / pairs - plan.asked) for shared in possible)
        assert abs(plan.achieved - plan.asked) == pytest.approx(nearest, abs=1e-9)
        tried += 1
    assert tried > 10


def test_overlap_is_exact_where_there_is_room():
    for members, scale, channels in itertools.product(
        (4, 8, 32), (1.5, 2, 3), (64, 256)
    ):
        plan = masksembles.plan(channels, members=members, scale=scale)
        pairs = math.comb(members, 2) * plan.ones
        assert abs(plan.achieved - plan.asked) <= 0.5 / pairs


def test_pairs_overlap_as_draws_would_and_features_are_treated_alike():
    keys = jax.random.split(jax.random.key(0), 400)
    drawn = jax.vmap(lambda key: masksembles.masks(64, key=key))(keys)
    masks = np.asarray(drawn).astype(int)
    pairs = [masks[:, a] * masks[:, b] for a, b in itertools.combinations(range(N), 2)]
    overlaps = np.stack(pairs).sum(-1)
    mean, variance = reference.hypergeometric(total=68, ones=34)
    np.testing.assert_array_equal(overlaps.mean(0), mean)  # whatever the key
    # One of six is bound by the others' sum.
    assert overlaps.var() == pytest.approx(variance * 5 / 6, rel=0.15)
    rate, sigma = 34 / 64, (34 / 64 * 30 / 64 / 400) ** 0.5
    assert abs(masks.mean(0) - rate).max() < 4.5 * sigma


def test_a_key_says_it_all(transform):
    draw = transform(lambda key: masksembles.masks(10, scale=3.0, key=key))
    keys = jax.random.split(jax.random.key(0), 3)
    alone = [draw(key) for key in keys]
    trees.assert_same(alone[0], draw(keys[0]))
    trees.assert_same(jnp.stack(alone), jax.vmap(draw)(keys))
    assert not np.array_equal(alone[0], alone[1])


def test_init_masks_the_rows_of_chosen_kernels(params, stack):
    assert {k for k, m in stack.items() if m is not None} == {"b", "c"}
    assert stack["b"].shape == (N, 16, 1)
    assert stack["c"].shape == (N, 12, 1)
    plans = [masksembles.plan(width).ones for width in (16, 12)]
    assert stack["b"].sum(1).ravel().tolist() == [plans[0]] * N
    assert stack["c"].sum(1).ravel().tolist() == [plans[1]] * N
    assert stacking.size(stack) == N
    assert algebra.density(stacking.take(stack, 0), params) < 1


def test_kernels_of_one_width_get_different_masks():
    params = {"b": jnp.ones((16, 16)), "c": jnp.ones((3, 3, 16, 4))}
    every = masksembles.init(params, where=where.kernels, key=jax.random.key(0))
    assert every["c"].shape == (N, 1, 1, 16, 1)
    assert not np.array_equal(every["b"].ravel(), every["c"].ravel())


def test_a_member_is_the_network_of_its_thin_slice(params, stack, x):
    every = stacking.predict(network, params, stack, x)
    thin = masksembles.thin(params, stack, links=LINKS)
    assert thin.inputs is None
    assert thin.features is None
    assert thin.params["a"].shape == (N, 6, masksembles.plan(16).ones)
    np.testing.assert_allclose(
        masksembles.predict(network, thin, x), every, rtol=1e-5, atol=1e-5
    )
    for i in range(N):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], thin.params)
        np.testing.assert_allclose(network(one, x), every[i], rtol=1e-5, atol=1e-5)
        keeps = [np.asarray(stack[k][i]).ravel() for k in ("b", "c")]
        by_hand = [
            reference.network(jax.tree.map(np.asarray, params), np.asarray(row), *keeps)
            for row in x
        ]
        np.testing.assert_allclose(every[i], by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_members_share_the_first_layer(params, stack, x, batch_size):
    rest = {k: v for k, v in params.items() if k[0] != "a"}
    masks = {k: v for k, v in stack.items() if k[0] != "a"}
    thin = masksembles.thin(rest, masks, links={"c": ["b", "b_bias"]})
    assert thin.inputs.shape == (N, masksembles.plan(16).ones)
    assert thin.features == 16

    @jax.jit
    def predict(params, thin, x):
        h = jax.nn.relu(x @ params["a"] + params["a_bias"][None])
        return masksembles.predict(body, thin, h, batch_size=batch_size)

    every = stacking.predict(network, params, stack, x)
    np.testing.assert_allclose(predict(params, thin, x), every, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_features_of_another_number_are_refused(params, stack, transform, batch_size):
    rest = {k: v for k, v in params.items() if k[0] != "a"}
    masks = {k: v for k, v in stack.items() if k[0] != "a"}
    thin = lambda p: masksembles.thin(p, masks, links={"c": ["b", "b_bias"]})  # noqa: E731
    some = jax.tree.map(lambda leaf: leaf[1:3], thin(rest))
    predict = transform(
        lambda thin, h: masksembles.predict(body, thin, h, batch_size=batch_size)
    )
    for members in (thin(rest), jax.jit(thin)(rest), some):
        assert members.features == 16
        for width in (6, 15, 17, 40):
            message = (
                r"`maskjax.recipes.masksembles.predict` needs `x` \[..., 16\], the "
                rf"features of which members pick theirs, got \(9, {width}\)"
            )
            with pytest.raises(ValueError, match=message):
                predict(members, jnp.ones((9, width)))
        out = predict(members, jnp.ones((9, 16)))
        assert out.shape == (len(members.inputs), 9, 3)


def test_thin_members_are_mapped_over_and_keep_the_number_of_features(params, stack):
    rest = {k: v for k, v in params.items() if k[0] != "a"}
    masks = {k: v for k, v in stack.items() if k[0] != "a"}
    thin = masksembles.thin(rest, masks, links={"c": ["b", "b_bias"]})
    h = jnp.asarray(np.random.default_rng(4).normal(size=(2, 9, 16)), "float32")
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + leaf]), thin.params)
    twice = dataclasses.replace(thin, params=both)
    axes = dataclasses.replace(thin, params=0, inputs=None)
    predict = jax.vmap(lambda m, h: masksembles.predict(body, m, h), (axes, 0))
    for i, out in enumerate(predict(twice, h)):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], both)
        one = dataclasses.replace(thin, params=one)
        alone = masksembles.predict(body, one, h[i])
        np.testing.assert_allclose(out, alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"`x` \[..., 16\], .* got \(9, 15\)"):
        predict(twice, h[..., :15])
    with pytest.raises(ValueError, match=r"`x` \[..., 16\], .* got \(\)"):
        masksembles.predict(body, thin, jnp.float32(1))


def test_a_flattened_feature_is_masked_at_each_place():
    rng = np.random.default_rng(0)
    params = {
        "conv": jnp.asarray(rng.normal(size=(3, 3, 2, 8)), "float32"),
        "dense": jnp.asarray(rng.normal(size=(4 * 8, 3)), "float32"),
    }
    x = jnp.asarray(rng.normal(size=(5, 2, 2, 2)), "float32")

    def net(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(
            x, p["conv"], (1, 1), "SAME", dimension_numbers=dims
        )
        return jax.nn.relu(h).reshape(len(x), -1) @ p["dense"]

    masks = masksembles.masks(8, key=jax.random.key(0))
    stack = {"conv": None, "dense": masksembles.rows(masks, params["dense"])}
    thin = masksembles.thin(params, stack, links={"dense": ["conv"]})
    ones = int(masks[0].sum())
    assert thin.params["conv"].shape == (N, 3, 3, 2, ones)
    assert thin.params["dense"].shape == (N, 4 * ones, 3)
    every = stacking.predict(net, params, stack, x)
    np.testing.assert_allclose(
        masksembles.predict(net, thin, x), every, rtol=1e-4, atol=1e-5
    )


def test_packed_masks_are_thinned_alike(params, stack):
    packed = jax.vmap(packing.pack)(stack)
    thin = masksembles.thin(params, stack, links=LINKS)
    trees.assert_same(masksembles.thin(params, packed, links=LINKS), thin)
    # Parameters may be traced, where masks are known.
    traced = jax.jit(lambda p: masksembles.thin(p, packed, links=LINKS))(params)
    trees.assert_same(traced, thin)


def test_permuting_samples_permutes_predictions_but_not_what_chunks_see(
    params, stack, x
):
    order = np.random.default_rng(2).permutation(len(x))
    every = stacking.predict(network, params, stack, x)
    moved = stacking.predict(network, params, stack, x[order])
    np.testing.assert_allclose(moved, every[:, order], rtol=1e-5, atol=1e-5)
    whose = masksembles.in_chunks(len(x), members=N)
    each = stacking.predict_each(network, params, stack, whose, x)
    chunks = stacking.predict_each(network, params, stack, whose, x[order])
    np.testing.assert_allclose(each, every[whose, np.arange(9)], rtol=1e-5, atol=1e-5)
    assert not np.allclose(chunks, each[order])


def test_equal_inputs_in_other_chunks_give_other_outputs(params, stack):
    same = jnp.ones((8, 6))
    whose = masksembles.in_chunks(8, members=N)
    out = np.asarray(stacking.predict_each(network, params, stack, whose, same))
    np.testing.assert_allclose(out[0::2], out[1::2], rtol=1e-5)
    assert len(np.unique(out[0::2].round(4), axis=0)) == N


def test_one_member_keeps_all():
    # It covers every feature alone.
    assert masksembles.masks(9, members=1, scale=4.0, key=jax.random.key(0)).all()


@pytest.mark.parametrize("batch", [1, 3, 8, 10, 13])
def test_chunks_are_runs_as_long_as_each_other_or_one_longer(batch):
    whose = np.asarray(masksembles.in_chunks(batch, members=4))
    assert (np.diff(whose) >= 0).all()
    counts = np.bincount(whose, minlength=4)
    assert counts.sum() == batch
    assert counts.max() - counts.min() <= 1


def test_random_members_get_as_many_samples_and_each_may_get_one_more(transform):
    draw = transform(lambda key: masksembles.at_random(6, members=4, key=key))
    counts = []
    for key in jax.random.split(jax.random.key(0), 20):
        whose = draw(key)
        assert whose.dtype == jnp.int32
        counts.append(np.bincount(whose, minlength=4))
        trees.assert_same(whose, draw(key))
    assert {tuple(sorted(c)) for c in counts} == {(1, 1, 2, 2)}
    assert (np.max(counts, 0) == 2).all()


def test_counts_below_one_and_scales_below_one_are_refused():
    key = jax.random.key(0)
    for name in ("plan", "masks"):
        draw = getattr(masksembles, name)
        more = {"key": key} if name == "masks" else {}
        with pytest.raises(ValueError, match=name + "` needs `channels` of at least 1"):
            draw(0, **more)
        with pytest.raises(ValueError, match=name + "` needs `members` of at least 1"):
            draw(8, members=0, **more)
        for scale in (0.9, -2, math.nan, math.inf):
            with pytest.raises(ValueError, match="`scale` of at least 1, finite, got"):
                draw(8, scale=scale, **more)
        with pytest.raises(TypeError, match="`scale` as a Python number, got str"):
            draw(8, scale="two", **more)
        with pytest.raises(TypeError, match="`channels` as a whole number, got float"):
            draw(8.0, **more)
        with pytest.raises(TypeError, match="`members` as a Python number, got an arr"):
            draw(8, members=jnp.int32(4), **more)
    with pytest.raises(TypeError, match="`key` as a typed key"):
        masksembles.masks(8, key=jax.random.PRNGKey(0))


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="in_chunks` needs `batch` of at least 1, got"):
        masksembles.in_chunks(0, members=4)
    with pytest.raises(ValueError, match="at_random` needs `batch` of at least 1, got"):
        masksembles.at_random(0, members=4, key=jax.random.key(0))
    with pytest.raises(ValueError, match="in_chunks` needs `members` of at least 1"):
        masksembles.in_chunks(4, members=0)


def test_masks_go_on_kernels_that_fit():
    key, params = jax.random.key(0), {"w": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    with pytest.raises(
        ValueError, match=r"(?s)init` needs `where` to choose kernels.*b"
    ):
        masksembles.init(params, where=where.everything, key=key)
    with pytest.raises(ValueError, match="choose at least one leaf"):
        masksembles.init(params, where=where.matching("nothing"), key=key)
    with pytest.raises(ValueError, match=r"rows` needs `masks` \[N, C\].*\(2, 3\) and"):
        masksembles.rows(jnp.ones((2, 3), bool), params["w"])
    with pytest.raises(ValueError, match="rows` needs"):
        masksembles.rows(jnp.ones((2, 4), bool), params["bias"])


def test_what_cannot_be_thinned_is_named(params, stack):
    thin = masksembles.thin
    with pytest.raises(
        ValueError, match=r"(?s)from kernels with masks to .*nowhere: no"
    ):
        thin(params, stack, links=LINKS | {"b": ["nowhere"]})
    with pytest.raises(ValueError, match="(?s)from kernels with masks.*a: no such"):
        thin(params, stack, links={"a": ["b"]})
    with pytest.raises(ValueError, match="(?s)`links` for all masks but one.*b.*c"):
        thin(params, stack, links={})
    with pytest.raises(ValueError, match="needs what `a` yields to be what `c` meets"):
        thin(params, stack, links={"c": ["a"]})
    uneven = stack | {"b": stack["b"].at[0].set(True)}
    with pytest.raises(ValueError, match=r"(?s)as many ones each.*b: \[8, 16\] ones"):
        thin(params, uneven, links=LINKS)
    columns = stack | {"b": jnp.ones((N, 16, 12), bool)}
    with pytest.raises(
        ValueError, match=r"(?s)on input rows.*b: \(4, 16, 12\), kernel"
    ):
        thin(params, columns, links=LINKS)
    with pytest.raises(TypeError, match="(?s)thin` needs `stack` not traced.*b"):
        jax.eval_shape(lambda s: thin(params, s, links=LINKS), stack)
    shared = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 1)), "c": jnp.ones((4, 1))}
    masks = masksembles.init(shared, where=where.matching("b|c"), key=jax.random.key(0))
    with pytest.raises(ValueError, match="one mask on what `a` yields"):
        thin(shared, masks, links={"b": ["a"], "c": ["a"]})
