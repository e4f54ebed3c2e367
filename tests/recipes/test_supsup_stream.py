"""Supermasks without task ids: the rule by hand, and what the paper promises."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import maskjax
from maskjax import packing, stacking, superposition, where
from maskjax.recipes import supsup_stream as stream
from tests import networks, trees
from tests.reference import superposition as by_hand
from tests.reference import supsup as reference

SHAPES = [(24, 48), (48, 32), (32, 20)]
CAPACITY, LABELS, STEPS = 6, 3, 40
KEY, RMSPROP = jax.random.key(1), optax.rmsprop(0.02, decay=0.99)


def _weights():
    rng = np.random.default_rng(4)
    signs = [(rng.choice([-1.0, 1.0], s), s) for s in SHAPES]
    return [np.float32(sign * (2 / s[0]) ** 0.5) for sign, s in signs]


WEIGHTS = _weights()


def network(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def surplus(params, x):
    return superposition.superfluous(network(params, x), labels=LABELS)


def loss(params, x, y):
    logits = network(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def data(task, *, count=64):
    rng = np.random.default_rng(0)
    y = rng.integers(0, LABELS, count)
    x = 2 * rng.normal(size=(LABELS, 24))[y] + rng.normal(size=(count, 24))
    order = np.random.default_rng(task).permutation(24)
    return np.float32(x[:, order]), np.int32(y)


@jax.jit
def _turn(state, x, y, epsilon):
    """A decision, and a user's steps: one program for the whole file."""
    state = stream.allocate(surplus, WEIGHTS, state, x, epsilon=epsilon)

    def objective(scores):
        return loss(maskjax.apply(WEIGHTS, stream.soft_mask(scores)), x, y)

    def step(carry, _):
        scores, opt_state = carry
        updates, opt_state = RMSPROP.update(jax.grad(objective)(scores), opt_state)
        return (optax.apply_updates(scores, updates), opt_state), None

    start = state.scores, RMSPROP.init(state.scores)
    (scores, _), _ = jax.lax.scan(step, start, length=STEPS)
    return state._replace(scores=scores)


def turn(state, task, epsilon):
    return jax.device_get(_turn(state, *data(task), np.float32(epsilon)))


@functools.partial(jax.jit, static_argnames="starts")
def decide(state, x, epsilon, *, starts=("random",)):
    """A decision for each start, among learned masks only."""
    allocate = functools.partial(stream.allocate, surplus, WEIGHTS, state, x)
    return {s: allocate(epsilon=epsilon, least=1, start=s) for s in starts}


masks = jax.jit(stream.masks)


@functools.cache
def fresh():
    init = jax.jit(lambda key: stream.init(WEIGHTS, capacity=CAPACITY, key=key))
    return jax.device_get(init(KEY))


@functools.cache
def always():
    """The states of a learner that takes every batch for a new task."""
    states = [fresh()]
    for i in range(CAPACITY + 2):
        states.append(turn(states[-1], i % 3, CAPACITY - 1 + 1e-3))
    return states


def test_the_rule_by_hand():
    state, (x, _) = always()[3], data(1)
    assert state.learned == 3
    # k is 5: two of the masks are those of scores that nobody trained yet.
    stack = [s.copy() for s in state.stored]
    for s, current in zip(stack, state.scores, strict=True):
        s[state.current] = current
    wide = [np.float64(w) for w in WEIGHTS]
    dense = [np.float64(s >= 0) for s in stack]
    alphas = np.where(np.arange(CAPACITY) < 5, 1 / 5, 0)
    _, slopes = by_hand.gradient(wide, dense, alphas, np.float64(x), labels=LABELS)
    nu = np.exp(-slopes[:5]) / np.exp(-slopes[:5]).sum()
    share = 5 * nu[:3].max()
    old = turn(state, 1, share - 1 - 1e-3)
    assert (old.learned, old.current) == (3, np.argmax(nu[:3]))
    new = turn(state, 1, share - 1 + 1e-3)
    assert (new.learned, new.current) == (4, 3)
    assert _turn._cache_size() == 1


