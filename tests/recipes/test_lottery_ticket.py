"""Lottery tickets: by hand, against NumPy, laws, and what the paper promises."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskjax
from maskjax import algebra, masking, packing, where
from maskjax.recipes import lottery_ticket
from maskjax.structure import Units
from tests import trees
from tests.reference import lottery_ticket as reference
from tests.reference.selection import quota

KEY = jax.random.key(0)
STEPS, LR = 6, 0.2
RATES = {"a": 0.3, "b": 0.15, "bias": None}


def model(params, x1, x2):
    return x1 @ params["a"] + x2 @ params["b"] + params["bias"][None]


def draw(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (6, 5), "b": (4, 5), "bias": (5,)}
    return {k: rng.normal(size=s).astype("float32") for k, s in shapes.items()}


def data():
    rng = np.random.default_rng(1)
    return [rng.normal(size=s).astype("f4") for s in ((20, 6), (20, 4), (20, 5))]


def descend(params, mask, steps):
    x1, x2, y = data()

    def loss(params):
        return jnp.mean((model(maskjax.apply(params, mask), x1, x2) - y) ** 2)

    def step(params, _):
        value, slope = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda w, g: w - LR * g, params, slope), value

    return jax.lax.scan(step, params, length=steps)


def train(params, mask, *, key):
    del key
    return descend(params, mask, STEPS)


def warm_up(params, *, key):
    del key
    return descend(params, masking.everything(params), 3)[0]


def idle(params, mask, *, key):
    del mask, key
    return params, None


def nudge(params, mask, *, key):
    """Moves every floating leaf, and reports what it was given."""
    del mask

    def moved(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return x * 1.5 + 0.25 if floating else x + 1

    return jax.tree.map(moved, params), (params, jax.random.key_data(key))


@functools.cache
def searcher(trains, **settings):
    """A search, compiled once for all tests."""

    def search(params, rate, key):
        return lottery_ticket.search(trains, params, rate=rate, key=key, **settings)

    return jax.jit(search)


def found(trains, params, rate, key=KEY, **settings):
    """The trace of a search, as NumPy arrays."""
    return jax.device_get(searcher(trains, **settings)(params, rate, key))


def ticket(params, masks, r):
    """Parameters under mask r, by NumPy."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        [
            np.asarray(x) if m is None else np.where(m[r], x, np.zeros_like(x))
            for x, m in zip(leaves, treedef.flatten_up_to(masks), strict=True)
        ]
    )


