"""A random network pruned until it is another: by its bound, and as a real network."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import algebra, initializer
from maskjax.theory import gadget, strong_ticket
from tests import trees
from tests.reference import theory as reference

CONSTRUCTIONS = ("factor", "greedy", "product", "subset_sum")
WIDTHS, K = (5, 6, 3), 24
FN = "`maskjax.theory.strong_ticket"


def network(widths=WIDTHS, *, bias=True, seed=0, dtype=np.float32):
    """A target, its weights small enough to be made."""
    rng = np.random.default_rng(seed)
    layers = []
    for n, o in zip(widths, widths[1:], strict=False):
        layer = {"kernel": rng.uniform(-0.5, 0.5, (n, o)) / np.sqrt(n)}
        layer |= {"bias": rng.uniform(-0.2, 0.2, o)} if bias else {}
        layers.append({name: w.astype(dtype) for name, w in layer.items()})
    return layers


def drawn(widths=WIDTHS, *, k=K, bias=True, seed=0):
    """A wide network, drawn by NumPy."""
    rng = np.random.default_rng(100 + seed)
    layers = []
    for n, o in zip(widths, widths[1:], strict=False):
        shapes = {"inner": (n + bias, k), "outer": (n + bias, k, o)}
        layers.append(
            {name: np.float32(rng.uniform(-1, 1, s)) for name, s in shapes.items()}
        )
    return layers


def doubled(tree):
    """The same numbers in NumPy's float64."""
    return jax.tree.map(np.float64, tree)


