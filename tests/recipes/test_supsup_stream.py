"""Supermasks without task ids: the rule by hand, and what the paper promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import bank, initializer, packing, select, stacking, superposition
from maskjax.recipes import supsup_stream as stream
from tests import trees
from tests.reference import superposition as reference

SHAPES = [(24, 48), (48, 32), (32, 20)]
CAPACITY, LABELS = 6, 3
SGD = optax.rmsprop(0.02, decay=0.99)


def network(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def surplus(params, x):
    return superposition.superfluous(network(params, x), labels=LABELS)


def loss(params, x, y):
    logits = network(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@pytest.fixture(scope="module")
def weights():
    blank = [jnp.zeros(s) for s in SHAPES]
    key = jax.random.key(0)
    return initializer.redraw(blank, initializer.signed_constant(), key=key)


@pytest.fixture(scope="module")
def fresh(weights):
    return stream.init(weights, SGD, capacity=CAPACITY, key=jax.random.key(1))


def data(task, *, count=64):
    rng = np.random.default_rng(0)
    y = rng.integers(0, LABELS, count)
    x = 2 * rng.normal(size=(LABELS, 24))[y] + rng.normal(size=(count, 24))
    order = np.random.default_rng(task).permutation(24)
    return jnp.asarray(x[:, order], "float32"), jnp.asarray(y, "int32")


@pytest.fixture(scope="module")
def turn(weights):
    """A decision, and steps: one program for the whole file."""

    @jax.jit
    def run(state, x, y, epsilon):
        state = stream.allocate(surplus, weights, state, SGD, x, epsilon=epsilon)

        def step(state, _):
            return stream.step(state, weights, loss, SGD, x, y)

        return jax.lax.scan(step, state, length=40)[0]

    def turn(state, x, y, epsilon):
        return run(state, x, y, jnp.float32(epsilon))

    turn.run = run
    return turn


def test_the_rule_by_hand(weights, fresh, turn):
    state = fresh
    for task in range(3):
        state = turn(state, *data(task), 9.0)  # always a new one
    assert state.learned == 3
    x, _ = data(1)
    dense = packing.unpack(stream.masks(state).masks)
    # k is 5: two of the masks are those of scores that nobody trained yet.
    untrained = select.threshold(state.scores, at=0.0)
    masks = [
        np.where(np.arange(CAPACITY)[:, None, None] < 3, d, u).astype(float)
        for d, u in zip(dense, untrained, strict=True)
    ]
    alphas = np.where(np.arange(CAPACITY) < 5, 1 / 5, 0)
    wide = [np.float64(w) for w in weights]
    _, slopes = reference.gradient(wide, masks, alphas, np.float64(x), labels=LABELS)
    nu = np.exp(-slopes[:5]) / np.exp(-slopes[:5]).sum()
    share = 5 * nu[:3].max()
    below, above = share - 1 - 1e-3, share - 1 + 1e-3
    old = turn(state, *data(1), below)
    assert (old.learned, old.current) == (3, np.argmax(nu[:3]))
    new = turn(state, *data(1), above)
    assert (new.learned, new.current) == (4, 3)
    assert turn.run._cache_size() == 1


def test_epsilon_at_its_ends_never_and_always_allocates(fresh, turn):
    never, always = fresh, fresh
    for i in range(CAPACITY + 2):
        never = turn(never, *data(i % 3), -1.0)
        always = turn(always, *data(i % 3), CAPACITY - 1 + 1e-3)
        assert never.learned == 1
        assert always.learned == min(i + 1, CAPACITY)
    assert never.refused == 0
    assert always.refused == 2
    assert always.current == -1


def test_without_room_nothing_is_trained(fresh, turn):
    state = fresh
    for i in range(CAPACITY):
        state = turn(state, *data(i), 9.0)
    after = turn(state, *data(9), 9.0)
    assert after.current == -1
    trees.assert_same(after.scores, state.scores)
    trees.assert_same(stream.masks(after).masks, stream.masks(state).masks)
    again = turn(after, *data(0), -1.0)  # room is not needed to go on with an old one
    assert again.current >= 0
    assert again.learned == CAPACITY


def test_a_decision_moves_the_current_scores_only(fresh, turn):
    state = turn(turn(fresh, *data(0), 9.0), *data(1), 9.0)
    after = turn(state, *data(1), -1.0)
    for new, old in zip(after.scores, state.scores, strict=True):
        changed = np.asarray((new != old).any(axis=(1, 2)))
        assert changed[int(after.current)]
        assert changed.sum() == 1
    given = select.threshold(stacking.take(after.scores, after.current), at=0.0)
    held = bank.take(stream.masks(after), after.current)
    trees.assert_same(packing.unpack(held), given)


def test_tasks_are_found_again_without_their_ids(weights, fresh, turn):
    state = fresh
    for task in range(3):
        state = turn(state, *data(task), 9.0)
    decide = jax.jit(
        lambda state, x: stream.allocate(
            surplus, weights, state, SGD, x, epsilon=-1.0, least=1
        )
    )
    for task in (0, 2, 1, 0):  # now nobody says to which task it changes
        assert decide(state, data(task)[0]).current == task
    tasks = stream.masks(state)
    for task in range(3):
        x, y = data(task)
        found = superposition.infer(
            network, weights, tasks, x[:24], labels=LABELS, batch_size=8
        )
        logits = stacking.predict_each(network, weights, tasks.masks, found, x[:24])
        assert jnp.mean(jnp.argmax(logits[:, :LABELS], -1) == y[:24]) > 0.75


@pytest.mark.parametrize(
    "start", ["random", "mean_scores", "mean_masks", "last", "nearest"]
)
def test_new_scores_begin_where_they_are_told(start, weights, fresh, turn):
    state = turn(turn(fresh, *data(0), 9.0), *data(1), 9.0)
    allocate = jax.jit(
        lambda state, x, e: stream.allocate(
            surplus, weights, state, SGD, x, epsilon=e, start=start
        )
    )
    x, _ = data(0)
    best = int(allocate(state, x, -1.0).current)
    after = allocate(state, x, 9.0)
    assert after.learned == 3
    for i, scores in enumerate(state.scores):
        two = np.asarray(scores[:2])
        bound = 1 / np.sqrt(SHAPES[i][0])
        majority = (two >= 0).mean(0) * 2 - 1
        expected = {
            "random": scores[2],
            "mean_scores": two.mean(0),
            "mean_masks": majority * bound / np.sqrt(3),
            "last": two[1],
            "nearest": two[best],
        }[start]
        np.testing.assert_allclose(after.scores[i][2], expected, rtol=1e-5, atol=1e-7)
    # There is nothing to begin the first with.
    first = allocate(fresh, x, 9.0)
    trees.assert_same(first.scores, fresh.scores)


def test_the_optimizer_starts_afresh_with_every_switch(fresh, turn, weights):
    allocate = jax.jit(
        lambda state, x, e: stream.allocate(surplus, weights, state, SGD, x, epsilon=e)
    )
    state = turn(fresh, *data(0), 9.0)
    x, _ = data(0)
    same = allocate(state, x, -1.0)
    trees.assert_same(same.opt_state, state.opt_state)
    other = allocate(state, x, 9.0)
    blank = SGD.init(stacking.take(state.scores, 0))
    trees.assert_same(other.opt_state, blank)


def test_a_fresh_state_can_be_donated(weights):
    state = stream.init(weights, SGD, capacity=2, key=jax.random.key(1))
    later = jax.jit(lambda s: s._replace(learned=s.learned + 1), donate_argnums=0)
    assert later(state).learned == 1


def test_bad_arguments(weights, fresh):
    with pytest.raises(ValueError, match="`capacity` of at least 1"):
        stream.init(weights, SGD, capacity=0, key=jax.random.key(0))
    with pytest.raises(TypeError, match="typed key"):
        stream.init(weights, SGD, capacity=1, key=0)
    x, _ = data(0)
    with pytest.raises(ValueError, match="`start` as 'random' or"):
        stream.allocate(surplus, weights, fresh, SGD, x, start="mean")
    with pytest.raises(ValueError, match="`least` of at least 1"):
        stream.allocate(surplus, weights, fresh, SGD, x, least=0)
    other = [weights[0][:, :3], weights[1][:3], weights[2]]
    with pytest.raises(ValueError, match=r"(?s)0: stack \(24, 48\), params \(24, 3\)"):
        stream.allocate(surplus, other, fresh, SGD, x)
    with pytest.raises(ValueError, match=r"(?s)0: mask \(24, 48\), params \(24, 3\)"):
        stream.step(fresh, other, lambda p: p[0].sum(), SGD)
