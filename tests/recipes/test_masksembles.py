"""Fixed masks that never fail: exact counts, overlap, small members; and NumPy."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import compaction, packing, stacking, where
from maskjax.recipes import masksembles
from tests.reference import masksembles as reference

MEMBERS = (1, 2, 4, 8, 16, 32)
SCALES = (1, 1.1, 1.5, 2, 3, 4, 6, 8)
CHANNELS = (1, 5, 10, 16, 32, 64, 100, 256, 1024)
N, WIDTHS = 4, {"a": (6, 16), "b": (16, 12), "c": (12, 3)}
RNG = np.random.default_rng(0)
PARAMS = {
    name: RNG.normal(size=shape).astype(np.float32)
    for name, shape in (
        WIDTHS | {f"{k}_bias": s[1:] for k, s in WIDTHS.items()}
    ).items()
}
X = RNG.normal(size=(9, 6)).astype(np.float32)


def first_layer(p, x):
    return jax.nn.relu(x @ p["a"] + p["a_bias"][None])


def body(p, h):
    """What comes after the first layer."""
    h = jax.nn.relu(h @ p["b"] + p["b_bias"][None])
    return h @ p["c"] + p["c_bias"][None]


def network(p, x):
    return body(p, first_layer(p, x))


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def stack():
    chosen = where.matching("^[bc]$")
    return masksembles.init(PARAMS, where=chosen, scale=2.0, key=jax.random.key(3))


@pytest.fixture(scope="module")
def every(stack):
    """What each member says, [N, 9, 3]."""
    return np.asarray(jax.jit(functools.partial(stacking.predict, network))(
        PARAMS, stack, X
    ))  # fmt: skip


def latter(tree):
    """Without the first layer."""
    return {k: v for k, v in tree.items() if k[0] != "a"}


@pytest.fixture(scope="module")
def plan_of_body(stack):
    """Of the layers after the first; the features that they read differ."""
    h = jax.ShapeDtypeStruct((9, 16), "float32")
    return compaction.plan(body, latter(PARAMS), latter(stack), h, stack=True)


def ask(plan, small, h, *, batch_size=None):
    """What each small member says of what the first layer gives."""

    def one(member, h):
        number, params = member
        return compaction.narrow(body, plan, member=number)(params, h)

    members = jnp.arange(plan.members), small
    return stacking.map(one, members, h, batch_size=batch_size)


@pytest.mark.parametrize("members", MEMBERS)
def test_every_plan_succeeds_with_the_papers_number_of_ones(members):
    for scale, channels in itertools.product(SCALES, CHANNELS):
        plan = masksembles.plan(channels, members=members, scale=scale)
        assert plan.ones == reference.ones(channels, members, scale)
        kinds = math.comb(channels, plan.ones)
        assert plan.distinct == min(members, kinds)
        assert plan.asked == 1 / scale
        assert math.isnan(plan.achieved) if members == 1 else 0 <= plan.achieved <= 1


@pytest.mark.parametrize(
    ("members", "channels"), [(1, 5), (2, 5), (4, 64), (32, 16), (8, 4)]
)
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
        if scale == 1 or members == 1:  # one member covers every feature alone
            assert masks.all()
            assert members == 1 or plan.achieved == 1


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
    drawn = jax.jit(jax.vmap(lambda key: masksembles.masks(64, key=key)))(keys)
    masks = np.asarray(drawn).astype(int)
    pairs = [masks[:, a] * masks[:, b] for a, b in itertools.combinations(range(N), 2)]
    overlaps = np.stack(pairs).sum(-1)
    mean, variance = reference.hypergeometric(total=68, ones=34)
    np.testing.assert_array_equal(overlaps.mean(0), mean)  # whatever the key
    # One of six is bound by the others' sum.
    assert overlaps.var() == pytest.approx(variance * 5 / 6, rel=0.15)
    rate, sigma = 34 / 64, (34 / 64 * 30 / 64 / 400) ** 0.5
    assert abs(masks.mean(0) - rate).max() < 4.5 * sigma


def test_a_key_says_it_all():
    keys = jax.random.split(jax.random.key(0), 3)
    draw = functools.partial(masksembles.masks, 64, scale=3.0)
    together = jax.jit(jax.vmap(lambda key: draw(key=key)))(keys)
    alone = [np.asarray(draw(key=key)) for key in keys]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(draw(key=keys[0]), alone[0])
    assert not np.array_equal(alone[0], alone[1])


def test_init_masks_the_rows_of_chosen_kernels(stack):
    assert {k for k, m in stack.items() if m is not None} == {"b", "c"}
    for name, width in (("b", 16), ("c", 12)):
        assert stack[name].shape == (N, width, 1)
        ones = masksembles.plan(width).ones
        assert np.sum(stack[name], 1).ravel().tolist() == [ones] * N
    assert stacking.size(stack) == N


def test_kernels_of_one_width_get_different_masks():
    params = {"b": np.ones((16, 16), "f4"), "conv": np.ones((3, 3, 16, 4), "f4")}
    both = masksembles.init(params, where=where.kernels, key=jax.random.key(0))
    assert both["conv"].shape == (N, 1, 1, 16, 1)
    assert not np.array_equal(*(np.asarray(m).ravel() for m in both.values()))


def test_a_small_member_is_its_slice_of_the_network(stack, every):
    plan = compaction.plan(network, PARAMS, stack, X, stack=True)

    @jax.jit
    def run(params, x):
        """Parameters may be traced."""
        small = compaction.shrink(params, plan)
        return small, stacking.map(compaction.narrow(network, plan), small, x)

    small, together = run(PARAMS, X)
    first, second = masksembles.plan(16).ones, masksembles.plan(12).ones
    assert {name: leaf.shape for name, leaf in small.items()} == {
        "a": (N, 6, first),
        "a_bias": (N, first),
        "b": (N, first, second),
        "b_bias": (N, second),
        "c": (N, second, 3),
        "c_bias": (N, 3),
    }
    close(together, every)
    keeps = [np.asarray(stack[name]).reshape(N, -1) for name in ("b", "c")]
    for i in range(N):
        one = {name: np.asarray(leaf[i]) for name, leaf in small.items()}
        kept = reference.network(one, X[0], np.ones(first), np.ones(second))
        close(kept, every[i][0])
        masks = [keep[i] for keep in keeps]
        close(every[i], [reference.network(PARAMS, row, *masks) for row in X])
    packed = jax.jit(jax.vmap(packing.pack))(stack)
    assert compaction.plan(network, PARAMS, packed, X, stack=True) == plan


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_small_members_share_the_first_layer(plan_of_body, every, batch_size):
    ones = masksembles.plan(16).ones
    assert plan_of_body.shapes["b"] == (ones, masksembles.plan(12).ones)

    @jax.jit
    def predict(params, x):
        small = compaction.shrink(latter(params), plan_of_body)
        h = first_layer(params, x)
        return ask(plan_of_body, small, h, batch_size=batch_size)

    close(predict(PARAMS, X), every)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_small_members_train_as_masked_ones_do(stack, plan_of_body, batch_size):
    """Their gradients, and those of the layer that they share."""
    y = np.random.default_rng(5).normal(size=(N, 9, 3)).astype(np.float32)

    def loss(outputs):
        return jnp.mean((outputs - y) ** 2)

    @jax.jit
    def both(params, x):
        def masked(first, members):
            whole = jax.vmap(lambda m, p: maskjax.apply(p, m))(latter(stack), members)
            h = first_layer(first, x)
            return loss(jax.vmap(body, (0, None))(whole, h))

        def small(first, members):
            h = first_layer(first, x)
            return loss(ask(plan_of_body, members, h, batch_size=batch_size))

        rest = latter(params)
        first = {k: params[k] for k in params.keys() - rest.keys()}
        of_each = jax.tree.map(lambda leaf: jnp.stack([leaf] * N), rest)
        shared, wanted = jax.grad(masked, (0, 1))(first, of_each)
        taken = compaction.shrink(rest, plan_of_body)
        ours = jax.grad(small, (0, 1))(first, taken)
        return ours, (shared, compaction.shrink(wanted, plan_of_body))

    ours, wanted = both(PARAMS, X)
    assert np.abs(wanted[0]["a"]).max() > 1e-2
    jax.tree.map(close, ours, wanted)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_features_of_another_number_are_refused(plan_of_body, batch_size):
    """Of the number that a member reads, too."""
    small = compaction.shrink(latter(PARAMS), plan_of_body)
    for width in (6, masksembles.plan(16).ones, 15, 17):
        h = np.ones((9, width), "f4")
        message = rf"contracting dimensions .* got \({width},\) and \(16,\)"
        with pytest.raises(TypeError, match=message):
            ask(plan_of_body, small, h, batch_size=batch_size)


def test_small_members_of_several_networks_are_mapped_over(plan_of_body):
    h = np.random.default_rng(4).normal(size=(2, 9, 16)).astype(np.float32)
    both = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), latter(PARAMS))

    def run(params, h):
        return ask(plan_of_body, compaction.shrink(params, plan_of_body), h)

    alone = jax.jit(run)
    for i, out in enumerate(jax.jit(jax.vmap(run))(both, h)):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], both)
        np.testing.assert_allclose(out, alone(one, h[i]), rtol=1e-4, atol=1e-4)


def test_a_flattened_feature_is_masked_at_each_place():
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 2, 8), "dense": (4 * 8, 3), "x": (5, 2, 2, 2)}
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    x = params.pop("x")

    def net(p, x):
        dims = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(
            x, p["conv"], (1, 1), "SAME", dimension_numbers=dims
        )
        return jax.nn.relu(h).reshape(len(x), -1) @ p["dense"]

    masks = masksembles.masks(8, key=jax.random.key(0))
    stack = {"conv": None, "dense": masksembles.rows(masks, params["dense"])}
    plan = compaction.plan(net, params, stack, x, stack=True)

    @jax.jit
    def run(params, x):
        small = compaction.shrink(params, plan)
        said = stacking.map(compaction.narrow(net, plan), small, x)
        return small, said, stacking.predict(net, params, stack, x)

    small, said, every = run(params, x)
    ones = int(np.sum(masks[0]))
    assert small["conv"].shape == (N, 3, 3, 2, ones)
    assert small["dense"].shape == (N, 4 * ones, 3)
    np.testing.assert_allclose(said, every, rtol=1e-4, atol=1e-5)


def test_chunks_see_other_samples_when_samples_are_permuted(stack, every):
    whose = masksembles.in_chunks(len(X), members=N)
    run = jax.jit(functools.partial(stacking.predict_each, network))
    each = np.asarray(run(PARAMS, stack, whose, X))
    close(each, every[np.asarray(whose), np.arange(9)])
    order = np.random.default_rng(2).permutation(len(X))
    chunks = run(PARAMS, stack, whose, X[order])
    assert not np.allclose(chunks, each[order])
    # Equal inputs in other chunks give other outputs.
    out = np.asarray(run(PARAMS, stack, whose, np.ones_like(X)))
    assert len(np.unique(out.round(4), axis=0)) == N
    for member in range(N):
        mine = out[np.asarray(whose) == member]
        np.testing.assert_allclose(mine, mine[[0] * len(mine)], rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 8, 10, 13])
def test_chunks_are_runs_as_long_as_each_other_or_one_longer(batch):
    whose = np.asarray(masksembles.in_chunks(batch, members=4))
    assert (np.diff(whose) >= 0).all()
    counts = np.bincount(whose, minlength=4)
    assert counts.sum() == batch
    assert counts.max() - counts.min() <= 1


def test_random_members_get_as_many_samples_and_each_may_get_one_more():
    draw = functools.partial(masksembles.at_random, 6, members=4)
    keys = jax.random.split(jax.random.key(0), 20)
    drawn = jax.jit(jax.vmap(lambda key: draw(key=key)))(keys)
    assert drawn.dtype == jnp.int32
    np.testing.assert_array_equal(draw(key=keys[3]), drawn[3])
    counts = [np.bincount(whose, minlength=4) for whose in np.asarray(drawn)]
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
            draw(8, members=jax.device_put(np.int32(4)), **more)
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
    key, params = (
        jax.random.key(0),
        {"w": np.ones((4, 2), "f4"), "bias": np.ones(2, "f4")},
    )
    with pytest.raises(
        ValueError, match=r"(?s)init` needs to know the axes.*bias: .*fewer than 2 axes"
    ):
        masksembles.init(params, where=where.everything, key=key)
    with pytest.raises(ValueError, match="choose at least one leaf"):
        masksembles.init(params, where=where.matching("nothing"), key=key)
    with pytest.raises(ValueError, match=r"rows` needs `masks` \[N, C\].*\(2, 3\) and"):
        masksembles.rows(np.ones((2, 3), bool), params["w"])
    with pytest.raises(ValueError, match="rows` needs"):
        masksembles.rows(np.ones((2, 4), bool), params["bias"])


def two_readers(p, x):
    """Both kernels read what the first one gives."""
    h = jax.nn.relu(x @ p["a"])
    return h @ p["b"] + h @ p["c"]


def irregular(kind, stack):
    """A network, its stack of masks, and how many features each member keeps."""
    rng = np.random.default_rng(6)
    if kind == "two readers":  # of other features
        shapes = {"a": (6, 16), "b": (16, 3), "c": (16, 3)}
        params = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
        chosen = where.matching("b|c")
        masks = masksembles.init(params, where=chosen, key=jax.random.key(0))
        read = np.asarray(masks["b"]) | np.asarray(masks["c"])
        assert masksembles.plan(16).ones < read.sum(1).max() < 16
        return two_readers, params, masks, read.sum(1).max()
    first = np.arange(N) == 0
    if kind == "uneven":  # one member keeps every feature
        full = np.asarray(stack["b"]) | first[:, None, None]
        return network, PARAMS, stack | {"b": full}, 16
    return network, PARAMS, stack | {"b": rng.random((N, 16, 12)) < 0.5}, 16


@pytest.mark.parametrize("kind", ["two readers", "uneven", "entries"])
def test_members_keep_what_any_of_their_masks_needs(kind, stack):
    """Members that need fewer features keep as many as the one that needs most."""
    net, params, masks, kept = irregular(kind, stack)
    plan = compaction.plan(net, params, masks, X, stack=True)
    assert plan.shapes["a"] == (6, kept)

    @jax.jit
    def both(params):
        masked = jax.vmap(maskjax.apply, (None, 0))(params, masks)
        small = compaction.shrink(masked, plan)
        said = stacking.map(compaction.narrow(net, plan), small, X)
        return said, stacking.predict(net, params, masks, X)

    close(*both(params))


def test_traced_masks_are_refused(stack):
    def shapes(masks):
        return compaction.plan(network, PARAMS, masks, X, stack=True).shapes

    with pytest.raises(ValueError, match="plan` needs a concrete mask.*traced leaf at"):
        jax.eval_shape(shapes, stack)


@pytest.mark.parametrize(
    ("words", "shape", "expected"),
    [
        ("outputs inputs", (5, 8), (4, 1, 8)),
        ("inputs outputs outputs", (8, 3, 2), (4, 8, 1, 1)),
        ("inputs inputs outputs", (2, 4, 5), (4, 2, 4, 1)),
        ("stack inputs outputs", (3, 8, 5), (4, 3, 8, 1)),
        ("outputs inputs window window", (5, 8, 3, 3), (4, 1, 8, 1, 1)),
    ],
)
def test_inputs_are_masked_wherever_they_lie(words, shape, expected):
    params, key = {"w": np.ones(shape, "f4")}, jax.random.key(0)
    told = where.matching("w", axes=words)
    stack = masksembles.init(params, where=told, key=key)["w"]
    assert stack.shape == expected
    flat = masksembles.init({"w": np.ones((8, 1))}, where=where.kernels, key=key)["w"]
    found = np.asarray(stack).reshape(4, -1, 8)
    counts = found.sum(axis=2)
    if "stack" not in words:
        np.testing.assert_array_equal(found[:, 0], np.asarray(flat)[:, :, 0])
    else:
        assert len({layer.tobytes() for layer in found.swapaxes(0, 1)}) == 3
        assert (np.sort(counts, axis=0) == np.sort(counts[:, :1], axis=0)).all()
    with pytest.raises(ValueError, match="masksembles.init` needs to know the axes"):
        masksembles.init({"w": np.ones((3, 8, 5))}, where=where.kernels, key=key)