@pytest.mark.parametrize("slot", [1, 4])
def test_a_mask_that_nobody_trained_is_never_chosen(slot):
    weights = {"w": np.ones((4, 6), np.float32)}
    start = stream.init(weights, capacity=CAPACITY, key=jax.random.key(0))
    # Along the mask of this slot the objective falls most.
    downhill = np.where(np.asarray(start.stored["w"])[slot] >= 0, -1, 1)

    def objective(params, direction):
        return (params["w"] * direction).sum()

    @jax.jit
    def follow(state, direction):
        given = objective, weights, state, direction
        return stream.allocate(*given, epsilon=-1.0)

    direction = downhill.astype(np.float32)
    first = follow(start, direction)
    assert (first.learned, first.current) == (1, 0)
    second = follow(first, direction)
    assert (second.learned, second.current) == (1, 0)
    both = follow(second._replace(learned=np.int32(slot + 1)), direction)
    assert both.current == slot  # it can be chosen as soon as it is learned


def test_epsilon_at_its_ends_never_and_always_allocates():
    never, states = fresh(), always()
    for i in range(3):
        never = turn(never, i, -1.0)
        assert (never.learned, never.current, never.overflowed) == (1, 0, 0)
        assert never.switched == (i == 0)
    learned = [int(state.learned) for state in states]
    assert learned == [0, 1, 2, 3, 4, 5, 6, 6, 6]
    assert [bool(state.switched) for state in states[1:]] == 7 * [True] + [False]
    assert (states[-1].overflowed, states[-1].current) == (2, -1)


def test_without_room_nothing_that_is_trained_is_kept():
    before, after = always()[CAPACITY], always()[CAPACITY + 2]
    assert after.current == -1
    trees.assert_same(masks(after)[:3], masks(before)[:3])
    again = turn(after, 0, -1.0)  # room is not needed to go on with an old one
    assert (again.learned, again.current >= 0) == (CAPACITY, True)
    for stored, old, last in zip(
        again.stored, before.stored, before.scores, strict=True
    ):
        np.testing.assert_array_equal(stored[:-1], old[:-1])
        np.testing.assert_array_equal(stored[-1], last)


def test_a_decision_moves_the_current_scores_only():
    state = always()[2]
    after = turn(state, 1, -1.0)
    held = jax.device_get(masks(after))
    for i, (new, old) in enumerate(zip(after.stored, state.stored, strict=True)):
        changed = (new != old).any(axis=(1, 2))
        np.testing.assert_array_equal(np.flatnonzero(changed), [state.current])
        bits = jax.tree.map(lambda bits: bits[after.current], held.masks[i])
        kept = packing.unpack(bits)
        np.testing.assert_array_equal(kept, after.scores[i] >= 0)


def test_tasks_are_found_again_without_their_ids():
    state = always()[3]
    for task in (0, 2, 1, 0):  # now nobody says to which task it changes
        x, _ = data(task)
        assert decide(state, x, np.float32(-1))["random"].current == task

    @jax.jit
    def predict(tasks, x):
        infer = functools.partial(superposition.infer, network, WEIGHTS, tasks)
        found = infer(x, labels=LABELS, batch_size=8)
        return stacking.predict_each(network, WEIGHTS, tasks.masks, found, x)

    for task in range(3):
        x, y = data(task)
        logits = np.asarray(predict(masks(state), x[:24]))
        assert np.mean(logits[:, :LABELS].argmax(-1) == y[:24]) > 0.75


def test_new_scores_begin_where_they_are_told():
    starts = "random", "mean_scores", "mean_masks", "last", "nearest"
    state, (x, _) = always()[2], data(0)
    run = functools.partial(decide, starts=starts)
    best = run(state, x, np.float32(-1))["random"].current
    after = jax.device_get(run(state, x, np.float32(9)))
    first = jax.device_get(run(fresh(), x, np.float32(9)))
    for start in starts:
        assert after[start].learned == 3
        assert after[start].switched
        for i, scores in enumerate(state.stored):
            two = np.stack([scores[0], state.scores[i]])
            bound = 1 / np.sqrt(SHAPES[i][0])
            majority = (two >= 0).mean(0) * 2 - 1
            expected = {
                "random": scores[2],
                "mean_scores": two.mean(0),
                "mean_masks": majority * bound / np.sqrt(3),
                "last": two[1],
                "nearest": two[int(best)],
            }[start]
            actual = after[start].scores[i]
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
        # There is nothing to begin the first with.
        trees.assert_same(first[start].scores, [s[0] for s in fresh().stored])


