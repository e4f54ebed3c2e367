"""Tasks in superposition: by hand, against references, and what the paper promises."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

import maskjax
from maskjax import bank, initializer, packing, stacking, superposition, where
from maskjax.recipes import supsup
from tests import networks, trees
from tests.reference import supsup as reference

SHAPES = {"a": (24, 48), "b": (48, 32), "c": (32, 20)}
CLASSES, TASKS, MORE, STEPS = 3, 4, 6, 60
KEY, ANY = jax.random.key(2), where.matching("")
RMSPROP = optax.rmsprop(0.02, decay=0.99)


def _problem():
    """Random weights, and clusters around three points; a task permutes the inputs."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, 120).astype("int32")
    x = 2 * rng.normal(size=(CLASSES, 24))[y] + rng.normal(size=(120, 24))
    rng = np.random.default_rng(2)
    signs = {n: rng.choice([-1.0, 1.0], s) for n, s in SHAPES.items()}
    weights = {n: np.float32(s * (2 / len(s)) ** 0.5) for n, s in signs.items()}
    orders = [np.random.default_rng(i).permutation(24) for i in range(MORE)]
    return weights, np.float32(x), y, np.stack(orders)


WEIGHTS, X, Y, ORDERS = _problem()


def network(params, x):
    *hidden, last = params.values()
    for w in hidden:
        x = jax.nn.relu(x @ w)
    return x @ last


@jax.jit
@jax.value_and_grad
def descent(scores, x, y):
    logits = network(maskjax.apply(WEIGHTS, supsup.soft_mask(scores)), x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train(order, *, key):
    x, scores = jax.device_put(X)[:, order], supsup.init(WEIGHTS, key=key)

    def step(carry, _):
        scores, opt_state = carry
        value, slopes = descent(scores, x, Y)
        updates, opt_state = RMSPROP.update(slopes, opt_state)
        return (optax.apply_updates(scores, updates), opt_state), value

    start = scores, RMSPROP.init(scores)
    (scores, _), losses = jax.lax.scan(step, start, length=STEPS)
    return supsup.mask(scores), losses


@jax.jit
def learn(tasks, orders):
    return supsup.learn(train, tasks, orders, key=jax.random.key(1))


@jax.jit
def say(tasks, i):
    return network(maskjax.apply(WEIGHTS, bank.take(tasks, i)), X)


@functools.cache
def empty():
    return bank.empty(WEIGHTS, capacity=MORE)


@functools.cache
def learned():
    return learn(empty(), ORDERS[:TASKS])


def test_a_step_by_hand():
    # Scores -0.5, 0.25 and 0 keep the last two weights: out = 3 * -1, and loss =
    # (out - 1)^2 / 2. dL/dout = out - 1 = -4, and dL/ds = -4 * x * w.
    w, x = {"w": np.float32([[2], [-1], [5]])}, np.float32([[1, 3, 0]])
    scores = {"w": np.float32([[-0.5], [0.25], [0]])}

    @jax.jit
    def run(scores):
        def loss(scores):
            kept = maskjax.apply(w, supsup.soft_mask(scores))["w"]
            return jnp.sum((x @ kept - 1) ** 2) / 2

        edges = supsup.mask({"w": jnp.float32([[-0.0], [-1e-30]])})
        return jax.value_and_grad(loss)(scores), supsup.mask(scores), edges

    (value, slopes), mask, edges = run(scores)
    assert value == 8
    np.testing.assert_array_equal(slopes["w"], [[-8], [12], [0]])
    np.testing.assert_array_equal(mask["w"], [[False], [True], [True]])
    np.testing.assert_array_equal(edges["w"], [[True], [False]])


def test_training_agrees_with_the_reference():
    wide = [np.float64(w) for w in WEIGHTS.values()]
    scores = jax.device_get(jax.jit(lambda k: supsup.init(WEIGHTS, key=k))(KEY))
    expected = [np.float64(s) for s in scores.values()]
    for _ in range(5):
        value, slopes = descent(scores, X, Y)
        scores = {n: s - np.float32(0.5) * slopes[n] for n, s in scores.items()}
        loss, expected = reference.step(
            wide, expected, np.float64(X), Y, learning_rate=0.5
        )
        np.testing.assert_allclose(value, loss, rtol=1e-4)
    for s, e in zip(scores.values(), expected, strict=True):
        np.testing.assert_allclose(s, e, rtol=1e-3, atol=1e-5)


class TrainState(train_state.TrainState):
    stats: Any


def test_a_users_loop_moves_scores_to_the_same_bits():
    """TrainState, Adam, statistics of normalization as aux, and donated buffers."""
    start, split, _, loss, _ = networks.linen()
    weights, stats = jax.device_get(split(start))
    adam, rng = optax.adam(0.02), np.random.default_rng(0)
    batches = rng.normal(size=(20, 16, 8)).astype("float32")

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, weights, x, y):
        def objective(scores):
            soft = supsup.soft_mask(scores)
            return loss(maskjax.apply(weights, soft), state.stats, x, y)

        slopes, stats = jax.grad(objective, has_aux=True)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # which Adam needs
            return state.apply_gradients(grads=slopes, stats=stats)

    scores = jax.jit(lambda k: supsup.init(weights, key=k))(KEY)
    state = TrainState.create(apply_fn=None, params=scores, tx=adam, stats=stats)
    state, mask = jax.device_put(state), supsup.mask(scores)
    expected, rest = jax.device_get((scores, stats))
    plain, opt_state, held = reference.steps(loss, adam), adam.init(expected), weights
    with jax.numpy_dtype_promotion("standard"):
        for batch in batches:
            x, y = batch[:, :5], batch[:, 5:]
            before = state.params
            state = step(state, weights, x, y)
            opt_state, expected, rest = plain(opt_state, expected, weights, rest, x, y)
    trees.assert_same(state.params, expected)
    trees.assert_same(state.stats, rest)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    trees.assert_same(weights, held)
    jax.device_get(mask)  # does not share a buffer with the scores
    assert step._cache_size() == 1


