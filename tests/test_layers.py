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

from maskjax import layers, packing, stacking
from maskjax.recipes import masksembles, mc_dropout
from tests import trees

N = 4
DRAW = functools.partial(masksembles.masks, members=N, scale=2.0)


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


SHAPES = {"dense": (Dense, (5, 6)), "convolution": (Convolution, (5, 4, 4, 2))}


@functools.cache
def linen(kind):
    """A network's function of masks, its variables, and inputs."""
    make, shape = SHAPES[kind]
    net = make()
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), "float32")
    variables = jax.jit(net.init)(jax.random.key(0), x)
    run = lambda masks, x: net.apply({**variables, "masks": masks}, x)  # noqa: E731
    return jax.jit(run), variables, x


@functools.cache
def nnx_net():
    graph, masks, rest = nnx.split(NNXDense(nnx.Rngs(0)), layers.Mask, ...)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), "float32")
    run = lambda masks, x: nnx.merge(graph, masks, rest)(x)  # noqa: E731
    return jax.jit(run), masks, x


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", SHAPES)
def test_members_through_layers_are_those_of_masks_on_rows(kind):
    run, variables, x = linen(kind)
    params, masks = variables["params"], variables["masks"]
    kernels = {
        "dense": {"Dense_1": "LinenFeatureMask_0", "Dense_2": "LinenFeatureMask_1"},
        "convolution": {"Conv_1": "LinenFeatureMask_0"},
    }[kind]
    stack = jax.tree.map(lambda _: None, params)
    for kernel, layer in kernels.items():
        rows = masksembles.rows(masks[layer]["features"], params[kernel]["kernel"])
        stack[kernel] = {"kernel": rows, "bias": None}
    everything = jax.tree.map(lambda m: jnp.ones(m.shape[1:], bool), masks)
    net = SHAPES[kind][0]()

    def plain(params, x):
        return net.apply({"params": params, "masks": everything}, x)

    exact = stacking.predict(plain, params, stack, x)
    for batch_size in (None, 1):
        close(stacking.map(run, masks, x, batch_size=batch_size), exact)
    close(run(stacking.take(masks, 2), x), exact[2])
    # The outputs differ, or there was nothing to compare.
    assert len(np.unique(np.asarray(exact)[:, 0, 0])) == N


def test_members_in_nnx_are_those_of_a_loop():
    run, masks, x = nnx_net()
    every = stacking.map(run, masks, x)
    assert every.shape == (N, 5, 3)
    net = NNXDense(nnx.Rngs(0))
    drawn = net.mask.features.get_value()
    for i in range(N):
        close(run(stacking.take(masks, i), x), every[i])
        hidden = jnp.where(drawn[i][None], nnx.relu(net.a(x)), 0)
        close(net.b(hidden), every[i])


def test_members_never_copy_kernels():
    run, variables, x = linen("dense")

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
    through_layers = shapes(members, variables["masks"], x)
    assert (N, 5, 16) in through_layers
    assert copies not in through_layers
    kernel = {"w": jnp.ones((16, 16))}
    on_rows = functools.partial(stacking.predict, lambda p, x: x @ p["w"], kernel)
    assert copies in shapes(
        on_rows, {"w": jnp.ones((N, 16, 1), bool)}, jnp.ones((5, 16))
    )


@pytest.mark.parametrize("kind", [*SHAPES, "nnx"])
def test_in_training_each_sample_has_its_own_member(kind):
    if kind == "nnx":
        run, masks, x = nnx_net()
    else:
        run, variables, x = linen(kind)
        masks = variables["masks"]
    every = np.asarray(stacking.map(run, masks, x))
    ragged = masksembles.in_chunks(5, members=N)
    random = masksembles.at_random(5, members=N, key=jax.random.key(0))
    for whose in (ragged, random):
        close(run(layers.assign(masks, whose), x), every[whose, np.arange(5)])


