"""Meta-ticket and MAML: by hand, against NumPy, and what the paper promises."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from maskjax import packing, where
from maskjax.recipes import meta_ticket
from tests import trees
from tests.reference import meta_ticket as reference
from tests.reference.selection import quota

KEY = jax.random.key(0)
HOW = {"inner_learning_rates": 0.1, "steps": 3}
TASKS, SHOTS, INPUTS, OUTPUTS = 3, 4, 3, 2
SHAPES = {"body": (INPUTS, 5), "bias": (5,), "head": (5, OUTPUTS)}


def linear(params, x, y):
    return jnp.mean((x @ params["body"] + params["bias"][None, :] - y) ** 2)


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["body"] + params["bias"][None, :])
    return jnp.mean((hidden @ params["head"] - y) ** 2)


def draw(*shape, seed, dtype="float32"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def weights_of(dtype="float32"):
    return {k: draw(*s, seed=i, dtype=dtype) for i, (k, s) in enumerate(SHAPES.items())}


def episodes(*lead, seed=0, dtype="float32"):
    """Support and query sets [..., B, n, d] of maps that are near one another."""
    x = draw(2, *lead, TASKS, SHOTS, INPUTS, seed=seed, dtype=dtype)
    maps = draw(INPUTS, OUTPUTS, seed=7, dtype=dtype)
    maps = maps + draw(*lead, TASKS, INPUTS, OUTPUTS, seed=seed + 1, dtype=dtype) / 5
    return tuple(zip(x, x @ maps, strict=True))


def at(i, *sets):
    return jax.tree.map(lambda a: a[i], sets)


@functools.cache
def start():
    """Scores of the body, half of which are kept, and their threshold."""
    state = jax.jit(functools.partial(meta_ticket.init, density=0.5))
    return jax.device_get(state(weights_of(), key=KEY))


def kept():
    return {
        k: None if s is None else s >= start().thresholds[k]
        for k, s in start().scores.items()
    }


def meta(learned, weights, thresholds, sets, *, batch_size=None, **how):
    """The mean query loss and its gradient by scores and weights, as users write it."""

    def query_loss(learned, support, query):
        scores, trained = learned
        soft = None
        if scores:
            scores, cut = ({k: t.get(k) for k in SHAPES} for t in (scores, thresholds))
            soft = meta_ticket.soft_mask(scores, cut)
        params = {**weights, **trained}
        return loss(meta_ticket.adapt(loss, params, soft, *support, **how), *query)

    by = jax.value_and_grad(query_loss)
    return meta_ticket.mean_over_tasks(by, learned, *sets, batch_size=batch_size)


@functools.cache
def gradients(*, first_order=False, batch_size=None):
    """By scores and weights, compiled once for all values of its arguments."""

    @jax.jit
    def run(scores, thresholds, weights, rates, sets):
        how = {"inner_learning_rates": rates, "steps": 3, "first_order": first_order}
        how["batch_size"] = batch_size
        return meta((scores, weights), weights, thresholds, sets, **how)

    return lambda *args: jax.device_get(run(*args))


def rates_of(**rates):
    return {k: np.float32(rates.get(k, 0.1)) for k in SHAPES}


def near(a, b, *, rtol=1e-4, atol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b
    )


def test_a_step_by_hand():
    # theta = (2, -1), and a threshold of 0 that the scores (0.3, -0.2) make a mask of
    # (1, 0). With r = 0.25 an inner step goes to m theta - r m^2 g. To adapt to there
    # is one sample, x = (1, 3) and y = 1:
    #   out = 2, g = 2 (out - 1) x = (2, 6), and so w = (2 - 0.25 * 2, 0) = (1.5, 0)
    # To be judged by there is x = (2, 1) and y = 0: out = 3, loss 9, dL/dw = (12, 6).
    #   dw_1/dm_1 = theta_1 - 2 r g_1 - r dg_1/dm_1 = 2 - 1 - 0.25 * 2 * 1 * 2 = 0
    #   dw_1/dm_2 = -r dg_1/dm_2 = -0.25 * 2 * 3 * -1 = 1.5
    #   dw_2/dm_1 = 0 and dw_2/dm_2 = theta_2 = -1, as m_2 = 0
    # So dL/dm = (0, 12 * 1.5 - 6) = (0, 12).
    column = lambda *x: np.float32(x)[:, None]  # noqa: E731
    square = lambda params, x, y: jnp.mean((x @ params["w"] - y) ** 2)  # noqa: E731
    support = np.float32([[[1, 3]]]), np.float32([[[1]]])
    query = np.float32([[[2, 1]]]), np.float32([[[0]]])
    weights, thresholds = {"w": column(2, -1)}, {"w": np.float32(0)}

    @jax.jit
    def run(scores):
        def adapted(scores, support):
            soft = meta_ticket.soft_mask(scores, thresholds)
            how = {"inner_learning_rates": 0.25, "steps": 1}
            return meta_ticket.adapt(square, weights, soft, *support, **how)

        by = jax.value_and_grad(lambda s, a, b: square(adapted(s, a), *b))
        found = meta_ticket.mean_over_tasks(by, scores, support, query)
        return adapted(scores, at(0, *support)), found

    adapted, (value, slope) = run({"w": column(0.3, -0.2)})
    np.testing.assert_array_equal(adapted["w"], column(1.5, 0))
    assert value == 9
    np.testing.assert_allclose(slope["w"], column(0, 12), rtol=1e-6)


# Against NumPy, against plain JAX, and against finite differences.


# Steps, and whether it is first-order. Without steps it is a supermask of a threshold.
CASES = [(0, False), (1, False), (3, False), (1, True), (3, True)]


def test_meta_gradients_agree_with_the_reference():
    weights = {"body": draw(INPUTS, OUTPUTS, seed=4), "bias": draw(OUTPUTS, seed=5)}
    scores = {"body": draw(INPUTS, OUTPUTS, seed=6), "bias": None}
    cut = {"body": np.float32(0.2), "bias": None}
    support, query = episodes()

    @jax.jit
    def run(learned):
        def by(case, learned, support, query):
            how = {"inner_learning_rates": {"body": 0.2, "bias": 0.05}}
            how |= dict(zip(("steps", "first_order"), case, strict=True))
            soft = meta_ticket.soft_mask(learned[0], cut)
            params = meta_ticket.adapt(linear, learned[1], soft, *support, **how)
            return linear(params, *query)

        return [
            meta_ticket.mean_over_tasks(
                jax.value_and_grad(functools.partial(by, case)), learned, support, query
            )
            for case in CASES
        ]

    # Biases are a row of weights whose input is 1 and which is always kept.
    rows = lambda kernel, bias: np.vstack([kernel, np.asarray(bias)[None]])  # noqa: E731
    ones = np.ones((SHOTS, 1))
    mask = scores["body"] >= cut["body"]
    assert 0 < mask.sum() < mask.size
    for case, got in zip(CASES, jax.device_get(run((scores, weights))), strict=True):
        found = [
            reference.task_gradients(
                rows(weights["body"], weights["bias"]).astype(np.float64),
                rows(mask, np.ones(OUTPUTS)),
                rows(np.full((INPUTS, OUTPUTS), 0.2), np.full(OUTPUTS, 0.05)),
                *((np.hstack([x[i], ones]), y[i]) for x, y in (support, query)),
                steps=case[0],
                first_order=case[1],
            )
            for i in range(TASKS)
        ]
        expected, theta, by_mask = (np.mean(a, 0) for a in zip(*found, strict=True))
        assert (by_mask[:-1][~mask] != 0).any()
        wanted = {"body": by_mask[:-1], "bias": None}
        wanted = wanted, {"body": theta[:-1], "bias": theta[-1]}
        near(got, (expected, wanted), rtol=1e-3, atol=1e-5)


def test_second_order_gradients_are_those_of_finite_differences(x64):
    # A smooth gate instead of a mask, whose gradient is its own and not passed through.
    point = draw(*SHAPES["body"], seed=7, dtype="float64"), weights_of("float64")
    support, query = at(0, *episodes(dtype="float64"))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def outer(scores, weights):
        gate = {"body": jax.nn.sigmoid(4 * scores), "bias": None, "head": None}
        how = {"inner_learning_rates": 0.3, "steps": 3}
        return loss(meta_ticket.adapt(loss, weights, gate, *support, **how), *query)

    slope = jax.device_get(outer(*point)[1])
    for seed in range(3):
        rng = np.random.default_rng(seed)
        toward = jax.tree.map(lambda a, rng=rng: rng.normal(size=a.shape), point)

        def moved(by, toward=toward):
            return outer(*jax.tree.map(lambda p, t: p + by * t, point, toward))[0]

        expected = (float(moved(1e-5)) - float(moved(-1e-5))) / 2e-5
        along = jax.tree.leaves(jax.tree.map(np.vdot, slope, toward))
        np.testing.assert_allclose(sum(along), expected, rtol=1e-6)


ADAM = optax.adam(0.01)
BOTH = optax.partition({"s": ADAM, "w": optax.sgd(0.1)}, ("s", "w"))
SETTINGS = {  # masked leaves, meta-trained ones, optimizer, what does not adapt
    "ticket": (("body",), (), ADAM, ()),
    "ticket and weights": (("body",), ("bias", "head"), BOTH, ()),
    "maml": ((), tuple(SHAPES), ADAM, ()),
    "anil": ((), tuple(SHAPES), ADAM, ("body", "bias")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_twenty_steps_of_a_loop_equal_the_transcription_to_the_bit(name):
    masked, trained, optimizer, still = SETTINGS[name]
    weights, tasks = weights_of(), episodes(20)
    rates = {k: None if k in still else 0.1 for k in SHAPES}
    scores, thresholds = (
        {k: v for k, v in part.items() if k in masked} for part in start()
    )
    learned = scores, {k: weights[k] for k in trained}
    fixed = {k: w for k, w in weights.items() if k not in trained}

    def mine(learned, opt_state, tasks):
        how = {"inner_learning_rates": rates, "steps": 2}
        value, slope = meta(learned, weights, thresholds, tasks, **how)
        updates, opt_state = optimizer.update(slope, opt_state, learned)
        return optax.apply_updates(learned, updates), opt_state, value

    def theirs(learned, opt_state, tasks):
        data = (fixed, thresholds), tasks
        how = {"rates": rates, "steps": 2}
        return reference.step(loss, optimizer, learned, opt_state, *data, **how)

    def run(step):
        def one(carry, tasks):
            *carry, value = step(*carry, tasks)
            return tuple(carry), value

        return jax.lax.scan(one, (learned, optimizer.init(learned)), tasks)

    with jax.numpy_dtype_promotion("standard"):  # which Adam needs
        # In many parts, as users compile: in one, LLVM may round the two differently.
        parts = {"xla_cpu_parallel_codegen_split_count": 32}  # unless XLA is newer
        options = parts if jax.__version_info__ < (0, 11) else {}
        compiled = functools.partial(jax.jit, compiler_options=options)
        (after, _), losses = compiled(lambda: run(mine))()
        (expected, _), values = compiled(lambda: run(theirs))()
    trees.assert_same((after, losses), (expected, values))
    for before, now in zip(*map(jax.tree.leaves, (learned, after)), strict=True):
        assert (before != now).any()


# What it promises.


@functools.cache
def adapted():
    """Parameters of one task under masks of many kinds, and with leaves that stay."""
    support, _ = at(0, *episodes())
    columns = kept() | {"body": kept()["body"][:1]}
    entries = columns | {"body": np.repeat(columns["body"], INPUTS, 0)}
    other = weights_of()
    other["body"] = np.where(kept()["body"], other["body"], 7)

    def run(weights, other):
        masks = {"kept": kept(), "packed": packing.pack(kept())}
        masks |= {"columns": columns, "entries": entries, "nothing": None}
        out = {
            name: meta_ticket.adapt(loss, weights, mask, *support, **HOW)
            for name, mask in masks.items()
        }
        for names in (("head",), ("body", "bias")):
            for still in (None, 0.0):
                rates = {k: 0.1 if k in names else still for k in SHAPES}
                out[f"{names} {still}"] = meta_ticket.adapt(
                    loss, weights, kept(), *support, inner_learning_rates=rates, steps=2
                )
        out["other"] = meta_ticket.adapt(loss, other, kept(), *support, **HOW)
        return out

    # One program, in which the same computation is the same to the bit.
    return jax.device_get(jax.jit(run)(weights_of(), other)), entries


def test_removed_weights_never_matter():
    out, _ = adapted()
    first, mask = out["kept"], kept()["body"]
    assert not mask.all()
    trees.assert_same(first, out["other"])
    assert not first["body"][~mask].any()
    assert (first["body"] != weights_of()["body"])[mask].all()
    assert (first["bias"] != weights_of()["bias"]).all()  # adapted, though not masked


def test_packed_and_broad_masks_adapt_as_their_entries_do():
    out, entries = adapted()
    near(out["packed"], out["kept"], rtol=1e-6)
    near(out["columns"], out["entries"], rtol=1e-6)
    assert not out["columns"]["body"][~entries["body"]].any()
    assert out["nothing"]["body"].all()


@pytest.mark.parametrize("still", [None, 0.0])
@pytest.mark.parametrize("names", [("head",), ("body", "bias")], ids=["anil", "boil"])
def test_leaves_without_a_rate_stay(names, still):
    out = adapted()[0][f"{names} {still}"]
    before = weights_of()
    before["body"] = np.where(kept()["body"], before["body"], 0)
    for name in SHAPES:
        assert (out[name] != before[name]).any() == (name in names)


def test_a_mask_that_keeps_everything_is_maml_and_a_rate_of_none_is_zero():
    (scores, thresholds), sets = start(), episodes()
    low = {k: t if t is None else np.float32(-9) for k, t in thresholds.items()}
    head = {"body": None, "bias": None, "head": 0.1}
    ways = [
        ({"inner_learning_rates": 0.1}, rates_of()),
        ({"inner_learning_rates": 0.1, "first_order": True}, rates_of()),
        ({"inner_learning_rates": head}, rates_of(body=0, bias=0)),
    ]

    @jax.jit
    def maml(weights):
        data = (None, weights), {}, None, sets
        return [meta(*data, steps=3, **how) for how, _ in ways]

    for (how, rates), (value, slope) in zip(ways, maml(weights_of()), strict=True):
        run = gradients(first_order="first_order" in how)
        found, (_, by_weights) = run(scores, low, weights_of(), rates, sets)
        near((found, by_weights), (value, slope[1]), atol=1e-5)


def test_a_batch_of_tasks_is_the_mean_of_each():
    sets = episodes()
    args = (*start(), weights_of(), rates_of())
    together = gradients()(*args, sets)
    each = [
        gradients()(*args, jax.tree.map(lambda a, i=i: a[[i] * TASKS], sets))
        for i in range(TASKS)
    ]
    assert len({float(value) for value, _ in each}) == TASKS
    near(together, jax.tree.map(lambda *a: np.mean(a, 0), *each), atol=1e-5)
    near(gradients(batch_size=2)(*args, sets), together, atol=1e-5)


def test_first_and_second_order_differ():
    args = (*start(), weights_of(), rates_of(), episodes())
    (value, first), (same, second) = (gradients(first_order=o)(*args) for o in (1, 0))
    np.testing.assert_allclose(value, same, rtol=1e-6)
    assert abs(first[0]["body"] - second[0]["body"]).max() > 1e-3


@jax.jit
def first_of(density):
    shapes = {"a": (7, 9), "conv": (3, 3, 2, 4), "head": (9, 2)}
    weights = {k: jnp.ones(shape) for k, shape in shapes.items()}
    return meta_ticket.init(weights, density=density, key=KEY)


@pytest.mark.parametrize("density", [0.0, 0.3, 0.5, 0.95, 1.0])
def test_the_first_mask_has_an_exact_count_and_then_drifts(density):
    scores, thresholds = jax.device_get(first_of(np.float32(density)))
    assert scores["head"] is thresholds["head"] is None
    for name in ("a", "conv"):
        n, cut = scores[name].size, thresholds[name]
        # n - (1 + round(q (n - 1))) + 1, with q = 1 - density
        assert (scores[name] >= cut).sum() == 1 + quota(density, n - 1)
        assert cut == np.float32(reference.order_statistic(scores[name], density))


def test_the_mask_is_where_scores_reach_their_thresholds():
    scores = {"w": np.float32([1, 2, 3]), "b": None}
    for cut, expected in ((0, [1, 1, 1]), (2, [0, 1, 1]), (4, [0, 0, 0])):
        thresholds = {"w": np.float32(cut), "b": None}
        mask = meta_ticket.mask(scores, thresholds)
        soft = meta_ticket.soft_mask(scores, thresholds)
        assert mask["b"] is soft["b"] is None
        assert (mask["w"].dtype, soft["w"].dtype) == (bool, np.float32)
        np.testing.assert_array_equal(mask["w"], np.bool_(expected))
        np.testing.assert_array_equal(soft["w"], expected)


def test_scores_start_uniform_within_the_bound_of_the_fan_in():
    scores, _ = jax.device_get(first_of(np.float32(1)))
    for name, fan_in in (("a", 7), ("conv", 18)):
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
def test_by_default_hidden_kernels_have_a_mask(path, masked):
    tree = np.ones((2, 2), np.float32)
    for part in reversed(path.split("/")):
        tree = {part: tree}
    tree["other"] = {"kernel": np.ones((2, 2), np.float32)}
    state = jax.eval_shape(lambda w: meta_ticket.init(w, key=KEY), tree)
    assert len(jax.tree.leaves(state.scores)) == 1 + masked


# In loops.


def test_training_lowers_the_loss_with_one_compilation_and_donated_buffers():
    # The tasks are linear maps near one, which adapting alone can't find.
    optimizer, weights = optax.sgd(0.03, momentum=0.9), weights_of()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(scores, opt_state, thresholds, weights, tasks, rate):
        how = {"inner_learning_rates": rate, "steps": 2}
        value, (slope, _) = meta((scores, {}), weights, thresholds, tasks, **how)
        updates, opt_state = optimizer.update(slope, opt_state)
        return optax.apply_updates(scores, updates), opt_state, value

    state = jax.jit(lambda w: meta_ticket.init(w, key=KEY))(weights)
    opt_state = jax.jit(optimizer.init)(state.scores)
    (scores, thresholds), losses, sets = state, [], episodes(60)
    for i in range(60):
        data = thresholds, weights, at(i, *sets), np.float32(0.05 + 0.001 * i)
        scores, opt_state, value = step(scores, opt_state, *data)
        losses.append(float(value))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert step._cache_size() == 1
    assert state.scores["body"].is_deleted()
    assert not meta_ticket.mask(scores, thresholds)["body"].all()


class Network(nn.Module):
    """Its statistics are those of the inputs, whatever the weights are."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, momentum=0.5, name="norm")(x)
        return nn.Dense(OUTPUTS, name="head")(nn.tanh(nn.Dense(5, name="body")(x)))


