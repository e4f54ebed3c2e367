"""Scores against their formulas."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import initializer, masking, score, select, where
from tests import trees
from tests.reference import criteria

KINDS = [*((name, "float32") for name in trees.NAMES), ("odd_leaves", "bfloat16")]
over_kinds = pytest.mark.parametrize(("name", "dtype"), KINDS)


def assert_scored(params, scores, formula, *, dtype=None, rtol=0):
    """Chosen leaves follow the formula, in their dtype; the others are None."""
    for i, (value, result) in enumerate(trees.pairs(params, scores)):
        original = jax.tree.leaves(params)[i]
        if where.kernels("", original):
            assert result.dtype == (dtype or original.dtype)
            wanted = formula(i, value)
            np.testing.assert_allclose(trees.to_numpy(result), wanted, rtol=rtol)
        else:
            assert result is None


def of_values(params, initial, key):
    """The scores that need no data."""
    return (
        score.magnitude(params),
        score.movement(params, initial),
        score.random(params, key=key),
    )


@over_kinds
def test_scores_of_values_are_those_of_the_formulas(name, dtype):
    params, initial = trees.make(name, dtype), trees.make(name, dtype, seed=1)
    key = jax.random.key(0)
    magnitude, movement, random = jax.jit(of_values)(params, initial, key)
    assert_scored(params, magnitude, lambda i, value: np.abs(value))
    first = [trees.to_numpy(leaf) for leaf in jax.tree.leaves(initial)]

    def moved(i, value):
        exact = value.astype(np.float64) - first[i]
        return np.abs(trees.to_numpy(exact.astype(jax.tree.leaves(params)[i].dtype)))

    assert_scored(params, movement, moved)

    def uniform(i, value):
        drawn = np.asarray(trees.pairs(params, random)[i][1])
        assert drawn.shape == value.shape
        assert ((drawn >= 0) & (drawn < 1)).all()
        return drawn

    assert_scored(params, random, uniform, dtype=jnp.float32)


def test_scores_of_values_are_the_same_eagerly_and_under_vmap():
    params, initial = ({"w": np.float32(W + i), "b": np.ones(3)} for i in range(2))
    keys = jax.random.split(jax.random.key(0), 2)
    for function in (score.magnitude, lambda p: score.movement(p, initial)):
        scores = function(params)
        assert scores["b"] is None
        jax.tree.map(np.testing.assert_array_equal, jax.jit(function)(params), scores)
    stacked = jax.tree.map(lambda *x: np.stack(x), params, initial)
    mapped = jax.jit(jax.vmap(of_values))(stacked, stacked, keys)
    np.testing.assert_array_equal(mapped[0]["w"], np.abs(stacked["w"]))
    np.testing.assert_array_equal(mapped[1]["w"], 0)
    assert (np.asarray(mapped[2]["w"][0]) != np.asarray(mapped[2]["w"][1])).any()


def test_draws_are_the_same_under_x64():
    """The same key gives the same mask, whatever the default dtype is."""
    params = {"w": np.ones((8, 9), "float32")}

    def draws(key):
        draw = initializer.redraw
        return (
            score.random(params, key=key),
            select.random(params, density=0.3, key=key),
            draw(initializer.signed_log_uniform(0.1, 2.0), params, key=key),
            draw(initializer.signed_constant(), params, key=key),
        )

    key = jax.random.key(0)
    plain = jax.device_get(draws(key))
    with jax.enable_x64(True):
        jax.tree.map(np.testing.assert_array_equal, plain, draws(key))


def test_random_scores_differ_between_leaves_and_keys():
    params = {"a": np.ones((40, 50)), "b": np.ones((40, 50))}
    draw = jax.jit(lambda key: score.random(params, key=key))
    scores, other, again = (
        jax.tree.map(np.asarray, draw(jax.random.key(seed))) for seed in (0, 1, 0)
    )
    assert (scores["a"] != scores["b"]).mean() > 0.99
    assert (scores["a"] != other["a"]).mean() > 0.99
    assert abs(scores["a"].mean() - 0.5) < 5 * np.sqrt(1 / 12 / 2000)
    trees.assert_same(scores, again)


def test_where_chooses_what_is_scored():
    params = trees.make("nested_dict")
    only = where.matching("^out/")
    key = jax.random.key(0)
    for scores in jax.eval_shape(
        lambda params: (
            score.magnitude(params, where=only),
            score.movement(params, params, where=only),
            score.random(params, where=only, key=key),
        ),
        params,
    ):
        assert scores["conv"]["kernel"] is None
        assert scores["out"]["kernel"] is not None
        assert scores["out"]["bias"] is not None


# From data. The linear model of the references: |x w - y|**2 / 2, mean over examples.

RNG = np.random.default_rng(0)
X, Y, W = (RNG.standard_normal(shape) for shape in [(7, 4), (7, 3), (4, 3)])
FROM_LOSS = {
    "snip": score.snip,
    "taylor": score.taylor,
    "grasp": score.grasp,
    "fisher": score.fisher,
}
over_criteria = pytest.mark.parametrize("name", FROM_LOSS)


def floats(*arrays):
    return [np.float32(a) for a in arrays]


def linear_loss(params, x, y):
    return jnp.mean(jnp.sum((x @ params["w"] - y) ** 2, axis=1)) / 2


def of_linear_loss(params, x, y):
    return {name: f(linear_loss, params, x, y)["w"] for name, f in FROM_LOSS.items()}


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_scores_of_a_linear_model_are_those_in_closed_form(transform):
    w, x, y = floats(W, X, Y)
    args = {"w": w}, x, y
    if transform is jax.vmap:  # the second of a batch
        args = jax.tree.map(lambda leaf: np.stack([leaf + 1, leaf]), args)
    scores = jax.jit(transform(of_linear_loss))(*args)
    for name, found in scores.items():
        found = found[1] if transform is jax.vmap else found
        expected = getattr(criteria, name)(W, X, Y)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert found.dtype == jnp.float32


def test_scores_outside_of_jit_are_the_same():
    w, x, y = floats(W, X, Y)
    found = score.snip(linear_loss, {"w": w}, x, y)["w"]
    expected = criteria.snip(W, X, Y)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@over_criteria
def test_only_chosen_leaves_are_differentiated(name):
    """A bias is a row of the kernel where x is 1: chosen or not, the kernel's Hg."""
    w, x, y, b = floats(W, X, Y, np.ones(3))
    full_w, full_x = np.vstack([W, np.ones(3)]), np.hstack([X, np.ones((7, 1))])

    def loss(params, x, y):
        return linear_loss(params, x, y - params["b"][None])

    @jax.jit
    def both(params):
        alone = FROM_LOSS[name](loss, params, x, y)
        return alone, FROM_LOSS[name](loss, params, x, y, where=where.floating)

    alone, joint = both({"w": w, "b": b})
    formula = getattr(criteria, name)
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert alone["b"] is None
    np.testing.assert_allclose(alone["w"], formula(W, X, Y - 1), **close)
    expected = formula(full_w, full_x, Y)
    np.testing.assert_allclose(joint["w"], expected[:-1], **close)
    np.testing.assert_allclose(joint["b"], expected[-1], **close)