def ball(n, *, count=2_000, seed=0, radius=1.0):
    """Points evenly in the ball, and on its surface."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, n))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[::2] *= rng.uniform(0, 1, (len(x[::2]), 1)) ** (1 / n)
    return radius * x


def run(ticket, x):
    """What the ticket says, by NumPy in float64."""
    layers = doubled(ticket.params), doubled(ticket.mask)
    return reference.pairs(*layers, x, bias=ticket.bias)


prune = functools.partial(strong_ticket.prune, misses="report")


def test_a_weight_and_a_bias_by_hand():
    # x -> 0.75 x + 0.5. The block of x has v = 1, 1, -1, -1, that of 1 has v = 1.
    params = [
        {
            "inner": np.float32([[1.0, 1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]]),
            "outer": np.float32(
                [[[0.5], [0.25], [-0.625], [-0.75]], [[1.0], [0.5], [0.25], [9.0]]]
            ),
        }
    ]
    target = [{"kernel": np.float32([[0.75]]), "bias": np.float32([0.5])}]
    ticket = strong_ticket.prune(params, target, construction="subset_sum")
    kept = np.asarray(ticket.mask[0]["outer"])[..., 0]
    np.testing.assert_array_equal(kept, [[1, 1, 0, 1], [0, 1, 0, 0]])
    np.testing.assert_array_equal(ticket.mask[0]["inner"], [[1, 1, 0, 1], [0, 1, 0, 0]])
    report = ticket.report
    assert (report.kept, report.neurons, report.size) == ((4,), (4,), (8,))
    assert report.bound == (0.0,)
    np.testing.assert_array_equal(report.error[0], [[0], [0]])
    x = np.float32([[2.0], [-2.0]])
    np.testing.assert_array_equal(strong_ticket.predict(ticket, x), [[2], [-1]])


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
@pytest.mark.parametrize(
    ("bias", "nonnegative"), [(True, True), (True, False), (False, False)]
)
def test_errors_never_exceed_the_bound(construction, bias, nonnegative):
    for seed in range(6):
        widths = (5, 5, 5, 1) if seed % 2 else (5, 5)
        target = network(widths, bias=bias, seed=seed)
        params = drawn(widths, bias=bias, seed=seed)
        ticket = prune(
            params, target, construction=construction, nonnegative=nonnegative
        )
        x = ball(widths[0], seed=seed)
        x = np.abs(x) if nonnegative else x
        for depth in range(1, len(widths)):
            # Each layer's output, too, not only the last one's.
            part = dataclasses.replace(
                ticket, params=ticket.params[:depth], mask=ticket.mask[:depth]
            )
            off = run(part, x) - reference.network(doubled(target[:depth]), x)
            worst = np.linalg.norm(off, axis=1).max()
            assert worst <= ticket.report.bound[depth - 1] + 1e-12
        assert worst > ticket.report.bound[-1] / 100  # no empty promise


def test_the_bound_is_of_any_wrong_weights_and_is_met():
    # One layer whose weights are all wrong by as much, and the input along it.
    target = network((4, 3), bias=False)
    (bound,) = strong_ticket.bound(target, [0.01], radius=2.0)
    np.testing.assert_allclose(bound, 2 * 0.01 * np.sqrt(12))
    x = np.ones((1, 4))  # of norm 2
    w = np.float64(target[0]["kernel"])
    np.testing.assert_allclose(np.linalg.norm(x @ (w + 0.01) - x @ w), bound)
    # Two layers, by hand.
    target = [
        {"kernel": np.eye(2) * 3, "bias": np.array([3.0, 4.0])},
        {"kernel": np.ones((2, 1)), "bias": np.zeros(1)},
    ]
    wrong = np.array([[0.5, 0], [0, 0.5], [0, 0]]), np.zeros((3, 1))
    first, second = strong_ticket.bound(target, wrong)
    np.testing.assert_allclose(first, 0.5 * np.sqrt(2))
    np.testing.assert_allclose(second, np.sqrt(2) * first)
    (_, second) = strong_ticket.bound(target, [0.0, np.array([[0.1], [0], [0]])])
    np.testing.assert_allclose(second, 0.1 * np.sqrt((3 + 5) ** 2 + 1))
    assert strong_ticket.bound(target, [0.0, 0.0]) == (0, 0)


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
def test_reports_say_what_masks_do(construction):
    target, params = network(), drawn()
    before = jax.tree.map(np.copy, params)
    ticket = prune(params, target, construction=construction)
    assert ticket.params is params
    trees.assert_same(params, before)
    assert jax.tree.structure(ticket.mask) == jax.tree.structure(params)
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves(ticket.mask))
    report = ticket.report
    assert sum(report.kept) + sum(report.neurons) == algebra.count(ticket.mask)
    assert report.size == (6 * K * 6, 7 * K * 3)
    assert report.bound == strong_ticket.bound(target, report.error)
    masks = jax.tree.map(np.asarray, ticket.mask)
    for i, (layer, pair, mask) in enumerate(zip(target, params, masks, strict=True)):
        # A neuron is kept for the outputs that use it, if any do.
        np.testing.assert_array_equal(mask["inner"], mask["outer"].any(-1))
        w = np.concatenate([layer["kernel"], layer["bias"][None]]).astype(np.float64)
        for row, column in np.ndindex(w.shape):
            kept = mask["outer"][row, :, column]
            terms = np.float64(pair["inner"][row]) * np.float64(
                pair["outer"][row, :, column]
            )
            fires = pair["inner"][row] > 0
            never = i > 0 or row == len(layer["kernel"])
            sides = [fires] if never else [fires, ~fires]
            errors = [abs(terms[kept & side].sum() - w[row, column]) for side in sides]
            np.testing.assert_allclose(
                report.error[i][row, column], max(errors), atol=1e-15
            )
            if never:
                assert not (kept & ~fires).any()


@pytest.mark.parametrize("bias", [True, False])
def test_the_real_network_of_twice_the_depth_says_the_same(bias, x64):
    widths = (5, 5, 5)
    target = network(widths, bias=bias, dtype=np.float64)
    params = doubled(drawn(widths, bias=bias))
    ticket = prune(params, target, construction="product")
    dense = jax.jit(functools.partial(strong_ticket.dense, bias=bias))
    layers, mask = dense(params, ticket.mask, key=jax.random.key(3))
    shapes = [layer["kernel"].shape for layer in layers]
    assert shapes == 2 * [(5, (5 + bias) * K), ((5 + bias) * K, 5)]
    layers, mask = jax.tree.map(np.asarray, (layers, mask))
    # What is between blocks is random, and goes.
    first, keep = layers[0]["kernel"], mask[0]["kernel"]
    assert np.count_nonzero(first) == first.size
    assert -0.1 < np.mean(first) < 0.1
    assert keep.sum() == np.asarray(ticket.mask[0]["inner"])[:5].sum()
    assert algebra.count(mask) == algebra.count(ticket.mask)

    x = ball(5, count=50)
    masked = jax.tree.map(np.multiply, layers, mask)
    short = jax.tree.map(lambda w, m: w * np.asarray(m), params, ticket.mask)
    by_hand = reference.network(masked, x)
    np.testing.assert_allclose(run(ticket, x), by_hand, atol=1e-14)
    wanted = reference.network(target, x)
    forward = functools.partial(strong_ticket.forward, bias=bias)
    calls = [forward] + [jax.jit(jax.vmap(forward, (None, 0)))] * bias
    for call in calls:
        said = call(masked, x)
        np.testing.assert_allclose(said, call(short, x), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(said, by_hand, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(call(target, x), wanted, rtol=1e-12)
    assert 0 < np.abs(by_hand - wanted).max() < 0.3


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
def test_the_shortcut_says_the_same_where_inputs_are_not_negative(construction):
    target, params = network(), drawn()
    whole = prune(params, target, construction=construction)
    half = prune(params, target, construction=construction, nonnegative=True)
    assert half.report.kept[0] < whole.report.kept[0]
    assert half.report.kept[1] == whole.report.kept[1]
    assert (half.report.error[0] <= whole.report.error[0]).all()
    x = np.float32(np.abs(ball(5)))
    np.testing.assert_array_equal(
        strong_ticket.predict(half, x), strong_ticket.predict(whole, x)
    )


def test_inputs_that_are_negative_are_refused_where_they_were_promised_not_to_be():
    ticket = prune(drawn(), network(), construction="product", nonnegative=True)
    x = np.float32(np.abs(ball(5, count=4)))
    x[2, 3] = -0.5
    message = (
        f"{FN}.predict` needs inputs that are never negative, as the ticket was "
        "promised, but 1 of 20 are"
    )
    with pytest.raises(ValueError, match=message):
        strong_ticket.predict(ticket, x)
    # What can't be known is nan, and nothing else is.
    for traced in (
        jax.jit(strong_ticket.predict)(ticket, x),
        jax.vmap(functools.partial(strong_ticket.predict, ticket))(x),
    ):
        traced = np.asarray(traced)
        np.testing.assert_array_equal(
            np.isnan(traced).all(1), [False, False, True, False]
        )
        assert not np.isnan(traced[:2]).any()
    whole = prune(drawn(), network(), construction="product")
    assert not np.isnan(jax.jit(strong_ticket.predict)(whole, x)).any()


def test_wide_networks_are_drawn_from_a_key_whatever_the_target():
    draw = functools.partial(
        strong_ticket.init, WIDTHS, k=7, bias=True, key=jax.random.key(0)
    )
    wide, other = draw(), draw(key=jax.random.key(1))
    wide, other = (jax.tree.map(np.asarray, each) for each in (wide, other))
    assert all(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(wide), jax.tree.leaves(other), strict=True)
    )
    assert jax.tree.map(jnp.shape, wide) == [
        {"inner": (6, 7), "outer": (6, 7, 6)},
        {"inner": (7, 7), "outer": (7, 7, 3)},
    ]
    trees.assert_same(draw(), wide)
    values = np.concatenate([np.ravel(x) for x in jax.tree.leaves(wide)])
    assert len(np.unique(values)) > 0.99 * values.size
    assert -1 <= values.min() < -0.9
    assert 0.9 < values.max() < 1
    tied = draw(shared=True, outer=initializer.uniform(2.0, 3.0), dtype=jnp.bfloat16)
    tied = jax.tree.map(np.asarray, tied)
    assert tied[0]["outer"].dtype == jnp.bfloat16
    assert (tied[0]["outer"] == tied[0]["outer"][:1]).all()
    assert (tied[0]["outer"] >= 2).all()
    assert (tied[0]["inner"] != tied[0]["inner"][:1]).any()


def test_the_fewest_weights_within_a_tolerance():
    target, params = network(), drawn(k=44)
    how = {"construction": "subset_sum", "tolerance": 0.01}
    near = strong_ticket.prune(params, target, **how)
    few = strong_ticket.prune(params, target, fewest=True, **how)
    assert max(e.max() for e in few.report.error) <= 0.01
    assert sum(few.report.kept) < sum(near.report.kept) / 2
    assert few.report.bound[-1] > near.report.bound[-1]
    # Of each block the fewest: fewer than any other construction can do with.
    one = strong_ticket.prune(params, target, construction="product", misses="report")
    within = one.report.error[0] <= 0.01
    ours, theirs = (np.asarray(t.mask[0]["outer"]).sum(1) for t in (few, one))
    assert (ours[within] <= theirs[within]).all()


def test_flax_networks_are_targets_too():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="out")(nn.relu(nn.Dense(4, name="hidden")(x)))

    net = Net()
    x = np.float32(ball(3, count=20))
    params = jax.jit(net.init)(jax.random.key(0), x)["params"]
    wide = drawn((3, 4, 2), k=44)
    wide = [pair | {"outer": 2 * pair["outer"]} for pair in wide]
    layers = [params["hidden"], params["out"]]
    ticket = strong_ticket.prune(
        wide, layers, construction="subset_sum", tolerance=0.01
    )
    wanted = jax.jit(net.apply)({"params": params}, x)
    np.testing.assert_allclose(strong_ticket.predict(ticket, x), wanted, atol=0.01)


def test_weights_that_are_missed_are_named():
    target = network()
    target[1]["kernel"][2, 1] = 40
    target[1]["bias"][0] = -30
    call = functools.partial(
        strong_ticket.prune, drawn(k=40), target, construction="subset_sum"
    )
    message = (
        r"prune` needs blocks that reach every weight \(try a larger `k`, .*got:\n"
        r"  1: 2 of 21 missed, 2 of them out of reach; the worst kernel\[2, 1\] = 40, "
        r"off by 3\d"
    )
    with pytest.raises(ValueError, match=message):
        call()
    report = call(misses="report").report
    assert not report.beyond[0].any()
    assert [tuple(at) for at in np.argwhere(report.beyond[1])] == [(2, 1), (6, 0)]
    assert report.error[1][2, 1] > 30
    assert report.error[1][6, 0] > 20
    with pytest.raises(ValueError, match=r"every weight, and within 1e-07 \(") as said:
        call(tolerance=1e-7)
    assert "\n  0: " in str(said.value)
    target[1]["kernel"][2, 1] = 0.1
    with pytest.raises(ValueError, match=r"the worst bias\[0\] = -30, off by 2"):
        call()


@pytest.mark.parametrize(
    "activation", [jax.nn.gelu, jax.nn.leaky_relu, jnp.abs, lambda z: z, jax.nn.relu6]
)
def test_networks_of_other_activations_are_refused(activation):
    with pytest.raises(ValueError, match="needs a target with ReLU as its `activation"):
        prune(drawn(), network(), construction="product", activation=activation)


def test_relu_goes_by_any_name():
    call = functools.partial(prune, drawn(), network(), construction="product")
    trees.assert_same(call(activation=lambda z: jnp.maximum(z, 0)).mask, call().mask)
    with pytest.raises(TypeError, match="`activation` as a function, got str 'relu'"):
        call(activation="relu")


def test_targets_that_are_not_networks_are_refused():
    call = functools.partial(prune, drawn(), construction="product")
    good = network()
    with pytest.raises(TypeError, match="layer of `target` as a mapping with 'kernel'"):
        call([good[0]["kernel"], good[1]])
    with pytest.raises(TypeError, match=r"got:\n  1: \['bias', 'kernel', 'scale'\]"):
        call([good[0], good[1] | {"scale": np.ones(3)}])
    with pytest.raises(ValueError, match="with a bias in all or none"):
        call([good[0], {"kernel": good[1]["kernel"]}])
    with pytest.raises(ValueError, match="`target` of at least one layer"):
        call([])
    message = r"every kernel of `target` floating, \[n, o\].*got:\n  1: "
    for other in (
        {"kernel": np.ones((5, 3)), "bias": np.ones(3)},
        {"kernel": np.ones((6, 3)), "bias": np.ones(2)},
        {"kernel": np.ones((6, 3), int), "bias": np.ones(3)},
        {"kernel": np.ones((1, 6, 3)), "bias": np.ones(3)},
    ):
        with pytest.raises(ValueError, match=message):
            call([good[0], other])


def test_networks_that_do_not_fit_the_target_are_refused():
    message = r"biases as one more row: \[\(6, 6\), \(7, 3\)\], got \[\(5, 6\), \(6, 3"
    with pytest.raises(ValueError, match=message):
        prune(drawn(bias=False), network(), construction="product")
    with pytest.raises(ValueError, match=r"needs layer 0 with 'inner' \[i, k\] and"):
        prune(network(), network(), construction="product")
    wide = drawn()
    wide[1]["outer"] = wide[1]["outer"][:, :-1]
    with pytest.raises(ValueError, match=r"layer 1 with 'inner'.*'outer': \(7, 23, 3"):
        prune(wide, network(), construction="product")


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("misses", ["raise", "report"])
def test_weights_that_are_not_finite_are_named(construction, value, misses):
    call = functools.partial(
        strong_ticket.prune, construction=construction, misses=misses, tolerance=0.1
    )
    places = {  # of a leaf of either layer
        "target": (("kernel", (2, 1)), ("bias", (1,))),
        "params": (("inner", (2, 1)), ("outer", (3, 2, 1))),
    }
    for name, ((first, at), (second, there)) in places.items():
        given = {"target": network(), "params": drawn()}
        one, other = given[name]
        one[first][at] = value
        other[second][(*there[:-1], [1, 2])] = value
        message = (
            f"{FN}.prune` needs every weight of `{name}` finite, got:\n"
            f"  0/{first}: 1 are not, the first {value} at {at}\n"
            f"  1/{second}: 2 are not, the first {value} at {there}"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            call(given["params"], given["target"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bounds_are_of_finite_numbers(value):
    target = network()
    target[1]["kernel"][0, 0] = value
    message = f"{FN}.bound` needs every weight of `target` finite, got:\n  1/kernel: 1"
    with pytest.raises(ValueError, match=message):
        strong_ticket.bound(target, [0.1, 0.1])
    message = f"{FN}.bound` needs `errors` of layer 1 finite, got {value}"
    with pytest.raises(ValueError, match=message):
        strong_ticket.bound(network(), [0.1, value])
    with pytest.raises(ValueError, match=message):
        strong_ticket.bound(network(), [0.1, np.full((7, 3), value)])


def test_traced_networks_are_refused():
    with pytest.raises(TypeError, match="whose weights are known, got traced ones"):
        jax.jit(functools.partial(prune, construction="product"))(drawn(), network())


def test_other_arguments_are_checked():
    with pytest.raises(ValueError, match="`misses` as 'raise' or 'report', got 'no'"):
        strong_ticket.prune(drawn(), network(), construction="greedy", misses="no")
    with pytest.raises(ValueError, match="`construction` as 'factor' or 'greedy' or"):
        prune(drawn(), network(), construction="sum")
    with pytest.raises(ValueError, match="needs a `tolerance` to find the fewest"):
        prune(drawn(), network(), construction="subset_sum", fewest=True)
    with pytest.raises(ValueError, match="'subset_sum' where it gets a `tolerance`"):
        prune(drawn(), network(), construction="greedy", fewest=True, tolerance=0.1)
    with pytest.raises(ValueError, match=r"`errors` for each of 2 layers, got 1"):
        strong_ticket.bound(network(), [0.1])
    with pytest.raises(ValueError, match=r"layer 1 as a number, or \(7, 3\), got \(6"):
        strong_ticket.bound(network(), [0.1, np.zeros((6, 3))])
    with pytest.raises(ValueError, match="a GiB|GiB to search all subsets of"):
        prune(drawn(k=140), network(), construction="subset_sum")


def test_what_is_drawn_is_checked():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"`widths` of 2 numbers or more, got \(3,\)"):
        strong_ticket.init((3,), k=2, key=key)
    with pytest.raises(ValueError, match="`widths` of at least 1, got 0"):
        strong_ticket.init((3, 0), k=2, key=key)
    with pytest.raises(ValueError, match="`k` of at least 1, got 0"):
        strong_ticket.init((3, 2), k=0, key=key)
    with pytest.raises(TypeError, match="`key` as a typed key"):
        strong_ticket.init((3, 2), k=2, key=0)
    with pytest.raises(TypeError, match="`key` as a typed key"):
        strong_ticket.dense(drawn(), drawn(), key=0)
    with pytest.raises(ValueError, match="needs every leaf of `mask` shaped like"):
        strong_ticket.dense(drawn(), drawn(k=3), key=key)
    with pytest.raises(ValueError, match=r"dense` needs layer 0 with 'inner' \[i, k\]"):
        strong_ticket.dense(network(), network(), key=key)


def test_leaves_without_a_mask_are_kept():
    params = drawn()
    made = jax.jit(functools.partial(strong_ticket.dense, bias=True))
    dense = functools.partial(made, params, key=jax.random.key(0))
    mask = prune(params, network(), construction="product").mask
    for name in ("inner", "outer"):
        every = [kept | {name: np.ones(kept[name].shape, bool)} for kept in mask]
        trees.assert_same(dense([kept | {name: None} for kept in mask]), dense(every))
        shared = [kept | {name: np.ones((1,) * kept[name].ndim, bool)} for kept in mask]
        trees.assert_same(dense(shared), dense(every))


@pytest.mark.parametrize(("n", "bias"), [(1, True), (5, True), (5, False)])
def test_inputs_of_another_width_are_refused(n, bias, transform):
    target, params = network((n, 6, 3), bias=bias), drawn((n, 6, 3), bias=bias)
    ticket = prune(params, target, construction="product")
    assert ticket.bias is bias
    forward = functools.partial(strong_ticket.forward, bias=bias)
    calls = {
        "predict": lambda x: transform(strong_ticket.predict)(ticket, x),
        "forward": lambda x: transform(forward)(params, x),
    }
    has = "with" if bias else "without"
    for width in (n - 1, n + 1):
        got = f"for layer 0, {has} a bias, got (2, {width})."
        for name, call in calls.items():
            message = f"{FN}.{name}` needs inputs [..., {n}] {got}"
            with pytest.raises(ValueError, match=re.escape(message)):
                call(np.ones((2, width), np.float32))
        with pytest.raises(ValueError, match=re.escape(got)):
            transform(strong_ticket.forward)(target, np.ones((2, width), np.float32))
    for call in calls.values():
        assert jax.eval_shape(call, np.ones((2, n), np.float32)).shape == (2, 3)


def test_a_bias_is_not_guessed():
    with pytest.raises(
        ValueError, match=r"\[..., 6\] for layer 0, without a bias, got"
    ):
        strong_ticket.forward(drawn(), np.ones((2, 5)))
    with pytest.raises(ValueError, match=r"\[..., 4\] for layer 0, with a bias, got"):
        strong_ticket.forward(drawn(bias=False), np.ones((2, 5)), bias=True)
    layers = [network()[0], network((5, 3))[0]]
    with pytest.raises(
        ValueError, match=r"\[..., 5\] for layer 1, with a bias, got \(2"
    ):
        strong_ticket.forward(layers, np.ones((2, 5)))


def test_layers_are_of_one_kind_or_the_other():
    with pytest.raises(ValueError, match=r"needs layer 0 with 'inner' \[i, k\] and"):
        strong_ticket.forward([np.ones(2)], np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"needs layer 0 with 'inner' .*got \{'bias"):
        strong_ticket.forward([{"bias": np.ones(3)}], np.ones((2, 4)))


def test_enough_neurons_make_a_whole_network_within_epsilon():
    # At the size of `gadget.block_size`, divided among the weights, it all succeeds.
    epsilon, widths = 0.1, (3, 3, 2)
    weights = 4 * 3 + 4 * 2
    k = gadget.block_size("product", epsilon=epsilon, delta=0.1 / weights)
    target, right = network(widths, seed=5), 0
    for seed in range(10):
        ticket = prune(drawn(widths, k=k, seed=seed), target, construction="product")
        right += max(e.max() for e in ticket.report.error) <= epsilon
    assert right >= 9
