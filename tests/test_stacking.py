"""Many masks as one tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import masking, packing, stacking
from tests import trees
from tests.reference import mixing

pytestmark = pytest.mark.optimized

K = 5


def members(*, packed=False, k=K):
    """K different masks of a small network, a shared axis and a None among leaves."""
    rng = np.random.default_rng(0)
    masks = [
        {
            "hidden": jnp.asarray(rng.random((3, 7)) < 0.5),
            "out": jnp.asarray(rng.random((1, 2)) < 0.7),
            "bias": None,
        }
        for _ in range(k)
    ]
    return [packing.pack(m) for m in masks] if packed else masks


def network(params, x):
    return jax.nn.relu(x @ params["hidden"]) @ params["out"] + params["bias"][None]


@pytest.fixture
def params():
    rng = np.random.default_rng(1)
    shapes = {"hidden": (3, 7), "out": (7, 2), "bias": (2,)}
    return {k: jnp.asarray(rng.normal(size=s), "float32") for k, s in shapes.items()}


over_forms = pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])


@over_forms
def test_unstack_undoes_stack(packed):
    masks = members(packed=packed)
    stack = stacking.stack(masks)
    assert stacking.size(stack) == K
    assert stack["bias"] is None
    back = stacking.unstack(stack)
    assert len(back) == K
    for a, b in zip(masks, back, strict=True):
        trees.assert_same(a, b)


def test_a_stack_of_packed_masks_is_the_packed_stack():
    stack = stacking.stack(members(packed=True))
    trees.assert_same(stack, jax.vmap(packing.pack)(stacking.stack(members())))


@over_forms
def test_take_finds_a_member_by_any_kind_of_index(packed, transform):
    masks = members(packed=packed)
    stack = stacking.stack(masks)
    for i in (0, 3, K - 1, -1, -K):
        trees.assert_same(stacking.take(stack, i), masks[i])
        taken = transform(stacking.take)(stack, jnp.int32(i))
        trees.assert_same(taken, masks[i])
    assert stacking.take(stack, 0)["bias"] is None


def test_a_traced_index_out_of_range_is_clipped():
    masks = members()
    stack, take = stacking.stack(masks), jax.jit(stacking.take)
    trees.assert_same(take(stack, jnp.int32(K + 3)), masks[-1])
    trees.assert_same(take(stack, jnp.int32(-K - 3)), masks[0])


@over_forms
def test_take_of_several_is_a_stack(packed):
    masks = members(packed=packed)
    some = stacking.take(stacking.stack(masks), jnp.array([3, 0, -1]))
    assert stacking.size(some) == 3
    trees.assert_same(some, stacking.stack([masks[3], masks[0], masks[-1]]))


@over_forms
@pytest.mark.parametrize("batch_size", [None, 1, 2, K, K + 3])
def test_predict_is_a_loop_over_members(batch_size, packed, transform, params):
    masks = members(packed=packed)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)), "float32")
    predict = transform(
        lambda p, s, x: stacking.predict(network, p, s, x, batch_size=batch_size)
    )
    out = predict(params, stacking.stack(masks), x)
    assert out.shape == (K, 4, 2)
    for i, mask in enumerate(masks):
        expected = network(masking.apply(params, mask), x)
        np.testing.assert_allclose(out[i], expected, rtol=1e-5, atol=1e-6)


def test_predict_takes_soft_masks_and_returns_any_tree(params):
    soft = jax.tree.map(lambda m: m.astype("float32") * 0.5, stacking.stack(members()))

    def apply(params, x, *, scale=2.0):
        return {"out": network(params, x) * scale, "sum": params["hidden"].sum()}

    x = jnp.ones((1, 3))
    out = stacking.predict(apply, params, soft, x)
    for i in range(K):
        mask = stacking.take(soft, i)
        expected = apply(masking.apply(params, mask), x)
        np.testing.assert_allclose(out["out"][i], expected["out"], rtol=1e-5)
        np.testing.assert_allclose(out["sum"][i], expected["sum"], rtol=1e-5)


@over_forms
@pytest.mark.parametrize("k", [1, 15, 16, 17, 40])
def test_mix_is_the_weighted_sum(k, packed, transform):
    masks = members(k=k)
    stack = stacking.stack(masks)
    weights = jnp.asarray(np.random.default_rng(k).normal(size=k), "float32")
    given = jax.vmap(packing.pack)(stack) if packed else stack
    out = transform(stacking.mix)(given, weights)
    assert out["bias"] is None
    for name in ("hidden", "out"):
        assert out[name].dtype == jnp.float32
        expected = mixing.mix(np.asarray(stack[name]), np.asarray(weights))
        np.testing.assert_allclose(out[name], expected, rtol=1e-5, atol=1e-5)


@over_forms
def test_mix_keeps_the_dtype_of_the_weights(packed):
    stack = stacking.stack(members(packed=packed))
    weights = jnp.array([1, 2, 4, 8, 16], jnp.bfloat16)  # sums below 32 are exact
    out = stacking.mix(stack, weights)["hidden"]
    assert out.dtype == jnp.bfloat16
    plain = np.asarray(stacking.stack(members())["hidden"])
    expected = mixing.mix(plain, np.array([1, 2, 4, 8, 16]))
    np.testing.assert_array_equal(trees.to_numpy(out), expected)


@over_forms
def test_mix_at_a_corner_is_a_member(packed):
    masks = members()
    stack = stacking.stack(members(packed=packed))
    for i in range(K):
        out = stacking.mix(stack, jax.nn.one_hot(i, K))
        np.testing.assert_array_equal(out["hidden"], masks[i]["hidden"].astype("f4"))


def test_the_gradient_by_a_mixing_weight_is_a_dot_with_the_mask(params):
    stack = stacking.stack(members())
    packed = jax.vmap(packing.pack)(stack)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)), "float32")
    weights = jnp.full(K, 1 / K)

    def loss(weights):
        mixed = masking.apply(params, stacking.mix(stack, weights))
        return jnp.sum(network(mixed, x) ** 2)

    def by_params(soft):
        return jnp.sum(network(masking.apply(params, soft), x) ** 2)

    expected = jax.grad(loss)(weights)
    gradient = jax.grad(by_params)(stacking.mix(packed, weights))
    np.testing.assert_allclose(packing.dot(packed, gradient), expected, rtol=1e-4)


@over_forms
@pytest.mark.parametrize("group", [1, 3, 100])
def test_each_sample_is_run_under_its_own_mask(group, packed, params, transform):
    masks = members(packed=packed)
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(17, 3)), "float32")
    whose = jnp.asarray(rng.integers(0, K, 17))
    stack = stacking.stack(masks)
    out = transform(
        lambda whose, x: stacking.predict_each(
            network, params, stack, whose, x, group=group
        )
    )(whose, x)
    for i, member in enumerate(whose):
        alone = network(masking.apply(params, masks[member]), x[i : i + 1])[0]
        np.testing.assert_allclose(out[i], alone, rtol=1e-5, atol=1e-6)


def test_groups_are_no_more_than_they_have_to_be(params):
    seen = []

    def counting(params, x):
        jax.debug.callback(lambda: seen.append(x.shape[0]))
        return network(params, x)

    stack = stacking.stack(members())
    whose = jnp.array([4, 0, 4, 4, 0, 4, 4])  # five of one, two of another
    run = jax.jit(
        lambda whose, x: stacking.predict_each(
            counting, params, stack, whose, x, group=2
        )
    )
    jax.block_until_ready(run(whose, jnp.ones((7, 3))))
    jax.effects_barrier()
    assert seen == [2] * 4
    run(jnp.zeros(7, whose.dtype), jnp.ones((7, 3)))
    jax.effects_barrier()
    assert len(seen) == 8
    assert run._cache_size() == 1


def test_each_takes_trees_of_inputs_and_outputs(params):
    def net(params, inputs):
        out = network(params, inputs["x"])
        return {"sum": out + inputs["y"], "sign": out > 0}

    stack = stacking.stack(members())
    inputs = {"x": jnp.ones((4, 3)), "y": jnp.ones((4, 2))}
    whose = jnp.array([1, 1, 3, 0])
    out = stacking.predict_each(net, params, stack, whose, inputs)
    assert out["sign"].dtype == bool
    every = stacking.predict(net, params, stack, inputs)
    for name in ("sum", "sign"):
        expected = every[name][whose, jnp.arange(4)]
        np.testing.assert_allclose(out[name], expected, rtol=1e-5)


def test_each_sample_needs_a_member(params):
    stack = stacking.stack(members())
    call = stacking.predict_each
    with pytest.raises(TypeError, match=r"`members` as integers of shape \(B,\)"):
        call(network, params, stack, jnp.ones(4), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="at least one sample"):
        call(network, params, stack, jnp.zeros(0, int), jnp.ones((0, 3)))
    with pytest.raises(ValueError, match="leading axis of 4"):
        call(network, params, stack, jnp.zeros(4, int), jnp.ones((5, 3)))
    with pytest.raises(ValueError, match="`group` of at least 1"):
        call(network, params, stack, jnp.zeros(4, int), jnp.ones((4, 3)), group=0)


def test_members_may_be_numpys_and_are_clipped(params):
    masks = members()
    x, stack = jnp.ones((3, 3)), stacking.stack(masks)
    out = stacking.predict_each(network, params, stack, np.array([-1, 2, 99]), x)
    for row, member in zip(out, (0, 2, K - 1), strict=True):
        alone = network(masking.apply(params, masks[member]), x[:1])[0]
        np.testing.assert_allclose(row, alone, rtol=1e-5)


def test_what_says_nothing_of_each_sample_is_an_error(params):
    stack = stacking.stack(members())
    with pytest.raises(ValueError, match=r"(?s)leading axis of 16 .* shape \(2,\)"):
        stacking.predict_each(
            lambda p, x: network(p, x).mean(0),
            params,
            stack,
            jnp.zeros(4, int),
            jnp.ones((4, 3)),
        )


def test_narrow_indices_reach_every_member():
    stack = {"w": jnp.arange(200)[:, None] == 199}
    assert stacking.take(stack, jnp.int8(-1))["w"][0]


@pytest.mark.parametrize("batch_size", [None, 1, 2, K])
def test_map_is_a_loop_over_members_of_any_kind(batch_size):
    keys = jax.random.split(jax.random.key(0), K)
    stack = {
        "key": keys,
        "mask": stacking.stack(members(packed=True)),
        "w": jnp.ones(K),
    }

    def function(member, x):
        kept = packing.unpack(member["mask"])["hidden"]
        return x * member["w"] + jax.random.normal(member["key"], (3,)), kept

    x = jnp.arange(3.0)
    found = stacking.map(function, stack, x, batch_size=batch_size)
    alone = [function(m, x) for m in stacking.unstack(stack)]
    for i, each in enumerate(alone):
        trees.assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], found), each)


def test_map_refuses_what_is_no_stack():
    with pytest.raises(
        ValueError, match="stacking.map` needs `batch_size` of at least"
    ):
        stacking.map(lambda m: m, jnp.ones(3), batch_size=0)
    with pytest.raises(ValueError, match="(?s)stacking.map` needs every leaf.*b: 2"):
        stacking.map(lambda m: m, {"a": jnp.ones(3), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match="at least one member"):
        stacking.map(lambda m: m, jnp.ones((0, 2)))
