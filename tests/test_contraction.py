"""Where parameters meet the data: the norms of what they meet, and how often."""

import functools
import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from maskjax import masking, report, score, where
from tests import trees
from tests.reference import criteria
from tests.reference.calibration import windows


def normal(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


X = normal(4, 6)
W = normal(6, 3, seed=1)
MASK = W > 0
NORMS = criteria.feature_norms(X, 1)


def norms_of(apply, params, *inputs, where=where.kernels):
    """Compiled: one compilation, where there would be one for each operation."""
    measure = jax.jit(lambda p, x: score.input_norms(apply, p, *x, where=where))
    return measure(params, inputs)


def traced_norms(apply, params, *inputs):
    """Traced only: shapes tell what can't be measured, and nothing is compiled."""
    return jax.eval_shape(
        lambda *args: score.input_norms(apply, *args, where=where.floating),
        params,
        *inputs,
    )


def raises(pattern):
    # JAX adds a note below a line to what is raised while it traces.
    pattern = pattern.removesuffix("$") + r"(\n-{20}\n.*)?$"
    return pytest.raises(ValueError, match=re.compile(pattern, re.DOTALL))


# In every framework.


def linen(params, x):
    return trees._LinenNet().apply({"params": params}, x)


def nnx_net(params, x):
    graph = nnx.split(nnx.eval_shape(lambda: trees._NnxNet(nnx.Rngs(0))))[0]
    model = nnx.merge(graph, params)
    return model.out(nnx.relu(model.hidden(x)))


def equinox(params, x):
    return jax.vmap(lambda x: params.out(nn.relu(params.hidden(x))))(x)


def nested_dict(params, x):
    dense = params["encoder"]["dense"]
    return nn.relu(x @ dense["kernel"] + dense["bias"][None]) @ params["out"]["kernel"]


NETWORKS = {
    "linen": linen,
    "nnx": nnx_net,
    "equinox": equinox,
    "nested_dict": nested_dict,
}


def made(name, *args, **options):
    """The tree of that name; that of Equinox with kernels (out, in) that fit."""
    params = trees.make(name, *args, **options)
    if name == "equinox":
        params = eqx.tree_at(
            lambda p: (p.hidden.weight, p.out.weight, p.hidden.bias, p.out.bias),
            params,
            (normal(8, 6), normal(5, 8, seed=1), normal(8), normal(5)),
        )
    return params


over_networks = pytest.mark.parametrize("name", NETWORKS)
dense = where.kernels & ~where.matching("conv")


def expected_norms(name, params, x):
    """By the sizes of the two kernels; of shape (in, 1), or (1, in) in Equinox."""
    leaves = [trees.to_numpy(leaf) for leaf in jax.tree.leaves(params)]
    first = next(leaf for leaf in leaves if leaf.size == 48)
    bias = next(leaf for leaf in leaves if leaf.shape == (8,))
    value = trees.to_numpy(x)
    hidden = np.maximum(value @ (first.T if name == "equinox" else first) + bias, 0)
    norms = criteria.feature_norms(value, 1), criteria.feature_norms(hidden, 1)
    shape = (1, -1) if name == "equinox" else (-1, 1)
    return {48: norms[0].reshape(shape), 40: norms[1].reshape(shape)}


def assert_norms(name, params, x, norms, *, rtol=1e-5):
    expected = expected_norms(name, params, x)
    found = [
        (w.size, norm) for w, norm in trees.pairs(params, norms) if norm is not None
    ]
    assert {size for size, _ in found} == {40, 48}
    for size, norm in found:
        assert norm.dtype == jnp.float32
        assert norm.shape == expected[size].shape
        np.testing.assert_allclose(norm, expected[size], rtol=rtol)


@over_networks
def test_norms_of_dense_layers(name):
    params = made(name)
    assert_norms(name, params, X, norms_of(NETWORKS[name], params, X, where=dense))


def test_norms_outside_of_jit_are_the_same():
    params = trees.make("nested_dict")
    norms = score.input_norms(nested_dict, params, X, where=dense)
    assert_norms("nested_dict", params, X, norms)


def test_norms_in_bfloat16_are_summed_in_float32():
    params, x = trees.make("nested_dict", "bfloat16"), X.astype(jnp.bfloat16)
    norms = norms_of(nested_dict, params, x, where=dense)
    assert_norms("nested_dict", params, x, norms, rtol=0.02)
    many = np.ones((5000, 6), jnp.bfloat16)  # whose sum in bfloat16 stops at 256
    norms = norms_of(lambda p, x: x @ p["w"], {"w": W.astype(jnp.bfloat16)}, many)
    np.testing.assert_allclose(norms["w"], np.full((6, 1), 5000**0.5), rtol=1e-5)


def test_norms_of_each_seed_under_vmap():
    members = [trees.make("linen", seed=i) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    x = normal(3, 4, 6)
    measure = jax.vmap(lambda p, x: score.input_norms(linen, p, x))
    norms = jax.jit(measure)(stacked, x)
    for i, member in enumerate(members):
        own = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], norms)
        assert_norms("linen", member, x[i], own)


