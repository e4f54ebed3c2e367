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
            "hidden": jax.device_put(rng.random((3, 7)) < 0.5),
            "out": jax.device_put(rng.random((1, 2)) < 0.7),
            "bias": None,
        }
        for _ in range(k)
    ]
    return [packing.pack(m) for m in masks] if packed else masks


def network(params, x):
    return jax.nn.relu(x @ params["hidden"]) @ params["out"] + params["bias"][None]


def dense(params, mask, x):
    """The network under one mask, in NumPy."""
    hidden = np.where(mask["hidden"], params["hidden"], 0)
    out = np.where(mask["out"], params["out"], 0)
    return np.maximum(x @ hidden, 0) @ out + np.asarray(params["bias"])


@pytest.fixture
def params():
    rng = np.random.default_rng(1)
    shapes = {"hidden": (3, 7), "out": (7, 2), "bias": (2,)}
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def inputs(n):
    return np.random.default_rng(2).normal(size=(n, 3)).astype(np.float32)


over_forms = pytest.mark.parametrize("packed", [False, True], ids=["bool", "packed"])


@over_forms
def test_a_stack_is_its_members(packed):
    masks = members(packed=packed)
    stack = stacking.stack(masks)
    assert stacking.size(stack) == K
    assert stack["bias"] is None
    for a, b in zip(masks, stacking.unstack(stack), strict=True):
        trees.assert_same(a, b)
    for i in (0, 3, K - 1, -1, -K):
        trees.assert_same(stacking.take(stack, i), masks[i])
        traced = jax.jit(stacking.take)(stack, jax.device_put(np.int32(i)))
        trees.assert_same(traced, masks[i])
    some = stacking.take(stack, np.array([3, 0, -1]))
    trees.assert_same(some, stacking.stack([masks[3], masks[0], masks[-1]]))


def test_a_stack_of_packed_masks_is_the_packed_stack():
    stack = stacking.stack(members(packed=True))
    trees.assert_same(stack, jax.jit(jax.vmap(packing.pack))(stacking.stack(members())))


def test_a_traced_index_out_of_range_is_clipped():
    masks = members()
    stack, take = stacking.stack(masks), jax.jit(stacking.take)
    trees.assert_same(take(stack, jax.device_put(np.int32(K + 3))), masks[-1])
    trees.assert_same(take(stack, jax.device_put(np.int32(-K - 3))), masks[0])


@pytest.mark.parametrize(
    ("packed", "batch_size"),
    [(False, None), (True, None), (True, 1), (False, 2)] + [(False, K + 3)],
)
def test_predict_is_a_loop_over_members(batch_size, packed, params):
    masks, x = members(), inputs(4)
    stack = stacking.stack(members(packed=packed))
    out = jax.jit(
        lambda p, s, x: stacking.predict(network, p, s, x, batch_size=batch_size)
    )(params, stack, x)
    assert out.shape == (K, 4, 2)
    for got, mask in zip(out, masks, strict=True):
        np.testing.assert_allclose(got, dense(params, mask, x), rtol=1e-5, atol=1e-6)