def test_statistics_a_train_state_and_accumulated_gradients():
    network, sets = Network(), episodes()
    tx = optax.MultiSteps(optax.adam(0.1), 2)

    def loss(params, stats, x, y):
        variables = {"params": params, "batch_stats": stats}
        out, new = network.apply(variables, x, mutable=["batch_stats"])
        return jnp.mean((out - y) ** 2), new["batch_stats"]

    shapes = jax.eval_shape(network.init, KEY, sets[0][0][0])
    drawn = jax.tree.map(lambda x: draw(*x.shape, seed=x.size), shapes)
    weights, begin = drawn["params"], drawn["batch_stats"]
    first, thresholds = (jax.tree.map(lambda _: None, weights) for _ in range(2))
    first["body"]["kernel"] = draw(INPUTS, 5, seed=3)
    thresholds["body"]["kernel"] = np.float32(0)

    @jax.jit
    def run():
        state = TrainState.create(apply_fn=network.apply, params=first, tx=tx)

        def query_loss(scores, stats, support, query):
            soft = meta_ticket.soft_mask(scores, thresholds)
            inner = lambda params, x, y: loss(params, stats, x, y)[0]  # noqa: E731
            params = meta_ticket.adapt(inner, weights, soft, *support, **HOW)
            return loss(params, stats, *query)

        by = jax.value_and_grad(query_loss, has_aux=True)

        def step(carry, _):
            state, stats = carry
            of_task = lambda scores, *task: by(scores, stats, *task)  # noqa: E731
            out = meta_ticket.mean_over_tasks(of_task, state.params, *sets)
            (_, stats), slope = out
            state = state.apply_gradients(grads=slope)
            return (state, stats), (state.params, stats)

        return jax.lax.scan(step, (state, begin), length=4)

    with jax.numpy_dtype_promotion("standard"):  # which Adam needs
        (state, _), (scores, stats) = jax.device_get(run())
    kernels = [first["body"]["kernel"], *scores["body"]["kernel"]]
    moved = [(a != b).any() for a, b in zip(kernels, kernels[1:], strict=False)]
    assert (moved, int(state.step)) == ([False, True, False, True], 4)
    share = 0.5 ** np.arange(1, 5)[:, None]
    means = share * begin["norm"]["mean"] + (1 - share) * sets[1][0].mean((0, 1))
    np.testing.assert_allclose(stats["norm"]["mean"], means, rtol=1e-4, atol=1e-6)