def test_norms_of_masked_parameters_see_the_mask():
    params = jax.tree.map(np.asarray, trees.make("linen"))
    mask = jax.tree.map(lambda w: w > 0 if w.ndim == 2 else None, params)

    def masked(params, x):
        return linen(masking.apply(params, mask), x)

    expected = jax.tree.map(lambda w: w * (w > 0 if w.ndim == 2 else 1), params)
    assert_norms("linen", expected, X, norms_of(masked, params, X))


# What a kernel is followed through.


@jax.custom_vjp
def custom(w):
    return w * 2


custom.defvjp(lambda w: (custom(w), None), lambda _, g: (g * 2,))

IN_PLACE = {
    "nothing": lambda w: w,
    "a cast": lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
    "a product": lambda w: w * MASK.astype(w.dtype) / 2,
    "a sum with constants": lambda w: 1 + w - jnp.ones((6, 1)) @ jnp.ones((1, 3)),
    "two transposes": lambda w: jnp.tanh(w.T).T,
    "an axis more": lambda w: lax.squeeze(w[:, None, :] * 2, [1]),
    "a reshape that adds axes": lambda w: w.reshape(1, 6, 1, 3)[0, :, 0],
    "a threshold": lambda w: w * (w >= jnp.sort(w.ravel())[4]).astype(w.dtype),
    "a quantile": lambda w: jnp.where(w > jnp.quantile(w, 0.3), w, 0),
    "its norm": lambda w: w / jnp.sqrt(jnp.sum(w**2, axis=0, keepdims=True)),
    "its norm, first": lambda w: lax.rsqrt(jnp.sum(w**2, 0, keepdims=True)) * w,
    "jit": jax.jit(lambda w: jnp.where(MASK, w, 0)),
    "remat": jax.checkpoint(jnp.sin),
    "a custom jvp": nn.relu,
    "a custom vjp": custom,
    "no gradient": lax.stop_gradient,
}


def test_a_kernel_is_followed_through_what_leaves_it_in_place():
    def apply(p, x):
        return [x @ change(p[name]) for name, change in IN_PLACE.items()]

    params = dict.fromkeys(IN_PLACE, W)  # some are called a norm
    norms = norms_of(apply, params, X, where=where.everything)
    for name in IN_PLACE:
        np.testing.assert_allclose(norms[name], NORMS[:, None], rtol=1e-6, err_msg=name)


def permuted(w):
    """The entries of a (6, 3, 4) kernel in places that a reshape cuts out of axes."""
    w = w.reshape(2, 3, 12).transpose(1, 0, 2)[::-1].reshape(6, 3, 4)
    return lax.rev(w.transpose(2, 0, 1).reshape(2, 12, 3), (0, 2)).reshape(24, 3)


