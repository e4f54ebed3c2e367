"""Statistics of batches: what adds up, what is left out, and what is refused."""

import functools
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskjax import calibration, masking, score, select, where
from tests import trees
from tests.reference import calibration as reference


def normal(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


WIDTHS = {"first": (6, 8), "second": (8, 5)}
PARAMS = {name: normal(*shape, seed=1) for name, shape in WIDTHS.items()}
X = normal(12, 6)


def network(p, x):
    return jnp.tanh(x @ p["first"]) @ p["second"]


def begun(params=PARAMS, x=X, apply=network, **how):
    return calibration.init(apply, params, x, **how)


@functools.partial(jax.jit, static_argnums=0)
def update(apply, stats, params, x, weights=None):
    return calibration.update(apply, stats, params, x, weights=weights)


def assert_close(some, others, rtol=1e-5):
    for one, other in zip(jax.tree.leaves(some), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-5)


both = pytest.mark.parametrize("gram", [True, False])


def raises(pattern, kind=ValueError):
    # JAX adds a note below a line to what is raised while it traces.
    if pattern.endswith("$"):
        pattern = pattern.removesuffix("$") + r"(\n-{20}\n.*)?$"
    return pytest.raises(kind, match=re.compile(pattern, re.DOTALL))


# What adds up.


@both
def test_batches_add_up_to_one_of_all(gram):
    stats = begun(gram=gram)
    whole = update(network, stats, PARAMS, X)
    for sizes in ([4, 4, 4], [1, 11], [12]):  # their sizes may differ
        parts = stats
        for batch in np.split(X, np.cumsum(sizes)[:-1]):
            parts = update(network, parts, PARAMS, batch)
        assert_close(parts, whole)
    halves = [update(network, stats, PARAMS, batch) for batch in np.split(X, 2)]
    assert_close(jax.tree.map(jnp.add, *halves), whole)  # of processes, say
    assert_close(calibration.collect(network, PARAMS, np.split(X, 3), gram=gram), whole)


@both
def test_sums_are_those_of_one_row_after_the_other(gram):
    stats = update(network, begun(gram=gram), PARAMS, X)
    hidden = np.tanh(X @ PARAMS["first"])
    for name, rows in {"first": X, "second": hidden}.items():
        answer = reference.gram(rows)
        answer = answer if gram else np.diag(answer)
        np.testing.assert_allclose(stats[name].sums, answer, rtol=1e-5, atol=1e-5)
        assert stats[name].sums.dtype == jnp.float32


@both
def test_rows_of_weight_zero_are_left_out(gram):
    x, keep = normal(4, 3, 6), np.ones((4, 3), bool)
    x[0, 2] = x[3] = np.nan  # padding may hold anything
    keep[0, 2] = keep[3] = False
    stats = begun(x=x, gram=gram)
    left = update(network, stats, PARAMS, x[keep])
    assert_close(update(network, stats, PARAMS, x, keep), left)
    assert_close(update(network, stats, PARAMS, x, np.float32(keep)), left)


@both
def test_weights_count_rows(gram):
    weights = np.float32([0, 1, 2, 3] * 3)
    repeated = np.repeat(X, np.int32(weights), axis=0)
    stats = begun(gram=gram)
    expected = update(network, stats, PARAMS, repeated)
    assert_close(update(network, stats, PARAMS, X, weights), expected)
    half = update(network, stats, PARAMS, X, weights / 2)
    assert_close(jax.tree.map(lambda s: 2 * s, half), expected)


@both
def test_weights_of_one_change_nothing(gram):
    stats = begun(gram=gram)
    plain = update(network, stats, PARAMS, X)
    ones = update(network, stats, PARAMS, X, np.ones(12, "int32"))
    trees.assert_same(jax.tree.leaves(ones), jax.tree.leaves(plain))


def test_norms_are_those_that_wanda_takes():
    norms = score.input_norms(network, PARAMS, X)
    for gram in (True, False):
        stats = update(network, begun(gram=gram), PARAMS, X)
        found = calibration.norms(stats)
        assert [n.shape for n in found.values()] == [(6, 1), (8, 1)]
        assert_close(found, norms)
        scores = score.wanda(PARAMS, found)
        mask = select.top_k(scores, density=0.5, scope="output")
        assert all((m.sum(0) == len(m) // 2).all() for m in mask.values())
        assert_close(jax.jit(calibration.norms)(stats), found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_sums_are_float32_or_wider_in_every_format(dtype):
    with jax.enable_x64(dtype == "float64"):
        # Sums in bfloat16 would stop at 256, and those in float16 at 2048.
        ones = np.ones((5000, 6), dtype)
        apply = lambda p, x: x @ p["w"]  # noqa: E731
        params = {"w": np.ones((6, 2), dtype)}
        for gram in (True, False):
            stats = begun(params, ones, apply, gram=gram)
            own = update(apply, stats, params, ones)["w"]
            assert own.sums.dtype == (dtype if dtype == "float64" else "float32")
            np.testing.assert_array_equal(own.sums, np.full(own.sums.shape, 5000.0))


def test_products_of_narrow_rows_are_not_rounded():
    x = normal(40, 6).astype(jnp.bfloat16)
    params = {"w": np.ones((6, 2), jnp.bfloat16)}
    apply = lambda p, x: x @ p["w"]  # noqa: E731
    own = update(apply, begun(params, x, apply), params, x)["w"]
    answer = reference.gram(np.float64(x))
    np.testing.assert_allclose(own.sums, answer, rtol=1e-6, atol=1e-5)


def test_data_may_be_whole_numbers_or_complex():
    for x in (np.int32(8 * X), X[:6] + 1j * X[6:]):
        apply = lambda p, x: x @ p["w"].astype(x.dtype)  # noqa: E731
        params = {"w": normal(6, 3)}
        for gram in (True, False):
            own = calibration.update(
                apply, begun(params, x, apply, gram=gram), params, x
            )
            answer = (x.conj().T @ x).real
            answer = answer if gram else np.diag(answer)
            np.testing.assert_allclose(own["w"].sums, answer, rtol=1e-5, atol=1e-5)


def test_members_under_vmap():
    members = {name: normal(3, *shape) for name, shape in WIDTHS.items()}
    x = normal(3, 12, 6)
    stats = jax.vmap(begun)(members, x)
    own = jax.jit(jax.vmap(functools.partial(calibration.update, network)))
    own = own(stats, members, x)
    for i in range(3):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], members)
        alone = update(network, begun(), member, x[i])
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], own), alone)