def test_maml_of_an_nnx_model_and_its_optimizer():
    sets = episodes()

    @nnx.jit
    def create():
        model = nnx.Linear(INPUTS, OUTPUTS, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        graph, params = nnx.split(model)

        def loss(params, x, y):
            return jnp.mean((nnx.merge(graph, params)(x) - y) ** 2)

        def query_loss(params, support, query):
            return loss(meta_ticket.adapt(loss, params, None, *support, **HOW), *query)

        by = jax.value_and_grad(query_loss)
        value, slope = meta_ticket.mean_over_tasks(by, params, *sets)
        optimizer.update(model, slope)
        return value, slope

    model, optimizer = create()
    before = np.asarray(model.kernel[...])
    value, slope = step(model, optimizer)
    expected = before - np.float32(0.5) * np.asarray(slope["kernel"][...])
    np.testing.assert_allclose(model.kernel[...], expected, rtol=1e-5)
    for _ in range(5):
        again, _ = step(model, optimizer)
    assert again < 0.9 * value


def test_vmap_over_seeds_is_a_loop():
    sets = episodes()

    @jax.jit
    def train(key):
        scores, thresholds = meta_ticket.init(weights_of(), density=0.5, key=key)

        def step(scores, _):
            data = weights_of(), thresholds, sets
            value, (slope, _) = meta((scores, {}), *data, **HOW)
            return jax.tree.map(lambda s, g: s - g, scores, slope), value

        return jax.lax.scan(step, scores, length=2)

    keys = jax.random.split(KEY, 2)
    scores, losses = jax.device_get(jax.jit(jax.vmap(train))(keys))
    for i in range(2):
        expected, values = jax.device_get(train(keys[i]))
        near(losses[i], values, rtol=1e-3)
        near(scores["body"][i], expected["body"], rtol=1e-3, atol=1e-4)
    assert losses[0, 0] != losses[1, 0]


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree_adapts_and_learns(name):
    weights = jax.eval_shape(functools.partial(trees.make, name))
    if name == "odd_leaves":  # an empty leaf has no score to begin at
        weights.pop("empty")

    def total(params, x):
        leaves = [p for p in jax.tree.leaves(params) if p.dtype == jnp.float32]
        return sum(jnp.sum(jnp.sin(p)) for p in leaves) * jnp.mean(x)

    def run(weights, x):
        floating = trees.WHERE & where.floating
        scores, thresholds = meta_ticket.init(weights, where=floating, key=KEY)

        def adapted(scores, x):
            soft = meta_ticket.soft_mask(scores, thresholds)
            return meta_ticket.adapt(total, weights, soft, x, **HOW)

        slope = jax.grad(lambda scores, x: total(adapted(scores, x), x))
        slope = meta_ticket.mean_over_tasks(slope, scores, x)
        return adapted(scores, x[0]), scores, slope

    params, scores, slope = jax.eval_shape(run, weights, np.ones((2, 1), "f"))
    assert jax.tree.leaves(scores)
    for tree, like in ((slope, scores), (params, weights)):
        kinds = jax.tree.map(
            lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), tree, like
        )
        assert all(jax.tree.leaves(kinds))