def test_entries_that_change_places_keep_what_they_meet():
    """Held against the gradient, which goes back the same way."""
    x = normal(5, 24)
    for change, sizes in (
        (permuted, (6, 3, 4)),
        (lambda w: w.reshape(24, 3), (2, 3, 4, 3)),
        (lambda w: w.reshape(3, 24).T[::-1], (72,)),
        (lambda w: w.transpose(1, 0, 2).reshape(24, -1)[:, ::-1], (4, 6, 3)),
    ):
        w = normal(*sizes)
        apply = lambda p, x, change=change: x @ change(p["w"])  # noqa: E731
        norms = norms_of(apply, {"w": w}, x, where=where.everything)["w"]
        squares = np.tile((x**2).sum(0)[:, None], (1, 3))
        back = jax.jit(lambda w, s, change=change: jax.vjp(change, w)[1](s)[0])
        expected = np.sqrt(back(w, squares))
        found = np.broadcast_to(norms, w.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_general_products_are_dense_ones_reshaped():
    """Over two inputs and two outputs, and in attention."""
    x, kernel = normal(5, 2, 3), normal(2, 3, 4, 5)
    layer = nn.DenseGeneral((4, 5), axis=(-2, -1), use_bias=False)
    apply = lambda p, x: layer.apply({"params": p}, x)  # noqa: E731
    norms = norms_of(apply, {"kernel": kernel}, x)["kernel"]
    flat = x.reshape(5, 6)
    dense = norms_of(lambda p, x: x @ p["w"], {"w": kernel.reshape(6, 20)}, flat)["w"]
    assert norms.shape == (2, 3, 1, 1)
    np.testing.assert_array_equal(np.ravel(norms), np.ravel(dense))
    merged = lambda p, x: x.reshape(5, 6) @ p["kernel"].reshape(6, 20)  # noqa: E731
    again = norms_of(merged, {"kernel": kernel}, x)["kernel"]
    np.testing.assert_array_equal(again, norms)


def test_norms_of_attention():
    model = nn.MultiHeadDotProductAttention(2)
    x = normal(3, 5, 6)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    apply = lambda p, x: model.apply({"params": p}, x)  # noqa: E731
    norms = norms_of(apply, params, x)
    for name in ("query", "key", "value"):
        assert norms[name]["bias"] is None
        assert norms[name]["kernel"].shape == (6, 1, 1)
        found = np.ravel(norms[name]["kernel"])
        np.testing.assert_allclose(found, criteria.feature_norms(x, 2), rtol=1e-5)
    assert norms["out"]["kernel"].shape == (2, 3, 1)


def test_the_backward_pass_is_not_measured():
    def loss(p, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ p["first"]) @ p["second"]))

    params = {"first": normal(6, 4), "second": normal(4, 3)}
    norms = norms_of(loss, params, X)
    for wrapped in (jax.grad(loss), jax.grad(jax.checkpoint(loss))):
        assert_close(norms_of(wrapped, params, X), norms)


def test_a_kernel_whose_axes_are_lost_is_named():
    square = normal(6, 6)

    def of(change):
        return lambda p, x: x @ change(p["w"])

    for change, why in {
        lambda w: w.reshape(4, 9).reshape(6, 6): "reshape",
        lambda w: jnp.roll(w, 1, 0): "concatenate",
        lambda w: jnp.cumsum(w, 0): "cumsum",
        lambda w: w + w[::-1]: "add",
        lambda w: w + w[:1]: "add",
        lambda w: w + w.T: "add",
        lambda w: jnp.concatenate([w, w]).reshape(2, 6, 6)[0]: "concatenate",
    }.items():
        with raises(
            r"`maskjax.score.input_norms` needs `where` to choose kernels, which "
            r"meet the inputs in dot products or convolutions, entry .*, got:\n"
            rf"  w: loses its axes in {why}$"
        ):
            traced_norms(of(change), {"w": square}, X)


def test_every_leaf_without_inputs_to_measure_is_named():
    def apply(p, x, words):
        rows = p["embedding"][words] + x[:, :3] * p["scale"]
        rows += lax.while_loop(
            lambda state: state[0] < 2,
            lambda state: (state[0] + 1, state[1] @ p["loop"]),
            (0, rows),
        )[1]
        carried = lax.scan(lambda w, row: (w / 2, row @ w), p["carried"], rows)[1]
        constant = jnp.ones((1, 3)) @ p["constant"]
        return carried + constant, rows @ p["fine"] + p["bias"]

    square, row = np.ones((3, 3), np.float32), np.ones((1, 3), np.float32)
    params = {
        "embedding": np.ones((9, 3), np.float32),
        "scale": row,
        "bias": row,
        **dict.fromkeys(("loop", "carried", "constant", "fine", "unused"), square),
    }
    with raises(
        r"leaves others alone\), got:\n  bias: goes into add\n"
        r"  carried: is carried by scan\n  constant: meets no data\n"
        r"  embedding: goes into gather\n  loop: goes into while\n"
        r"  scale: goes into mul\n  unused: is not used$"
    ):
        traced_norms(apply, params, X, np.arange(4))


def test_inputs_are_needed():
    for fn in (score.input_norms, report.flops):
        with raises(rf"`maskjax.\w+.{fn.__name__}` needs `inputs`, .* got none\."):
            fn(lambda p: X @ p["w"], {"w": W})