def test_one_program_serves_all_batches():
    step = jax.jit(functools.partial(calibration.update, network), donate_argnums=0)
    stats = begun()
    for seed in range(4):
        stats = step(stats, PARAMS, normal(12, 6, seed=seed))
    assert step._cache_size() == 1


def test_statistics_are_a_pytree_of_sums():
    stats = begun()
    assert [leaf.shape for leaf in jax.tree.leaves(stats)] == [(6, 6), (8, 8)]
    own = stats["second"]
    assert (own.shape, str(own.axes), own.groups) == ((8, 5), "inputs outputs", 1)
    assert own.gram
    assert hash(own.axes)
    same = jax.tree.map(lambda leaf: leaf, stats)
    assert jax.tree.structure(same) == jax.tree.structure(stats)
    assert not any(leaf.any() for leaf in jax.tree.leaves(stats))


def test_the_backward_pass_is_not_counted():
    def loss(p, x):
        return jnp.sum(network(p, x) ** 2)

    own = update(jax.grad(loss), begun(apply=jax.grad(loss)), PARAMS, X)
    assert_close(own, update(network, begun(), PARAMS, X))


# In every framework.


def test_leaves_that_are_no_kernels_have_none():
    model = eqx.nn.MLP(6, 5, 8, 1, key=jax.random.key(0))
    apply = lambda m, x: jax.vmap(m)(x)  # noqa: E731
    stats = calibration.collect(apply, model, [X, X])
    assert stats.activation is None
    assert stats.layers[0].bias is None
    own = stats.layers[0].weight
    assert str(own.axes) == "outputs inputs"  # found by tracing
    np.testing.assert_allclose(own.sums, 2 * X.T @ X, rtol=1e-5, atol=1e-5)
    norms = calibration.norms(stats)
    assert norms.layers[0].weight.shape == (1, 6)
    mask = select.top_k(
        score.wanda(eqx.filter(model, eqx.is_array), norms), density=0.5
    )
    assert mask.layers[0].bias is None