# Bad input.


def adapt(mask=None, support=None, **how):
    support = at(0, *episodes())[0] if support is None else support
    mask = kept() if mask is None else mask
    return meta_ticket.adapt(loss, weights_of(), mask, *support, **HOW | how)


def mean(*tasks, by=lambda params, support, query: loss(params, *query), **how):
    return meta_ticket.mean_over_tasks(by, weights_of(), *(tasks or episodes()), **how)


def reach(verb, scores=None, **cut):
    state = start()
    function = getattr(meta_ticket, verb)
    return function(scores or state.scores, state.thresholds | cut)


SOME, MORE = episodes()
FEWER, NO_TASK, EMPTY = (
    [a[i] for a in SOME] for i in np.s_[:2, :0, (slice(3), slice(0))]
)
WRONG = {"body": np.ones((2, 5), bool), "bias": None, "head": np.ones(2, bool)}
COUNTER = {"w": np.ones((2, 2), "f"), "counter": np.zeros((), "int32")}
NONE = "at least one sample, and one task, got:\n"
ONE = "`inner_learning_rates` as a number, or a tree like `params`, got float32 array"
RATE = (
    "every leaf of `inner_learning_rates` as a number, None, or a floating array shaped"
    " like its parameter, got"
)
SAME = "every leaf of `tasks` with the same number of tasks, got:\n"
CUT = "every threshold as a number or a floating scalar, got:\n  body"