def member(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def counts(masks):
    return {k: m.sum((1, 2)).tolist() for k, m in masks.items() if m is not None}


def left(n, rate, rounds):
    """What is alive after each round, of n."""
    alive = [n]
    for _ in range(rounds):
        alive.append(alive[-1] - quota(rate, alive[-1]))
    return alive


@pytest.mark.parametrize("jit", [True, False])
def test_two_rounds_by_hand(jit):
    # Training adds [0, 6, 0, 3] to the weights, and 1 to the bias.
    #   1st: [4 -3 2 1] -> [4 3 2 4], of 4 the smallest one (rate 0.25) goes: the third
    #   2nd: rewound, [4 -3 0 1] -> [4 3 . 4], round(0.25 * 3) = 1 goes: the second
    #   3rd: rewound, [4 0 0 1] -> [4 . . 4]
    added = np.float32([[0, 6, 0, 3]])

    def train(params, mask, *, key):
        after = {"w": params["w"] + added, "bias": params["bias"] + 1}
        return after, params["bias"]

    def search(params):
        return lottery_ticket.search(train, params, rounds=2, rate=0.25, key=KEY)

    params = {"w": np.float32([[4, -3, 2, 1]]), "bias": np.float32([0.5])}
    trace = jax.device_get((jax.jit(search) if jit else search)(params))
    expected = [[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 0, 1]]
    np.testing.assert_array_equal(trace.masks["w"][:, 0], np.array(expected, bool))
    assert trace.masks["bias"] is None
    final = [[4, 3, 2, 4], [4, 3, 0, 4], [4, 0, 0, 4]]
    np.testing.assert_array_equal(trace.final["w"][:, 0], final)
    np.testing.assert_array_equal(trace.final["bias"], [[1.5]] * 3)
    np.testing.assert_array_equal(trace.metrics, [[0.5]] * 3)
    trees.assert_same(trace.rewound, params)


@pytest.mark.parametrize(
    ("scope", "rate", "late", "reset"),
    [
        ("leaf", RATES, False, True),
        ("global", 0.3, True, True),
        ("leaf", 0.3, True, False),
    ],
)
def test_a_search_agrees_with_the_reference(scope, rate, late, reset):
    settings = {"rounds": 4, "scope": scope, "reset_each_round": reset}
    search = jax.jit(
        lambda params: lottery_ticket.search(
            train,
            params,
            rate=rate,
            warm_up=warm_up if late else None,
            key=KEY,
            **settings,
        )
    )
    trace = jax.device_get(search(draw()))
    rates = [rate["a"], rate["b"]] if isinstance(rate, dict) else [rate] * 2
    masks, finals = reference.search(
        [w.astype(np.float64) for w in draw().values()],
        [d.astype(np.float64) for d in data()],
        rates=rates,
        steps=STEPS,
        lr=LR,
        first_steps=3 if late else 0,
        **settings,
    )
    for r in range(5):
        for name, mask in zip("ab", masks[r], strict=True):
            np.testing.assert_array_equal(trace.masks[name][r], mask)
        for name, final in zip(("a", "b", "bias"), finals[r], strict=True):
            np.testing.assert_allclose(
                trace.final[name][r], final, rtol=1e-4, atol=1e-5
            )
    assert not np.array_equal(*counts(trace.masks).values())


def test_counts_are_exact_and_masks_shrink():
    trace = found(train, draw(), RATES, rounds=5)
    assert counts(trace.masks) == {"a": left(30, 0.3, 5), "b": left(20, 0.15, 5)}
    for m in trace.masks["a"], trace.masks["b"]:
        assert m[0].all()
        assert not (m[1:] & ~m[:-1]).any()
    for name in "ab":
        assert not trace.final[name][~trace.masks[name]].any()
        assert trace.final[name][trace.masks[name]].all()


def test_the_fractions_left_are_those_of_the_paper():
    shapes = {"one": (784, 300), "two": (300, 100), "out": (100, 10)}
    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=s).astype("f4") for k, s in shapes.items()}
    rate = {"one": 0.2, "two": 0.2, "out": 0.1}
    masks = found(idle, params, rate, rounds=18).masks
    kept = sum(m.sum((1, 2)) for m in masks.values()) / 266_200
    theory = [
        sum(math.prod(s) * (1 - rate[k]) ** r for k, s in shapes.items()) / 266_200
        for r in range(19)
    ]
    np.testing.assert_allclose(kept, theory, atol=1e-4)
    published = {3: 51.3, 7: 21.1, 9: 13.5, 12: 7.0, 15: 3.6, 16: 2.9, 18: 1.9}
    assert {r: round(100 * float(kept[r]), 1) for r in published} == published


def with_statistics(seed=0):
    params = draw(seed)
    statistics = {"mean": params.pop("bias"), "steps": np.arange(3, dtype="int32")}
    return {"params": params, "batch_stats": statistics}


def late_nudge(params, *, key):
    shift = lambda x: x + jax.random.key_data(key)[-1].astype(x.dtype)  # noqa: E731
    return jax.tree.map(shift, params)


@pytest.mark.parametrize("late", [False, True])
def test_rewinding_is_exact_to_the_bit_and_keys_are_handed_on(late):
    first_steps, key = late_nudge if late else None, jax.random.key(7)
    trace = found(nudge, with_statistics(), 0.3, key, rounds=3, warm_up=first_steps)
    trees.assert_same(trace.initial, with_statistics())
    by = 7 if late else 0
    expected = jax.tree.map(lambda x: x + np.asarray(by, x.dtype), with_statistics())
    trees.assert_same(trace.rewound, expected)
    given, keys = trace.metrics
    np.testing.assert_array_equal(keys, [jax.random.key_data(key)] * 4)
    for r in range(4):
        trees.assert_same(member(given, r), ticket(trace.rewound, trace.masks, r))
    steps = trace.final["batch_stats"]["steps"]
    np.testing.assert_array_equal(
        steps, [trace.rewound["batch_stats"]["steps"] + 1] * 4
    )


