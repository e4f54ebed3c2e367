"""Tasks packed into one network: by hand, against NumPy, and as the paper promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import algebra, metrics, optim, where
from maskjax.recipes import packnet
from tests import trees
from tests.networks import (
    HEAD,
    RUNS,
    SHAPES,
    drawn,
    linen,
    loss,
    means,
    network,
    of_nnx,
    training,
)
from tests.reference import packnet as reference
from tests.reference.selection import quota

pytestmark = pytest.mark.optimized

TASKS, RATES = 4, (0.5, 0.75, 0.3, 0.0)


def data(*, seed=0):
    """Inputs [T, N, 5] and targets [T, N, 3]."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(TASKS, 12, 5)), rng.normal(size=(TASKS, 12, 3))
    return jnp.asarray(x, "float32"), jnp.asarray(y, "float32")


def fit(params, mask, x, y, *, optimizer, steps):
    """A user's own loop."""
    optimizer = optax.chain(optimizer, optim.mask_updates(mask))

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = optimizer.update(
            jax.grad(loss)(params, x, y), opt_state, params
        )
        return (optax.apply_updates(params, updates), opt_state), None

    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, length=steps)[0][0]


def learn(state, x, y, rate, fresh=None, *, scope="leaf", steps=(6, 3)):
    """One task, from beginning to end."""
    train = functools.partial(fit, x=x, y=y, optimizer=optax.sgd(0.05, momentum=0.9))
    training = packnet.begin(state, fresh)
    params = train(training.params, training.mask, steps=steps[0])
    pruned = packnet.prune(training, params, rate=rate, scope=scope)
    return packnet.commit(pruned, train(pruned.params, pruned.mask, steps=steps[1]))


def sequence(params, x, y, rates):
    """All tasks as one scan; and the state after each."""
    state = packnet.init(params, head=HEAD, capacity=TASKS)

    def turn(state, task):
        state = learn(state, *task)
        return state, state

    return jax.lax.scan(turn, state, (x, y, rates))[1]


