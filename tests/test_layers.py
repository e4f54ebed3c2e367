"""Layers that mask features: members, samples, checkpoints, in Linen and NNX."""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

from maskjax import bank, layers, packing, stacking, storage
from maskjax.packing import PackedMask
from maskjax.recipes import masksembles, mc_dropout
from maskjax.theory import strong_ticket
from tests import trees

N = 4
DRAW = functools.partial(masksembles.masks, members=N, scale=2.0)
RAGGED = np.asarray([0, 0, 1, 2, 3], np.int32)
RANDOM = np.asarray([2, 0, 0, 3, 1], np.int32)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = layers.LinenFeatureMask(DRAW)(nn.relu(nn.Dense(16)(x)))
        x = layers.LinenFeatureMask(DRAW)(nn.relu(nn.Dense(16)(x)))
        return nn.Dense(3)(x)


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = layers.LinenFeatureMask(DRAW)(nn.relu(nn.Conv(16, (3, 3))(x)))
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(len(x), -1))


class NNXDense(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(6, 16, rngs=rngs)
        self.mask = layers.NNXFeatureMask(16, DRAW, rngs=rngs)
        self.b = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.b(self.mask(nnx.relu(self.a(x))))


NETS = {"dense": Dense(), "convolution": Convolution()}
X = {
    kind: np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for kind, shape in {"dense": (5, 6), "convolution": (5, 4, 4, 2)}.items()
}
# The layer that masks what each kernel meets.
MASKED = {
    "dense": {"Dense_1": "LinenFeatureMask_0", "Dense_2": "LinenFeatureMask_1"},
    "convolution": {"Conv_1": "LinenFeatureMask_0"},
}


@functools.cache
def variables(kind="dense", seed=0):
    """What a network begins with; of one program for all seeds."""
    return INIT[kind](jax.random.key(seed), X[kind])


INIT = {kind: jax.jit(net.init) for kind, net in NETS.items()}


def run(masks, x, kind="dense"):
    return NETS[kind].apply({**variables(kind), "masks": masks}, x)


def of_members(run, masks, x):
    """All members, one of them, and those of each sample."""
    assigned = [run(layers.assign(masks, whose), x) for whose in (RAGGED, RANDOM)]
    one_by_one = stacking.map(run, masks, x, batch_size=1)
    return stacking.map(run, masks, x), one_by_one, run(
        stacking.take(masks, 2), x
    ), assigned  # fmt: skip


def check(found, exact):
    every, one_by_one, second, assigned = found
    for members in (every, one_by_one):
        close(members, exact)
    close(second, exact[2])
    for whose, out in zip((RAGGED, RANDOM), assigned, strict=True):
        close(out, exact[whose, np.arange(5)])
    # The outputs differ, or there was nothing to compare.
    assert len({out.tobytes() for out in exact}) == N


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", NETS)
def test_members_through_layers_are_those_of_masks_on_rows(kind):
    everything = jax.tree.map(
        lambda m: np.ones(m.shape[1:], bool), variables(kind)["masks"]
    )

    @jax.jit
    def compare(variables, x):
        params, masks = variables["params"], variables["masks"]
        stack = jax.tree.map(lambda _: None, params)
        for kernel, layer in MASKED[kind].items():
            rows = masksembles.rows(masks[layer]["features"], params[kernel]["kernel"])
            stack[kernel] = {"kernel": rows, "bias": None}

        def net(params, masks, x):
            return NETS[kind].apply({"params": params, "masks": masks}, x)

        plain = lambda params, x: net(params, everything, x)  # noqa: E731
        exact = stacking.predict(plain, params, stack, x)
        return exact, of_members(functools.partial(net, params), masks, x)

    exact, found = jax.device_get(compare(variables(kind), X[kind]))
    check(found, exact)


@functools.cache
def nnx_net(seed=0):
    return NNXDense(nnx.Rngs(seed))


def test_members_in_nnx_are_those_by_hand():
    graph, masks, rest = nnx.split(nnx_net(), layers.Mask, ...)

    @jax.jit
    def members(masks, rest, x):
        run = lambda masks, x: nnx.merge(graph, masks, rest, copy=True)(x)  # noqa: E731
        return of_members(run, masks, x)

    found = jax.device_get(members(masks, rest, X["dense"]))
    p = jax.tree.map(np.asarray, nnx.to_pure_dict(rest))
    hidden = np.maximum(X["dense"] @ p["a"]["kernel"] + p["a"]["bias"], 0)
    kept = np.asarray(nnx_net().mask.features.get_value())[:, None] * hidden
    check(found, kept @ p["b"]["kernel"] + p["b"]["bias"])


class NNXLive(nnx.Module):
    """With state of its own: keys of dropout, and statistics in training."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(6, use_running_average=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.body = NNXDense(rngs)

    def __call__(self, x):
        return self.body(self.dropout(self.norm(x)))


@pytest.mark.parametrize("batch_size", [None, 1])
def test_members_in_nnx_may_change_state_of_their_own(batch_size):
    graph, masks, rest = nnx.split(NNXLive(nnx.Rngs(0)), layers.Mask, ...)

    @jax.jit
    def members(masks, rest, x):
        run = lambda masks, x: nnx.merge(graph, masks, rest, copy=True)(x)  # noqa: E731
        one = run(stacking.take(masks, 1), x)
        return stacking.map(run, masks, x, batch_size=batch_size), one

    found, one = members(masks, rest, X["dense"])
    assert found.shape == (N, 5, 3)
    close(found[1], one)  # every member starts from the same state


class Scanned(nn.Module):
    """As many layers as members stacked by `nn.scan`, and one that is not."""

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x):
                return layers.LinenFeatureMask(DRAW)(nn.relu(nn.Dense(16)(x))), None

        scan = nn.scan(
            Layer,
            variable_axes={"params": 0, "masks": -2},
            split_rngs={"params": True, "masks": True},
            length=N,
        )
        x, _ = scan(name="layers")(nn.Dense(16, name="first")(x))
        return nn.Dense(3, name="last")(layers.LinenFeatureMask(DRAW, name="mask")(x))


def scanned_by_hand(params, masks, x):
    """In NumPy: masks [B, L, C] of the stacked layers, and [B, C] of the last."""
    stacked, last = masks
    x = x @ params["first"]["kernel"] + params["first"]["bias"]
    for i in range(N):
        w, b = (params["layers"]["Dense_0"][k][i] for k in ("kernel", "bias"))
        x = np.maximum(x @ w + b, 0) * stacked[:, i]
    return (x * last) @ params["last"]["kernel"] + params["last"]["bias"]


def test_members_of_stacked_layers_are_members():
    """Also where layers are as many as members."""
    net, x = Scanned(), X["dense"]
    given = jax.device_get(jax.jit(net.init)(jax.random.key(0), x))
    params, masks = given["params"], given["masks"]
    stacked = masks["layers"]["LinenFeatureMask_0"]["features"]
    assert stacked.shape == (N, N, 16)
    assert not (stacked == stacked.swapaxes(0, 1)).all()

    @jax.jit
    def find(masks, x):
        run = lambda masks, x: net.apply({"params": params, "masks": masks}, x)  # noqa: E731
        own = layers.assign(masks, RANDOM, stack=1)
        return (
            stacking.map(run, masks, x),
            run(stacking.take(masks, 2), x),
            run(own, x),
        )

    each, third, own = jax.device_get(find(masks, x))
    last = masks["mask"]["features"]
    for i in range(N):
        picks = stacked[[i] * len(x)], last[[i] * len(x)]
        close(each[i], scanned_by_hand(params, picks, x))
    close(third, each[2])
    close(own, scanned_by_hand(params, (stacked[RANDOM], last[RANDOM]), x))


def test_stacked_layers_are_told_to_assign():
    masks = {"a": np.ones((N, N, 16), bool), "b": np.ones((N, 16), bool)}
    with pytest.raises(
        ValueError, match=r"(?s)stack \[N, C\] .*say `stack=1`.*a: \(4, 4, 16\)$"
    ):
        layers.assign(masks, RAGGED)
    with pytest.raises(
        ValueError, match=r"(?s)up to 1 axes of layers.*a: \(4, 4, 4, 1"
    ):
        layers.assign({"a": np.ones((N, 4, 4, 16), bool)}, RAGGED, stack=1)
    with pytest.raises(ValueError, match="assign` needs `stack` of at least 0"):
        layers.assign(masks, RAGGED, stack=-1)
    shapes = jax.eval_shape(functools.partial(layers.assign, stack=1), masks, RAGGED)
    assert (shapes["a"].shape, shapes["b"].shape) == ((5, 1, N, 16), (5, 1, 16))


def test_members_of_stacked_layers_in_nnx_are_members():
    axes = nnx.StateAxes({layers.Mask: -2, ...: 0})

    @nnx.split_rngs(splits=N)
    @nnx.vmap(in_axes=(0,), out_axes=axes)
    def stacked(rngs):
        return layers.NNXFeatureMask(16, DRAW, rngs=rngs)

    graph, masks = nnx.split(stacked(nnx.Rngs(0)))
    assert masks["features"].shape == (N, N, 16)

    @jax.jit
    def find(masks, x):
        def run(masks, x):
            @nnx.scan(in_axes=(axes, nnx.Carry), out_axes=nnx.Carry)
            def forward(layer, x):
                return jnp.roll(layer(x), 1, axis=-1)

            return forward(nnx.merge(graph, masks, copy=True), x)

        return stacking.map(run, masks, x)

    x = np.random.default_rng(0).normal(size=(5, 16)).astype("f4")
    found = find(masks, x)
    kept = np.asarray(masks["features"].get_value())
    for i in range(N):
        wanted = x
        for j in range(N):
            wanted = np.roll(wanted * kept[i, j], 1, axis=-1)
        close(found[i], wanted)


def test_stacks_of_feature_masks_come_back_from_disk(tmp_path):
    masks = variables()["masks"]
    packed = jax.jit(jax.vmap(packing.pack))(masks)
    storage.save(tmp_path / "stack", packed)
    back = storage.load(tmp_path / "stack")
    assert stacking.size(back) == N
    trees.assert_same(jax.tree.map(jnp.asarray, back), packed)
    storage.save(tmp_path / "one", masks)  # a boolean array is one mask
    with pytest.raises(
        ValueError, match=r"(?s)size` needs.*one mask \(4, 16\); pack .*`jax.vmap\(pac"
    ):
        stacking.size(storage.load(tmp_path / "one"))


def test_members_never_copy_kernels():
    def shapes(function, *args):
        """Of everything that is computed, inside of calls too."""
        pending, found = [jax.make_jaxpr(function)(*args).jaxpr], set()
        while pending:
            for eqn in pending.pop().eqns:
                found |= {v.aval.shape for v in eqn.outvars}
                pending += [p.jaxpr for p in eqn.params.values() if hasattr(p, "jaxpr")]
        return found

    copies = (N, 16, 16)
    members = functools.partial(stacking.map, run)
    through_layers = shapes(members, variables()["masks"], X["dense"])
    assert (N, 5, 16) in through_layers
    assert copies not in through_layers
    kernel = {"w": np.ones((16, 16), "f4")}
    on_rows = functools.partial(stacking.predict, lambda p, x: x @ p["w"], kernel)
    stack = {"w": np.ones((N, 16, 1), bool)}
    assert copies in shapes(on_rows, stack, np.ones((5, 16), "f4"))


def test_gradients_are_those_of_each_members_samples():
    params, masks = variables()["params"], variables()["masks"]

    def loss(params, masks, x):
        return jnp.sum(NETS["dense"].apply({"params": params, "masks": masks}, x) ** 2)

    @jax.jit
    def both(params, masks, x):
        together = jax.grad(loss)(params, layers.assign(masks, RAGGED), x)

        def alone(member, x):  # each sample with its member alone
            return jax.grad(loss)(params, stacking.take(masks, member), x[None])

        return together, jax.vmap(alone)(jax.device_put(RAGGED), x)

    together, each = jax.device_get(both(params, masks, X["dense"]))
    for a, b in zip(*map(jax.tree.leaves, (together, each)), strict=True):
        np.testing.assert_allclose(a, b.sum(0), rtol=1e-4, atol=1e-4)


def test_what_is_masked_is_zero_and_so_is_its_gradient():
    layer, x = layers.LinenFeatureMask(), np.float32([[np.inf, 2, np.nan]])
    masks = {"masks": {"features": np.array([False, True, False])}}

    @jax.jit
    def both(x):
        return layer.apply(masks, x), jax.grad(lambda x: layer.apply(masks, x).sum())(x)

    out, slopes = both(x)
    np.testing.assert_array_equal(out, [[0, 2, 0]])
    np.testing.assert_array_equal(slopes, [[0, 1, 0]])
    half = jax.eval_shape(lambda x: layer.apply(masks, x), x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_soft_masks_multiply():
    layer, x = layers.LinenFeatureMask(), np.ones((2, 5, 3), "f4")
    fresh = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(layer.apply(fresh, x), x)
    masks = mc_dropout.mask(fresh["masks"], rate=0.5, key=jax.random.key(1))
    out = layer.apply({"masks": masks}, x)
    np.testing.assert_array_equal(out, np.broadcast_to(masks["features"], x.shape))


def test_a_layer_stands_where_dropout_does_and_refuses_a_stack():
    layer = layers.LinenFeatureMask(DRAW)
    net = nn.Sequential([nn.Dense(16), nn.relu, layer, nn.Dense(3)])
    x = np.ones((2, 6), "f4")
    begin = lambda key: net.init(key, x)  # noqa: E731
    fresh = jax.eval_shape(begin, jax.random.PRNGKey(0))  # a key of the old kind
    assert fresh["masks"]["layers_2"]["features"].shape == (N, 16)
    with pytest.raises(
        ValueError, match="`layers_2` needs a mask.*That is a stack: map"
    ):
        jax.eval_shape(net.apply, fresh, x)
    # Even where samples are as many.
    with pytest.raises(ValueError, match="That is a stack"):
        jax.eval_shape(run, variables()["masks"], X["dense"][:N])


def test_streams_of_keys_decide():
    a, b = jax.random.key(0), jax.random.key(1)
    begin = jax.jit(lambda params, masks, x: NETS["dense"].init(
        {"params": params, "masks": masks}, x
    ))  # fmt: skip
    first, masks_anew, weights_anew = (
        begin(*streams, X["dense"]) for streams in ((a, a), (a, b), (b, a))
    )
    trees.assert_same(first["params"], masks_anew["params"])
    trees.assert_same(first["masks"], weights_anew["masks"])
    one, two = (
        v["masks"]["LinenFeatureMask_0"]["features"] for v in (first, masks_anew)
    )
    assert not np.array_equal(one, two)
    other = first["masks"]["LinenFeatureMask_1"]["features"]
    assert not np.array_equal(one, other)


def test_masks_are_part_of_checkpoints(tmp_path):
    fresh = variables(seed=9)
    back = serialization.from_bytes(fresh, serialization.to_bytes(variables()))
    trees.assert_same(jax.tree.map(jnp.asarray, back), variables())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "net", variables())
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "net", fresh)
    trees.assert_same(restored, variables())


def test_without_its_masks_a_network_does_not_run():
    masks = variables()["masks"]
    first = {"features": np.asarray(masks["LinenFeatureMask_0"]["features"])[0]}
    for some in ({}, {"LinenFeatureMask_0": first}):
        with pytest.raises(flax.errors.FlaxError, match='(?s)"features".*"masks"'):
            jax.eval_shape(run, some, X["dense"])


def test_masks_are_part_of_nnx_state():
    net, other = nnx_net(), nnx_net(seed=5)
    state = nnx.state(net)
    assert "mask" in state
    pure = jax.tree.map(np.asarray, nnx.to_pure_dict(state))
    loaded = nnx.state(other)
    assert not np.array_equal(*(n.mask.features.get_value() for n in (net, other)))
    nnx.replace_by_pure_dict(loaded, pure)
    nnx.update(other, loaded)
    for a, b in zip(*map(jax.tree.leaves, (nnx.state(other), state)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(jax.tree.leaves(nnx.state(net, layers.Mask))) == 1
    assert len(jax.tree.leaves(nnx.state(net, nnx.Param))) == 4


def test_packed_masks_run_and_are_part_of_checkpoints():
    masks = variables()["masks"]
    packed = jax.jit(jax.vmap(packing.pack))(masks)

    @jax.jit
    def both(x):
        return [of_members(run, stack, x) for stack in (masks, packed)]

    jax.tree.map(close, *jax.device_get(both(X["dense"])))
    empty = jax.tree.map(np.zeros_like, packed)
    back = serialization.from_bytes(empty, serialization.to_bytes(packed))
    trees.assert_same(jax.tree.map(jnp.asarray, back), packed)


def test_banks_and_tickets_are_part_of_checkpoints():
    """Their types are told to Flax whether they were imported before or after."""
    stack = {"b": np.array([[True, True, False], [False, True, True]])}
    bits = {"b": PackedMask(np.uint32([[3], [6]]), (3,))}
    counts = {"b": np.int32([1, 2, 1])}
    tasks = bank.MaskBank(bits, counts, np.int32(2), np.int32(0))
    found = strong_ticket.Report(*((np.ones(2),) for _ in range(6)))
    wide = {"b": np.ones((3, 1))}
    ticket = strong_ticket.Ticket(wide, {"b": stack["b"][0]}, True, found, bias=False)
    for full in (tasks, ticket, {"stack": stack, "deep": [tasks]}):
        empty = jax.tree.map(np.zeros_like, full)
        back = serialization.from_bytes(empty, serialization.to_bytes(full))
        trees.assert_same(back, full)


def test_memory_is_for_as_many_members_as_run_at_a_time():
    x = jax.ShapeDtypeStruct((64, 6), jnp.float32)
    stack = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct((250 * N, *m.shape[1:]), bool),
        variables()["masks"],
    )
    predict = functools.partial(stacking.map, run, batch_size=4)
    compiled = jax.jit(predict).lower(stack, x).compile()
    hidden = 64 * 16 * 4  # the features of one member
    assert compiled.memory_analysis().temp_size_in_bytes < 40 * hidden


def test_bad_masks_are_refused():
    layer, x = layers.LinenFeatureMask(), np.ones((2, 3), "f4")

    def run(mask, x=x):
        return layer.apply({"masks": {"features": mask}}, x)

    with pytest.raises(
        ValueError, match=r"LinenFeatureMask` needs a mask \[C\].*\(4,\)"
    ):
        run(np.ones(4, bool))
    with pytest.raises(ValueError, match=r"got \(3, 1, 3\) for features \(2, 3\)\.\n"):
        run(np.ones((3, 1, 3), bool))
    with pytest.raises(TypeError, match="boolean or floating"):
        run(np.ones(3, int))
    with pytest.raises(ValueError, match=r"needs features of samples, got.*\(0, 3\)"):
        run(np.ones(3, bool), np.ones((0, 3), "f4"))
    with pytest.raises(
        ValueError,
        match=r"LinenFeatureMask` needs features to mask, got shape \(2, 0\)",
    ):
        layer.init(jax.random.key(0), np.ones((2, 0), "f4"))
    with pytest.raises(ValueError, match="NNXFeatureMask` needs features to mask"):
        layers.NNXFeatureMask(0)
    with pytest.raises(ValueError, match="NNXFeatureMask` needs `rngs` to draw"):
        layers.NNXFeatureMask(3, DRAW)
    wrong = layers.LinenFeatureMask(lambda channels, key: jnp.ones(channels, bool))
    with pytest.raises(ValueError, match=r"`draw` to return masks \[N, 3\], got.*\(3,"):
        wrong.init(jax.random.key(0), x)


def test_bad_assignments_are_refused():
    masks = {"a": np.ones((4, 3), bool)}
    for members in (np.zeros(0, int), np.int32(1), np.zeros((2, 2), int)):
        with pytest.raises(
            ValueError, match=r"`members` \[B\], for at least one sample"
        ):
            layers.assign(masks, members)
    with pytest.raises(TypeError, match="assign` needs `members` as integers, got fl"):
        layers.assign(masks, np.zeros(2))
    with pytest.raises(ValueError, match=r"assign` needs `members` in \[-4, 4\), g"):
        layers.assign(masks, np.arange(8))  # for eight members, but there are four
    with pytest.raises(ValueError, match=r"(?s)as a stack \[N, C\], got.*a: \(3,\)"):
        layers.assign({"a": np.ones(3, bool)}, np.zeros(2, int))
    with pytest.raises(ValueError, match="same number of members"):
        layers.assign(masks | {"b": np.ones((2, 3), bool)}, np.zeros(2, int))