def test_predict_takes_soft_masks_and_returns_any_tree(params):
    masks, x = members(), inputs(1)
    soft = jax.tree.map(
        lambda m: np.float32(0.5) * np.asarray(m), stacking.stack(masks)
    )

    def apply(params, x, *, scale=2.0):
        return {"out": network(params, x) * scale, "sum": params["hidden"].sum()}

    out = stacking.predict(apply, params, soft, x)
    halved = {**params, "hidden": params["hidden"] / 2, "out": params["out"] / 2}
    for i, mask in enumerate(masks):
        np.testing.assert_allclose(
            out["out"][i], 2 * dense(halved, mask, x), rtol=1e-5, atol=1e-6
        )
        kept = halved["hidden"][np.asarray(mask["hidden"])]
        np.testing.assert_allclose(out["sum"][i], kept.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("k", "packed"), [(5, False), (1, True), (15, True), (40, True)]
)
def test_mix_is_the_weighted_sum(k, packed):
    stack = stacking.stack(members(k=k))
    coefficients = np.random.default_rng(k).normal(size=k).astype(np.float32)
    given = jax.jit(jax.vmap(packing.pack))(stack) if packed else stack
    out = stacking.mix(given, jax.device_put(coefficients))
    assert out["bias"] is None
    for name in ("hidden", "out"):
        assert out[name].dtype == jnp.float32
        expected = mixing.mix(np.asarray(stack[name]), coefficients)
        np.testing.assert_allclose(out[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("k", [1, 40])
def test_counts_are_those_of_the_members_that_are_told(k, packed):
    stack = stacking.stack(members(k=k))
    given = jax.jit(jax.vmap(packing.pack))(stack) if packed else stack
    some = np.random.default_rng(k).random(k) < 0.5
    count = jax.jit(stacking.counts)
    for told in (None, some, np.zeros(k, bool)):
        out = count(given, told)
        assert out["bias"] is None
        for name in ("hidden", "out"):
            kept = np.asarray(stack[name])[slice(None) if told is None else told]
            assert out[name].dtype == jnp.int32
            np.testing.assert_array_equal(out[name], kept.sum(0))
        trees.assert_same(stacking.counts(given, told), out)


@over_forms
def test_mix_keeps_the_dtype_and_a_corner_is_a_member(packed):
    masks = members()
    stack = stacking.stack(members(packed=packed))
    coefficients = np.array([1, 2, 4, 8, 16], jnp.bfloat16)  # sums below 32 are exact
    out = stacking.mix(stack, jax.device_put(coefficients))["hidden"]
    assert out.dtype == jnp.bfloat16
    plain = np.stack([mask["hidden"] for mask in masks])
    expected = mixing.mix(plain, coefficients.astype(np.float64))
    np.testing.assert_array_equal(trees.to_numpy(out), expected)
    for i in range(K):
        corner = jax.device_put(np.eye(K, dtype=coefficients.dtype)[i])
        out = trees.to_numpy(stacking.mix(stack, corner)["hidden"])
        np.testing.assert_array_equal(out, masks[i]["hidden"])


def test_the_gradient_by_a_coefficient_is_a_dot_with_the_mask(params):
    stack = stacking.stack(members())
    packed = jax.jit(jax.vmap(packing.pack))(stack)
    x, even = inputs(4), np.full(K, 1 / K, np.float32)

    def by_params(soft):
        return jnp.sum(network(masking.apply(params, soft), x) ** 2)

    def loss(coefficients):
        return by_params(stacking.mix(stack, coefficients))

    gradient = jax.jit(jax.grad(by_params))(stacking.mix(packed, jax.device_put(even)))
    np.testing.assert_allclose(
        packing.dot(packed, gradient), jax.jit(jax.grad(loss))(even), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("group", "packed"), [(1, True), (3, True), (3, False), (100, True)]
)
def test_each_sample_is_run_under_its_own_mask(group, packed, params):
    masks, x = members(), inputs(17)
    whose = np.random.default_rng(3).integers(0, K, 17)
    stack = stacking.stack(members(packed=packed))
    out = jax.jit(
        lambda whose, x: stacking.predict_each(
            network, params, stack, whose, x, group=group
        )
    )(whose, x)
    for i, member in enumerate(whose):
        alone = dense(params, masks[member], x[i : i + 1])[0]
        np.testing.assert_allclose(out[i], alone, rtol=1e-5, atol=1e-6)


def test_groups_are_no_more_than_they_have_to_be(params):
    seen = []

    def counting(params, x):
        jax.debug.callback(lambda: seen.append(x.shape[0]))
        return network(params, x)

    stack = stacking.stack(members())
    whose = np.array([4, 0, 4, 4, 0, 4, 4], np.int32)  # five of one, two of another
    run = jax.jit(
        lambda whose, x: stacking.predict_each(
            counting, params, stack, whose, x, group=2
        )
    )
    jax.block_until_ready(run(whose, np.ones((7, 3), np.float32)))
    jax.effects_barrier()
    assert seen == [2] * 4
    run(np.zeros(7, whose.dtype), np.ones((7, 3), np.float32))
    jax.effects_barrier()
    assert len(seen) == 8
    assert run._cache_size() == 1


def test_each_takes_trees_of_inputs_and_outputs(params):
    def net(params, inputs):
        out = network(params, inputs["x"])
        return {"sum": out + inputs["y"], "sign": out > 0}

    masks, x, y = members(), inputs(4), np.ones((4, 2), np.float32)
    whose = np.array([1, 1, 3, 0])
    stack = stacking.stack(masks)
    out = stacking.predict_each(net, params, stack, whose, {"x": x, "y": y})
    assert out["sign"].dtype == bool
    for i, member in enumerate(whose):
        expected = dense(params, masks[member], x[i : i + 1])[0]
        np.testing.assert_allclose(out["sum"][i], expected + 1, rtol=1e-5)
        np.testing.assert_array_equal(out["sign"][i], expected > 0)


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
    wide = {**params, "hidden": np.ones((4, 7), "float32")}
    match = r"(?s)predict_each` needs .*hidden: mask \(3, 7\), params \(4, 7\)"
    with pytest.raises(ValueError, match=match):
        call(network, wide, stack, jnp.zeros(4, int), jnp.ones((4, 3)))


def test_members_out_of_range_are_clipped(params):
    masks, x = members(), inputs(3)
    stack = stacking.stack(masks)
    out = stacking.predict_each(network, params, stack, np.array([-1, 2, 99]), x)
    for i, member in enumerate((0, 2, K - 1)):
        alone = dense(params, masks[member], x[i : i + 1])[0]
        np.testing.assert_allclose(out[i], alone, rtol=1e-5)


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
    stack = {"w": np.arange(200)[:, None] == 199}
    assert np.asarray(stacking.take(stack, jax.device_put(np.int8(-1)))["w"])[0]


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_map_is_a_loop_over_members_of_any_kind(batch_size):
    keys = jax.random.split(jax.random.key(0), K)
    stack = {
        "key": keys,
        "mask": stacking.stack(members(packed=True)),
        "w": np.ones(K, np.float32),
    }

    def function(member, x):
        kept = packing.unpack(member["mask"])["hidden"]
        return x * member["w"] + jax.random.normal(member["key"], (3,)), kept

    x = np.arange(3, dtype=np.float32)
    found = stacking.map(function, stack, x, batch_size=batch_size)
    alone = jax.jit(function)
    for i, each in enumerate(stacking.unstack(stack)):
        own = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], found)
        trees.assert_same(own, alone(each, x))