def test_what_is_not_an_array_is_left_alone():
    model = eqx.nn.MLP(6, 5, 8, 1, key=jax.random.key(0))

    @jax.jit
    def measure(x):
        norms = score.input_norms(lambda m, x: jax.vmap(m)(x), model, x)
        assert norms.activation is None
        return eqx.filter(norms, eqx.is_array)

    norms = measure(X)
    np.testing.assert_allclose(norms.layers[0].weight[0], NORMS, rtol=1e-6)
    assert norms.layers[0].bias is None


def test_leaves_that_are_none_or_integers_are_left_alone():
    params = {"w": W, "none": None, "offset": np.ones((1, 6), np.int32)}
    norms = norms_of(lambda p, x: (x + p["offset"].astype(x.dtype)) @ p["w"], params, X)
    assert norms["none"] is None
    assert norms["offset"] is None
    shifted = criteria.feature_norms(X + 1, 1)
    np.testing.assert_allclose(norms["w"][:, 0], shifted, rtol=1e-6)


# What a kernel meets.


def test_squares_add_up_over_uses():
    first, second = normal(4, 6), normal(7, 6, seed=1)
    norms = norms_of(lambda p, a, b: (a @ p["w"], b @ p["w"]), {"w": W}, first, second)
    both = np.concatenate([first, second])
    expected = criteria.feature_norms(both, 1)
    np.testing.assert_allclose(norms["w"][:, 0], expected, rtol=1e-6)


def test_a_tied_embedding_is_measured_where_it_is_a_kernel():
    table = normal(9, 6)
    norms = norms_of(lambda p, i: p["e"][i] @ p["e"].T, {"e": table}, np.arange(5))
    expected = criteria.feature_norms(np.asarray(table[:5]), 1)
    assert norms["e"].shape == (1, 6)
    np.testing.assert_allclose(norms["e"][0], expected, rtol=1e-6)


def test_experts_and_heads_meet_inputs_of_their_own():
    x = normal(2, 5, 4)  # experts, tokens, features
    params = {"experts": normal(4, 2, 3, seed=1), "out": normal(2, 3, 7, seed=2)}

    def apply(p, x):
        hidden = jnp.einsum("etf,feh->teh", x, p["experts"])
        return jnp.einsum("teh,eho->to", hidden, p["out"])

    norms = norms_of(apply, params, x)
    expected = np.stack([criteria.feature_norms(np.asarray(e), 1) for e in x], 1)
    np.testing.assert_allclose(norms["experts"], expected[:, :, None], rtol=1e-6)
    hidden = np.einsum("etf,feh->teh", x, params["experts"])
    expected = np.sqrt((hidden**2).sum(0))[:, :, None]
    np.testing.assert_allclose(norms["out"], expected, rtol=1e-5)


def test_operands_may_have_their_axes_in_any_order():
    x, kernel = normal(6, 2, 5), normal(3, 6, 2, seed=1)  # features, experts, tokens

    def apply(p, x):
        return lax.dot_general(x, p["w"], (([0], [1]), ([1], [2])))

    norms = norms_of(apply, {"w": kernel}, x)
    expected = np.sqrt((np.asarray(x) ** 2).sum(2))[None]
    np.testing.assert_allclose(norms["w"], expected, rtol=1e-6)


def test_axes_that_are_broadcast_share_what_they_meet():
    x = normal(2, 5, 6)
    apply = lambda p, x: jnp.matmul(x, jnp.broadcast_to(p["w"], (2, 6, 3)))  # noqa: E731
    norms = norms_of(apply, {"w": W}, x)
    expected = criteria.feature_norms(np.asarray(x), 2)
    np.testing.assert_allclose(norms["w"][:, 0], expected, rtol=1e-6)
    row = {"w": normal(1, 3)}  # one row for all six features
    norms = norms_of(lambda p, x: x @ jnp.broadcast_to(p["w"], (6, 3)), row, x)
    np.testing.assert_allclose(norms["w"], np.linalg.norm(x).reshape(1, 1), rtol=1e-6)