def test_a_users_loop_moves_scores_to_the_same_bits():
    """nnx.Optimizer, MultiSteps, statistics as aux, and donated buffers."""
    start, split, _, loss, _ = networks.of_nnx()
    weights, stats = jax.device_get(split(start))
    optimizer = optax.MultiSteps(RMSPROP, every_k_schedule=2)
    batches = np.random.default_rng(0).normal(size=(20, 16, 8)).astype("float32")

    class Scores(nnx.Module):
        def __init__(self, tree):
            self.leaves = nnx.List(map(nnx.Param, jax.tree.leaves(tree)))

        def tree(self, like):
            leaves = [leaf[...] for leaf in self.leaves]
            return jax.tree.structure(like).unflatten(leaves)

    def objective(module, state, stats, x, y):
        soft = stream.soft_mask(module.tree(state.scores))
        return loss(maskjax.apply(weights, soft), stats, x, y)

    @nnx.jit
    def step(module, train, state, stats, x, y):
        slopes, stats = nnx.grad(objective, has_aux=True)(module, state, stats, x, y)
        train.update(module, slopes)
        return stats

    @functools.partial(jax.jit, donate_argnums=0)
    def begin(state, x):
        def total(params, x):
            return sum(p.sum() for p in jax.tree.leaves(params)) * x.sum()

        return stream.allocate(total, weights, state, x)

    state = begin(stream.init(weights, capacity=2, key=KEY), batches[0])
    module = Scores(state.scores)
    train = nnx.Optimizer(module, optimizer, wrt=nnx.Param)
    expected, rest = jax.device_get((state.scores, stats))
    plain, opt_state = reference.steps(loss, optimizer), optimizer.init(expected)
    with jax.numpy_dtype_promotion("standard"):
        for batch in batches:
            x, y = batch[:, :5], batch[:, 5:]
            stats = step(module, train, state, stats, x, y)
            opt_state, expected, rest = plain(opt_state, expected, weights, rest, x, y)
    scores = module.tree(state.scores)
    trees.assert_same(scores, expected)
    trees.assert_same(stats, rest)
    state = state._replace(scores=scores)
    tasks, learned = stream.masks(state), int(state.learned)
    begin(state, batches[0])
    assert tasks.learned == learned == 1  # the bank outlives the donated state
    assert tasks.overflowed == 0


def test_bad_arguments():
    fn = r"supsup_stream\.{}` needs ".format

    def refused(kind, match, call, *args, **how):
        with pytest.raises(kind, match=match):
            call(*args, **how)

    init, allocate = stream.init, functools.partial(stream.allocate, surplus)
    room = fn("init") + "`capacity` of at least 1"
    refused(ValueError, room, init, WEIGHTS, capacity=0, key=KEY)
    refused(TypeError, fn("init") + "`key`", init, WEIGHTS, capacity=1, key=0)
    flat = "(?s)" + fn("init") + "to know the axes.* for the fan-in.*\n  b: "
    wrong = {"a": np.ones((2, 2), "float32"), "b": np.ones(2, "float32")}
    every = where.matching("")
    refused(ValueError, flat, init, wrong, capacity=1, where=every, key=KEY)
    x, _ = data(0)
    start = fn("allocate") + "`start` as 'random' or"
    refused(ValueError, start, allocate, WEIGHTS, fresh(), x, start="mean")
    least = fn("allocate") + "`least` of at least 1"
    refused(ValueError, least, allocate, WEIGHTS, fresh(), x, least=0)
    other = [WEIGHTS[0][:, :3], WEIGHTS[1][:3], WEIGHTS[2]]
    misfit = "(?s)" + fn("allocate") + r".*0: scores \(24, 48\), weights \(24, 3\)"
    refused(ValueError, misfit, allocate, other, fresh(), x)
    wrong = fresh()._replace(scores=other)
    misfit = "(?s)" + fn("masks") + r".*0: state.packed \(24, 48\), state.scores \(24"
    refused(ValueError, misfit, stream.masks, wrong)
    none = {"a": np.ones(2, bool)}
    refused(TypeError, "(?s)" + fn("soft_mask") + ".*a: bool", stream.soft_mask, none)