def test_what_is_no_array_is_not_stacked():
    module = {"w": np.ones(3), "act": jax.nn.relu, "none": None, "name": "net"}
    with pytest.raises(
        TypeError,
        match=r"(?s)every leaf to be an array .*eqx.is_array\).*act: .*name:",
    ):
        stacking.stack([module, module])
    eqx = pytest.importorskip("equinox")
    nets = [eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(i)) for i in range(2)]
    with pytest.raises(TypeError, match=r"(?s)eqx.is_array.*activation"):
        stacking.stack(nets)
    params = [eqx.filter(net, eqx.is_array) for net in nets]
    stack = stacking.stack(params)
    trees.assert_same(stacking.take(stack, 1), params[1])


def test_a_stack_is_packed_mask_by_mask(params):
    """`packing.pack` makes one mask of a stack."""
    packed = packing.pack(stacking.stack(members()))
    say = r"` needs .*hidden: one mask \(5, 3, 7\); pack a stack by `jax.vmap\(pack"
    for name, call in {
        "size": lambda s: stacking.size(s),
        "take": lambda s: stacking.take(s, 0),
        "map": lambda s: stacking.map(lambda m: m, s),
        "predict": lambda s: stacking.predict(network, params, s, inputs(2)),
    }.items():
        with pytest.raises(ValueError, match="(?s)" + name + say):
            call(packed)


def test_samples_that_mix_are_told_before_they_are_grouped(params):
    def normalized(params, x):
        return network(params, x) - x.mean()

    stack, x = stacking.stack(members()), inputs(3)
    whose = np.array([0, 1, 0])
    with pytest.warns(
        UserWarning, match=r"predict_each` gives `apply` .* but it mixes"
    ):
        jax.eval_shape(
            lambda x: stacking.predict_each(normalized, params, stack, whose, x), x
        )


def test_map_refuses_what_is_no_stack():
    with pytest.raises(
        ValueError, match="stacking.map` needs `batch_size` of at least"
    ):
        stacking.map(lambda m: m, jnp.ones(3), batch_size=0)
    with pytest.raises(ValueError, match="(?s)stacking.map` needs every leaf.*b: 2"):
        stacking.map(lambda m: m, {"a": jnp.ones(3), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match="at least one member"):
        stacking.map(lambda m: m, jnp.ones((0, 2)))