def test_every_weight_may_have_a_rate_of_its_own():
    w, rate = np.float32([[1, 2], [3, 4]]), np.float32([[0.5, 0], [0.25, 1]])
    slope = lambda params: jnp.sum(params["w"])  # noqa: E731
    adapted = functools.partial(meta_ticket.adapt, slope, {"w": w}, steps=2)
    for rates, each in ((rate, rate), (rate[:1], rate[[0, 0]]), (rate[:, :1], None)):
        each = np.repeat(rate[:, :1], 2, 1) if each is None else each
        out = adapted(None, inner_learning_rates={"w": rates})["w"]
        np.testing.assert_array_equal(out, w - 2 * each)
    kept = np.array([[True, False], [True, True]])
    out = adapted({"w": kept}, inner_learning_rates={"w": rate})["w"]
    np.testing.assert_array_equal(out, np.where(kept, w - 2 * rate, 0))
    by = jax.grad(lambda r: adapted(None, inner_learning_rates={"w": r})["w"].sum())
    np.testing.assert_array_equal(by(rate), np.full((2, 2), -2))


def rates(bias):
    return adapt(inner_learning_rates={"body": 0.1, "bias": bias, "head": None})


def first(weights=None, **how):
    return meta_ticket.init(weights or weights_of(), **{"key": KEY} | how)