def test_statistics_of_an_nnx_model():
    model = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    apply = lambda s, x: nnx.merge(graph, s, copy=True)(x)  # noqa: E731
    stats = calibration.collect(apply, state, [X])
    np.testing.assert_allclose(jax.tree.leaves(stats)[0], X.T @ X, rtol=1e-5, atol=1e-5)
    norms = jax.tree.leaves(calibration.norms(stats))
    np.testing.assert_allclose(norms[0][:, 0] ** 2, np.diag(X.T @ X), rtol=1e-5)


# Memory.


def test_memory_is_told_before_it_is_taken():
    shapes = {"a": jax.ShapeDtypeStruct((4, 3000, 7), "bfloat16"), "b": (5, 3000)}
    shapes["b"] = jax.ShapeDtypeStruct(shapes["b"], "bfloat16")

    def apply(p, x):
        h = x @ p["b"]
        return jax.lax.scan(lambda h, w: (h, h @ w), h, p["a"])

    x = jax.ShapeDtypeStruct((16, 5), "bfloat16")
    told = where.matching("a|b")
    found = calibration.memory(apply, shapes, x, where=told)
    assert found.kernels == {"a": 4 * 3000**2 * 4, "b": 25 * 4}
    assert [*found.kernels] == ["a", "b"]  # the dearest first
    assert found.total == sum(found.kernels.values())
    flat = calibration.memory(apply, shapes, x, where=told, gram=False)
    assert flat.kernels == {"a": 4 * 3000 * 4, "b": 5 * 4}
    stats = begun()
    taken = sum(leaf.nbytes for leaf in jax.tree.leaves(stats))
    assert taken == calibration.memory(network, PARAMS, X).total
    with raises(
        r"`maskjax.calibration.init` needs 144,000,100 bytes for statistics, and "
        r"`limit` is 1,000,000 .*, got:\n  a: 144,000,000 bytes\n  b: 100 bytes$"
    ):
        begun(shapes, x, apply, where=told, limit=10**6)
    begun(limit=taken)
    with raises(rf"init` needs {taken} bytes .*`limit` is {taken - 1} "):
        begun(limit=taken - 1)
    with raises(r"`limit` as a whole number, got float 1.5\.", TypeError):
        begun(limit=1.5)
    with raises(r"`limit` of at least 0, got -1\."):
        begun(limit=-1)


def test_only_the_dearest_kernels_are_listed():
    params = {f"w{i}": normal(6 + i, 2) for i in range(8)}
    apply = lambda p, x: [x[:, : len(w)] @ w for w in p.values()]  # noqa: E731
    with raises(r"got:\n  w7: 676 bytes\n.*w3: 324 bytes\n  and 3 more$"):
        begun(params, normal(3, 13), apply, limit=0)


# What is refused.


