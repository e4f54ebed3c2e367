"""A stack of masks: every member is a smaller network of its own, all of one shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import compaction, packing
from maskjax.recipes import masksembles
from tests import compaction_zoo as zoo
from tests.compaction_zoo import masks

K = 3
NAMES = ("equinox/mlp", "linen/cnn_train", "linen/gpt_scanned", "linen/densely")


def drawn(name, seeds):
    """Masks [K, ...] of every kind of axis."""
    net = zoo.get(name)
    groups = compaction.groups(net.apply, net.params, *net.inputs)
    every = [masks.draw("mixed", groups, net.params, seed) for seed in seeds]
    none = lambda leaf: leaf is None  # noqa: E731

    def whole(leaf, mask):
        if leaf is None:
            return None
        return np.broadcast_to(True if mask is None else mask, leaf.shape)

    each = [jax.tree.map(whole, net.params, mask, is_leaf=none) for mask in every]
    return each, jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def planned(name, mask, **how):
    net = zoo.get(name)
    return compaction.plan(net.apply, net.params, mask, *net.inputs, **how)


def close(got, wanted):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = max(1, np.abs(np.asarray(other)).max())
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("name", NAMES)
def test_each_small_member_is_its_masked_network(name):
    net, params, x = zoo.get(name), zoo.make(name), zoo.data(name)
    _, stack = drawn(name, range(K))
    plan = planned(name, stack, stack=True)

    def run(i, p, plan=plan):
        return compaction.narrow(net.apply, plan, member=i)(p, *x)

    @jax.jit
    def both(params):
        masked = jax.vmap(maskjax.apply, (None, 0))(params, stack)
        small = compaction.shrink(masked, plan)
        wanted = jax.vmap(lambda p: net.apply(p, *x))(masked)
        if name == "linen/cnn_train":  # new statistics come small
            wanted = wanted[0], compaction.shrink(wanted[1], plan)
        one = jax.tree.map(lambda leaf: leaf[1], small)
        alone = compaction.narrow(net.apply, plan.member(1))(one, *x)
        back = compaction.expand(small, plan)
        again = compaction.shrink(back, plan)
        return jax.vmap(run)(jnp.arange(K), small), wanted, alone, small, again, back

    got, wanted, alone, small, again, back = both(params)
    close(got, wanted)
    close(alone, jax.tree.map(lambda leaf: leaf[1], wanted))
    close(again, small)
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, stack)


@pytest.mark.parametrize("name", NAMES)
def test_one_member_or_equal_ones_have_the_plan_of_one_mask(name):
    [mask], stack = drawn(name, [0])
    alone = planned(name, mask)
    assert planned(name, stack, stack=True).member(0) == alone
    equal = jax.tree.map(lambda leaf: np.repeat(leaf, 2, 0), stack)
    twice = planned(name, equal, stack=True)
    assert twice.member(0) == twice.member(1) == alone
    assert twice.shapes == alone.shapes


@pytest.mark.parametrize("gone", [([0, 1, 6], [3, 4, 5]), ([0, 4, 5], [0, 4])])
def test_parts_of_other_sizes_are_made_equal_before_what_they_are_put_together_to(gone):
    params = {
        k: np.ones(s, "f4") for k, s in {"a": (2, 4), "b": (2, 4), "c": (8, 1)}.items()
    }

    def apply(p, x):
        return jnp.concatenate([x @ p["a"], x @ p["b"]], -1) @ p["c"]

    rows = np.ones((2, 8, 1), bool)
    rows[0, gone[0]], rows[1, gone[1]] = False, False
    stack = {"a": None, "b": None, "c": rows}
    plan = compaction.plan(apply, params, stack, np.ones((1, 2), "f4"), stack=True)
    assert plan.shapes == {"a": (2, 3), "b": (2, 3), "c": (6, 1)}


PARAMS = {"a": np.ones((3, 8), "f4"), "c": np.ones((8, 2), "f4")}
X = np.random.default_rng(1).normal(size=(5, 3)).astype("f4")


def network(p, x):
    return jax.nn.relu(x @ p["a"]) @ p["c"]


def test_masksembles_are_small_by_rows_and_by_features():
    feature = np.asarray(masksembles.masks(8, key=jax.random.key(0)))
    n, ones = len(feature), int(feature[0].sum())
    stack = {"a": None, "c": feature[..., None]}
    plan = compaction.plan(network, PARAMS, stack, X, stack=True)
    assert plan.shapes == {"a": (3, ones), "c": (ones, 2)}
    assert str(plan).startswith(f"{n} members, each 40 -> {ones * 5} parameters")
    packed = {"a": None, "c": jax.vmap(packing.pack)(jnp.asarray(stack["c"]))}
    assert compaction.plan(network, PARAMS, packed, X, stack=True) == plan

    def masked(v, x):
        return (
            jnp.where(v["masks"], jax.nn.relu(x @ v["params"]["a"]), 0)
            @ v["params"]["c"]
        )

    nothing = {"a": None, "c": None}
    one = {"params": PARAMS, "masks": feature[0]}
    on = compaction.plan(
        masked, one, {"params": nothing, "masks": feature}, X, stack=True
    )
    small = compaction.shrink({"params": PARAMS, "masks": feature}, on)
    assert small["params"]["a"].shape == (n, 3, ones)
    assert small["masks"].shape == (n, ones)
    assert small["masks"].all()
    hidden = np.maximum(X @ PARAMS["a"], 0)
    wanted = np.stack([hidden @ (PARAMS["c"] * f[:, None]) for f in feature])
    close(jax.vmap(compaction.narrow(masked, on), (0, None))(small, X), wanted)
    rows = compaction.shrink(PARAMS, plan)
    close(jax.vmap(compaction.narrow(network, plan), (0, None))(rows, X), wanted)


def last(p, h):
    return h @ p["c"]


def test_inputs_are_cut_for_the_member_that_has_a_number():
    keep = np.zeros((2, 8, 1), bool)
    keep[0, :4], keep[1, 2:6] = True, True
    params, h = {"c": np.arange(16, dtype="f4").reshape(8, 2)}, np.ones((1, 8), "f4")
    plan = compaction.plan(last, params, {"c": keep}, h, stack=True)
    small = compaction.shrink(params, plan)
    assert small["c"].shape == (2, 4, 2)
    numbered = lambda i, p: compaction.narrow(last, plan, member=i)(p, h)  # noqa: E731
    wanted = (params["c"] * keep).sum(1, keepdims=True)
    close(jax.jit(jax.vmap(numbered))(jnp.arange(2), small), wanted)
    close(numbered(1, {"c": small["c"][1]}), wanted[1])
    slope = jax.grad(
        lambda h: compaction.narrow(last, plan, member=1)({"c": small["c"][1]}, h).sum()
    )
    close(slope(h)[0], (params["c"] * keep[1]).sum(-1))
    with pytest.raises(ValueError, match="narrow` needs `member`, the number of"):
        compaction.narrow(last, plan)({"c": small["c"][0]}, h)
    with pytest.raises(ValueError, match="got 2 of 2 members"):
        compaction.narrow(last, plan, member=2)
    with pytest.raises(ValueError, match="of one member: use `jax.vmap`"):
        compaction.narrow(last, plan)(small, h)
    with pytest.raises(ValueError, match="member` needs the number of a member, got 2"):
        plan.member(2)
    one = compaction.plan(last, params, {"c": keep[0]}, h)
    with pytest.raises(ValueError, match="got 0 of a plan of one mask"):
        compaction.narrow(last, one, member=0)


SLOPES = jnp.arange(1.0, 9.0)


@jax.custom_jvp
def rounded(x):
    return jnp.round(x)


@rounded.defjvp
def _(primals, tangents):
    return rounded(*primals), tangents[0] * SLOPES[None]


def test_the_derivative_of_a_function_is_cut_for_each_step_and_member():
    """Also where it is asked for when the loops around it are closed."""
    keep = np.array([[1, 0, 1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0, 0, 1]], bool)
    layers = {"a": np.stack([PARAMS["a"]] * 2), "c": np.ones((2, 8, 3), "f4")}

    def looped(p, x):
        step = lambda h, p: (jnp.tanh(rounded(h @ p["a"]) @ p["c"]), None)  # noqa: E731
        return jax.lax.scan(step, x, p)[0].sum()

    plan = compaction.plan(looped, layers, {"a": keep[:, None], "c": None}, X)
    assert plan.shapes["a"] == (2, 3, 4)
    masked = maskjax.apply(layers, {"a": keep[:, None], "c": None})
    wanted = compaction.shrink(jax.grad(looped)(masked, X), plan)
    narrow = compaction.narrow(looped, plan)
    small = compaction.shrink(masked, plan)
    close(jax.jit(jax.grad(jax.jit(narrow)))(small, X), wanted)

    def one(p, x):
        return (rounded(x @ p["a"]) @ p["c"]).sum()

    plan = compaction.plan(one, PARAMS, {"a": keep[:, None], "c": None}, X, stack=True)
    small = compaction.shrink(PARAMS, plan)
    with pytest.raises(ValueError, match="narrow` needs `member`, the number of"):
        compaction.narrow(one, plan)(jax.tree.map(lambda leaf: leaf[0], small), X)

    def slopes(i, p):
        return jax.grad(jax.jit(compaction.narrow(one, plan, member=i)))(p, X)["a"]

    found = jax.jit(jax.vmap(slopes))(jnp.arange(2), small)
    every = 2 * X.sum(0)[:, None] * SLOPES[None]  # two outputs, of rows of ones
    close(found, np.stack([every[:, row] for row in keep]))


def test_bad_stacks_are_refused():
    plan = compaction.plan
    of_two = {"a": np.ones((2, 3, 8), bool), "c": None}
    of_each = of_two | {"c": np.ones((3, 8, 2), bool)}
    with pytest.raises(ValueError, match="same number of members"):
        plan(network, PARAMS, of_each, X, stack=True)
    with pytest.raises(ValueError, match="a member of mask"):
        plan(network, PARAMS, {"a": np.ones((3, 8), bool), "c": None}, X, stack=True)
    with pytest.raises(ValueError, match="can't fold"):
        plan(network, PARAMS, of_two, X, stack=True, fold=True)
