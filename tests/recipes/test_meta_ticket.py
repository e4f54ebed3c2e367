"""Meta-ticket and MAML: by hand, against NumPy, and what the paper promises."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import estimator, initializer, masking, packing, where
from maskjax.recipes import iterand, meta_ticket
from tests import trees
from tests.reference import meta_ticket as reference
from tests.reference.selection import quota

KEY = jax.random.key(0)
MAML = {"where": None, "trained": where.everything}
HEAD = where.matching("head")
SGD = optax.sgd(1.0)  # so that what scores lose is their gradient
HOW = {"rates": 0.1, "steps": 3}
TASKS, SHOTS, INPUTS, OUTPUTS = 3, 4, 3, 2


def linear(params, x, y):
    out = x @ params["body"] + params["bias"][None, :]
    return jnp.mean((out - y) ** 2)


def network(params, x):
    return jnp.tanh(x @ params["body"] + params["bias"][None, :]) @ params["head"]


def loss(params, x, y):
    return jnp.mean((network(params, x) - y) ** 2)


def random(*shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def weights_of(*, outputs=5, dtype="float32"):
    return {
        "body": random(INPUTS, outputs, seed=1, dtype=dtype),
        "bias": random(outputs, seed=2, dtype=dtype),
        "head": random(outputs, OUTPUTS, seed=3, dtype=dtype),
    }


def episodes(*, seed=0, dtype="float32", tasks=TASKS):
    """Support and query sets of a few tasks."""
    x = random(2, tasks, SHOTS, INPUTS, seed=seed, dtype=dtype)
    y = random(2, tasks, SHOTS, OUTPUTS, seed=seed + 1, dtype=dtype)
    return (x[0], y[0]), (x[1], y[1])


def task(i, *sets):
    return [jax.tree.map(lambda a: a[i], each) for each in sets]


def near(a, b, *, rtol=1e-4, atol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b
    )


@pytest.fixture(scope="module")
def state():
    return meta_ticket.init(weights_of(), SGD, density=0.5, key=KEY)


@pytest.fixture(scope="module")
def maml():
    return meta_ticket.init(weights_of(), SGD, **MAML, key=KEY)


@functools.cache
def compiled(steps=3, *, first_order=False, batch_size=None):
    @jax.jit
    def step(state, support, query, rates):
        return meta_ticket.step(
            state,
            loss,
            SGD,
            support,
            query,
            rates=rates,
            steps=steps,
            first_order=first_order,
            batch_size=batch_size,
        )

    return step


RATE = jnp.float32(0.1)


def test_a_step_by_hand():
    # theta = (2, -1), and a threshold of 0 that the scores (0.3, -0.2) make a mask of
    # (1, 0). With r = 0.25 an inner step goes to m theta - r m^2 g. To adapt to there
    # is one sample, x = (1, 3) and y = 1:
    #   out = 2, g = 2 (out - 1) x = (2, 6), and so w = (2 - 0.25 * 2, 0) = (1.5, 0)
    # To be judged by there is x = (2, 1) and y = 0: out = 3, loss 9, dL/dw = (12, 6).
    #   dw_1/dm_1 = theta_1 - 2 r g_1 - r dg_1/dm_1 = 2 - 1 - 0.25 * 2 * 1 * 2 = 0
    #   dw_1/dm_2 = -r dg_1/dm_2 = -0.25 * 2 * 3 * -1 = 1.5
    #   dw_2/dm_1 = 0 and dw_2/dm_2 = theta_2 = -1, as m_2 = 0
    # So dL/dm = (0, 12 * 1.5 - 6) = (0, 12), of which a score loses a tenth.
    support = jnp.array([[[1.0, 3.0]]]), jnp.array([[[1.0]]])
    query = jnp.array([[[2.0, 1.0]]]), jnp.array([[[0.0]]])
    square = lambda params, x, y: jnp.mean((x @ params["w"] - y) ** 2)  # noqa: E731
    optimizer, weights = optax.sgd(0.1), {"w": jnp.array([[2.0], [-1.0]])}
    state = meta_ticket.init(weights, optimizer, key=KEY)
    state = state._replace(
        scores={"w": jnp.array([[0.3], [-0.2]])}, thresholds={"w": jnp.array(0.0)}
    )
    how = {"rates": 0.25, "steps": 1}
    kept = meta_ticket.mask(state)
    one = [a[0] for a in support]
    adapted = meta_ticket.adapt(square, weights, kept, *one, **how)
    np.testing.assert_array_equal(adapted["w"], [[1.5], [0.0]])

    state, value = meta_ticket.step(state, square, optimizer, support, query, **how)

    assert value == 9
    np.testing.assert_allclose(state.scores["w"], [[0.3], [-1.4]], rtol=1e-6)
    np.testing.assert_array_equal(state.weights["w"], [[2.0], [-1.0]])


# Against NumPy, and against finite differences.


@pytest.mark.parametrize(
    ("steps", "first_order"), [(0, False), (1, False), (3, False), (1, True), (3, True)]
)
def test_meta_gradients_agree_with_the_reference(steps, first_order):
    weights = {"body": random(INPUTS, OUTPUTS, seed=4), "bias": random(OUTPUTS, seed=5)}
    how = {"density": 0.5, "trained": where.everything}
    state = meta_ticket.init(weights, SGD, **how, key=KEY)
    rates = {"body": 0.2, "bias": 0.05}
    support, query = episodes()
    after, value = jax.jit(
        lambda state: meta_ticket.step(
            state,
            linear,
            SGD,
            support,
            query,
            rates=rates,
            steps=steps,
            first_order=first_order,
        )
    )(state)

    # Biases are a row of weights whose input is 1 and which is always kept.
    rows = lambda kernel, bias: np.vstack([kernel, np.asarray(bias)[None]])  # noqa: E731
    ones = np.ones((SHOTS, 1))
    kept = np.asarray(meta_ticket.mask(state)["body"])
    found = [
        reference.task_gradients(
            rows(weights["body"], weights["bias"]).astype(np.float64),
            rows(kept, np.ones(OUTPUTS)),
            rows(np.full((INPUTS, OUTPUTS), 0.2), np.full(OUTPUTS, 0.05)),
            *((np.hstack([x[i], ones]), np.asarray(y[i])) for x, y in (support, query)),
            steps=steps,
            first_order=first_order,
        )
        for i in range(TASKS)
    ]
    expected, by_theta, by_mask = (
        np.mean(each, 0) for each in zip(*found, strict=True)
    )
    near(value, np.float32(expected))
    near(
        state.scores["body"] - after.scores["body"], by_mask[:-1], rtol=1e-3, atol=1e-5
    )
    assert (by_mask[:-1][~kept] != 0).any()
    moved = jax.tree.map(jnp.subtract, weights, after.weights)
    near(moved["body"], by_theta[:-1], rtol=1e-3, atol=1e-5)
    near(moved["bias"], by_theta[-1], rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_second_order_gradients_are_those_of_finite_differences():
    # A smooth gate instead of a mask, whose gradient is its own and not passed through.
    point = random(INPUTS, 5, seed=7, dtype="float64"), weights_of(dtype="float64")
    support, query = task(0, *episodes(dtype="float64"))

    @jax.jit
    def outer(scores, weights):
        gate = {"body": jax.nn.sigmoid(4 * scores), "bias": None, "head": None}
        how = {"rates": 0.3, "steps": 3}
        return loss(meta_ticket.adapt(loss, weights, gate, *support, **how), *query)

    slope = jax.jit(jax.grad(outer, (0, 1)))(*point)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        toward = jax.tree.map(lambda a, rng=rng: rng.normal(size=a.shape), point)

        def moved(by, toward=toward):
            return outer(*jax.tree.map(lambda p, t: p + by * t, point, toward))

        expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
        along = jax.tree.map(jnp.vdot, slope, toward)
        np.testing.assert_allclose(sum(jax.tree.leaves(along)), expected, rtol=1e-6)


# What it promises.


def test_without_inner_steps_it_is_a_supermask_of_a_fixed_threshold(state):
    support, query = episodes()

    def objective(scores):
        at = state.thresholds["body"]
        soft = estimator.threshold({"body": scores["body"]}, at=at)
        params = masking.apply(state.weights, soft | {"bias": None, "head": None})
        return jnp.mean(jax.vmap(functools.partial(loss, params))(*query))

    value, gradient = jax.jit(jax.value_and_grad(objective))(state.scores)
    after, found = compiled(0)(state, support, query, RATE)
    near(found, value)
    near(state.scores["body"] - after.scores["body"], gradient["body"], atol=1e-5)


def test_removed_weights_never_matter(state):
    support, _ = task(0, *episodes())
    kept = meta_ticket.mask(state)
    other = iterand.redraw(
        state.weights, kept, initializer.signed_constant(), key=jax.random.key(1)
    )
    assert (other["body"] != state.weights["body"]).sum() == (~kept["body"]).sum() > 0
    adapt = jax.jit(lambda w: meta_ticket.adapt(loss, w, kept, *support, **HOW))
    first = adapt(state.weights)
    trees.assert_same(first, adapt(other))
    assert not first["body"][~kept["body"]].any()
    assert (first["body"] != state.weights["body"])[kept["body"]].all()
    assert (first["bias"] != state.weights["bias"]).all()  # adapted, though not masked


def test_packed_and_broad_masks_adapt_as_their_entries_do(state):
    support, _ = task(0, *episodes())
    kept = meta_ticket.mask(state)
    columns = kept | {"body": kept["body"][:1]}
    entries = columns | {"body": jnp.broadcast_to(columns["body"], (INPUTS, 5))}
    adapt = jax.jit(
        lambda m: meta_ticket.adapt(loss, state.weights, m, *support, **HOW)
    )
    near(adapt(packing.pack(kept)), adapt(kept), rtol=1e-6)
    near(adapt(columns), adapt(entries), rtol=1e-6)


@pytest.mark.parametrize("first_order", [False, True])
def test_a_mask_that_keeps_everything_is_maml(first_order, maml):
    support, query = episodes()
    both = meta_ticket.init(weights_of(), SGD, trained=where.everything, key=KEY)
    assert all(m.all() for m in jax.tree.leaves(meta_ticket.mask(both)))
    assert not jax.tree.leaves(meta_ticket.mask(maml))
    step = compiled(first_order=first_order)
    after, value = step(maml, support, query, RATE)
    masked, same = step(both, support, query, RATE)
    near(value, same)
    near(after.weights, masked.weights, atol=1e-5)
    assert (after.weights["head"] != maml.weights["head"]).all()
    assert after.fixed == jax.tree.map(lambda _: None, weights_of())


@pytest.mark.parametrize("batch_size", [None, 2, 5])
def test_a_batch_of_tasks_is_the_mean_of_each(batch_size, state):
    support, query = episodes()
    after, value = compiled(batch_size=batch_size)(state, support, query, RATE)
    each = [
        compiled()(
            state, *jax.tree.map(lambda a, i=i: a[i : i + 1], (support, query)), RATE
        )
        for i in range(TASKS)
    ]
    near(value, np.mean([v for _, v in each]))
    mean = np.mean([s.scores["body"] for s, _ in each], 0)
    near(after.scores["body"], mean, atol=1e-5)


def test_first_and_second_order_differ(state):
    support, query = episodes()
    first = compiled(first_order=True)(state, support, query, RATE)
    second = compiled(first_order=False)(state, support, query, RATE)
    assert first[1] == second[1]
    assert abs(first[0].scores["body"] - second[0].scores["body"]).max() > 1e-3


@pytest.mark.parametrize("nothing", [None, 0.0])
@pytest.mark.parametrize("only", [HEAD, ~HEAD], ids=["anil", "boil"])
def test_leaves_without_a_rate_stay(only, nothing, state):
    support, _ = task(0, *episodes())
    adapting = masking.everything(state.weights, where=only)
    rates = {k: nothing if m is None else 0.1 for k, m in adapting.items()}
    kept = meta_ticket.mask(state)
    adapted = jax.jit(
        lambda w: meta_ticket.adapt(loss, w, kept, *support, rates=rates, steps=2)
    )(state.weights)
    for name, before in masking.apply(state.weights, kept).items():
        moved = adapted[name] != before
        assert moved.any() == only(name, before)


def test_rates_of_none_are_rates_of_zero_also_in_derivatives(maml):
    support, query = episodes()
    found = []
    for nothing in (None, 0.0):
        rates = {"body": nothing, "bias": nothing, "head": 0.1}
        step = jax.jit(
            lambda s, rates=rates: meta_ticket.step(
                s, loss, SGD, support, query, rates=rates, steps=2
            )
        )
        found.append(step(maml))
    near(*found)


@jax.jit
def first_of(density):
    weights = {"a": jnp.ones((7, 9)), "b": jnp.ones((3, 3, 2, 4))}
    weights |= {"head": jnp.ones((9, 2))}
    return meta_ticket.init(weights, SGD, density=density, key=KEY)


@pytest.mark.parametrize("density", [0.0, 0.3, 0.5, 0.95, 1.0])
def test_the_first_mask_has_an_exact_count_and_then_drifts(density):
    state = first_of(jnp.float32(density))
    kept = meta_ticket.mask(state)
    assert kept["head"] is None
    for name in ("a", "b"):
        n = kept[name].size
        # n - (1 + round(q (n - 1))) + 1, with q = 1 - density
        assert kept[name].sum() == 1 + quota(density, n - 1)
        cut = reference.order_statistic(np.asarray(state.scores[name]), density)
        assert state.thresholds[name] == np.float32(cut)
    after = state._replace(scores=jax.tree.map(lambda s: s - 2.0, state.scores))
    assert not any(m.any() for m in jax.tree.leaves(meta_ticket.mask(after)))


def test_scores_start_uniform_within_the_bound_of_the_fan_in():
    scores = first_of(jnp.float32(1.0)).scores
    for name, fan_in in (("a", 7), ("b", 18)):
        size, bound = abs(scores[name]), (6 / fan_in) ** 0.5
        assert 0.9 * bound < size.max() <= bound
        np.testing.assert_allclose(size.mean(), bound / 2, rtol=0.25)


@pytest.mark.parametrize(
    ("path", "masked"),
    [
        ("Dense_0/kernel", True),
        ("head_0/kernel", True),
        ("head/kernel", False),
        ("net/classifier/kernel", False),
        ("output", False),
        ("params/out/kernel", False),
        ("attention/out/kernel", True),
        ("attention/query/bias", False),
    ],
)
def test_by_default_hidden_kernels_carry_a_mask(path, masked):
    tree = jnp.ones((2, 2))
    for part in reversed(path.split("/")):
        tree = {part: tree}
    tree["other"] = {"kernel": jnp.ones((2, 2))}
    scores = meta_ticket.init(tree, SGD, key=KEY).scores
    assert len(jax.tree.leaves(scores)) == 1 + masked


def test_scores_and_weights_may_have_optimizers_of_their_own():
    # The sinusoids of the paper: one layer is masked, the others are meta-trained.
    each = {"s": optax.sgd(1.0), "w": optax.sign_sgd(0.25)}
    optimizer = optax.partition(each, ("s", "w"))
    body = where.matching("body")
    state = meta_ticket.init(
        weights_of(), optimizer, where=body, trained=~body, key=KEY
    )
    step = jax.jit(
        lambda s, support, query: meta_ticket.step(
            s, loss, optimizer, support, query, **HOW
        )
    )
    after, _ = step(state, *episodes())
    trees.assert_same(after.weights["body"], state.weights["body"])
    assert (after.scores["body"] != state.scores["body"]).any()
    for name in ("bias", "head"):
        moved = np.abs(after.weights[name] - state.weights[name])
        np.testing.assert_allclose(moved, 0.25, rtol=1e-5)


def test_training_lowers_the_loss_with_one_compilation(state, maml):
    # Tasks are linear maps near one, which adapting can't find alone.
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(INPUTS, OUTPUTS))
    optimizer = optax.sgd(0.03, momentum=0.9)
    step = jax.jit(
        lambda state, support, query, rates: meta_ticket.step(
            state, loss, optimizer, support, query, rates=rates, steps=2
        )
    )
    for first, compilations in ((state, 1), (maml, 2)):
        learned = first.scores, first.trained
        now, losses = first._replace(opt_state=optimizer.init(learned)), []
        for i in range(60):
            x = rng.normal(size=(2, TASKS, SHOTS, INPUTS))
            maps = truth + 0.1 * rng.normal(size=(TASKS, INPUTS, OUTPUTS))
            y = np.einsum("sbni,bio->sbno", x, maps)
            sets = zip(x.astype("float32"), y.astype("float32"), strict=True)
            now, value = step(now, *sets, jnp.float32(0.05 + 0.001 * i))
            losses.append(float(value))
        assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
        assert step._cache_size() == compilations
        if first is state:
            trees.assert_same(now.weights, first.weights)
            trees.assert_same(now.thresholds, first.thresholds)


def test_vmap_over_seeds_is_a_loop():
    support, query = episodes()

    def train(key):
        state = meta_ticket.init(weights_of(), SGD, density=0.5, key=key)

        def step(state, _):
            return meta_ticket.step(state, loss, SGD, support, query, **HOW)

        return jax.lax.scan(step, state, length=3)

    keys = jax.random.split(KEY, 2)
    states, losses = jax.jit(jax.vmap(train))(keys)
    alone = jax.jit(train)
    for i in range(2):
        expected, values = alone(keys[i])
        near(losses[i], values, rtol=1e-3)
        near(states.scores["body"][i], expected.scores["body"], rtol=1e-3, atol=1e-4)
    assert losses[0, 0] != losses[1, 0]


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree_adapts_and_learns(name):
    weights = trees.make(name)
    if name == "odd_leaves":  # an empty leaf has no score to begin at
        weights.pop("empty")
    floating = where.kernels & where.floating
    state = meta_ticket.init(weights, SGD, where=floating, key=KEY)

    def total(params, x):
        leaves = [p for p in jax.tree.leaves(params) if p.dtype == jnp.float32]
        return sum(jnp.sum(jnp.sin(p)) for p in leaves) * jnp.mean(x)

    tasks = (jnp.ones((2, 1)),)
    step = jax.jit(
        lambda s: meta_ticket.step(s, total, SGD, tasks, tasks, rates=0.1, steps=1)
    )
    after, _ = step(state)
    after, _ = step(after)
    trees.assert_same(after.weights, weights)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert step._cache_size() == 1


# Bad input.


def blamed(verb, text):
    return re.escape(f"`maskjax.recipes.meta_ticket.{verb}` {text}")


def test_an_empty_set_is_refused(state):
    support, query = episodes()
    empty = tuple(a[:, :0] for a in support)
    needs = blamed("step", "needs at least one sample, and one task, got:\n")
    for data, found in (
        ((empty, query), r"  support/0: .*\(3, 0, 3\)\n  support/1: .*\(3, 0, 2\)"),
        ((support, empty), r"  query/0: .*\(3, 0, 3\)"),
        (jax.tree.map(lambda a: a[:0], (support, query)), r"  query/0: .*\(0, 4, 3\)"),
    ):
        with pytest.raises(ValueError, match=f"{needs}{found}"):
            meta_ticket.step(state, loss, SGD, *data, **HOW)
    needs = blamed("adapt", "needs at least one sample, and one task, got:\n")
    one = tuple(a[0] for a in empty)
    with pytest.raises(ValueError, match=rf"{needs}  support/0: .*\(0, 3\)"):
        meta_ticket.adapt(loss, state.weights, meta_ticket.mask(state), *one, **HOW)


@pytest.mark.parametrize(
    ("steps", "kind"), [(-1, ValueError), (1.5, TypeError), (jnp.int32(3), TypeError)]
)
def test_steps_are_a_count(steps, kind, state):
    with pytest.raises(kind, match=blamed("adapt", "needs `steps`")):
        meta_ticket.step(state, loss, SGD, *episodes(), rates=0.1, steps=steps)


@pytest.mark.parametrize(("size", "kind"), [(0, ValueError), (1.5, TypeError)])
def test_a_batch_size_is_a_count(size, kind, state):
    with pytest.raises(kind, match=blamed("step", "needs `batch_size`")):
        meta_ticket.step(state, loss, SGD, *episodes(), **HOW, batch_size=size)


def test_masks_scores_and_rates_of_other_shapes_are_named(state):
    support, query = episodes()
    wrong = {"body": jnp.ones((2, 5), bool), "bias": None, "head": jnp.ones(2, bool)}
    needs = blamed("adapt", "needs every leaf of `mask` shaped like its parameter")
    found = r".*\n  body: mask \(2, 5\), params \(3, 5\)\n  head: mask \(2,\)"
    with pytest.raises(ValueError, match=needs + found):
        meta_ticket.adapt(loss, state.weights, wrong, *task(0, support)[0], **HOW)
    scores = state.scores | {"body": jnp.ones((2, 5))}
    with pytest.raises(ValueError, match=rf"{needs}.*\n  body: mask \(2, 5\)"):
        meta_ticket.step(
            state._replace(scores=scores), loss, SGD, support, query, **HOW
        )
    needs = blamed("adapt", "needs `params` and `rates` of the same structure")
    rates = {"body": 0.1, "bias": 0.1}
    with pytest.raises(ValueError, match=rf"{needs}, got:\n  only in `params`: head"):
        meta_ticket.step(state, loss, SGD, support, query, rates=rates, steps=1)


@pytest.mark.parametrize("rate", [jnp.ones((3, 1, 1)), "fast", True, jnp.int32(1)])
def test_rates_are_numbers_for_whole_leaves(state, rate):
    rates = {"body": 0.1, "bias": rate, "head": None}
    needs = blamed("adapt", "needs every rate as a number, a floating scalar or None")
    with pytest.raises(TypeError, match=f"{needs}, got:\n  bias: "):
        meta_ticket.step(state, loss, SGD, *episodes(), rates=rates, steps=1)


def test_masks_that_are_neither_boolean_nor_floating_are_named(state):
    whole = {"body": jnp.ones((3, 5), int), "bias": None, "head": None}
    needs = blamed("adapt", "needs every leaf of `mask` to be a boolean or floating")
    with pytest.raises(TypeError, match=rf"{needs} array or None, got:\n  body: int32"):
        meta_ticket.adapt(loss, state.weights, whole, *task(0, episodes()[0])[0], **HOW)


def test_something_has_to_be_trained_and_chosen():
    weights = weights_of()
    with pytest.raises(ValueError, match=blamed("init", "needs `where` or `trained`")):
        meta_ticket.init(weights, SGD, where=None, key=KEY)
    with pytest.raises(ValueError, match="`where` to choose at least one leaf"):
        meta_ticket.init({"head": weights["head"]}, SGD, key=KEY)
    with pytest.raises(ValueError, match="2 axes or more.*\n  bias"):
        meta_ticket.init(weights, SGD, where=where.everything, key=KEY)
    counters = weights | {"counter": jnp.zeros((), "int32")}
    with pytest.raises(TypeError, match=blamed("init", "needs every leaf")):
        meta_ticket.init(counters, SGD, trained=where.everything, key=KEY)
    with pytest.raises(ValueError, match="`trained` to choose at least one leaf"):
        meta_ticket.init(weights, SGD, trained=where.matching("hed"), key=KEY)


def test_a_density_is_a_fraction_and_a_key_is_typed():
    weights = weights_of()
    with pytest.raises(ValueError, match=blamed("init", "needs `density` in [0, 1]")):
        meta_ticket.init(weights, SGD, density=1.1, key=KEY)
    with pytest.raises(TypeError, match=blamed("init", "needs `key` as a typed key")):
        meta_ticket.init(weights, SGD, key=jax.random.PRNGKey(0))