def test_inputs_are_needed():
    with raises(r"`maskjax.calibration.init` needs `inputs`, .* got none\.$"):
        calibration.init(lambda p: X @ p["first"], PARAMS)
    with raises(r"`maskjax.calibration.memory` needs `inputs`, .* got none\.$"):
        calibration.memory(lambda p: X @ p["first"], PARAMS)
    with raises(r"`maskjax.calibration.update` needs `inputs`, .* got none\.$"):
        calibration.update(lambda p: X @ p["first"], begun(), PARAMS)
    with raises(r"`maskjax.calibration.collect` needs at least one batch, got none\.$"):
        calibration.collect(network, PARAMS, [])


def test_something_has_to_be_chosen():
    with raises(
        r"`maskjax.calibration.init` needs `where` to choose at least one leaf"
    ):
        begun(where=where.matching("nothing"))
    params = {"first": np.ones((6, 8), "int32"), "second": PARAMS["second"]}
    with raises(r"init` needs every leaf that `where` .*floating", TypeError):
        begun(params, where=where.everything)


def test_a_kernel_has_to_meet_data():
    params = {**PARAMS, "third": normal(5, 5)}
    with raises(r"calibration.init` needs `where` to choose .*third: is not used$"):
        begun(params)
    told = where.matching(".", axes="inputs outputs")
    with raises(r"calibration.init` needs `where` to choose .*third: is not used$"):
        begun(params, where=told)
    less = lambda p, x: x @ p["first"]  # noqa: E731
    with raises(r"calibration.update` needs `where` to .*second: is not used$"):
        calibration.update(less, begun(), PARAMS, X)


def test_batches_of_other_features_are_refused():
    with pytest.raises(TypeError, match="dot_general .*") as caught:
        calibration.update(network, begun(), PARAMS, normal(3, 7))
    (note,) = [n for n in caught.value.__notes__ if "maskjax" in n]
    assert note == (
        "`maskjax.calibration.update` traced the function with inputs of float32[3,7]."
    )


def test_statistics_of_something_else_are_refused():
    stats = begun()
    other = {"first": normal(6, 9), "second": normal(9, 5)}
    with raises(
        r"`maskjax.calibration.update` needs `stats` of these parameters, got:\n"
        r"  first: statistics of shape \(6, 8\), float32 array of shape \(6, 9\)\n"
        r"  second: statistics of shape \(8, 5\), float32 array of shape \(9, 5\)$"
    ):
        calibration.update(network, stats, other, X)
    with raises(r"update` needs `params` and `stats` of the same structure"):
        calibration.update(network, {"first": stats["first"]}, PARAMS, X)
    for nothing in (dict.fromkeys(PARAMS), {}, None):
        with raises(r"update` needs `stats` of at least one kernel, .*, got none\.$"):
            calibration.update(network, nothing, PARAMS, X)
    with raises(
        r"needs `params` and `stats` of .*, got:\n  `params` is NoneType None$"
    ):
        calibration.update(network, stats, None, X)
    needs = "`Statistics`, or None, as `calibration.collect` returns them, got:\n"
    with raises(needs + "  first: float32 array", TypeError):
        calibration.update(network, PARAMS, PARAMS, X)
    mixed = {"first": stats["first"], "second": begun(gram=False)["second"]}
    with raises(r"needs all of `stats` with Gram matrices, or all without\.$"):
        calibration.update(network, mixed, PARAMS, X)
    apart = lambda p, x: [x[:4] @ p["first"][:, :4], x[4:] @ p["first"][:, 4:]]  # noqa: E731
    first = {"first": PARAMS["first"]}
    own = {"first": stats["first"]}
    with raises(
        r"update` needs kernels to meet data as in `stats`, got:\n  first: statistics "
        r"\(6, 6\), in this batch \(2, 6, 6\)$"
    ):
        calibration.update(apart, own, first, X)


def test_some_kernels_may_be_left_out():
    stats = begun(where=where.matching("second"))
    own = update(network, stats, PARAMS, X)
    assert own["first"] is None
    assert_close(own["second"], update(network, begun(), PARAMS, X)["second"])
    assert calibration.norms(own)["first"] is None