def test_without_resets_each_round_goes_on_from_pruned_weights():
    trace = found(nudge, draw(), 0.3, rounds=3, reset_each_round=False)
    given, _ = trace.metrics
    trees.assert_same(member(given, 0), draw())
    for r in range(1, 4):
        pruned = ticket(member(trace.final, r - 1), trace.masks, r)
        trees.assert_same(member(given, r), pruned)
    trees.assert_same(trace.rewound, draw())
    for name in "ab":  # weights that a training revives are removed again
        assert not trace.final[name][~trace.masks[name]].any()
        assert trace.final[name][trace.masks[name]].all()


def test_a_rate_of_zero_removes_nothing_and_of_one_everything():
    search = searcher(train, rounds=2)
    trace = jax.device_get(search(draw(), np.float32(0), KEY))
    assert counts(trace.masks) == {"a": [30] * 3, "b": [20] * 3}
    trees.assert_same(member(trace.final, 0), member(trace.final, 2))
    trace = jax.device_get(search(draw(), np.float32(1), KEY))
    assert counts(trace.masks) == {"a": [30, 0, 0], "b": [20, 0, 0]}
    assert search._cache_size() == 1  # nor does it compile when a rate moves


def test_scopes_agree_on_one_leaf_and_scaling_a_leaf_matters_to_the_global_one():
    @jax.jit
    def search(params):
        return {
            (scope, len(names)): lottery_ticket.search(
                idle,
                {k: params[k] for k in names},
                rounds=3,
                rate=0.3,
                scope=scope,
                key=KEY,
            ).masks
            for scope in ("leaf", "global")
            for names in ("a", "ab")
        }

    before = jax.device_get(search(draw()))
    after = jax.device_get(search(draw() | {"a": 16 * draw()["a"]}))
    trees.assert_same(before["leaf", 1], before["global", 1])
    for scope in ("leaf", "global"):
        pairs = ((before[scope, 2][k], after[scope, 2][k]) for k in "ab")
        assert all(np.array_equal(*pair) for pair in pairs) == (scope == "leaf")


def mlp_train(params, mask, *, key):
    """Gradient descent with momentum, on what three units of half the inputs say."""
    x = jax.random.normal(key, (128, 12))
    a, b, c, d, e, f, *_ = jnp.split(x, 12, 1)
    y = jax.nn.relu(a + b) - jax.nn.relu(c - d) + jax.nn.relu(-e - f)
    optimizer = optax.sgd(0.02, momentum=0.9)

    def loss(params):
        kept = maskjax.apply(params, mask)
        hidden = jax.nn.relu(x @ kept["in"] + kept["bias"][None])
        return jnp.mean((hidden @ kept["out"] - y) ** 2)

    def step(carry, _):
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), value

    carry = params, optimizer.init(params)
    (params, _), losses = jax.lax.scan(step, carry, length=100)
    return params, losses


def mlp(key):
    one, two = jax.random.split(key)
    return {
        "in": jax.random.normal(one, (12, 32)) / 12**0.5,
        "bias": jnp.zeros(32),
        "out": jax.random.normal(two, (32, 1)) / 32**0.5,
    }


@functools.cache
def five_searches():
    """Of five seeds, as one program; and how often it was compiled."""
    search = jax.jit(
        jax.vmap(
            lambda key, rate: lottery_ticket.search(
                mlp_train, mlp(key), rounds=6, rate=rate, key=key
            ),
            in_axes=(0, None),
        )
    )
    keys = jax.random.split(KEY, 5)
    search(keys, np.float32(0.1))
    trace = jax.device_get(search(keys, np.float32(0.25)))
    return keys, trace, search._cache_size()


def shared(a, b):
    """Overlap of two masks: what both keep of what either keeps."""
    a, b = (np.concatenate([m.ravel() for m in jax.tree.leaves(t)]) for t in (a, b))
    return (a & b).sum() / (a | b).sum()


def test_vmap_over_seeds_is_a_loop_and_compiles_once():
    keys, trace, programs = five_searches()
    assert programs == 1
    for i in range(2):
        one = jax.jit(mlp)(keys[i])
        expected = found(mlp_train, one, np.float32(0.25), keys[i], rounds=6)
        # Sums in another order: weights may differ a little, and two may change places.
        assert shared(member(trace.masks, i), expected.masks) > 0.95
        np.testing.assert_allclose(
            trace.metrics[i, 0], expected.metrics[0], rtol=1e-3, atol=1e-5
        )
    assert shared(member(trace.masks, 0), member(trace.masks, 1)) < 0.8
    for name in ("in", "out"):  # with momentum
        assert not trace.final[name][~trace.masks[name]].any()