def square_loss(params, scale):
    """Gradient s * w and Hessian s, s the mean of `scale`, whatever the tree."""
    leaves = [w for w in jax.tree.leaves(params) if where.floating("", w)]
    total = sum(jnp.sum(w.astype(jnp.float32) ** 2) for w in leaves)
    return jnp.mean(scale) * total / 2


def of_square_loss(params, scale):
    return {name: f(square_loss, params, scale) for name, f in FROM_LOSS.items()}


def assert_square_loss_scored(params, scores, scale, *, rtol):
    mean, mean_square = np.mean(scale), np.mean(np.square(scale))
    formulas = {
        "snip": lambda w: np.abs(mean) * w**2,
        "taylor": lambda w: mean**2 * w**4,
        "grasp": lambda w: mean**2 * w**2,
        "fisher": lambda w: mean_square * w**4 / 2,
    }
    for name, formula in formulas.items():
        for original, (value, result) in zip(
            jax.tree.leaves(params), trees.pairs(params, scores[name]), strict=True
        ):
            if where.kernels("", original):
                assert result.dtype == jnp.float32
                expected = formula(value.astype(np.float64))
                np.testing.assert_allclose(result, expected, rtol=rtol)
            else:
                assert result is None


@over_kinds
def test_scores_of_every_tree_are_those_in_closed_form(name, dtype):
    params, scale = trees.make(name, dtype), np.array([0.5, -2.0, 3.0], np.float32)
    scores = jax.jit(of_square_loss)(params, scale)
    rtol = 1e-5 if dtype == "float32" else 0.05
    assert_square_loss_scored(params, scores, scale, rtol=rtol)