@pytest.mark.parametrize("bad", [-1.0, np.inf, np.nan])
def test_weights_are_finite_and_not_negative(bad):
    weights = np.ones(12, "float32")
    weights[3] = bad
    needs = r"`maskjax.calibration.update` needs `weights` finite and at least 0, got "
    with raises(rf"{needs}{bad}\.$"):
        calibration.update(network, begun(), PARAMS, X, weights=weights)
    with raises(r"needs `weights` as real numbers, got complex64", TypeError):
        calibration.update(network, begun(), PARAMS, X, weights=np.ones(12, "c8"))
    with raises(
        r"leading axes of what every kernel meets, got:\n  first: weights \(5,"
    ):
        calibration.update(network, begun(), PARAMS, X, weights=np.ones(5))


def test_sums_that_are_not_finite_are_named():
    x = X.copy()
    x[2, 1] = np.inf
    stats = update(network, begun(), PARAMS, x)
    for fn in (calibration.norms, calibration.check):
        with raises(
            rf"`maskjax.calibration.{fn.__name__}` needs finite statistics, got:\n"
            r"  first: 11 of 36 sums are inf or nan$"
        ):
            fn(stats)
    jax.jit(calibration.norms)(stats)  # traced values are not looked at
    fine = update(network, begun(), PARAMS, X)
    assert calibration.check(fine) is fine
    with raises(
        r"`maskjax.calibration.collect` needs finite statistics, got:\n"
        r"  first: inf or nan since batch 2$"
    ):
        calibration.collect(network, PARAMS, [X, X, x, X])
    for fn in (calibration.norms, calibration.check):
        with raises("`Statistics`, or None, .*got:\n  first: float32", TypeError):
            fn(PARAMS)
        with raises("needs `stats` of at least one kernel, .*, got none"):
            fn(dict.fromkeys(PARAMS))


@both
def test_statistics_that_no_data_give_are_refused(gram):
    stats = update(network, begun(gram=gram), PARAMS, X)
    nothing = begun(gram=gram)
    own = stats["second"].sums
    own = own.at[(3,) * own.ndim].set(-1.0)
    less = {**stats, "second": stats["second"]._replace(own)}
    for fn in (calibration.norms, calibration.check):
        name = f"`maskjax.calibration.{fn.__name__}` needs "
        with raises(name + "statistics of some data, but all sums are 0: no batch .*$"):
            fn(nothing)
        with raises(
            name + r"sums of squares .* 0, got:\n  second: 1 of 8 are negative$"
        ):
            fn(less)
        fn({**stats, "second": nothing["second"]})  # as of an expert without rows
    norms = jax.jit(calibration.norms)(less)["second"].ravel()
    np.testing.assert_array_equal(np.isnan(norms), np.arange(8) == 3)
    with raises("`maskjax.calibration.collect` needs statistics of some data, but all"):
        calibration.collect(network, PARAMS, [X, 0 * X], gram=gram, weights=none)


@both
def test_statistics_of_several_that_are_not_added_up_are_refused(gram):
    stats = update(network, begun(gram=gram), PARAMS, X)
    several = jax.tree.map(lambda x: jnp.stack([x, x]), stats)
    shape = r"\(8, 8\)" if gram else r"\(8,\)"
    for fn in (calibration.norms, calibration.check):
        with raises(
            f"`maskjax.calibration.{fn.__name__}` needs sums of the shapes .* Add them "
            rf"up, .*\n  second: float32 array of shape \(2, 8.*, needs {shape}"
        ):
            fn(several)
    mapped = jax.vmap(calibration.norms)(several)["second"]
    np.testing.assert_array_equal(mapped[1], calibration.norms(stats)["second"])


weighted = lambda p, x, w: network(p, x)  # noqa: E731
second = lambda x, w: w  # noqa: E731
none = lambda x: jnp.zeros(len(x))  # noqa: E731