def test_tasks_are_learned_told_apart_and_run_each_under_its_mask():
    tasks, losses = learned()
    assert losses.shape == (TASKS, STEPS)
    x = np.concatenate([X[:40, order] for order in ORDERS[:TASKS]])
    true, y = np.repeat(np.arange(TASKS), 40), np.tile(Y[:40], TASKS)

    @jax.jit
    def ask(tasks, x):
        infer = functools.partial(superposition.infer, network, WEIGHTS, tasks)
        batch = X[:, ORDERS[2]]
        methods = "one_shot", "binary", "exhaustive"
        return infer(x, labels=CLASSES), [
            infer(batch, method=method, per="batch") for method in methods
        ]

    @jax.jit
    def predict(tasks, whose, x):
        return stacking.predict_each(network, WEIGHTS, tasks.masks, whose, x)

    def accuracy(whose):
        return np.mean(np.asarray(predict(tasks, whose, x)).argmax(-1) == y)

    assert accuracy(true) > 0.9  # GG
    assert accuracy((true + 1) % TASKS) < 0.8  # masks of other tasks
    found, of_batches = jax.device_get(ask(tasks, x))
    assert np.mean(found == true) > 0.7  # GN, from one image
    np.testing.assert_array_equal(of_batches, 2)


def test_tasks_may_be_learned_together_or_in_turn_and_none_changes():
    tasks, outputs = empty(), []
    for order in ORDERS:
        tasks, _ = learn(tasks, order[None])
        outputs.append(np.asarray(say(tasks, len(outputs))))
        if len(outputs) == TASKS:
            trees.assert_same(tasks, learned()[0])
    for i, logits in enumerate(outputs):  # after all the others were learned
        np.testing.assert_array_equal(say(tasks, i), logits)
    assert say._cache_size() == 1
    assert learn._cache_size() <= 2  # one for each number of tasks


def test_what_was_learned_can_be_where_a_new_task_begins():
    @jax.jit
    def begin(tasks):
        last = bank.take(tasks, TASKS - 1)
        return supsup.mask(initializer.scores_of(WEIGHTS, last)), packing.unpack(last)

    trees.assert_same(*begin(learned()[0]))