def test_axes_of_one_share_what_they_meet_in_a_product():
    """In a jaxpr, a product broadcasts axes of length 1 by itself."""
    constant = normal(6, 3, seed=3)
    apply = lambda p, x: (x @ (p["in"] * constant), x @ (p["out"] * constant))  # noqa: E731
    norms = norms_of(apply, {"in": normal(6, 1), "out": normal(1, 3)}, X)
    np.testing.assert_allclose(norms["in"][:, 0], NORMS, rtol=1e-6)
    np.testing.assert_allclose(norms["out"], [[np.linalg.norm(X)]], rtol=1e-6)


def test_ragged_products_are_measured_by_group():
    x, sizes = normal(7, 4), np.int32([2, 0, 4])  # the last row is in no group
    apply = lambda p, x, sizes: lax.ragged_dot(x, p["w"], sizes)  # noqa: E731
    params = {"w": normal(3, 4, 5)}
    norms = norms_of(apply, params, x, sizes)
    rows = [x[:2], x[2:2], x[2:6]]
    expected = [criteria.feature_norms(each, 1) for each in rows]
    np.testing.assert_allclose(norms["w"][..., 0], expected, rtol=1e-6)
    assert report.flops(apply, params, x, sizes) == {"w": 2 * 7 * 4 * 5}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_norms_of_a_convolution(groups):
    image = normal(2, 5, 5, 4)
    layer = nn.Conv(8, (3, 3), feature_group_count=groups, strides=2)
    params = {"kernel": normal(3, 3, 4 // groups, 8), "bias": np.ones(8, np.float32)}
    norms = norms_of(lambda p, x: layer.apply({"params": p}, x), params, image)
    met = windows(image, (3, 3), strides=(2, 2), pads=[(1, 1), (1, 1)])
    squares = (met**2).sum((0, 1))
    if groups > 1:  # output o is of group o // (8 / groups)
        squares = np.repeat(
            np.stack(np.split(squares, groups, axis=2), -1), 8 // groups, 3
        )
    expected = np.sqrt(squares.reshape(3, 3, 4 // groups, -1))
    assert norms["kernel"].shape == expected.shape
    np.testing.assert_allclose(norms["kernel"], expected, rtol=1e-6)


@pytest.mark.parametrize("groups", [1, 4])
def test_norms_of_an_ensemble_of_convolutions(groups):
    """Under vmap they are one convolution in groups."""
    image, kernels = normal(2, 3, 5, 5, 4), normal(2, 3, 3, 4 // groups, 8)
    layer = nn.Conv(8, (3, 3), feature_group_count=groups, use_bias=False)
    apply = lambda p, x: layer.apply({"params": p}, x)  # noqa: E731
    norms = norms_of(jax.vmap(apply), {"kernel": kernels}, image)["kernel"]
    for i in range(2):
        own = norms_of(apply, {"kernel": kernels[i]}, image[i])["kernel"]
        assert norms[i].shape == own.shape
        np.testing.assert_allclose(norms[i], own, rtol=1e-6)


def test_norms_of_a_convolution_with_features_first():
    image = normal(2, 4, 5, 5)
    model = eqx.nn.Conv2d(4, 8, 3, key=jax.random.key(0))
    weight = where.matching("weight$")  # the bias has three axes
    static = eqx.filter(model, eqx.is_array, inverse=True)

    def apply(arrays, x):
        return jax.vmap(eqx.combine(arrays, static))(x)

    norms = norms_of(apply, eqx.filter(model, eqx.is_array), image, where=weight)
    pads = [(0, 0), (0, 0)]
    met = windows(image.transpose(0, 2, 3, 1), (3, 3), strides=(1, 1), pads=pads)
    expected = np.sqrt((met**2).sum((0, 1))).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(norms.weight, expected, rtol=1e-6)


def test_convolutions_that_cannot_be_assigned_are_named():
    def image(p, x):
        return lax.conv(p["w"], x, (1, 1), "VALID")

    def batch_groups(p, x):
        return lax.conv_general_dilated(x, p["w"], (1, 1), "VALID", batch_group_count=2)

    kernel = {"w": normal(2, 1, 3, 3)}
    with raises("w: is the image of a convolution$"):
        traced_norms(image, kernel, normal(1, 1, 2, 2))
    with raises("w: is the kernel of a convolution in groups of the batch$"):
        traced_norms(batch_groups, kernel, normal(4, 1, 5, 5))


def recurrent(p, xs):
    def step(h, x):
        h = jnp.tanh(x @ p["into"] + h @ p["through"])
        return h, h @ p["out"]

    return lax.scan(step, jnp.zeros((2, 5)), xs, reverse=True)[1]


def test_norms_in_a_scan_sum_over_its_steps():
    params = {
        "into": normal(3, 5),
        "through": normal(5, 5, seed=1),
        "out": normal(5, 2, seed=2),
    }
    xs = normal(7, 2, 3, seed=3)
    norms = jax.tree.map(np.asarray, norms_of(recurrent, params, xs))
    into, through = (np.asarray(params[name]) for name in ("into", "through"))
    before, after = np.zeros((1, 2, 5)), []
    for x in np.asarray(xs)[::-1]:
        after.append(np.tanh(x @ into + before[-1] @ through))
        before = np.concatenate([before, after[-1][None]])
    for name, met in (("into", xs), ("through", before[:-1]), ("out", np.stack(after))):
        expected = criteria.feature_norms(np.asarray(met), 2)
        np.testing.assert_allclose(norms[name][:, 0], expected, rtol=1e-5)


def test_norms_of_layers_that_are_scanned_over_are_per_layer():
    kernels = normal(3, 6, 6)

    def deep(p, x):
        step = jax.checkpoint(lambda x, w: (nn.relu(x @ w.T), None))
        return lax.scan(step, x, p["layers"])[0] @ p["out"]

    norms = norms_of(deep, {"layers": kernels, "out": W}, X)
    norms = jax.tree.map(np.asarray, norms)
    assert norms["layers"].shape == (3, 1, 6)
    value = np.asarray(X)
    for kernel, norm in zip(np.asarray(kernels), norms["layers"], strict=True):
        np.testing.assert_allclose(norm[0], criteria.feature_norms(value, 1), rtol=1e-5)
        value = np.maximum(value @ kernel.T, 0)
    expected = criteria.feature_norms(value, 1)
    np.testing.assert_allclose(norms["out"][:, 0], expected, rtol=1e-5)


def test_obstacles_in_a_scan_are_named():
    def apply(p, xs):
        def step(carry, x):
            return carry, (x @ jnp.cumsum(p["lost"], 0), x @ p["fine"], x + p["bias"])

        return lax.scan(step, 0, xs)

    params = {"lost": W, "fine": W, "bias": np.ones((1, 6), np.float32)}
    with raises(
        r"got:\n  bias: goes into add, in scan\n  lost: loses its axes in cumsum$"
    ):
        traced_norms(apply, params, normal(2, 4, 6))


def test_a_kernel_made_in_a_scan_is_not_overlooked():
    def apply(p, x):
        made = lax.scan(lambda total, w: (total + w, w * 2), jnp.zeros(3), p["w"])[1]
        return x @ made

    assert report.flops(apply, {"w": W}, X) == {"w": 2 * 4 * 18}
    with raises("w: loses its axes in scan$"):
        traced_norms(apply, {"w": W}, X)


def test_norms_do_not_change_what_is_computed():
    """The walk evaluates everything on the way, random numbers and loops included."""
    seen = []

    def apply(p, x, key):
        x = x + lax.fori_loop(0, 3, lambda i, total: total + x * i, jnp.zeros_like(x))
        x = lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)
        x, _ = jnp.split(x * jax.random.normal(key, x.shape), [3], axis=1)
        jax.debug.callback(seen.append, x)
        return x @ p["w"]

    key = jax.random.key(0)
    norms = norms_of(apply, {"w": W[:3]}, X, key)
    jax.jit(apply)({"w": W[:3]}, X, key)
    jax.effects_barrier()
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-6)
    expected = criteria.feature_norms(np.asarray(seen[1]), 1)
    np.testing.assert_allclose(norms["w"][:, 0], expected, rtol=1e-6)


# Rows that count more or less.


def two_layers(p, x):
    return nn.relu(x @ p["first"]) @ p["second"]


TWO_LAYERS = {"first": normal(6, 4), "second": normal(4, 3)}


@functools.partial(jax.jit, static_argnums=0)
def weighted(apply, params, x, weights):
    return score.input_norms(apply, params, x, weights=weights)


def assert_close(some, others):
    for one, other in zip(jax.tree.leaves(some), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_rows_of_weight_zero_are_left_out():
    x = normal(4, 5, 6)
    x[0, 3:] = x[2] = np.inf  # padding may hold anything
    keep = np.isfinite(x[..., 0])
    rows = norms_of(two_layers, TWO_LAYERS, x[keep])
    assert_close(weighted(two_layers, TWO_LAYERS, x, keep), rows)
    per_example = np.float32([1, 0, 0, 1])
    clean = normal(4, 5, 6)
    kept = norms_of(two_layers, TWO_LAYERS, clean[[0, 3]])
    assert_close(weighted(two_layers, TWO_LAYERS, clean, per_example), kept)


def test_kernels_without_inputs():
    """Of length 0, and in an outer product, where each entry meets all data."""
    norms = norms_of(lambda p, x: x @ p["w"], {"w": normal(0, 3)}, normal(4, 0))
    assert norms["w"].shape == (0, 1)
    outer = lambda p, x: lax.dot_general(x, p["w"], (((), ()), ((), ())))  # noqa: E731
    norms = weighted(outer, {"w": W}, X, np.ones(4, "float32"))
    np.testing.assert_allclose(norms["w"], [[np.linalg.norm(X)]], rtol=1e-6)


def test_weights_of_one_change_nothing():
    x = normal(4, 5, 6)
    plain = norms_of(two_layers, TWO_LAYERS, x)
    for ones in (np.ones(4, "float32"), np.ones((4, 5), "int32")):
        trees.assert_same(weighted(two_layers, TWO_LAYERS, x, ones), plain)


def test_weights_are_factors_of_squares():
    weights = np.float32([0, 1, 2, 3])
    repeated = np.repeat(X, np.int32(weights), axis=0)
    expected = norms_of(two_layers, TWO_LAYERS, repeated)
    assert_close(weighted(two_layers, TWO_LAYERS, X, weights), expected)


def test_weights_reach_convolutions_attention_and_scanned_layers():
    image, weights = normal(3, 5, 5, 4), np.float32([1, 0, 2])
    layer = nn.Conv(8, (3, 3), feature_group_count=2)
    params = {"kernel": normal(3, 3, 2, 8), "bias": normal(8)}
    convolved = lambda p, x: layer.apply({"params": p}, x)  # noqa: E731
    repeated = image[[0, 2, 2]]
    expected = norms_of(convolved, params, repeated)
    assert_close(weighted(convolved, params, image, weights), expected)

    def deep(p, x):
        return lax.scan(lambda x, w: (nn.relu(x @ w), None), x, p["layers"])[0]

    params, x = {"layers": normal(3, 6, 6)}, normal(3, 6)
    expected = norms_of(deep, params, x[[0, 2, 2]])
    assert_close(weighted(deep, params, x, weights), expected)

    attention = nn.MultiHeadDotProductAttention(2)
    tokens = normal(3, 5, 6)
    params = jax.jit(attention.init)(jax.random.key(0), tokens)["params"]
    attend = lambda p, x: attention.apply({"params": p}, x)  # noqa: E731
    expected = norms_of(attend, params, tokens[[0, 2, 2]])
    for found, other in trees.pairs(
        weighted(attend, params, tokens, weights), expected
    ):
        if found is not None:
            np.testing.assert_allclose(found, other, rtol=1e-5)


def test_weights_fit_what_every_kernel_meets():
    def apply(p, x):
        flat = x.reshape(-1, 6) @ p["flat"]
        return flat, jnp.einsum("etf,efo->eto", x, p["experts"]), x @ p["fine"]

    params = {"flat": W, "experts": normal(4, 6, 3), "fine": W}
    x, needs = normal(4, 5, 6), "`maskjax.score.input_norms` needs `weights` with the "
    with raises(
        needs + r"leading axes of what every kernel meets, got:\n"
        r"  experts: weights \(4, 5\), data \(4, 5, 6\)\n"
        r"  flat: weights \(4, 5\), data \(20, 6\)$"
    ):
        jax.eval_shape(lambda: weighted(apply, params, x, np.ones((4, 5))))

    def deep(p, x):
        return lax.scan(lambda x, w: (x @ w, None), x, p["layers"])[0]

    with raises(r"got:\n  layers: weights \(5,\), data \(4, 6\)$"):
        layers = {"layers": normal(3, 6, 6)}
        jax.eval_shape(lambda: weighted(deep, layers, X, np.ones(5)))
    for wrong in (np.ones(4, "complex64"), np.array(list("abcd")), "abcd"):
        with pytest.raises(
            TypeError, match="`weights` as real numbers, got (compl|<U)"
        ):
            score.input_norms(two_layers, TWO_LAYERS, X, weights=wrong)


@pytest.mark.parametrize("bad", [-1.0, -np.inf, np.inf, np.nan])
def test_weights_are_finite_and_not_negative_where_that_can_be_seen(bad):
    weights = np.array([1, 0, bad, 1], "float32")
    with raises(rf"input_norms` needs `weights` finite and at least 0, got {bad}\."):
        score.input_norms(two_layers, TWO_LAYERS, X, weights=weights)
    held = jax.device_put(weights)  # known, though the function that uses it is traced
    with raises(rf"input_norms` needs `weights` finite and at least 0, got {bad}\."):
        jax.eval_shape(
            lambda p: score.input_norms(two_layers, p, X, weights=held), TWO_LAYERS
        )
    jax.eval_shape(functools.partial(weighted, two_layers), TWO_LAYERS, X, weights)


# How often.


@over_networks
def test_flops_of_dense_layers(name):
    params = made(name)
    counts = report.flops(NETWORKS[name], params, X)
    for w, count in trees.pairs(params, counts):
        is_met = w.size in (48, 40)
        assert count == (2 * len(X) * w.size if is_met else None)


def test_flops_need_shapes_only():
    def shape(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    params = trees.make("nnx", "bfloat16")
    x = X.astype(jnp.bfloat16)
    abstract = report.flops(nnx_net, jax.tree.map(shape, params), shape(x))
    assert jax.tree.leaves(abstract) == [2 * 4 * 48, 2 * 4 * 40]
    assert all(type(count) is int for count in jax.tree.leaves(abstract))
    trees.assert_same(abstract, report.flops(nnx_net, params, x))


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_flops_of_a_convolution(stride, groups):
    image, kernel = (2, 6, 7, 4), (3, 2, 4 // groups, 8)

    def apply(p, x):
        return lax.conv_general_dilated(
            x,
            p["w"],
            (stride, stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    counts = report.flops(apply, {"w": np.ones(kernel)}, np.ones(image))
    assert counts["w"] == criteria.convolution_flops(image, kernel, stride, groups)


def test_flops_of_a_transposed_convolution_skip_the_zeros_between_pixels():
    layer = nn.ConvTranspose(3, (2, 2), strides=(2, 2))
    image = np.ones((1, 5, 5, 4), np.float32)
    params = {"kernel": normal(2, 2, 4, 3), "bias": normal(3)}
    counts = report.flops(lambda p, x: layer.apply({"params": p}, x), params, image)
    assert counts == {"bias": None, "kernel": 2 * 25 * (2 * 2 * 4 * 3)}


def test_flops_count_every_use_whatever_became_of_the_axes():
    def apply(p, x):
        left, right = jnp.split(p["w"].reshape(2, 9).reshape(6, 3), [1], axis=1)
        return x @ left, x @ right, x @ p["w"], p["unused"] + 1

    counts = report.flops(apply, {"w": W, "unused": W}, X)
    assert counts == {"w": 2 * (2 * 4 * 18), "unused": None}


def test_flops_of_a_scan_count_every_step():
    shapes = {"into": (3, 5), "through": (5, 5), "out": (5, 2)}
    params = {name: normal(*shape) for name, shape in shapes.items()}
    counts = report.flops(recurrent, params, normal(7, 2, 3))
    assert counts == {"into": 7 * 2 * 30, "through": 7 * 2 * 50, "out": 7 * 2 * 20}

    def deep(p, x):
        return lax.scan(lambda x, w: (x @ w, None), x, p["layers"])[0]

    counts = report.flops(deep, {"layers": normal(3, 6, 6)}, X)
    assert counts == {"layers": 3 * 2 * 4 * 36}


def test_flops_that_cannot_be_counted_name_the_parameters():
    def apply(p, x):
        out = lax.cond(x.sum() > 0, lambda x: x @ p["a"], lambda x: x @ p["b"], x)
        return out + lax.cond(x.sum() > 0, lambda x: x + p["bias"], lambda x: x, out)

    params = {"a": W[:3], "b": W[3:], "bias": normal(1, 3), "c": W}
    with raises(
        r"`maskjax.report.flops` needs dot products and convolutions that can be "
        r"counted, got:\n  a: goes into cond\n  b: goes into cond$"
    ):
        report.flops(apply, params, X[:, :3])
