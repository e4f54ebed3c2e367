"""Initializers read what axes mean: the same draw in every layout of a kernel."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import initializer, masking, packing, where

KEY = jax.random.key(7)
ONES = initializer.elementwise(jax.nn.initializers.ones)


def telling(words):
    """A predicate that chooses the paths of a mapping, and knows their axes."""
    each = [where.matching(f"^{path}$", axes=axes) for path, axes in words.items()]
    return functools.reduce(operator.or_, each)


def ones(shapes):
    return {path: np.ones(shape, "f4") for path, shape in shapes.items()}


# Kernels of (4, 6), and of (3, 5, 4, 6) with a window.
LAYOUTS = {
    "query": ("inputs outputs outputs", (4, 2, 3), "dense"),
    "out": ("inputs inputs outputs", (2, 2, 6), "dense"),
    "equinox": ("outputs inputs", (6, 4), "dense"),
    "equinox_conv": ("outputs inputs window window", (6, 4, 3, 5), "conv"),
}
DRAWS = {
    "signed_constant": initializer.signed_constant(0.5),
    "he_normal": jax.nn.initializers.he_normal(),
    "glorot_uniform": jax.nn.initializers.glorot_uniform(),
}
CANONICAL = {"dense": (4, 6), "conv": (3, 5, 4, 6)}


def restored(kernel, words, shape):
    """A canonical kernel in another layout, by NumPy."""
    roles = ("window", "inputs", "outputs")
    order = np.argsort([roles.index(word) for word in words.split()], kind="stable")
    x = np.reshape(kernel, [shape[axis] for axis in order])
    return np.transpose(x, np.argsort(order))


@functools.cache
def by_layout():
    """For each draw, a kernel of each kind, and what `redraw` makes of each layout."""

    @jax.jit
    def of():
        out = {}
        for name, draw in DRAWS.items():
            key = jax.random.fold_in(KEY, 0)
            each = {}
            for path, (words, shape, _) in LAYOUTS.items():
                params, told = {path: jnp.zeros(shape)}, telling({path: words})
                each |= initializer.redraw(draw, params, where=told, key=KEY)
            out[name] = {k: draw(key, s) for k, s in CANONICAL.items()}, each
        return out

    return jax.device_get(of())


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("path", LAYOUTS)
def test_a_draw_is_the_same_in_every_layout_of_a_kernel(name, path):
    kernels, each = by_layout()[name]
    words, shape, kind = LAYOUTS[path]
    np.testing.assert_array_equal(each[path], restored(kernels[kind], words, shape))


@pytest.mark.parametrize("name", DRAWS)
def test_each_index_of_a_stack_and_each_row_of_a_table_is_drawn_by_itself(name):
    draw, fold = DRAWS[name], jax.random.fold_in
    told = telling({"a": "stack inputs stack outputs"}) | where.embeddings

    @jax.jit
    def of():
        params = {"a": jnp.zeros((2, 4, 3, 6)), "embedding": jnp.zeros((5, 6))}
        new = initializer.redraw(draw, params, where=told, key=KEY)
        layers = [draw(fold(fold(KEY, 0), i), (4, 6)) for i in range(6)]
        rows = [draw(fold(fold(KEY, 1), i), (1, 6)) for i in range(5)]
        return new, jnp.stack(layers), jnp.concatenate(rows)

    new, layers, rows = jax.device_get(of())
    np.testing.assert_array_equal(new["a"].swapaxes(1, 2).reshape(6, 4, 6), layers)
    np.testing.assert_array_equal(new["embedding"], rows)
    assert len({layer.tobytes() for layer in layers}) == 6


FAN_INS = {  # the words, the shape, and the size of signed constants there
    "scanned": ("stack inputs outputs", (3, 8, 4), 0.5),
    "equinox": ("outputs inputs", (8, 16), 8**-0.5),
    "heads": ("inputs inputs outputs", (2, 4, 3), 0.5),
    "experts": ("stack stack inputs outputs", (2, 2, 8, 3), 0.5),
    "window": ("outputs inputs window window", (5, 2, 2, 2), 0.5),
}


def test_constants_and_scores_have_the_fan_in_of_their_axes():
    params = ones({path: shape for path, (_, shape, _) in FAN_INS.items()})
    told = telling({path: words for path, (words, *_) in FAN_INS.items()})
    sizes = {path: size for path, (*_, size) in FAN_INS.items()}
    # The convention knows a query of Flax's attention, and embeddings.
    params |= {"query": {"kernel": np.ones((32, 4, 8), "f4")}}
    params |= {"embedding": np.ones((9, 4), "f4")}
    told |= where.matching("^query") | where.embeddings
    sizes |= {"query": 0.25, "embedding": 2**0.5}
    units = jax.tree.map(lambda w: np.ones((1,) * w.ndim, bool), params)

    @jax.jit
    def of(params, units):
        draw = initializer.signed_constant()
        return (
            initializer.redraw(draw, params, where=told, key=KEY),
            initializer.scores(params, where=told, key=KEY),
            initializer.scores_of(params, units, where=told),
        )

    new, scores, begun = jax.device_get(of(params, units))
    for tree in (new, scores, begun):
        tree["query"] = tree["query"]["kernel"]
    for path, size in sizes.items():
        np.testing.assert_allclose(abs(new[path]), size + 0 * new[path], rtol=1e-6)
        bound = size / 2**0.5  # fan_in^-1/2
        assert 0.8 * bound < abs(scores[path]).max() <= bound * (1 + 1e-6)
        # The mask's own axes are of length 1, which tells nothing.
        np.testing.assert_allclose(begun[path].ravel(), bound / 3**0.5, rtol=1e-6)


def test_scores_of_a_mask_on_units_have_the_fan_in_of_the_parameters():
    params, units = ones({"w": (100, 3)}), {"w": np.ones((1, 3), bool)}
    of = jax.jit(lambda m: initializer.scores_of(params, m)["w"])
    for mask in (units, packing.pack(units)):
        np.testing.assert_allclose(of(mask), [[300**-0.5] * 3], rtol=1e-6)
    with pytest.raises(ValueError, match=r"scores_of` needs .*\n  w: mask \(2, 3\)"):
        initializer.scores_of(params, {"w": np.ones((2, 3), bool)})
    with pytest.raises(TypeError, match="scores_of` needs `where` as a function"):
        initializer.scores_of(params, units, where="w")


CONTRACTIONS = {  # the words, the shape, and how data meet the kernel
    "dense": ("inputs outputs", (96, 96), "ni,io->no"),
    "query": ("inputs outputs outputs", (96, 8, 12), "ni,ihd->nhd"),
    "out": ("inputs inputs outputs", (8, 12, 96), "nhd,hdo->no"),
    "scanned": ("stack inputs outputs", (4, 48, 48), "nsi,sio->nso"),
    "equinox": ("outputs inputs", (64, 160), "ni,oi->no"),
    "conv": ("window window inputs outputs", (3, 3, 16, 64), "nhwi,hwio->no"),
    "equinox_conv": ("outputs inputs window window", (64, 16, 3, 3), "nihw,oihw->no"),
    "stacked_conv": ("stack window outputs inputs", (2, 3, 40, 40), "nswi,swoi->nso"),
}


def test_a_contraction_scales_the_variance_as_a_relu_and_a_mask_undo():
    params = ones({path: shape for path, (_, shape, _) in CONTRACTIONS.items()})
    told = telling({path: words for path, (words, *_) in CONTRACTIONS.items()})
    scaled = jax.nn.initializers.variance_scaling(2 / 0.25, "fan_in", "normal")
    draws = {
        "constant": (initializer.signed_constant(), 1.0),
        "sparse": (initializer.signed_constant(0.25), 0.25),
        "normal": (scaled, 0.25),
        "he": (jax.nn.initializers.he_normal(), 1.0),
    }

    @jax.jit
    def of(params):
        redraw = functools.partial(initializer.redraw, where=told, key=KEY)
        return {name: redraw(draw, params) for name, (draw, _) in draws.items()}

    kernels, rng = jax.device_get(of(params)), np.random.default_rng(0)
    for path, (_, shape, rule) in CONTRACTIONS.items():
        data, kernel = rule.split("->")[0].split(",")
        sizes = dict(zip(kernel, shape, strict=True), n=4096)
        x = rng.normal(size=[sizes[axis] for axis in data]).astype("f4")
        for name, (_, density) in draws.items():
            y = np.einsum(rule, x, kernels[name][path], optimize=True)
            ratio = np.mean(y**2) / np.mean(x**2)
            np.testing.assert_allclose(ratio, 2 / density, rtol=0.05, err_msg=path)


# What is not known.

UNKNOWN = {
    "bias": np.ones(4, "f4"),
    "dense": {"weight": np.ones((5, 4), "f4")},
    "layers": {"kernel": np.ones((2, 3, 4), "f4")},
    "plain": np.ones((3, 4), "f4"),
}
NORMAL = jax.nn.initializers.he_normal()
FANS = {
    "redraw": lambda w: initializer.redraw(NORMAL, UNKNOWN, where=w, key=KEY),
    "scores": lambda w: initializer.scores(UNKNOWN, where=w, key=KEY),
    "scores_of": lambda w: initializer.scores_of(
        UNKNOWN, masking.everything(UNKNOWN, where=where.everything), where=w
    ),
}


@pytest.mark.parametrize("fn", FANS)
def test_a_fan_in_needs_axes_that_are_known_and_inputs(fn):
    lines = (
        r"bias: shape \(4,\), it has fewer than 2 axes",
        r"dense/weight: shape \(5, 4\), weights are \(in, out\) in one framework .*",
        r"layers/kernel: shape \(2, 3, 4\), 3 axes could stack layers.*",
    )
    needs = rf"^`maskjax.initializer.{fn}` needs to know the axes of these leaves .*, "
    with pytest.raises(ValueError, match=needs + "got:\n  " + "\n  ".join(lines)) as at:
        FANS[fn](where.everything)
    assert "plain" not in str(at.value)
    assert ("unless `draw` is `elementwise`" in str(at.value)) is (fn == "redraw")
    words = {"bias": "outputs", "dense/weight": "stack outputs"}
    told = telling(words | {"layers/kernel": "stack inputs outputs"})
    match = (
        rf"initializer.{fn}` needs leaves with inputs for the fan-in.*\n"
        "  bias: its axes are 'outputs'\n  dense/weight: .*'stack outputs'$"
    )
    with pytest.raises(ValueError, match=match):
        FANS[fn](told | where.everything)


@pytest.mark.parametrize(
    "draw", [ONES, initializer.uniform(), initializer.signed_log_uniform(0.1)]
)
def test_a_draw_without_fans_asks_for_no_axes(draw):
    @jax.jit
    def of(params):
        new = initializer.redraw(draw, params, where=where.everything, key=KEY)
        keys = (jax.random.fold_in(KEY, i) for i in range(4))
        pairs = zip(keys, jax.tree.leaves(params), strict=True)
        return jax.tree.leaves(new), [draw(key, x.shape) for key, x in pairs]

    for new, expected in zip(*of(UNKNOWN), strict=True):
        np.testing.assert_array_equal(new, expected)


def test_marked_draws_are_as_equal_as_what_they_mark():
    assert initializer.elementwise(jax.nn.initializers.ones) == ONES
    assert hash(initializer.elementwise(jax.nn.initializers.ones)) == hash(ONES)
    assert initializer.elementwise(NORMAL) != ONES
    with pytest.raises(TypeError, match="elementwise` needs `draw` as a .*got int"):
        initializer.elementwise(3)


# One deviation for each layer.


def test_a_signed_deviation_is_that_of_each_layer():
    rng = np.random.default_rng(0)
    layers = rng.normal(size=(3, 40, 50)) * np.reshape([0.1, 1, 3], (3, 1, 1))
    layers = layers.astype("float32")
    unrolled = {f"layer_{i}": layer for i, layer in enumerate(layers)}
    told = telling({"first": "stack inputs outputs", "last": "inputs outputs stack"})
    scanned = {"first": layers, "last": np.moveaxis(layers, 0, -1)}
    both = told | where.kernels
    of = jax.jit(lambda p: initializer.signed_deviation(p, where=both))
    new, one = jax.device_get((of(scanned), of(unrolled)))
    np.testing.assert_array_equal(new["first"], np.stack(list(one.values())))
    np.testing.assert_array_equal(np.moveaxis(new["last"], -1, 0), new["first"])


def test_a_deviation_needs_axes_only_where_a_leaf_may_be_a_stack():
    of = functools.partial(initializer.signed_deviation, where=where.floating)
    jax.eval_shape(of, {"dense": UNKNOWN["dense"], "bias": UNKNOWN["bias"]})
    params = UNKNOWN | {"bias": np.ones((4, 3), "f4")}
    match = "(?s)signed_deviation` needs to know .* for the standard deviation of each "
    with pytest.raises(ValueError, match=match + r"layer.*\n  bias: .*\n  lay") as at:
        of(params)
    assert "dense" not in str(at.value)