def test_statistics_of_normalization_are_a_tasks_own():
    """What broke the reference code's old tasks: one set of statistics for all."""
    start, split, join, loss, apply = networks.linen()
    weights, blank = split(start)
    x = np.random.default_rng(5).normal(size=(16, 5)).astype("float32")

    def train(shift, *, key):
        scores = supsup.init(weights, key=key)

        def turn(carry, _):
            scores, stats = carry

            def objective(scores):
                soft = supsup.soft_mask(scores)
                return loss(maskjax.apply(weights, soft), stats, x + shift, x[:, :3])

            slopes, stats = jax.grad(objective, has_aux=True)(scores)
            scores = jax.tree.map(lambda s, slope: s - 0.1 * slope, scores, slopes)
            return (scores, stats), None

        (scores, stats), _ = jax.lax.scan(turn, (scores, blank), length=4)
        return supsup.mask(scores), stats

    @jax.jit
    def run(shifts):
        tasks = bank.empty(weights, capacity=2)
        tasks, stats = supsup.learn(train, tasks, shifts, key=jax.random.key(0))
        masked = jax.vmap(lambda m: maskjax.apply(weights, m))(tasks.masks)
        say = jax.vmap(lambda params, stats: apply(join(params, stats), x))
        return stats, say(masked, stats)

    stats, outputs = jax.device_get(run(np.float32([0, 10])))
    means = networks.means(stats)[0]
    assert means.shape[0] == 2
    assert (means[0] != means[1]).all()
    assert (outputs[0] != outputs[1]).any()


def test_bad_tasks_are_errors_before_anything_is_trained():
    calls, key = [], jax.random.key(0)
    every = {n: np.ones(s, bool) for n, s in SHAPES.items()}

    def train(task, *, key):
        jax.debug.callback(lambda: calls.append(1))
        return every, task

    def refused(kind, match, *, train=train, tasks=None, each=np.ones(2), **how):
        with pytest.raises(kind, match=match):
            supsup.learn(train, tasks or empty(), each, **{"key": key, **how})

    fn = r"supsup\.learn` needs "
    shaped = fn + "`tasks` with one leading axis"
    refused(ValueError, shaped, each=np.zeros((0, 3)))
    refused(ValueError, shaped, each={"x": np.ones(2), "y": np.ones(3)})
    refused(ValueError, fn + "room for 7 more, but 0 of 6", each=np.ones(7))
    pair = fn + r"`train` to return \(mask, metrics\), got NoneType"
    refused(TypeError, pair, train=lambda task, *, key: None)
    other = {**every, "a": np.ones((2, 2), bool)}
    misfit = r"(?s)" + fn + r".*a: bank \(24, 48\), mask \(2, 2\)"
    refused(ValueError, misfit, train=lambda task, *, key: (other, task))
    refused(
        TypeError,
        "(?s)" + fn + ".*a: float32",
        train=lambda task, *, key: (WEIGHTS, task),
    )
    refused(ValueError, "`batch_size` of at least 1", batch_size=0)
    refused(TypeError, fn + "`key` as a typed key", key=0)
    stack = {n: m[None] for n, m in every.items()}
    hint = (
        r"`bank` as a `maskjax\.bank\.MaskBank`, got dict\. `maskjax\.bank\.from_stack"
    )
    refused(TypeError, fn + hint, tasks=stack)
    jax.effects_barrier()
    assert not calls


def test_scores_that_do_not_fit_or_are_none_are_errors():
    with pytest.raises(TypeError, match=r"supsup\.init` needs `key` as a typed key"):
        supsup.init(WEIGHTS, key=0)
    with pytest.raises(TypeError, match=r"(?s)supsup\.init` needs every.*a: int32"):
        supsup.init({"a": np.ones((2, 2), "int32")}, where=ANY, key=KEY)
    for name in ("mask", "soft_mask"):
        with pytest.raises(TypeError, match=rf"(?s)supsup\.{name}` needs.*a: bool"):
            getattr(supsup, name)({"a": np.ones(2, bool), "b": None})
    scores = {**WEIGHTS, "b": np.ones((48, 11), "float32")}
    with pytest.raises(ValueError, match=r"(?s)b: mask \(48, 11\), params \(48, 32\)"):
        jax.eval_shape(lambda s: maskjax.apply(WEIGHTS, supsup.soft_mask(s)), scores)