@pytest.fixture(scope="module")
def history():
    """States [T, ...] after each of the tasks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return jax.jit(sequence)(drawn(), *data(), jnp.float32(RATES))


def at(history, i):
    return jax.tree.map(lambda x: x[i], history)


def test_two_tasks_by_hand():
    # Four weights and no training but what is written here.
    start = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]]), "head": jnp.array([[9.0]])}
    state = packnet.init(start, head=HEAD, capacity=2)
    training = packnet.begin(state)
    trees.assert_same(training.params, start)
    assert training.mask["w"].all()
    # Training makes them 4, -3, 0.5, 0.5, of which half go: the last of the small ones.
    params = {"w": jnp.array([[4.0, -3.0, 0.5, 0.5]]), "head": jnp.array([[1.0]])}
    pruned = packnet.prune(training, params, rate=0.5)
    np.testing.assert_array_equal(pruned.params["w"], [[4, -3, 0, 0]])
    np.testing.assert_array_equal(pruned.mask["w"], [[True, True, False, False]])
    # Retrained by one each; what was freed stays 0, whatever is done to it.
    params = jax.tree.map(lambda w: w + 1, pruned.params)
    state = packnet.commit(pruned, params)
    np.testing.assert_array_equal(state.owner["w"], [[1, 1, 0, 0]])
    np.testing.assert_array_equal(packnet.params_of(state, 0)["w"], [[5, -2, 0, 0]])
    np.testing.assert_array_equal(packnet.params_of(state, 0)["head"], [[2]])

    # The second task begins at 0, with a head as at first, and is not pruned.
    training = packnet.begin(state)
    np.testing.assert_array_equal(training.params["w"], [[5, -2, 0, 0]])
    np.testing.assert_array_equal(training.params["head"], [[9]])
    np.testing.assert_array_equal(training.mask["w"], [[False, False, True, True]])
    params = {"w": jnp.array([[50.0, 50.0, 7.0, 8.0]]), "head": jnp.array([[3.0]])}
    state = packnet.commit(training, params)
    np.testing.assert_array_equal(state.owner["w"], [[1, 1, 2, 2]])
    np.testing.assert_array_equal(state.counts, [2, 2])
    for task, w, head in ((0, [[5, -2, 0, 0]], 2), (1, [[5, -2, 7, 8]], 3)):
        said = packnet.params_of(state, task)
        np.testing.assert_array_equal(said["w"], w)
        np.testing.assert_array_equal(said["head"], [[head]])


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_a_sequence_agrees_with_the_reference(scope):
    rng = np.random.default_rng(3)
    start, (x, y) = drawn(), data()
    heads = [rng.normal(size=SHAPES["head"]) for _ in range(TASKS)]
    step = jax.jit(functools.partial(learn, scope=scope))
    state = packnet.init(start, head=HEAD, capacity=TASKS)
    for task, rate in enumerate(RATES):
        fresh = {**start, "head": jnp.asarray(heads[task], "float32")}
        state = step(state, x[task], y[task], jnp.float32(rate), fresh)
    assert step._cache_size() == 1

    wide = {name: np.float64(w) for name, w in start.items()}
    pairs = [(np.float64(a), np.float64(b)) for a, b in zip(x, y, strict=True)]
    p, owner, trained = reference.learn(
        wide, heads, pairs, list(RATES), steps=(6, 3), lr=0.05, scope=scope
    )
    for name in ("a", "b"):
        np.testing.assert_array_equal(state.owner[name], owner[name])
        np.testing.assert_allclose(state.params[name], p[name], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.params["bias"], p["bias"], rtol=1e-4, atol=1e-6)
    for task, head in enumerate(trained):
        expected = reference.logits(p, owner, head, task + 1, pairs[0][0])
        found = network(packnet.params_of(state, task), x[0])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_of_every_leaf_round_of_the_rate_is_freed(history):
    free = {name: np.prod(SHAPES[name]) for name in ("a", "b")}
    for task, rate in enumerate(RATES):
        for name in free:
            left = quota(rate, free[name])
            owned = (np.asarray(history.owner[name][task]) == task + 1).sum()
            assert owned == free[name] - left
            free[name] = left
    allotted = packnet.allotment(at(history, 0), rates=RATES)
    np.testing.assert_array_equal(history.counts[-1], allotted)
    assert sum(allotted) == 5 * 8 + 8 * 6


def test_owners_stay_and_what_is_free_is_0(history):
    for name in ("a", "b"):
        owner, w = (np.asarray(t[name]) for t in (history.owner, history.params))
        assert not w[owner == 0].any()
        for task in range(TASKS):
            mine = owner[task] > 0
            assert (owner[task][mine] <= task + 1).all()
            for later in range(task + 1, TASKS):
                np.testing.assert_array_equal(owner[later][mine], owner[task][mine])
                np.testing.assert_array_equal(w[later][mine], w[task][mine])


def test_a_task_is_what_it_was_and_its_weights_are_among_the_next_ones(history):
    last = at(history, -1)
    for task in range(TASKS):
        then = packnet.params_of(at(history, task), task)
        trees.assert_same(packnet.params_of(last, task), then)
        seen = packnet.active(last, task)
        for name in ("a", "b"):
            assert not np.asarray(then[name])[~np.asarray(seen[name])].any()
        if task:
            before = packnet.active(last, task - 1)
            assert not any(
                map(np.any, jax.tree.leaves(algebra.difference(before, seen)))
            )
            assert algebra.count(seen) > algebra.count(before)
    assert seen["bias"] is None
    assert seen["head"] is None


def test_biases_are_of_the_first_task_and_heads_of_each(history):
    biases = history.params["bias"]
    assert (biases[0] != drawn()["bias"]).any()
    np.testing.assert_array_equal(biases, jnp.broadcast_to(biases[0], biases.shape))
    heads = np.asarray(at(history, -1).slots["head"])
    assert len({head.tobytes() for head in heads}) == TASKS
    np.testing.assert_array_equal(history.params["head"][-1], drawn()["head"])


def test_biases_are_each_tasks_own_if_the_head_says_so():
    state = packnet.init(drawn(), head=where.matching("head|bias"), capacity=2)
    for task in range(2):
        training = packnet.begin(state)
        assert training.mask["bias"].all()
        trees.assert_same(training.params["bias"], drawn()["bias"])
        params = {**training.params, "bias": jnp.full(8, task + 5.0)}
        state = packnet.commit(packnet.prune(training, params, rate=0.5), params)
    for task in range(2):
        assert (packnet.params_of(state, task)["bias"] == task + 5).all()


@pytest.mark.parametrize(("name", "masked"), RUNS)
@pytest.mark.parametrize("framework", [linen, of_nnx])
def test_nothing_is_forgotten_to_the_bit(framework, name, masked):
    """With batch normalization; masked or not, whatever the optimizer moves."""
    start, train, apply = training(framework, name, masked=masked)
    x, y = data()

    @jax.jit
    def task(state, x, y):
        training = packnet.begin(state)
        params = train(training.params, training.mask, x, y)
        pruned = packnet.prune(training, params, rate=jnp.float32(0.6))
        return packnet.commit(pruned, train(pruned.params, pruned.mask, x, y))

    @jax.jit
    def every(state):
        """What each task says of its inputs, [T, N, 3]."""

        def one(task):
            return apply(packnet.params_of(state, task), x[task])

        return jax.lax.map(one, jnp.arange(TASKS))

    state = packnet.init(start, head=HEAD, capacity=TASKS)
    said = []
    for i in range(TASKS):
        state = task(state, x[i], y[i])
        said.append(np.asarray(every(state)))
    assert task._cache_size() == 1
    for i in range(TASKS):
        assert (said[i][i] != said[-1][TASKS - 1 - i]).any()
        for later in said[i:]:
            np.testing.assert_array_equal(later[i], said[i][i])
    errors = np.square(np.stack(said) - np.asarray(y)).mean((2, 3))
    assert metrics.forgetting(jnp.asarray(-errors)) == 0
    (each,) = means(state.slots)
    assert len({mean.tobytes() for mean in np.asarray(each)}) == TASKS


def test_statistics_are_the_first_tasks_for_all_if_asked():
    params = {"params": {"w": jnp.ones((2, 2))}, "batch_stats": {"n": jnp.zeros(2)}}
    state = packnet.init(params, head=None, capacity=2, statistics=None)
    for task in range(2):
        training = packnet.begin(state)
        moved = jax.tree.map(lambda w: w + 1, training.params)
        state = packnet.commit(packnet.prune(training, moved, rate=0.5), moved)
        for earlier in range(task + 1):
            stats = packnet.params_of(state, earlier)["batch_stats"]["n"]
            np.testing.assert_array_equal(stats, [1, 1])


def test_a_rate_of_1_leaves_a_task_its_head_on_the_features_before_it(history):
    state = at(history, 1)
    after = jax.jit(learn)(state, *(d[2] for d in data()), jnp.float32(1))
    assert after.counts[2] == 0
    trees.assert_same(packnet.active(after, 2), packnet.active(after, 1))
    before, now = (packnet.params_of(after, task) for task in (1, 2))
    for name in ("a", "b", "bias"):
        np.testing.assert_array_equal(now[name], before[name])
    assert (now["head"] != before["head"]).any()


def test_a_rate_of_0_leaves_later_tasks_their_heads_only(history):
    state = at(history, 0)
    step = jax.jit(learn)
    state = step(state, *(d[1] for d in data()), jnp.float32(0))
    assert not any((owner == 0).any() for owner in jax.tree.leaves(state.owner))
    state = step(state, *(d[2] for d in data()), jnp.float32(0.5))
    assert state.counts[2] == 0
    assert (state.slots["head"][2] != drawn()["head"]).any()


@pytest.mark.parametrize("dtype", trees.DTYPES)
@pytest.mark.parametrize("name", trees.NAMES)
def test_trees_of_every_kind(name, dtype):
    params = trees.make(name, dtype)
    choose = where.kernels & where.matching("^(?!empty)")  # nothing to own there

    @jax.jit
    def two(params, first, second):
        state = packnet.init(params, head=None, capacity=2, where=choose)
        for new, rate in ((first, 0.4), (second, 0.0)):
            training = packnet.begin(state)
            pruned = packnet.prune(training, new, rate=rate)
            state = packnet.commit(pruned, pruned.params)
        return state, packnet.params_of(state, 0)

    new = trees.make(name, dtype, seed=1), trees.make(name, dtype, seed=2)
    state, then = two(params, *new)
    for (first, owner), second, found, early in zip(
        trees.pairs(new[0], state.owner),
        *(
            map(trees.to_numpy, jax.tree.leaves(t))
            for t in (new[1], state.params, then)
        ),
        strict=True,
    ):
        assert found.dtype == first.dtype
        if owner is None:
            np.testing.assert_array_equal(found, first)
            continue
        assert (np.asarray(owner) == 1).sum() == owner.size - quota(0.4, owner.size)
        mine = np.asarray(owner) == 1
        np.testing.assert_array_equal(found, np.where(mine, first, second))
        np.testing.assert_array_equal(early, np.where(mine, first, 0))
    assert jax.tree.structure(then) == jax.tree.structure(params)


def test_three_hundred_tasks():
    state = packnet.init({"w": jnp.zeros((1, 301))}, head=None, capacity=300)

    def turn(state, i):
        training = packnet.begin(state)
        pruned = packnet.prune(
            training,
            {"w": jnp.arange(301, 0, -1, dtype=jnp.float32)[None]},
            rate=1 - 1 / (301 - i).astype(jnp.float32),
        )
        return packnet.commit(pruned, pruned.params), None

    state, _ = jax.jit(lambda s: jax.lax.scan(turn, s, jnp.arange(300)))(state)
    assert state.owner["w"].dtype == jnp.uint16
    np.testing.assert_array_equal(state.owner["w"][0], [*range(1, 301), 0])
    assert (state.counts == 1).all()
    for task in (0, 254, 255, 299):
        assert packnet.active(state, task)["w"].sum() == task + 1
    narrow = packnet.init({"w": jnp.zeros((1, 1))}, head=None, capacity=255)
    assert narrow.owner["w"].dtype == jnp.uint8


def test_seeds_and_orders_side_by_side_are_those_apart():
    x, y = data()
    orders = jnp.array([[0, 1, 2, 3], [3, 1, 0, 2]])
    starts = [drawn(seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *starts)
    rates = jnp.float32(RATES)

    def run(start, order):
        return at(sequence(start, x[order], y[order], rates), -1)

    together = jax.jit(jax.vmap(run))(stacked, orders)
    alone = jax.jit(run)
    for i, start in enumerate(starts):
        one = alone(start, orders[i])
        for a, b in zip(
            jax.tree.leaves(at(together, i)), jax.tree.leaves(one), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert alone._cache_size() == 1


def test_a_fresh_start_of_heads_and_of_free_weights(history):
    state, fresh = at(history, 0), drawn(seed=5)
    for reinit in ("zero", "init"):
        params = packnet.begin(state, fresh, reinit_free=reinit).params
        np.testing.assert_array_equal(params["head"], fresh["head"])
        np.testing.assert_array_equal(params["bias"], state.params["bias"])
        for name in ("a", "b"):
            free = np.asarray(state.owner[name]) == 0
            start = np.where(free, fresh[name] if reinit == "init" else 0, params[name])
            np.testing.assert_array_equal(params[name], start)
            np.testing.assert_array_equal(
                np.asarray(params[name])[~free], np.asarray(state.params[name])[~free]
            )


def test_without_room_a_traced_task_changes_nothing(history):
    full = at(history, -1)

    @jax.jit
    def more(state, fresh):
        training = packnet.begin(state, fresh, reinit_free="init")
        pruned = packnet.prune(training, drawn(seed=6), rate=0.5)
        return packnet.commit(pruned, drawn(seed=7)), training.mask

    after, mask = more(full, drawn(seed=5))
    assert not any(leaf.any() for leaf in jax.tree.leaves(mask))
    assert after.refused == 1
    trees.assert_same(after._replace(refused=full.refused), full)


def test_tasks_are_counted_from_the_last_and_traced_ones_are_not_refused(history):
    state = at(history, 1)
    trees.assert_same(packnet.params_of(state, -1), packnet.params_of(state, 1))
    trees.assert_same(packnet.active(state, -2), packnet.active(state, 0))
    active = jax.jit(packnet.active)
    of_task = jax.jit(packnet.params_of)
    for task in (2, 3, 99, -3):
        assert algebra.count(active(state, task)) == 0
        params = of_task(state, task)  # nor the head of another
        assert not any(np.asarray(params[name]).any() for name in ("a", "b", "head"))


def test_allotment_counts_in_both_scopes():
    state = packnet.init(drawn(), head=HEAD, capacity=5)
    assert packnet.allotment(state, rates=(0.5, 0.75)) == (20 + 24, 20 - 15 + 24 - 18)
    assert packnet.allotment(state, rates=(0.3,)) == (88 - 12 - 14,)
    assert packnet.allotment(state, rates=(0.3,), scope="global") == (88 - 26,)
    even = packnet.allotment(state, rates=[1 - 1 / (4 - t) for t in range(4)])
    assert even == (22, 22, 22, 22)


def test_rates_that_leave_a_task_nothing_are_said_at_once():
    state = packnet.init({"w": jnp.ones((2, 5))}, head=None, capacity=4)
    needs = r"(?s)packnet\.allotment` needs `rates` that leave every task weights.*"
    with pytest.raises(ValueError, match=needs + "task 1: 0 of the 1 that are free"):
        packnet.allotment(state, rates=(0.1, 1, 0.5))
    with pytest.raises(ValueError, match=needs + "task 1: 0 of.* 0 that.*task 2: 0 of"):
        packnet.allotment(state, rates=(0, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"allotment` needs `rates` in \[0, 1\]"):
        packnet.allotment(state, rates=(1.5,))
    with pytest.raises(ValueError, match="`rates` for 4 tasks at most, got 5"):
        packnet.allotment(state, rates=(0.1,) * 5)
    with pytest.raises(TypeError, match="`rates` as a number"):
        packnet.allotment(state, rates=("half",))
    with pytest.raises(ValueError, match="`scope` as 'leaf' or 'global'"):
        packnet.allotment(state, rates=(0.5,), scope="layer")
    small = {"wide": jnp.ones((4, 9)), "narrow": jnp.ones((2, 2))}
    state = packnet.init(small, head=None, capacity=4)
    with pytest.raises(ValueError, match=needs + "task 0: none of the 4 of narrow$"):
        packnet.allotment(state, rates=(0.9,))
    assert packnet.allotment(state, rates=(0.5, 0.9)) == (20, 2)


def test_states_of_many_seeds_are_mapped_over():
    params = {"w": jnp.ones((3, 2, 5))}
    init = functools.partial(packnet.init, head=None, capacity=3)
    states = jax.vmap(init)(params)
    needs = r"needs a single state, got a stack of \(3,\). Map over it with `jax.vmap`"
    with pytest.raises(ValueError, match="allotment` " + needs):
        packnet.allotment(states, rates=(0.5,))
    with pytest.raises(ValueError, match="begin` " + needs):
        packnet.begin(states)
    with pytest.raises(ValueError, match="params_of` " + needs):
        packnet.params_of(states, 0)
    assert jax.vmap(packnet.begin)(states).mask["w"].all()


def test_a_task_that_leaves_nothing_is_warned_of_once_with_the_count():
    params = {"w": jnp.ones((2, 600))}
    training = packnet.begin(packnet.init(params, head=None, capacity=2))
    with pytest.warns(UserWarning, match="prune` leaves task 0 none of its 1,200 wei"):
        packnet.prune(training, params, rate=1)
    late = r"leaves later tasks no weights: task 0 keeps all of its 1,200\."
    with pytest.warns(UserWarning, match="prune` " + late):
        pruned = packnet.prune(training, params, rate=0)
    state = packnet.commit(pruned, params)  # was said
    with pytest.warns(UserWarning, match="commit` " + late):
        packnet.commit(training, params)
    # Where a leaf keeps nothing, nothing gets through.
    small = {"wide": jnp.ones((4, 9)), "narrow": jnp.ones((2, 2))}
    first = packnet.begin(packnet.init(small, head=None, capacity=3))
    with pytest.warns(UserWarning, match="prune` leaves task 0 no weights in narrow"):
        pruned = packnet.prune(first, small, rate=0.9)
    second = packnet.begin(packnet.commit(pruned, small))
    packnet.prune(second, small, rate=0.9)  # which has those of the first
    # The last task may keep all that there is, if only nothing.
    last = packnet.begin(state)
    packnet.commit(packnet.prune(last, params, rate=0), params)
    jax.jit(lambda t: packnet.prune(t, params, rate=1))(training)  # not known


def test_phases_out_of_order_are_refused():
    params = {"w": jnp.ones((2, 5))}
    state = packnet.init(params, head=None, capacity=4)
    training = packnet.begin(state)
    pruned = packnet.prune(training, params, rate=0.5)
    order = "For each task call `begin`, `prune` and `commit`, in this order"
    with pytest.raises(
        TypeError, match="begin` needs a `PackNetState`, got Training.*"
    ):
        packnet.begin(training)
    with pytest.raises(
        TypeError, match="prune` needs a `Training`, got Pruned. " + order
    ):
        packnet.prune(pruned, params, rate=0.5)
    with pytest.raises(TypeError, match="prune` needs a `Training`, got PackNetState"):
        packnet.prune(state, params, rate=0.5)
    with pytest.raises(
        TypeError, match="needs a `Training` or `Pruned`, got PackNetSt"
    ):
        packnet.commit(state, params)
    with pytest.raises(TypeError, match="got Pruned"):  # while tracing
        jax.eval_shape(lambda p: packnet.prune(p, params, rate=0.5), pruned)


def test_more_tasks_than_there_is_room_for_are_refused(history):
    with pytest.raises(
        ValueError, match="begin` needs room for 1 more, but 4 of 4 are"
    ):
        packnet.begin(at(history, -1))


def test_unknown_tasks_are_refused(history):
    state = at(history, 1)
    for task in (2, -3, 7):
        needs = f"needs a learned task, got {task}, and 2 of 4 are learned"
        with pytest.raises(ValueError, match="active` " + needs):
            packnet.active(state, task)
        with pytest.raises(ValueError, match="params_of` " + needs):
            packnet.params_of(state, task)
    for task in (1.0, jnp.array([0, 1]), "first"):
        with pytest.raises(TypeError, match="params_of` needs `task` as one integer"):
            packnet.params_of(state, task)


def test_a_head_of_the_wrong_width_is_named(history):
    state, start = at(history, 0), drawn()
    wide = {**start, "head": jnp.ones((6, 4))}
    shapes = r"head: float32 array of shape \(6, 4\), network .*\(6, 3\)"
    with pytest.raises(ValueError, match="(?s)begin` needs `fresh` of the.*" + shapes):
        packnet.begin(state, wide)
    training = packnet.begin(state)
    with pytest.raises(ValueError, match="(?s)prune` needs `params` of the.*" + shapes):
        packnet.prune(training, wide, rate=0.5)
    with pytest.raises(
        ValueError, match="(?s)commit` needs `params` of the.*" + shapes
    ):
        packnet.commit(training, wide)
    half = {**start, "a": start["a"].astype(jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"(?s)a: bfloat16 array.*network float32"):
        packnet.prune(training, half, rate=0.5)
    with pytest.raises(ValueError, match="(?s)only in `network`: head"):
        packnet.prune(training, {n: start[n] for n in ("a", "b", "bias")}, rate=0.5)


def test_bad_arguments_are_refused(history):
    start = drawn()
    with pytest.raises(ValueError, match="init` needs `capacity` of at least 1, got 0"):
        packnet.init(start, head=HEAD, capacity=0)
    with pytest.raises(TypeError, match="init` needs `capacity` as a whole number"):
        packnet.init(start, head=HEAD, capacity=2.5)
    with pytest.raises(TypeError, match="init` needs `capacity` as a whole number"):
        packnet.init(start, head=HEAD, capacity=jnp.int32(2))
    needs = r"`head` to choose.*where\.matching\('hed'\) chooses none of: a, b"
    with pytest.raises(ValueError, match=needs):
        packnet.init(start, head=where.matching("hed"), capacity=2)
    with pytest.raises(ValueError, match="weights that are not of the `head`"):
        packnet.init(start, head=where.kernels, capacity=2)
    with pytest.raises(TypeError, match="floating"):
        packnet.init({"w": jnp.ones((2, 2), int)}, head=None, capacity=2,
                     where=where.everything)  # fmt: skip
    state = at(history, 0)
    with pytest.raises(ValueError, match="`fresh`, with `reinit_free` as 'init'"):
        packnet.begin(state, reinit_free="init")
    alone = packnet.init(start, head=None, capacity=2)
    with pytest.raises(ValueError, match="begin` needs `fresh` for a task's own.*none"):
        packnet.begin(alone, start)
    packnet.begin(alone, start, reinit_free="init")
    with pytest.raises(
        ValueError, match="`reinit_free` as 'zero' or 'init', got 'one'"
    ):
        packnet.begin(state, reinit_free="one")
    training = packnet.begin(state)
    with pytest.raises(ValueError, match=r"`rate` in \[0, 1\], got 1.5"):
        packnet.prune(training, start, rate=1.5)
    with pytest.raises(ValueError, match="`scope` as 'leaf' or 'global'"):
        packnet.prune(training, start, rate=0.5, scope="layer")