BAD = [  # the call, the error, whom it blames, and for what
    (lambda: mean(EMPTY, MORE), ValueError, "mean_over_tasks", NONE + "  tasks/0/0: "),
    (lambda: mean(SOME, EMPTY), ValueError, "mean_over_tasks", NONE + "  tasks/1/0: "),
    (lambda: mean(NO_TASK, MORE), ValueError, "mean_over_tasks", NONE + "  tasks/0/0"),
    (lambda: mean(SOME, FEWER), ValueError, "mean_over_tasks", SAME + "  tasks/0/0: 3"),
    (lambda: mean(1.0, MORE), ValueError, "mean_over_tasks", SAME + "  tasks/0: None"),
    (lambda: mean(()), ValueError, "mean_over_tasks", "a task, got no arrays"),
    (lambda: mean(batch_size=0), ValueError, "mean_over_tasks", "`batch_size` of at l"),
    (lambda: mean(batch_size=1.5), TypeError, "mean_over_tasks", "`batch_size` as a w"),
    (lambda: adapt(support=[a[0] for a in EMPTY]), ValueError, "adapt", NONE),
    (lambda: adapt(steps=-1), ValueError, "adapt", "`steps` of at least 0, got -1"),
    (lambda: adapt(steps=1.5), TypeError, "adapt", "`steps` as a whole number"),
    (lambda: adapt(steps=np.ones(1)), TypeError, "adapt", "`steps` as a whole number"),
    (lambda: adapt(WRONG), ValueError, "adapt", "every leaf of `mask` shaped like its"),
    (lambda: adapt(SHAPES), TypeError, "adapt", "every leaf of `mask` to be an array"),
    (lambda: adapt(COUNTER), ValueError, "adapt", "`params` and `mask` of the same st"),
    (
        lambda: adapt(inner_learning_rates={"body": 1}),
        ValueError,
        "adapt",
        "`params` a",
    ),
    (lambda: rates(np.ones((3, 1, 1), "f")), TypeError, "adapt", RATE + ":\n  bias: f"),
    (lambda: adapt(inner_learning_rates=np.ones(5, "f")), TypeError, "adapt", ONE),
    (lambda: rates("fast"), TypeError, "adapt", RATE + ":\n  bias: str 'fast'"),
    (lambda: rates(True), TypeError, "adapt", RATE + ":\n  bias: bool True"),
    (lambda: rates(np.zeros((), int)), TypeError, "adapt", RATE + ":\n  bias: int64"),
    (
        lambda: reach("mask", head=0.0, other=0.0),
        ValueError,
        "mask",
        "`scores` and `th",
    ),
    (lambda: reach("mask", body=None), TypeError, "mask", CUT + ": NoneType"),
    (lambda: reach("mask", body=np.ones((3, 5), "f")), TypeError, "mask", CUT),
    (lambda: reach("soft_mask", body=np.zeros((), int)), TypeError, "soft_mask", CUT),
    (lambda: reach("soft_mask", kept()), TypeError, "soft_mask", "every leaf of `sco"),
    (lambda: first(density=1.1), ValueError, "init", "`density` in [0, 1], got 1.1"),
    (lambda: first(key=np.zeros(2, "uint32")), TypeError, "init", "`key` as a typed"),
]


