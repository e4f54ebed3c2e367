"""Tasks in superposition: by hand, against NumPy, and what the paper promises."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import bank, initializer, masking, packing, stacking, superposition
from maskjax.recipes import supsup
from tests import trees
from tests.reference import supsup as reference

SHAPES = {"a": (24, 48), "b": (48, 32), "c": (32, 20)}
CLASSES, TASKS = 3, 4


def network(params, x):
    *hidden, last = params.values()
    for w in hidden:
        x = jax.nn.relu(x @ w)
    return x @ last


def loss(params, x, y):
    logits = network(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@pytest.fixture(scope="module")
def weights():
    params = {k: jnp.zeros(s) for k, s in SHAPES.items()}
    init = initializer.signed_constant()
    return initializer.redraw(params, init, key=jax.random.key(0))


@pytest.fixture(scope="module")
def data():
    """Clusters around three points; a task permutes the inputs."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, CLASSES, 120)
    x = 2 * rng.normal(size=(CLASSES, 24))[y] + rng.normal(size=(120, 24))
    return jnp.asarray(x, "float32"), jnp.asarray(y, "int32")


PERMUTATIONS = jnp.asarray([np.random.default_rng(i).permutation(24) for i in range(9)])


def trainer(weights, data, *, steps=60):
    optimizer = optax.rmsprop(0.02, decay=0.99)
    x, y = data

    def train(permutation, *, key):
        state = supsup.init(weights, optimizer, key=key)

        def turn(state, _):
            return supsup.step(state, weights, loss, optimizer, x[:, permutation], y)

        state, losses = jax.lax.scan(turn, state, length=steps)
        return supsup.mask(state), losses

    return train


@pytest.fixture(scope="module")
def learned(weights, data):
    learn = jax.jit(
        lambda tasks, perms: supsup.learn(
            trainer(weights, data), tasks, perms, key=jax.random.key(1)
        )
    )
    return learn(bank.empty(weights, capacity=TASKS + 2), PERMUTATIONS[:TASKS])


def test_a_step_by_hand():
    # Scores -0.5 and 0.25 keep the second weight: out = 3 * -1, loss = (out - 1)^2 / 2
    #   dL/dout = out - 1 = -4; dL/ds = -4 * x * w = [-4 * 1 * 2, -4 * 3 * -1]
    w, x = {"w": jnp.array([[2.0], [-1.0]])}, jnp.array([[1.0, 3.0]])
    state = supsup.init(w, optax.sgd(0.1), key=jax.random.key(0))
    state = state._replace(scores={"w": jnp.array([[-0.5], [0.25]])})
    state, value = supsup.step(
        state, w, lambda p: jnp.sum((x @ p["w"] - 1) ** 2) / 2, optax.sgd(0.1)
    )
    assert value == 8
    np.testing.assert_allclose(state.scores["w"], [[0.3], [-0.95]], rtol=1e-6)
    np.testing.assert_array_equal(supsup.mask(state)["w"], [[True], [False]])


def test_a_score_of_exactly_0_is_kept():
    state = supsup.SupSupState({"w": jnp.array([[0.0], [-0.0], [-1e-30]])}, ())
    np.testing.assert_array_equal(supsup.mask(state)["w"].ravel(), [True, True, False])


def test_training_agrees_with_the_reference(weights, data):
    x, y = data
    optimizer = optax.sgd(0.5)
    state = supsup.init(weights, optimizer, key=jax.random.key(2))
    step = jax.jit(lambda s: supsup.step(s, weights, loss, optimizer, x, y))
    wide = [np.float64(w) for w in weights.values()]
    scores = [np.float64(s) for s in state.scores.values()]
    for _ in range(5):
        state, value = step(state)
        expected, scores = reference.step(
            wide, scores, np.float64(x), np.asarray(y), learning_rate=0.5
        )
        np.testing.assert_allclose(value, expected, rtol=1e-4)
    for s, e in zip(state.scores.values(), scores, strict=True):
        np.testing.assert_allclose(s, e, rtol=1e-3, atol=1e-5)
    assert step._cache_size() == 1


def test_tasks_are_learned_told_apart_and_run_each_under_its_mask(
    weights, data, learned
):
    tasks, losses = learned
    assert losses.shape == (TASKS, 60)
    x, y = data
    every = jnp.concatenate([x[:40, p] for p in PERMUTATIONS[:TASKS]])
    true = jnp.repeat(jnp.arange(TASKS), 40)
    labels = jnp.tile(y[:40], TASKS)

    def accuracy(whose):
        logits = stacking.predict_each(network, weights, tasks.masks, whose, every)
        return jnp.mean(jnp.argmax(logits, -1) == labels)

    assert accuracy(true) > 0.9  # GG
    assert accuracy((true + 1) % TASKS) < 0.8  # masks of other tasks
    for method in ("one_shot", "binary", "exhaustive"):
        found = superposition.infer(
            network, weights, tasks, every, labels=CLASSES, method=method
        )
        assert jnp.mean(found == true) > 0.7  # GN, from one image
        one = superposition.infer(
            network, weights, tasks, x[:, PERMUTATIONS[2]], method=method, per="batch"
        )
        assert one == 2


def test_nothing_that_was_learned_changes_when_more_is(weights, data, learned):
    tasks, _ = learned
    x = data[0]
    say = jax.jit(
        lambda tasks, i: network(masking.apply(weights, bank.take(tasks, i)), x)
    )
    before = [np.asarray(say(tasks, i)) for i in range(TASKS)]
    more, _ = supsup.learn(
        trainer(weights, data),
        tasks,
        PERMUTATIONS[TASKS : TASKS + 2],
        key=jax.random.key(1),
    )
    for i, logits in enumerate(before):
        np.testing.assert_array_equal(say(more, i), logits)