def test_scores_of_each_seed_under_vmap():
    members = [trees.make("odd_leaves", seed=i) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    scales = RNG.standard_normal((3, 4)).astype(np.float32)
    scores = jax.jit(jax.vmap(of_square_loss))(stacked, scales)
    scores = jax.tree.map(np.asarray, scores)
    for i, (member, scale) in enumerate(zip(members, scales, strict=True)):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], scores)
        assert_square_loss_scored(member, own, scale, rtol=1e-5)


def test_small_products_do_not_vanish_in_half_precision():
    w = {"w": np.full((2, 2), 2**-10, np.float16)}
    scores = jax.jit(
        lambda w: score.taylor(lambda p: jnp.sum(p["w"]) * jnp.float16(2**-15), w)
    )(w)
    np.testing.assert_array_equal(scores["w"], np.float32(2**-50))


def test_removed_entries_are_worth_nothing():
    w, x, y = floats(W, X, Y)
    mask = {"w": w > 0}

    def masked_loss(params, *data):
        return linear_loss(masking.apply(params, mask), *data)

    @jax.jit
    def compute(params):
        masked = masking.apply(params, mask)
        return {
            name: (f(linear_loss, masked, x, y)["w"], f(masked_loss, params, x, y)["w"])
            for name, f in FROM_LOSS.items()
        }

    for name, found in compute({"w": w}).items():
        scores, through_mask = map(np.asarray, found)
        np.testing.assert_array_equal(scores[W <= 0], 0)
        assert (scores[W > 0] != 0).all()
        np.testing.assert_array_equal(through_mask[W <= 0], 0)
        if name != "grasp":  # its H and g see the removed entries of masked parameters
            np.testing.assert_allclose(scores, through_mask, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_fisher_is_the_same_for_every_batch_size(batch_size):
    w, x, y = floats(W, X, Y)
    compute = jax.jit(
        lambda *args: score.fisher(linear_loss, *args, batch_size=batch_size)
    )
    expected = criteria.fisher(W, X, Y)
    np.testing.assert_allclose(compute({"w": w}, x, y)["w"], expected, rtol=1e-4)


def test_fisher_gives_the_loss_examples_of_one_in_trees():
    w, x, y = floats(W, X, Y)
    shapes = []

    def loss(params, batch, keys):
        shapes.append((batch["x"].shape, batch["y"].shape, keys.shape))
        return linear_loss(params, batch["x"], batch["y"])

    keys = jax.random.split(jax.random.key(0), 7)
    scores = jax.jit(lambda *args: score.fisher(loss, *args))(
        {"w": w}, {"x": x, "y": y}, keys
    )
    assert set(shapes[1:]) == {((1, 4), (1, 3), (1,))}  # the first is a trace
    np.testing.assert_allclose(scores["w"], criteria.fisher(W, X, Y), rtol=1e-4)


def batch_norm(x):
    return (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)


def test_fisher_tells_that_examples_are_not_apart(transform):
    """Each would be normalized to 0, and all scores be 0."""
    w, x, y = floats(W, X, Y)

    def loss(params, x, y):
        return jnp.mean((batch_norm(x @ params["w"]) - y) ** 2)

    def one_by_one(params, x, y):
        return jnp.mean((jax.nn.standardize(x @ params["w"], axis=-1) - y) ** 2)

    run = transform(lambda *args: score.fisher(loss, *args))
    with pytest.warns(
        UserWarning, match="score.fisher` gives `loss` one example .*mix"
    ):
        scores = run({"w": w}, x, y)
    np.testing.assert_array_equal(scores["w"], 0)
    fine = transform(lambda *args: score.fisher(one_by_one, *args))({"w": w}, x, y)
    assert np.all(np.asarray(fine["w"]) > 0)


# From the network alone.


def chain(params, x):
    for kernel in params:
        x = jax.nn.relu(x @ kernel)
    return x


KERNELS = [RNG.standard_normal(shape) for shape in [(5, 4), (4, 6), (6, 2)]]


def test_synflow_of_a_chain_is_that_in_closed_form():
    @jax.jit
    def compute(params):
        one = score.synflow(chain, params, (3, 5))
        return one, jax.vmap(lambda p: score.synflow(chain, p, (3, 5)))(
            jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
        )

    scores, mapped = compute(floats(*KERNELS))
    for i, expected in enumerate(criteria.synflow(KERNELS, 3)):
        np.testing.assert_allclose(scores[i], expected, rtol=1e-5)
        np.testing.assert_allclose(mapped[i], [expected, 8 * expected], rtol=1e-5)
    # It is conserved from layer to layer, and unit by unit.
    scores = [np.asarray(leaf) for leaf in scores]
    np.testing.assert_allclose([s.sum() for s in scores], scores[0].sum(), rtol=1e-5)
    for into, out in zip(scores, scores[1:], strict=False):
        np.testing.assert_allclose(into.sum(0), out.sum(1), rtol=1e-5)


def test_synflow_iterated_takes_no_whole_layer_where_one_cut_does():
    shapes = [(20, 20), (20, 1), (1, 20)]
    params = floats(*(RNG.random(shape) + 0.5 for shape in shapes))

    @jax.jit
    def compute(params):
        def of(params):
            return score.synflow(chain, params, (1, 20))

        mask = select.iterative_top_k(of, params, density=0.06, rounds=100)
        return mask, of(params), of(masking.apply(params, mask))

    mask, before, after = jax.tree.map(np.asarray, compute(params))
    kept = [np.asarray(leaf).sum() for leaf in mask]
    assert sum(kept) == 26  # 0.06 * 440
    assert min(kept) > 0
    at_once = np.argsort(np.concatenate([-leaf.ravel() for leaf in before]))[:26]
    assert (at_once >= 400).all()  # nothing of the first layer
    for leaf, m in zip(after, mask, strict=True):
        np.testing.assert_array_equal(leaf[~m], 0)
        assert (leaf > 0).any()  # something flows from end to end


def test_synflow_makes_every_floating_leaf_positive_and_feeds_ones():
    seen = []

    def apply(params, x):
        seen.append((x, params))
        out = x.astype(jnp.float32) @ params["w"].astype(jnp.float32) + params["b"]
        return {"out": out, "count": params["n"]}

    params = {
        "w": KERNELS[0].astype(jnp.bfloat16),
        "b": np.full((1, 4), -2, np.float32),
        "n": np.array(-3),
        "none": None,
    }
    # Read outside of the gradient, whose tracers have no values.
    scores = score.synflow(apply, params, (2, 5), where=where.matching("^w$"))
    x, made = seen[0]
    assert x.shape == (2, 5)
    assert x.dtype == jnp.float32  # what bfloat16 and float32 promote to
    np.testing.assert_array_equal(made["b"], 2)
    assert made["n"] == -3
    assert scores["b"] is None
    assert scores["none"] is None
    expected = 2 * np.abs(trees.to_numpy(params["w"]))
    np.testing.assert_allclose(scores["w"], expected, rtol=0.02)


def test_wanda_is_magnitude_times_the_norm_of_the_inputs():
    w, x = floats(W, X)
    params = {"w": w, "b": np.ones(3, np.float32)}

    def compute(params, x):
        norms = score.input_norms(lambda p, x: x @ p["w"] + p["b"][None], params, x)
        return score.wanda(params, norms)

    expected = np.abs(W) * np.linalg.norm(X, axis=0)[:, None]
    for transform in (lambda f: f, jax.jit):
        scores = transform(compute)(params, x)
        np.testing.assert_allclose(scores["w"], expected, rtol=1e-5)
        assert scores["b"] is None


@over_kinds
def test_wanda_takes_norms_of_the_rank_and_axes_of_a_mask(name, dtype):
    params = trees.make(name, dtype)

    def rows(leaf):
        if not where.kernels("", leaf):
            return None
        shape = (-1, *[1] * (leaf.ndim - 1))
        return np.arange(leaf.shape[0], dtype=np.float32).reshape(shape)

    norms = jax.tree.map(rows, params)
    given = [norm for _, norm in trees.pairs(params, norms)]
    scores = jax.jit(score.wanda)(params, norms)
    assert_scored(
        params, scores, lambda i, value: np.abs(value) * given[i], dtype=jnp.float32
    )


def test_wanda_ranks_within_each_output_under_vmap():
    w, x = floats(W, X)

    @jax.jit
    def compute(w):
        scores = score.wanda({"w": w}, {"w": np.linalg.norm(x, axis=0)[:, None]})
        select_half = lambda s: select.top_k(s, density=0.5)  # noqa: E731
        return scores["w"], jax.vmap(select_half, -1, -1)(scores)["w"]

    scores, mask = compute(w)
    order = np.argsort(-np.asarray(scores), axis=0)
    expected = np.zeros(W.shape, bool)
    np.put_along_axis(expected, order[:2], True, axis=0)  # noqa: FBT003
    np.testing.assert_array_equal(mask, expected)


# Complaints.


def raises(kind, pattern):
    return pytest.raises(kind, match=re.compile(pattern, re.DOTALL))


CHOOSERS = {
    **{
        name: lambda params, f=f, **kwargs: f(square_loss, params, np.ones(3), **kwargs)
        for name, f in FROM_LOSS.items()
    },
    "synflow": lambda params, **kwargs: score.synflow(
        lambda p, x: x @ p["w"], params, (1, 4), **kwargs
    ),
    "wanda": lambda params, **kwargs: score.wanda(params, params, **kwargs),
    "input_norms": lambda params, **kwargs: score.input_norms(
        lambda p, x: x @ p["w"], params, np.ones((1, 4)), **kwargs
    ),
}
over_choosers = pytest.mark.parametrize("name", CHOOSERS)


@over_choosers
def test_leaves_that_are_chosen_are_floating_and_some(name):
    params = {"w": np.ones((4, 3)), "steps": np.ones((2, 2), np.int32)}
    fn = f"`maskjax.score.{name}`"
    with raises(TypeError, f"{fn} needs every leaf that .* steps: int32 array of sha"):
        CHOOSERS[name](params, where=where.everything)
    with raises(ValueError, f"{fn} needs `where` to choose at least one leaf, .*: w.$"):
        CHOOSERS[name]({"w": params["w"]}, where=where.matching("no such"))
    with raises(ValueError, f"{fn} needs `where` to choose .* an empty tree"):
        CHOOSERS[name]({})


@over_criteria
def test_a_loss_is_a_floating_scalar(name):
    w, x, y = floats(W, X, Y)

    def result(make):
        return lambda params, *data: make(linear_loss(params, *data))

    needs = f"`maskjax.score.{name}` needs `loss` to return a floating scalar, got "
    for make, got in (
        (lambda value: value[None], r"float32 array of shape \(1,\)"),
        (lambda value: value.astype(jnp.int32), r"int32 array of shape \(\)"),
        (lambda value: (value, 1), "tuple"),
        (lambda value: None, "NoneType None"),
    ):
        with raises(TypeError, needs + got):
            FROM_LOSS[name](result(make), {"w": w}, x, y)


def test_fisher_needs_examples():
    params = {"w": np.ones((4, 3))}
    needs = "`maskjax.score.fisher` needs arrays of `data` whose leading axis is "
    cases = [
        ((), "got:\n  none"),
        ((np.ones(4), np.ones(3)), r"0: shape \(4,\)\n  1: shape \(3,\)"),
        (({"x": np.ones(()), "y": np.ones(3)},), r"0/x: shape \(\)\n  0/y: shape"),
        ((np.ones((0, 3)),), r"0: shape \(0, 3\)"),
    ]
    for data, got in cases:
        with raises(ValueError, needs + ".*" + got):
            score.fisher(square_loss, params, *data)
    for batch_size, kind in ((0, ValueError), (1.5, TypeError)):
        with raises(kind, f"fisher` needs `batch_size` .* {batch_size}"):
            score.fisher(square_loss, params, np.ones(3), batch_size=batch_size)


def test_synflow_needs_an_output():
    needs = "`maskjax.score.synflow` needs `apply` to return a floating array, got "
    params = {"w": np.ones((4, 3))}
    for out, got in (
        (None, "nothing"),
        (np.ones(3, np.int32), r"int32 array of shape"),
    ):
        with raises(TypeError, needs + got):
            score.synflow(lambda p, x, out=out: out, params, (1, 4))


def test_norms_fit_the_kernels():
    params = {"w": np.ones((4, 3)), "v": np.ones((2, 2)), "b": np.ones(3)}
    norms = {"w": np.ones((4, 1)), "v": np.ones((1, 1)), "b": None}
    needs = "`maskjax.score.wanda` needs every leaf of `input_norms` "
    with raises(
        ValueError, needs + r"shaped like .*: input_norms \(4,\), params \(4, 3"
    ):
        score.wanda(params, {**norms, "w": np.ones(4)})
    with raises(
        TypeError, needs + "that `where` chooses .*v: NoneType None\n  w: int32"
    ):
        score.wanda(params, {**norms, "v": None, "w": np.ones((4, 1), np.int32)})
    with raises(ValueError, "wanda` needs .* structure, got:\n  only in `params`: v"):
        score.wanda(params, {"w": norms["w"], "b": None})