def test_tickets_learn_what_the_same_masks_on_fresh_parameters_cannot():
    # The paper's promise, at 18 % of the weights and with five seeds: tickets are no
    # worse than dense networks, and better than the same masks on fresh parameters, or
    # random masks on the same ones.
    keys, trace, _ = five_searches()

    def controls(key, masks):
        fresh, noise = jax.random.split(jax.random.fold_in(key, 1))
        random = lottery_ticket.random_masks(masks, mode="layerwise", key=noise)
        retrain = functools.partial(lottery_ticket.retrain, mlp_train, key=key)
        return retrain(mlp(fresh), masks)[1], retrain(mlp(key), random)[1]

    last = jax.tree.map(lambda m: m[:, -1:], trace.masks)
    reinit, random = jax.device_get(jax.jit(jax.vmap(controls))(keys, last))
    dense, tickets = trace.metrics[:, 0, -1], trace.metrics[:, -1, -1]
    assert tickets.mean() < dense.mean()
    for control in (reinit[:, 0, -1], random[:, 0, -1]):
        assert (tickets < control).all()
        assert 100 * tickets.mean() < control.mean()


def test_permuted_units_have_permuted_masks():
    order = np.random.default_rng(0).permutation(32)

    def permuted(p):
        return {
            "in": p["in"][:, order],
            "bias": p["bias"][order],
            "out": p["out"][order],
        }

    # Training of few steps, so that sums in another order can't change a rank.
    def train(params, mask, *, key):
        after, _ = mlp_train(params, mask, key=key)
        return jax.tree.map(lambda a, b: a + b, params, after), None

    start = jax.device_get(jax.jit(mlp)(KEY))
    masks, other = (
        found(train, p, np.float32(0.3), rounds=1).masks
        for p in (start, permuted(start))
    )
    for name, axis in (("in", 1), ("out", 0)):
        np.testing.assert_array_equal(
            np.take(masks[name][1], order, axis), other[name][1]
        )


def test_removed_weights_are_zero_at_every_step_under_weight_decay():
    optimizer = optax.adamw(0.1, weight_decay=0.1)
    x1, x2, y = data()

    def train(params, mask, *, key):
        def loss(params):
            return jnp.mean((model(maskjax.apply(params, mask), x1, x2) - y) ** 2)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
            rest = maskjax.apply(params, algebra.complement(mask))
            return (params, state), [abs(rest[k]).max() for k in "ab"]

        carry = params, optimizer.init(params)
        (params, _), largest = jax.lax.scan(step, carry, length=5)
        return params, largest

    with jax.numpy_dtype_promotion("standard"):  # which Adam needs
        trace = found(train, draw(), 0.4, rounds=2)
    assert [x.any() for x in trace.metrics] == [False, False]
    assert trace.metrics[0].shape == (3, 5)
    assert counts(trace.masks) == {"a": left(30, 0.4, 2), "b": left(20, 0.4, 2)}


def test_retraining_the_tickets_repeats_the_search():
    trace = found(train, draw(), RATES, rounds=5)
    masks = trace.masks, jax.jit(jax.vmap(packing.pack))(trace.masks)

    @jax.jit
    def again(masks, packed):
        start = trace.rewound
        retrain = functools.partial(lottery_ticket.retrain, train, start, key=KEY)
        return retrain(masks, batch_size=4), retrain(packed)

    for got in again(*masks):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            got,
            (trace.final, trace.metrics),
        )


def test_one_shot_is_a_search_that_does_not_train():
    trace = found(train, draw(), RATES, rounds=5)
    first = member(trace.final, 0)
    masks = found(idle, first, RATES, rounds=5).masks
    assert counts(masks) == counts(trace.masks)
    for name in "ab":
        sizes = abs(first[name])
        kept = np.where(masks[name], sizes, np.inf).min((1, 2))
        removed = np.where(masks[name], 0, sizes).max((1, 2))
        assert (kept > removed).all()
    assert any((masks[k] != trace.masks[k]).any() for k in "ab")