def test_gradients_are_those_of_each_members_samples():
    _, variables, x = linen("dense")
    net, params, masks = Dense(), variables["params"], variables["masks"]
    whose = masksembles.in_chunks(5, members=N)

    def loss(params, masks, x):
        return jnp.sum(net.apply({"params": params, "masks": masks}, x) ** 2)

    slopes = jax.jit(jax.grad(loss))
    together = slopes(params, layers.assign(masks, whose), x)
    # The sum over samples, each with its member alone.
    each = [
        slopes(params, stacking.take(masks, whose[i]), x[i : i + 1]) for i in range(5)
    ]
    total = jax.tree.map(lambda *g: sum(g[1:], g[0]), *each)
    for a, b in zip(*map(jax.tree.leaves, (together, total)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_what_is_masked_is_zero_and_so_is_its_gradient():
    layer, x = layers.LinenFeatureMask(), jnp.array([[jnp.inf, 2.0, jnp.nan]])
    masks = {"masks": {"features": jnp.array([False, True, False])}}
    out = layer.apply(masks, x)
    np.testing.assert_array_equal(out, [[0, 2, 0]])
    slopes = jax.grad(lambda x: layer.apply(masks, x).sum())(x)
    np.testing.assert_array_equal(slopes, [[0, 1, 0]])
    assert layer.apply(masks, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_soft_masks_multiply():
    layer, x = layers.LinenFeatureMask(), jnp.ones((2, 5, 3))
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(layer.apply(variables, x), x)
    masks = mc_dropout.masks(variables["masks"], rate=0.5, key=jax.random.key(1))
    out = layer.apply({"masks": masks}, x)
    np.testing.assert_array_equal(out, np.broadcast_to(masks["features"], x.shape))


def test_a_layer_stands_where_dropout_does():
    layer = layers.LinenFeatureMask(DRAW)
    net = nn.Sequential([nn.Dense(16), nn.relu, layer, nn.Dense(3)])
    x = jnp.ones((2, 6))
    variables = net.init(jax.random.PRNGKey(0), x)  # a key of the old kind
    assert variables["masks"]["layers_2"]["features"].shape == (N, 16)
    with pytest.raises(
        ValueError, match="`layers_2` needs a mask.*That is a stack: map"
    ):
        net.apply(variables, x)


def test_a_stack_is_refused_even_where_samples_are_as_many():
    run, variables, x = linen("dense")
    with pytest.raises(ValueError, match="That is a stack"):
        run(variables["masks"], x[:N])


def test_streams_of_keys_decide():
    net, x = Dense(), jnp.ones((1, 6))
    a, b = jax.random.key(0), jax.random.key(1)
    first = net.init({"params": a, "masks": a}, x)
    masks_anew = net.init({"params": a, "masks": b}, x)
    weights_anew = net.init({"params": b, "masks": a}, x)
    trees.assert_same(first["params"], masks_anew["params"])
    trees.assert_same(first["masks"], weights_anew["masks"])
    one, two = (
        v["masks"]["LinenFeatureMask_0"]["features"] for v in (first, masks_anew)
    )
    assert not np.array_equal(one, two)
    other = first["masks"]["LinenFeatureMask_1"]["features"]
    assert not np.array_equal(one, other)


def test_masks_are_part_of_checkpoints(tmp_path):
    run, variables, x = linen("dense")
    exact = stacking.map(run, variables["masks"], x)
    fresh = Dense().init(jax.random.key(9), x)
    back = serialization.from_bytes(fresh, serialization.to_bytes(variables))
    trees.assert_same(jax.tree.map(jnp.asarray, back), variables)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "net", variables)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "net", fresh)
    trees.assert_same(restored, variables)
    np.testing.assert_array_equal(stacking.map(run, restored["masks"], x), exact)


def test_without_its_masks_a_network_does_not_run():
    _, variables, x = linen("dense")
    first = stacking.take(variables["masks"], 0)
    one = {"LinenFeatureMask_0": first["LinenFeatureMask_0"]}
    for masks in ({}, one):
        with pytest.raises(flax.errors.FlaxError, match='(?s)"features".*"masks"'):
            Dense().apply({"params": variables["params"], "masks": masks}, x)


def test_masks_are_part_of_nnx_state():
    _, masks, _ = nnx_net()
    net = NNXDense(nnx.Rngs(0))
    state = nnx.state(net)
    assert "mask" in state
    pure = jax.tree.map(np.asarray, nnx.to_pure_dict(state))
    other = NNXDense(nnx.Rngs(5))
    loaded = nnx.state(other)
    assert not np.array_equal(*(n.mask.features.get_value() for n in (net, other)))
    nnx.replace_by_pure_dict(loaded, pure)
    nnx.update(other, loaded)
    for a, b in zip(*map(jax.tree.leaves, (nnx.state(other), state)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(jax.tree.leaves(masks)) == 1
    assert len(jax.tree.leaves(nnx.state(net, nnx.Param))) == 4


def test_packed_masks_run_and_are_part_of_checkpoints():
    run, variables, x = linen("dense")
    packed = jax.vmap(packing.pack)(variables["masks"])
    close(stacking.map(run, packed, x), stacking.map(run, variables["masks"], x))
    whose = masksembles.in_chunks(5, members=N)
    trees.assert_same(
        layers.assign(packed, whose), layers.assign(variables["masks"], whose)
    )
    empty = jax.tree.map(jnp.zeros_like, packed)
    back = serialization.from_bytes(empty, serialization.to_bytes(packed))
    trees.assert_same(jax.tree.map(jnp.asarray, back), packed)


def test_memory_is_for_as_many_members_as_run_at_a_time():
    run, variables, _ = linen("dense")
    x, stack = jnp.ones((64, 6)), jax.tree.map(
        lambda m: jnp.tile(m, (250, 1)), variables["masks"]
    )  # fmt: skip

    def scratch(batch_size):
        predict = functools.partial(stacking.map, run, batch_size=batch_size)
        compiled = jax.jit(predict).lower(stack, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    hidden = 64 * 16 * 4  # the features of one member
    assert scratch(4) < 40 * hidden
    assert scratch(None) > 1000 * hidden


def test_bad_masks_are_refused():
    layer, x = layers.LinenFeatureMask(), jnp.ones((2, 3))

    def run(mask, x=x):
        return layer.apply({"masks": {"features": mask}}, x)

    with pytest.raises(
        ValueError, match=r"LinenFeatureMask` needs a mask \[C\].*\(4,\)"
    ):
        run(jnp.ones(4, bool))
    with pytest.raises(ValueError, match=r"got \(3, 1, 3\) for features \(2, 3\)\.\n"):
        run(jnp.ones((3, 1, 3), bool))
    with pytest.raises(TypeError, match="boolean or floating"):
        run(jnp.ones(3, int))
    with pytest.raises(ValueError, match=r"needs features of samples, got.*\(0, 3\)"):
        run(jnp.ones(3, bool), jnp.ones((0, 3)))
    with pytest.raises(ValueError, match=r"needs features to mask, got shape \(2, 0\)"):
        layer.init(jax.random.key(0), jnp.ones((2, 0)))
    with pytest.raises(ValueError, match="needs features to mask"):
        layers.NNXFeatureMask(0)
    with pytest.raises(ValueError, match="NNXFeatureMask` needs `rngs` to draw"):
        layers.NNXFeatureMask(3, DRAW)
    wrong = layers.LinenFeatureMask(lambda channels, key: jnp.ones(channels, bool))
    with pytest.raises(ValueError, match=r"`draw` to return masks \[N, 3\], got.*\(3,"):
        wrong.init(jax.random.key(0), x)


def test_bad_assignments_are_refused():
    masks = {"a": jnp.ones((4, 3), bool)}
    for members in (jnp.zeros(0, int), jnp.int32(1), jnp.zeros((2, 2), int)):
        with pytest.raises(
            ValueError, match=r"`members` \[B\], for at least one sample"
        ):
            layers.assign(masks, members)
    with pytest.raises(TypeError, match="needs `i` as an integer"):
        layers.assign(masks, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"assign` needs `members` in \[-4, 4\), g"):
        layers.assign(masks, jnp.arange(8))  # for eight members, but there are four
    with pytest.raises(ValueError, match=r"(?s)as a stack \[N, C\], got.*a: \(3,\)"):
        layers.assign({"a": jnp.ones(3, bool)}, jnp.zeros(2, int))
    with pytest.raises(ValueError, match="same number of members"):
        layers.assign(masks | {"b": jnp.ones((2, 3), bool)}, jnp.zeros(2, int))