def test_learning_side_by_side_is_learning_one_after_the_other(weights, data, learned):
    train = trainer(weights, data)
    learn = jax.jit(
        lambda tasks, perms: supsup.learn(train, tasks, perms, key=jax.random.key(1))
    )
    tasks = bank.empty(weights, capacity=TASKS + 2)
    for permutation in PERMUTATIONS[:TASKS]:
        tasks, _ = learn(tasks, permutation[None])
    assert learn._cache_size() == 1
    total = sum(w.size for w in weights.values()) * TASKS
    same = sum(
        int((a == b).sum())
        for a, b in zip(
            jax.tree.leaves(
                packing.unpack(stacking.take(tasks.masks, jnp.arange(TASKS)))
            ),
            jax.tree.leaves(
                packing.unpack(stacking.take(learned[0].masks, jnp.arange(TASKS)))
            ),
            strict=True,
        )
    )
    assert same == total


def test_what_was_learned_can_be_where_a_new_task_begins(weights, learned):
    optimizer = optax.sgd(0.1)
    state = supsup.init(weights, optimizer, key=jax.random.key(3))
    like_last = initializer.scores_of(bank.take(learned[0], TASKS - 1))
    state = state._replace(scores=like_last)
    trees.assert_same(
        supsup.mask(state), packing.unpack(bank.take(learned[0], TASKS - 1))
    )


def test_statistics_of_normalization_are_a_tasks_own():
    """What broke the reference code's old tasks: one set of statistics for all."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Dense(8, use_bias=False)(x)
            norm = nn.BatchNorm(
                use_running_average=not train,
                use_bias=False,
                use_scale=False,
                momentum=0.5,
            )
            return nn.Dense(2, use_bias=False)(nn.relu(norm(x)))

    net = Net()
    variables = net.init(jax.random.key(0), jnp.ones((4, 3)), train=False)
    weights, blank = variables["params"], variables["batch_stats"]
    optimizer = optax.sgd(0.1)

    def train(shift, *, key):
        x = jax.random.normal(jax.random.key(5), (16, 3)) + shift

        def loss(params, stats):
            variables = {"params": params, "batch_stats": stats}
            logits, new = net.apply(variables, x, train=True, mutable=["batch_stats"])
            return jnp.mean(logits**2), new["batch_stats"]

        def turn(carry, _):
            state, stats = carry
            kept = masking.apply(weights, supsup.mask(state))
            _, stats_new = loss(kept, stats)
            state, _ = supsup.step(
                state, weights, lambda p: loss(p, stats)[0], optimizer
            )
            return (state, stats_new), None

        start = supsup.init(weights, optimizer, key=key), blank
        (state, stats), _ = jax.lax.scan(turn, start, length=4)
        return supsup.mask(state), stats

    shifts = jnp.array([0.0, 10.0])
    tasks, stats = supsup.learn(
        train, bank.empty(weights, capacity=2), shifts, key=jax.random.key(0)
    )
    means = jax.tree.leaves(stats)[0]
    assert means.shape[0] == 2
    assert (means[0] != means[1]).all()
    x = jax.random.normal(jax.random.key(6), (5, 3))

    def say(i):
        own = jax.tree.map(lambda leaf: leaf[i], stats)
        params = masking.apply(weights, bank.take(tasks, i))
        return net.apply({"params": params, "batch_stats": own}, x, train=False)

    assert (say(0) != say(1)).any()


def test_bad_tasks_are_errors_before_anything_is_trained(weights):
    calls = []

    def train(task, *, key):
        jax.debug.callback(lambda: calls.append(1))
        return masking.everything(weights), task

    tasks, key = bank.empty(weights, capacity=2), jax.random.key(0)
    fn = r"supsup\.learn`"
    with pytest.raises(ValueError, match=fn + " needs `tasks` with one leading axis"):
        supsup.learn(train, tasks, jnp.zeros((0, 3)), key=key)
    with pytest.raises(ValueError, match=fn + " needs `tasks` with one leading axis"):
        supsup.learn(train, tasks, {"x": jnp.ones(2), "y": jnp.ones(3)}, key=key)
    with pytest.raises(ValueError, match=fn + " needs room for 3 more, but 0 of 2"):
        supsup.learn(train, tasks, jnp.ones(3), key=key)
    with pytest.raises(TypeError, match=fn + r" needs `train` to return \(mask, me"):
        supsup.learn(lambda task, *, key: None, tasks, jnp.ones(2), key=key)
    other = masking.everything({**weights, "a": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match=r"a: bank \(24, 48\), mask \(2, 2\)"):
        supsup.learn(lambda task, *, key: (other, task), tasks, jnp.ones(2), key=key)
    with pytest.raises(TypeError, match="a: float32"):
        supsup.learn(lambda task, *, key: (weights, task), tasks, jnp.ones(2), key=key)
    with pytest.raises(ValueError, match="`batch_size` of at least 1"):
        supsup.learn(train, tasks, jnp.ones(2), batch_size=0, key=key)
    with pytest.raises(TypeError, match="typed key"):
        supsup.learn(train, tasks, jnp.ones(2), key=0)
    jax.effects_barrier()
    assert not calls


def test_scores_of_another_shape_than_the_weights_name_the_leaf(weights):
    optimizer = optax.sgd(0.1)
    state = supsup.init(weights, optimizer, key=jax.random.key(0))
    state = state._replace(scores={**state.scores, "b": jnp.ones((48, 11))})
    with pytest.raises(ValueError, match=r"(?s)b: mask \(48, 11\), params \(48, 32\)"):
        supsup.step(state, weights, lambda p: p["a"].sum(), optimizer)