@pytest.mark.parametrize("mode", ["layer", "output"])
def test_random_masks_keep_as_many_of_each_layer_of_a_stack(mode):
    masks = np.random.default_rng(0).random((2, 3, 8, 4)) < [
        [[[0.2]], [[0.5]], [[0.8]]]
    ]
    told = where.matching("w", axes="stack inputs outputs")
    drawn = functools.partial(
        lottery_ticket.random_masks, mode=mode, where=told, key=KEY
    )

    @jax.jit
    def run(masks):
        leaf = lottery_ticket.random_masks({"w": masks}, mode="layerwise", key=KEY)
        return [drawn({"w": masks})["w"], drawn({"w": masks})["w"], leaf["w"]]

    new, again, leaf = map(np.asarray, run(masks))
    np.testing.assert_array_equal(new, again)
    axes = (2, 3) if mode == "layer" else 2
    np.testing.assert_array_equal(new.sum(axes), masks.sum(axes))
    assert (new != masks).any()
    assert (leaf.sum((2, 3)) != masks.sum((2, 3))).any()
    with pytest.raises(ValueError, match="random_masks` needs to know the axes of the"):
        lottery_ticket.random_masks({"w": masks}, mode=mode, key=KEY)


@functools.cache
def random_masks():
    @jax.jit
    def run(masks, packed):
        given = {"layerwise": packed, "global": masks, "even": masks}
        return {
            mode: lottery_ticket.random_masks(stack, mode=mode, key=KEY)
            for mode, stack in given.items()
        }

    masks = found(train, draw(), RATES, rounds=5).masks
    return masks, jax.device_get(run(masks, jax.jit(jax.vmap(packing.pack))(masks)))


@pytest.mark.parametrize("mode", ["layerwise", "global", "even"])
def test_random_masks_keep_as_many(mode):
    masks, drawn = random_masks()
    out = drawn[mode]
    assert out["bias"] is None
    mine, theirs = counts(out), counts(masks)
    sums = [sum(x) for x in zip(*theirs.values(), strict=True)]
    if mode == "layerwise":
        assert mine == theirs
    elif mode == "global":
        assert [sum(x) for x in zip(*mine.values(), strict=True)] == sums
        assert mine != theirs
    else:
        assert mine["a"] == [math.floor(s * 30 / 50 + 0.5) for s in sums]
        assert mine["b"] == [math.floor(s * 20 / 50 + 0.5) for s in sums]
    assert shared(member(out, -1), member(masks, -1)) < 0.6
    # Each has a key of its own: they are not nested.
    assert (out["a"][1:] & ~out["a"][:-1]).any()


def test_units_go_together():
    params = {"w": draw()["a"], "bias": np.ones(5, "f4")}
    masks = found(nudge, params, 0.4, rounds=2, structure=Units()).masks
    assert masks["w"].shape == (3, 1, 5)
    assert masks["w"].sum((1, 2)).tolist() == [5, 3, 2]


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree_has_tickets(name):
    params = jax.eval_shape(functools.partial(trees.make, name))
    run = functools.partial(searcher(nudge, rounds=2), rate=0.5, key=KEY)
    trace = jax.eval_shape(lambda p: run(p), params)
    kinds = lambda tree, *lead: jax.tree.map(  # noqa: E731
        lambda x: ((*lead, *x.shape), x.dtype), tree
    )
    assert kinds(trace.rewound) == kinds(params)
    assert kinds(trace.final) == kinds(trace.metrics[0]) == kinds(params, 3)


def test_odd_leaves_are_pruned_or_left_alone():
    shapes = jax.eval_shape(functools.partial(trees.make, "odd_leaves"))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    trace = found(nudge, params, np.float32(0.5), rounds=1)
    given, _ = trace.metrics
    trees.assert_same(member(given, 0), params)
    for (before, kept), (_, again) in zip(
        trees.pairs(params, trace.masks),
        trees.pairs(params, member(given, 1)),
        strict=True,
    ):
        if kept is None:
            np.testing.assert_array_equal(again, before)
        else:
            assert kept.sum((1, 2)).tolist() == left(before.size, 0.5, 1)
            np.testing.assert_array_equal(again, np.where(kept[1], before, 0))


def test_parameters_may_be_numpy_arrays_and_narrow():
    params = {
        "w": np.arange(1.0, 9.0).reshape(2, 4),
        "half": np.ones((2, 2), jnp.bfloat16),
    }
    trace = jax.jit(lambda: search(params=params))()
    assert trace.masks["w"][1].tolist() == [[False] * 4, [True] * 4]
    assert trace.final["half"].dtype == jnp.bfloat16


# Complaints.


def untouched(params, *, key):
    raise AssertionError("trained before the arguments were looked at")