@pytest.mark.parametrize(("call", "kind", "verb", "text"), BAD)
def test_bad_input_is_named(call, kind, verb, text):
    text = re.escape(f"`maskjax.recipes.meta_ticket.{verb}` needs {text}")
    with pytest.raises(kind, match=text):
        call()


def test_every_bad_leaf_is_named():
    found = r"\n  body: mask \(2, 5\), params \(3, 5\)\n  head: mask \(2,\)"
    with pytest.raises(ValueError, match=found):
        adapt(WRONG)
    with pytest.raises(
        ValueError, match=r"  tasks/0/0: .*\n  tasks/0/1: .*\(3, 0, 2\)"
    ):
        mean(EMPTY, MORE)
    with pytest.raises(TypeError, match="boolean or floating array.*\n  body: int64"):
        adapt({"body": np.ones((3, 5), int), "bias": None, "head": None})
    by = lambda params, *sets: {"hits": jnp.int32(1), "loss": jnp.ones(())}  # noqa: E731
    with pytest.raises(TypeError, match=r"`function\(...\)` to be a .*\n  hits: int32"):
        jax.eval_shape(lambda: mean(by=by))


def test_something_has_to_be_chosen():
    with pytest.raises(ValueError, match="`where` to choose at least one leaf"):
        first({"head": weights_of()["head"]})
    with pytest.raises(
        ValueError, match="(?s)to know the axes .* for the fan-in.*\n  bias: "
    ):
        first(where=where.everything)
    with pytest.raises(TypeError, match="needs every leaf that `where`.*\n  counter"):
        first(COUNTER, where=where.everything)