@pytest.mark.parametrize("bad", [-1.0, np.inf, np.nan])
def test_weights_from_inputs_are_finite_and_not_negative(bad):
    ones = np.ones(12, "float32")
    weights = np.where(np.arange(12) == 3, np.float32(bad), ones)
    batches = [(X, ones), (X, weights), (X, ones)]
    needs = "`maskjax.calibration.collect` needs finite weights of at least 0 from "
    with raises(rf"{needs}`weights`, got {bad} in batch 1\.$"):
        calibration.collect(weighted, PARAMS, batches, weights=second)
    for gram in (True, False):  # traced: no number is what it would be without the row
        stats = update(network, begun(gram=gram), PARAMS, X, weights)
        assert not np.isfinite(stats["first"].sums).any()
    counts = np.int32(weights) if bad == -1 else weights
    norms = jax.jit(functools.partial(score.input_norms, network))(
        PARAMS, X, weights=counts
    )
    assert not np.isfinite(norms["first"]).any()


def test_what_a_loop_over_batches_is_given():
    name = "`maskjax.calibration.collect` needs "

    def refused(pattern, *args, kind=TypeError, **how):
        with raises(name + pattern, kind):
            calibration.collect(*args, **how)

    class Batch(NamedTuple):
        x: Any

    many = "`batches` as an iterable of batches, got "
    for one, said in (({"x": X}, "dict"), (Batch(X), "Batch"), (None, "NoneType None")):
        refused(
            rf"{many}{said}\. Write `\[batch\]` for one batch\.$", network, PARAMS, one
        )
    refused(rf"{many}float32 array of shape \(\)\.", network, PARAMS, np.float32(1))
    of = r"`weights` as a function `\(\*inputs\) -> weights of rows`, got float64 array"
    refused(of, network, PARAMS, [X], weights=np.ones(12))
    refused("`progress` as a function .* got int 3", network, PARAMS, [X], progress=3)
    refused(r"`apply` as a function `.* -> output`, got dict\.$", PARAMS, network, [X])
    # What a part of the loop refuses, the loop does.
    known = lambda x: -np.ones(len(x))  # noqa: E731
    at_least = r"`weights` finite and at least 0, got -1\.0\."
    refused(at_least, network, PARAMS, [X], weights=known, kind=ValueError)
    refused("400 bytes .* is 1 ", network, PARAMS, [X], limit=1, kind=ValueError)
    for fn in (calibration.init, calibration.memory, score.input_norms):
        with raises(
            f"{fn.__name__}` needs `apply` as a function .* NoneType", TypeError
        ):
            fn(None, PARAMS, X)


def test_a_batch_that_fails_is_told_by_its_number():
    with pytest.raises(TypeError) as caught:
        calibration.collect(network, PARAMS, [X, X[:, :5]])
    assert (
        "This was batch 1 of `maskjax.calibration.collect`." in caught.value.__notes__
    )


def test_collect_tells_progress_and_takes_weights_from_inputs():
    seen = []
    x, keep = normal(4, 3, 6), np.ones((4, 3), "float32")
    keep[1] = 0
    apply = lambda p, x, keep: network(p, x)  # noqa: E731
    stats = calibration.collect(
        apply,
        PARAMS,
        ((x, keep) for _ in range(3)),
        weights=lambda x, keep: keep,
        progress=seen.append,
    )
    assert seen == [1, 2, 3]
    kept = update(network, begun(), PARAMS, x[keep > 0])
    assert_close(stats, jax.tree.map(lambda s: 3 * s, kept))


def test_collect_compiles_once_for_the_same_network():
    from maskjax.calibration import _programs

    calibration.collect(network, PARAMS, [X, X])
    program = next(iter(_programs._PROGRAMS.values()))
    size = program._cache_size()
    calibration.collect(
        network, masking.apply(PARAMS, {"first": None, "second": None}), [X]
    )
    assert program._cache_size() == size