def search(train=idle, params=None, **more):
    how = {"rounds": 1, "rate": 0.5, "key": KEY} | more
    return lottery_ticket.search(train, params or draw(), **how)


def retrain(masks=None, train=idle, **more):
    masks = STACK if masks is None else masks
    return lottery_ticket.retrain(train, draw(), masks, **{"key": KEY} | more)


def chance(masks=None, **more):
    how = {"mode": "even", "key": KEY} | more
    return lottery_ticket.random_masks(STACK if masks is None else masks, **how)


def other_kinds(params, mask=None, *, key):
    changed = {"a": params["a"].T, "bias": params["bias"].astype(jnp.bfloat16)}
    return params | changed, None


def other_tree(params, mask, *, key):
    return {"a": params["a"], "c": params["b"], "bias": None}, None


STACK = {k: np.ones((1, *draw()[k].shape), bool) for k in "ab"} | {"bias": None}
DEEP = {k: np.ones((1, 1, *draw()[k].shape), bool) for k in "ab"} | {"bias": None}
FLOATS = {k: np.ones((1, *draw()[k].shape), "f4") for k in "ab"} | {"bias": None}
NO_BIAS = lambda params, mask, *, key: (params | {"bias": None}, None)  # noqa: E731
NO_PAIR = lambda params, mask, *, key: params  # noqa: E731
KINDS = (
    r"needs `train\(...\)` of the network's shapes and dtypes, got:\n"
    r"  a: float32 array of shape \(5, 6\), network float32 array of shape \(6, 5\)\n"
    r"  bias: bfloat16 array of shape \(5,\), network float32"
)
BAD = [
    # Settings, refused before any training.
    (search, {"rate": -0.1}, ValueError, r"needs `rate` in \[0, 1\], got -0.1"),
    (search, {"rate": 1.5}, ValueError, r"needs `rate` in \[0, 1\], got 1.5"),
    (search, {"rate": math.nan}, ValueError, r"needs `rate` in \[0, 1\], got nan"),
    (search, {"rounds": 0}, ValueError, "search` needs `rounds` of at least 1, got 0"),
    (search, {"rounds": 1.5}, TypeError, "search` needs `rounds` as a whole number"),
    (search, {"rate": RATES, "scope": "global"}, ValueError, 'one `rate` for scope="g'),
    (search, {"scope": "all"}, ValueError, "needs `scope` as 'leaf' or 'global'"),
    (search, {"key": np.zeros(2, "uint32")}, TypeError, "search` needs `key` as a typ"),
    (search, {"where": lambda *_: False}, ValueError, "`where` to choose at least one"),
    # Trainings.
    (
        search,
        {"train": NO_PAIR},
        TypeError,
        r"`train` to return \(params, metrics\), g",
    ),
    (search, {"train": other_kinds}, ValueError, "search` " + KINDS),
    (retrain, {"train": other_kinds}, ValueError, "retrain` " + KINDS),
    (search, {"train": other_tree}, ValueError, r"(?s)`network`: b.*`train\(...\)`: c"),
    (search, {"train": NO_BIAS}, ValueError, "bias: NoneType None, network float32"),
    # Controls.
    (retrain, {"batch_size": 0}, ValueError, "retrain` needs `batch_size` of at least"),
    (
        retrain,
        {"masks": draw()},
        TypeError,
        "retrain` needs every leaf of `masks` to b",
    ),
    (retrain, {"masks": DEEP}, ValueError, "shaped like its parameter"),
    (retrain, {"key": 0}, TypeError, "retrain` needs `key` as a typed key"),
    (chance, {"mode": "leaf"}, ValueError, "`mode` as 'layerwise' or 'global' or 'eve"),
    (chance, {"key": 0}, TypeError, "random_masks` needs `key` as a typed key"),
    (chance, {"masks": FLOATS}, TypeError, "boolean array or None"),
]


@pytest.mark.parametrize(("call", "arguments", "kind", "text"), BAD)
def test_bad_input_is_named(call, arguments, kind, text):
    if call is search and "train" not in arguments:
        arguments = {"warm_up": untouched} | arguments
    with pytest.raises(kind, match=text):
        call(**arguments)


def test_first_steps_must_keep_shapes_and_dtypes():
    wrong = lambda params, *, key: other_kinds(params, key=key)[0]  # noqa: E731
    with pytest.raises(
        ValueError, match=r"needs `warm_up\(...\)` of the network's shap"
    ):
        search(warm_up=wrong)
