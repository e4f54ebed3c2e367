"""Weights that stay random, and scores to train."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import initializer, packing, select, where
from tests import trees

KEY = jax.random.key(7)
NORMAL = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def drawn(draw, key, shape, dtype="float32"):
    return draw(key, shape, jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("shape", "density", "dtype"),
    [
        ((50, 40), 1.0, "float32"),
        ((50, 40), 0.1, "bfloat16"),
        ((3, 3, 4, 30), 0.5, "float32"),
    ],
)
def test_signed_constant_has_two_values_of_the_wanted_variance(shape, density, dtype):
    w = drawn(initializer.signed_constant(density), KEY, shape, dtype)
    assert w.dtype == dtype
    assert w.shape == shape
    size = np.sqrt(2 / (density * np.prod(shape[:-1])))
    values = np.unique(trees.to_numpy(w))
    rtol = 1e-6 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(values, [-size, size], rtol=rtol)
    balance = np.mean(trees.to_numpy(w) > 0)
    assert abs(balance - 0.5) < 5 * 0.5 / np.sqrt(w.size)


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_a_random_mask_of_that_density_keeps_the_size_of_activations(density):
    w = np.asarray(drawn(initializer.signed_constant(density), KEY, (400, 600)))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 400))
    out = x @ (w * (rng.random(w.shape) < density))
    # E|x W|^2 = 2 |x|^2 * out / in, what a ReLU halves again.
    ratio = np.sum(out**2) / np.sum(x**2) * 400 / 600
    np.testing.assert_allclose(ratio, 2, rtol=0.05)


def test_initializers_go_where_flax_takes_them():
    import flax.linen as nn

    dense = nn.Dense(3, kernel_init=initializer.signed_constant(0.5))
    params = jax.jit(dense.init)(KEY, np.ones((1, 4), "float32"))["params"]
    np.testing.assert_allclose(np.abs(params["kernel"]), np.ones((4, 3)), rtol=1e-6)


@pytest.mark.parametrize("name", trees.NAMES)
def test_redraw_and_scores_of_every_kind_of_tree(name):
    params = trees.make(name, "bfloat16")

    kept = []

    def of(params):
        how = {"where": trees.WHERE, "key": KEY}
        new = initializer.redraw(initializer.signed_constant(), params, **how)
        leaves = zip(jax.tree.leaves(params), jax.tree.leaves(new), strict=True)
        kept.extend(old is same for old, same in leaves)
        return new, initializer.scores(params, **how)

    new, scores = jax.eval_shape(of, params)
    leaves, treedef = jax.tree.flatten(params)
    assert jax.tree.structure(new) == treedef
    others = treedef.flatten_up_to(new), treedef.flatten_up_to(scores), kept
    for old, new, score, same in zip(leaves, *others, strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
        assert same == (score is None) == (not where.kernels("", old))
        assert score is None or (score.shape, score.dtype) == (old.shape, old.dtype)


def test_redraw_draws_what_is_chosen_and_each_leaf_apart():
    ones = np.ones((8, 8), "float32")
    params = {
        "a": ones,
        "b": ones,
        "none": ones[:0],
        "no": ones[:, :0],
        "bias": ones[0],
    }

    @functools.partial(jax.jit, static_argnums=0)
    def redraw(draw, params, key):
        return initializer.redraw(draw, params, key=key)

    draw = initializer.signed_constant()
    out = redraw(draw, params, KEY)
    trees.assert_same(redraw(draw, params, KEY), out)
    assert len(np.unique(np.abs(out["a"]))) == 1
    assert (np.asarray(out["a"]) != np.asarray(out["b"])).any()
    np.testing.assert_array_equal(out["bias"], params["bias"])
    for name in ("none", "no"):  # leaves without entries are passed over
        assert out[name].shape == params[name].shape
    shapes = jax.eval_shape(lambda p: initializer.redraw(NORMAL, p, key=KEY), params)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize("dtype", trees.DTYPES)
def test_scores_fill_the_bounds_of_their_draw(dtype):
    shapes = {"dense": (50, 40), "conv": (3, 3, 4, 30), "bias": (40,)}
    params = {k: np.ones(s, jnp.dtype(dtype)) for k, s in shapes.items()}
    he = jax.nn.initializers.he_uniform()

    @jax.jit
    def of(params, key):
        scores = functools.partial(initializer.scores, params, key=key)
        return scores(), scores(draw=he)

    by_draw = of(params, KEY)
    for scores, gain in zip(by_draw, (3**-0.5, 2**0.5), strict=True):
        assert scores["bias"] is None
        for name in ("dense", "conv"):
            assert scores[name].dtype == dtype
            s = trees.to_numpy(scores[name])
            bound = gain * np.sqrt(3 / np.prod(shapes[name][:-1]))
            assert 0.95 * bound < np.abs(s).max() <= bound * (1 + 2**-7)
            assert abs(s.mean()) < 5 * bound / np.sqrt(3 * s.size)
            np.testing.assert_allclose(s.std(), bound / 3**0.5, rtol=0.07)
    other, _ = of(params, jax.random.key(8))
    assert (trees.to_numpy(other["dense"]) != trees.to_numpy(by_draw[0]["dense"])).any()


def test_scores_of_a_mask_begin_with_it_and_are_as_large_as_random_ones():
    kept = np.random.default_rng(0).random((50, 40)) < 0.3
    mask = {"dense": kept, "bias": None}
    params = {"dense": kept, "bias": kept[0]}

    @jax.jit
    def of(mask):
        scores = initializer.scores_of(params, mask)
        return scores, select.threshold(scores, at=0.0)

    for given in (mask, packing.pack(mask)):
        scores, same = of(given)
        assert scores["bias"] is None
        trees.assert_same(same, mask)
        assert (np.abs(scores["dense"]) == np.abs(scores["dense"][0, 0])).all()
    rms = np.sqrt(np.mean(np.square(scores["dense"])))
    np.testing.assert_allclose(rms, 1 / np.sqrt(3 * 50), rtol=1e-6)  # as `scores` has
    bfloat16 = functools.partial(initializer.scores_of, dtype=jnp.bfloat16)
    wide = jax.eval_shape(bfloat16, params, mask)
    assert wide["dense"].dtype == jnp.bfloat16
    soft = {"dense": np.full((50, 40), 0.5, "float32"), "bias": None}
    assert not np.any(of(soft)[0]["dense"])


def test_draws_that_refuse_a_shape_name_every_leaf():
    def refuse(key, shape, dtype):
        raise ValueError(f"cannot draw {shape}")

    params = {"a": np.ones((5, 4), "f4"), "b": np.ones((2, 3, 4), "f4")}
    told = where.matching("b", axes="inputs outputs outputs") | where.kernels
    for fn, call in {
        "scores": lambda d: initializer.scores(params, draw=d, where=told, key=KEY),
        "redraw": lambda d: initializer.redraw(d, params, where=told, key=KEY),
    }.items():
        lines = r"\n  a: cannot draw \(5, 4\)\n  b: cannot draw \(2, 12\)"
        with pytest.raises(ValueError, match=rf"initializer.{fn}` needs .*{lines}"):
            call(refuse)
        wanted = f"initializer.{fn}` needs `draw` as a function .*got str"
        with pytest.raises(TypeError, match=wanted):
            call("uniform")
    with pytest.raises(
        ValueError, match="signed_constant` needs a shape with a fan-in"
    ):
        initializer.signed_constant()(KEY, (3,))


def test_draws_of_another_shape_or_dtype_name_every_leaf():
    told = where.matching("stack", axes="stack inputs outputs") | where.kernels
    shapes = {"dense": (5, 4), "short": (2, 2), "stack": (3, 2, 4)}
    params = {name: np.ones(shape, "f4") for name, shape in shapes.items()}
    asked = {"dense": (5, 4), "short": (2, 2), "stack": (2, 4)}

    def square(key, shape, dtype):
        return jnp.ones((2, 2), dtype)

    def half(key, shape, dtype):
        return jnp.ones(shape, "float16")

    def number(key, shape, dtype):
        return 3.0

    for draw, wrong, got in (
        (square, ("dense", "stack"), r"float32 array of shape \(2, 2\)"),
        (half, asked, "float16 array of shape .*"),
        (initializer.elementwise(half), asked, "float16 array of shape .*"),
        (number, asked, r"float 3\.0"),
    ):
        sizes = (
            shapes if isinstance(draw, type(initializer.elementwise(half))) else asked
        )
        lines = [
            rf"\n  {name}: {got}, asked for float32 array of shape "
            + re.escape(str(sizes[name]))
            for name in wrong
        ]
        for fn, call in {
            "scores": lambda d: initializer.scores(params, draw=d, where=told, key=KEY),
            "redraw": lambda d: initializer.redraw(d, params, where=told, key=KEY),
        }.items():
            match = (
                rf"initializer.{fn}` needs `draw` to return .*{''.join(lines)}(\n-|$)"
            )
            with pytest.raises(ValueError, match=match):
                jax.eval_shape(functools.partial(call, draw))
    plain = initializer.redraw(
        lambda key, shape, dtype: np.full(shape, 2, dtype), params, where=told, key=KEY
    )
    for name, shape in shapes.items():
        assert isinstance(plain[name], jax.Array)
        np.testing.assert_array_equal(plain[name], np.full(shape, 2))


def test_what_is_made_of_a_stack_is_compiled_once(caplog):
    how = {"where": where.matching("", axes="stack inputs outputs")}
    draw, compiled = initializer.signed_constant(), []
    for seed in range(2):
        w = np.random.default_rng(seed).normal(size=(3, 4, 5)).astype("f4")
        key = jax.random.key(seed)
        caplog.clear()
        with jax.log_compiles():
            new = initializer.signed_deviation({"w": w}, **how)["w"]
            initializer.redraw(draw, {"w": w}, key=key, **how)
        lines = [record.getMessage() for record in caplog.records]
        compiled.append(sum(line.startswith("Compiling") for line in lines))
        expected = np.copysign(w.std((1, 2), keepdims=True), w)
        np.testing.assert_allclose(new, expected, rtol=1e-6)
    assert compiled[0]
    assert not compiled[1]


@pytest.mark.parametrize("dtype", trees.DTYPES)
def test_signed_deviations_have_signs_and_deviations_of_what_was_drawn(dtype):
    params = trees.make("nested_dict", dtype)
    out = jax.jit(initializer.signed_deviation)(params)
    assert jax.tree.structure(out) == jax.tree.structure(params)
    for old, new in trees.pairs(params, out):
        assert new.dtype == dtype
        if old.ndim < 2:
            np.testing.assert_array_equal(trees.to_numpy(new), old)
            continue
        expected = np.copysign(np.std(old.astype(np.float64)), old)
        rtol = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
        np.testing.assert_allclose(trees.to_numpy(new), expected, rtol=rtol)
        assert len(np.unique(trees.to_numpy(new))) == 2


def test_signed_deviations_need_floating_leaves_to_be_chosen():
    fn = "`maskjax.initializer.signed_deviation`"
    params = {"n": np.ones((2, 3), "int32"), "b": np.ones(3, "float32")}
    with pytest.raises(TypeError, match=rf"{fn} .*floating.*\n  n: int32"):
        initializer.signed_deviation(params, where=where.everything)
    with pytest.raises(ValueError, match=f"{fn} needs `where` to choose at least one"):
        initializer.signed_deviation({"b": params["b"]})


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(-1.0, 1.0, "float32"), (2.0, 5.0, "bfloat16"), (0.5, 0.5, "float32")],
)
def test_uniform_lies_evenly_between_its_ends(low, high, dtype):
    w = trees.to_numpy(drawn(initializer.uniform(low, high), KEY, (20_000,), dtype))
    assert low <= w.min() <= w.max() <= high
    if low < high:
        counts, _ = np.histogram(w, 4, (low, high))
        assert abs(counts / w.size - 0.25).max() < 0.02


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(2.0**-8, 1.0, "float32"), (0.5, 8.0, "bfloat16"), (3.0, 3.0, "float32")],
)
def test_signed_log_uniform_has_as_many_of_every_size(low, high, dtype):
    draw = initializer.signed_log_uniform(low, high)
    w = trees.to_numpy(drawn(draw, KEY, (40, 500), dtype))
    size = np.abs(w)
    assert low <= size.min() <= size.max() <= high
    assert abs(np.mean(w > 0) - 0.5) < 0.02
    if low < high:
        places = np.log(size / low) / np.log(high / low)
        counts, _ = np.histogram(places, 4, (0, 1))
        assert abs(counts / w.size - 0.25).max() < 0.03
        # Size and sign are drawn apart.
        assert abs(np.corrcoef(np.sign(w).ravel(), size.ravel())[0, 1]) < 0.03


def test_ends_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="`low` of at most `high`, got 2.0 and 1.0"):
        initializer.uniform(2.0)
    for low in (0.0, -1.0, 2.0):
        with pytest.raises(ValueError, match="`low` above 0 and at most `high`, got"):
            initializer.signed_log_uniform(low)
