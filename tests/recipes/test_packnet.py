"""Tasks packed into one network: by hand, against NumPy, and as the paper promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import optim, where
from maskjax.recipes import packnet
from tests import trees
from tests.networks import (
    HEAD,
    SHAPES,
    drawn,
    loss,
    network,
)
from tests.reference import packnet as reference
from tests.reference.selection import quota

TASKS, RATES, STEPS = 4, (0.5, 0.75, 0.3, 0.0), (6, 3)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(TASKS, 12, 5)).astype(np.float32)
Y = RNG.normal(size=(TASKS, 12, 3)).astype(np.float32)
HEADS = RNG.normal(size=(TASKS, *SHAPES["head"])).astype(np.float32)


def fit(params, mask, x, y, *, steps):
    """A user's own loop."""
    optimizer = optax.chain(optax.sgd(0.05, momentum=0.9), optim.mask_updates(mask))

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = optimizer.update(
            jax.grad(loss)(params, x, y), opt_state, params
        )
        return (optax.apply_updates(params, updates), opt_state), None

    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, length=steps)[0][0]


def learn(state, x, y, rate, fresh, *, scope="leaf"):
    """One task, from beginning to end."""
    training = packnet.begin(state, fresh)
    params = fit(training.params, training.mask, x, y, steps=STEPS[0])
    pruned = packnet.prune(training, params, rate=rate, scope=scope)
    params = fit(pruned.params, pruned.mask, x, y, steps=STEPS[1])
    return packnet.commit(pruned, params)


LEARN = {scope: jax.jit(functools.partial(learn, scope=scope)) for scope in
         ("leaf", "global")}  # fmt: skip


def turn(state, task, rate, scope="leaf"):
    """A task learned by the one program that all tests share."""
    fresh = {**drawn(), "head": HEADS[task]}
    return LEARN[scope](state, X[task], Y[task], np.float32(rate), fresh)


def sequence(scope):
    """The states after each task."""
    state, states = packnet.init(drawn(), head=HEAD, capacity=TASKS), []
    for task, rate in enumerate(RATES):
        state = turn(state, task, rate, scope)
        states.append(state)
    assert LEARN[scope]._cache_size() == 1
    return states


@pytest.fixture(scope="module")
def history():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return sequence("leaf")


def shaped(params, **how):
    """A state's shapes."""
    return jax.eval_shape(functools.partial(packnet.init, **how), params)


def test_two_tasks_by_hand():
    start = {"w": np.float32([[1, 2, 3, 4]]), "head": np.float32([[9]])}
    # Training makes them 4, -3, 0.5, 0.5, of which half go: the last of the small ones.
    moved = {"w": np.float32([[4, -3, 0.5, 0.5]]), "head": np.float32([[1]])}
    last = {"w": np.float32([[50, 50, 7, 8]]), "head": np.float32([[3]])}

    @jax.jit
    def both(start, moved, last):
        first = packnet.begin(packnet.init(start, head=HEAD, capacity=2))
        pruned = packnet.prune(first, moved, rate=0.5)
        # Retrained by one each; what was freed stays 0, whatever is done to it.
        state = packnet.commit(pruned, jax.tree.map(lambda w: w + 1, pruned.params))
        second = packnet.begin(state)  # is not pruned
        done = packnet.commit(second, last)
        return first, pruned, second, done, [packnet.params_of(done, t) for t in (0, 1)]

    first, pruned, second, done, said = both(start, moved, last)
    trees.assert_same(first.params, jax.tree.map(jnp.asarray, start))
    assert np.all(first.mask["w"])
    np.testing.assert_array_equal(pruned.params["w"], [[4, -3, 0, 0]])
    np.testing.assert_array_equal(pruned.mask["w"], [[True, True, False, False]])
    np.testing.assert_array_equal(second.state.owner["w"], [[1, 1, 0, 0]])
    # The second task begins at 0, with a head as at first.
    np.testing.assert_array_equal(second.params["w"], [[5, -2, 0, 0]])
    np.testing.assert_array_equal(second.params["head"], [[9]])
    np.testing.assert_array_equal(second.mask["w"], [[False, False, True, True]])
    np.testing.assert_array_equal(done.owner["w"], [[1, 1, 2, 2]])
    np.testing.assert_array_equal(done.counts, [2, 2])
    for found, w, head in zip(
        said, ([[5, -2, 0, 0]], [[5, -2, 7, 8]]), (2, 3), strict=True
    ):
        np.testing.assert_array_equal(found["w"], w)
        np.testing.assert_array_equal(found["head"], [[head]])


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_a_sequence_agrees_with_the_reference(scope, history):
    state = history[-1] if scope == "leaf" else sequence(scope)[-1]
    wide = {name: np.float64(w) for name, w in drawn().items()}
    pairs = [(np.float64(a), np.float64(b)) for a, b in zip(X, Y, strict=True)]
    p, owner, trained = reference.learn(
        wide, [*np.float64(HEADS)], pairs, [*RATES], steps=STEPS, lr=0.05, scope=scope
    )
    for name in ("a", "b"):
        np.testing.assert_array_equal(state.owner[name], owner[name])
    for name in ("a", "b", "bias"):
        np.testing.assert_allclose(state.params[name], p[name], rtol=1e-4, atol=1e-6)
    found = jax.jit(
        lambda state, x: jax.lax.map(
            lambda task: network(packnet.params_of(state, task), x), jnp.arange(TASKS)
        )
    )(state, X[0])
    for task, head in enumerate(trained):
        expected = reference.logits(p, owner, head, task + 1, pairs[0][0])
        np.testing.assert_allclose(found[task], expected, rtol=1e-3, atol=1e-5)


def test_of_every_leaf_round_of_the_rate_is_freed(history):
    free = {name: np.prod(SHAPES[name]) for name in ("a", "b")}
    for task, (rate, state) in enumerate(zip(RATES, history, strict=True)):
        for name in free:
            left = quota(rate, free[name])
            assert (np.asarray(state.owner[name]) == task + 1).sum() == (
                free[name] - left
            )
            free[name] = left
    allotted = packnet.allotment(history[0], rates=RATES)
    np.testing.assert_array_equal(history[-1].counts, allotted)
    assert sum(allotted) == 5 * 8 + 8 * 6


def test_owners_stay_and_what_is_free_is_0(history):
    for name in ("a", "b"):
        owner = np.stack([state.owner[name] for state in history])
        w = np.stack([state.params[name] for state in history])
        assert not w[owner == 0].any()
        for task in range(TASKS):
            mine = owner[task] > 0
            assert (owner[task][mine] <= task + 1).all()
            for later in range(task + 1, TASKS):
                np.testing.assert_array_equal(owner[later][mine], owner[task][mine])
                np.testing.assert_array_equal(w[later][mine], w[task][mine])


def test_a_task_is_what_it_was_and_its_weights_are_among_the_next_ones(history):
    before = {name: np.zeros(SHAPES[name], bool) for name in ("a", "b")}
    for task, state in enumerate(history):
        then = packnet.params_of(state, task)
        trees.assert_same(packnet.params_of(history[-1], task), then)
        seen = packnet.mask(history[-1], task)
        assert seen["bias"] is seen["head"] is None
        for name, earlier in before.items():
            now = np.asarray(seen[name])
            assert not np.asarray(then[name])[~now].any()
            assert now[earlier].all()
            assert now.sum() > earlier.sum()
            before[name] = now


def test_biases_are_of_the_first_task_and_heads_of_each(history):
    biases = np.stack([state.params["bias"] for state in history])
    assert (biases[0] != np.asarray(drawn()["bias"])).any()
    np.testing.assert_array_equal(biases, np.broadcast_to(biases[0], biases.shape))
    heads = np.asarray(history[-1].slots["head"])
    assert len({head.tobytes() for head in heads}) == TASKS
    np.testing.assert_array_equal(history[-1].params["head"], drawn()["head"])


def test_leaves_are_each_tasks_own_if_the_head_says_so_and_statistics_need_not_be():
    start = {**drawn(), "batch_stats": {"mean": np.zeros(2, np.float32)}}
    own = where.matching("head|bias")

    state = packnet.init(start, head=own, capacity=2, statistics=None)
    for task in range(2):
        training = packnet.begin(state)
        assert np.all(training.mask["bias"])
        np.testing.assert_array_equal(training.params["bias"], start["bias"])
        moved = jax.tree.map(lambda w, i=task: np.asarray(w) + i + 1, training.params)
        state = packnet.commit(packnet.prune(training, moved, rate=0.5), moved)
    for task in range(2):
        said = packnet.params_of(state, task)
        found = np.asarray(said["bias"]) - np.asarray(start["bias"])
        np.testing.assert_allclose(found, task + 1, rtol=1e-6)
        np.testing.assert_array_equal(said["batch_stats"]["mean"], [1, 1])


def test_a_loop_may_donate_what_it_is_given():
    start = {n: jax.device_put(w) for n, w in drawn().items()}
    descend = jax.jit(lambda p: jax.tree.map(lambda w: w + 1, p), donate_argnums=0)
    state = packnet.init(start, head=HEAD, capacity=TASKS)
    for _ in range(2):
        phase = packnet.begin(state)
        trained = descend(phase.params)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(phase.params))
        phase = packnet.prune(phase, trained, rate=0.5)
        later = packnet.commit(phase, descend(phase.params))
        state = jax.jit(lambda s: s._replace(learned=s.learned + 0), donate_argnums=0)(
            later
        )
    early = packnet.params_of(state, 0)
    descend(packnet.params_of(state, 0))  # a copy
    trees.assert_same(packnet.params_of(state, 0), early)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(start))


def test_heads_of_different_widths_stay_outside_of_the_state():
    """As the module's docstring says."""
    x = np.ones((1, 2), "float32")
    state, heads, said = (
        packnet.init({"w": np.eye(2, dtype="f4")}, head=None, capacity=2),
        [],
        [],
    )
    loss = lambda body, head: jnp.sum((x @ body["w"] @ head - 1) ** 2)  # noqa: E731
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for width, rate in ((3, 0.5), (5, None)):
        phase, head = packnet.begin(state), np.full((2, width), 0.1, "f4")
        by_body, by_head = slopes(phase.params, head)
        params = jax.tree.map(np.subtract, jax.device_get(phase.params), by_body)
        if rate:
            phase = packnet.prune(phase, params, rate=rate)
            params = phase.params
        state = packnet.commit(phase, params)
        heads.append(head - by_head)
        said.append(x @ packnet.params_of(state, -1)["w"] @ heads[-1])
    assert [out.shape for out in said] == [(1, 3), (1, 5)]
    for task in range(2):
        body = packnet.params_of(state, task)["w"]
        np.testing.assert_array_equal(x @ body @ heads[task], said[task])


def test_a_rate_of_1_leaves_a_task_its_head_on_the_features_before_it(history):
    after = turn(history[1], 2, 1)
    assert after.counts[2] == 0
    trees.assert_same(packnet.mask(after, 2), packnet.mask(after, 1))
    before, now = (packnet.params_of(after, task) for task in (1, 2))
    for name in ("a", "b", "bias"):
        np.testing.assert_array_equal(now[name], before[name])
    assert (np.asarray(now["head"]) != np.asarray(before["head"])).any()


def test_a_rate_of_0_leaves_later_tasks_their_heads_only(history):
    state = turn(history[0], 1, 0)
    assert all(np.all(owner) for owner in jax.tree.leaves(state.owner))
    state = turn(state, 2, 0.5)
    assert state.counts[2] == 0
    assert (np.asarray(state.slots["head"][2]) != HEADS[2]).any()


def two_phases(state, new, rate, scope="leaf"):
    pruned = packnet.prune(packnet.begin(state), new, rate=rate, scope=scope)
    return packnet.commit(pruned, pruned.params)


turned = jax.jit(two_phases)


def two_tasks(params, first, second):
    choose = where.kernels & where.matching("^(?!empty)")  # nothing to own there
    state = packnet.init(params, head=None, capacity=2, where=choose)
    for new, rate in ((first, 0.4), (second, 0.0)):
        state = turned(state, new, np.float32(rate))
    return state, packnet.params_of(state, 0)


@pytest.mark.parametrize("name", trees.NAMES)
def test_trees_of_every_kind_keep_structure_and_dtypes(name):
    for dtype in trees.DTYPES:
        params = trees.make(name, dtype)
        shapes = jax.eval_shape(lambda w: w, params)
        state, then = jax.eval_shape(two_tasks, params, params, params)
        assert state.params == then == shapes


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("odd_leaves", "bfloat16"),
        *(pytest.param(n, d, marks=pytest.mark.slow) for n in trees.NAMES
          for d in trees.DTYPES),
    ],
)  # fmt: skip
def test_trees_of_every_kind(name, dtype):
    params, *new = (trees.make(name, dtype, seed=seed) for seed in range(3))
    state, then = two_tasks(params, *new)
    for (first, owner), second, found, early in zip(
        trees.pairs(new[0], state.owner),
        *(
            map(trees.to_numpy, jax.tree.leaves(t))
            for t in (new[1], state.params, then)
        ),
        strict=True,
    ):
        if owner is None:
            np.testing.assert_array_equal(found, first)
            continue
        assert (np.asarray(owner) == 1).sum() == owner.size - quota(0.4, owner.size)
        mine = np.asarray(owner) == 1
        np.testing.assert_array_equal(found, np.where(mine, first, second))
        np.testing.assert_array_equal(early, np.where(mine, first, 0))


def test_three_hundred_tasks():
    state = packnet.init({"w": np.zeros((1, 301), "f4")}, head=None, capacity=300)

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
    np.testing.assert_array_equal(state.counts, 1)
    for task in (0, 254, 255, 299):
        assert np.sum(packnet.mask(state, task)["w"]) == task + 1
    narrow = shaped({"w": np.zeros((1, 1), "f4")}, head=None, capacity=255)
    assert narrow.owner["w"].dtype == jnp.uint8


def test_seeds_side_by_side_are_those_apart():
    starts = [drawn(seed=seed) for seed in range(2)]
    empty = [packnet.init(start, head=HEAD, capacity=TASKS) for start in starts]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *empty)
    one = functools.partial(two_phases, scope="global")
    both = jax.jit(jax.vmap(one, in_axes=(0, 0, None)))
    rate = jax.device_put(np.float32(0.5))
    for seed in (2, 4):
        new = [drawn(seed=seed), drawn(seed=seed + 1)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *new)
        together = both(together, stacked, rate)
        empty = [one(*pair, rate) for pair in zip(empty, new, strict=True)]
    for i, alone in enumerate(empty):
        for a, b in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
            np.testing.assert_array_equal(a[i], b)


def test_a_fresh_start_of_heads_and_of_free_weights(history):
    state, fresh = history[0], drawn(seed=5)
    for reinit in ("zero", "init"):
        params = packnet.begin(state, fresh, reinit_free=reinit).params
        np.testing.assert_array_equal(params["head"], fresh["head"])
        np.testing.assert_array_equal(params["bias"], state.params["bias"])
        for name in ("a", "b"):
            free = np.asarray(state.owner[name]) == 0
            new = fresh[name] if reinit == "init" else np.zeros_like(fresh[name])
            expected = np.where(free, new, state.params[name])
            np.testing.assert_array_equal(params[name], expected)


def test_what_was_reinitialized_and_freed_is_0_again(history):
    training = packnet.begin(history[0], drawn(seed=5), reinit_free="init")
    pruned = packnet.prune(training, training.params, rate=0.5)
    moved = {name: np.asarray(w) + 1 for name, w in pruned.params.items()}
    state = packnet.commit(pruned, moved)
    for name in ("a", "b"):
        free = np.asarray(state.owner[name]) == 0
        assert free.any()
        assert not np.asarray(pruned.params[name])[free].any()
        assert not np.asarray(state.params[name])[free].any()


def test_without_room_a_traced_task_changes_nothing(history):
    full = history[-1]
    begin = jax.jit(functools.partial(packnet.begin, reinit_free="init"))
    begun = begin(full, drawn(seed=5))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(begun.mask))
    for name in ("a", "b", "bias"):
        np.testing.assert_array_equal(begun.params[name], full.params[name])
    after = turn(full, 0, 0.5)
    assert after.overflowed == 1
    trees.assert_same(after._replace(overflowed=full.overflowed), full)


def test_tasks_are_counted_from_the_last_and_traced_ones_are_no_error(history):
    state = history[1]
    trees.assert_same(packnet.params_of(state, -1), packnet.params_of(state, 1))
    trees.assert_same(packnet.mask(state, -2), packnet.mask(state, 0))
    views = jax.jit(lambda s, t: (packnet.mask(s, t), packnet.params_of(s, t)))
    for task in (2, 3, 99, -3):
        seen, params = views(state, task)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(seen))
        # Nor the head of another.
        assert not any(np.any(params[name]) for name in ("a", "b", "head"))


def test_allotment_counts_in_both_scopes():
    state = shaped(drawn(), head=HEAD, capacity=5)
    assert packnet.allotment(state, rates=(0.5, 0.75)) == (20 + 24, 20 - 15 + 24 - 18)
    assert packnet.allotment(state, rates=(0.3,)) == (88 - 12 - 14,)
    assert packnet.allotment(state, rates=(0.3,), scope="global") == (88 - 26,)
    even = packnet.allotment(state, rates=[1 - 1 / (4 - t) for t in range(4)])
    assert even == (22, 22, 22, 22)


def test_rates_that_leave_a_task_nothing_are_said_at_once():
    state = shaped({"w": np.ones((2, 5), "f4")}, head=None, capacity=4)
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
        packnet.allotment(state, rates=(0.5,), scope="layers")
    small = {"wide": np.ones((4, 9), "f4"), "narrow": np.ones((2, 2), "f4")}
    state = shaped(small, head=None, capacity=4)
    with pytest.raises(ValueError, match=needs + "task 0: none of the 4 of narrow$"):
        packnet.allotment(state, rates=(0.9,))
    assert packnet.allotment(state, rates=(0.5, 0.9)) == (20, 2)


def test_states_of_many_seeds_are_mapped_over():
    init = jax.vmap(functools.partial(packnet.init, head=None, capacity=3))
    params = {"w": np.ones((3, 2, 5), "f4")}
    states = jax.eval_shape(init, params)
    needs = r"needs a single state, got a stack of \(3,\). Map over it with `jax.vmap`"
    with pytest.raises(ValueError, match="allotment` " + needs):
        packnet.allotment(states, rates=(0.5,))
    with pytest.raises(ValueError, match="begin` " + needs):
        packnet.begin(states)
    with pytest.raises(ValueError, match="params_of` " + needs):
        packnet.params_of(states, 0)
    begun = jax.jit(lambda p: jax.vmap(packnet.begin)(init(p)))(params)
    assert begun.mask["w"].shape == (3, 2, 5)
    assert np.all(begun.mask["w"])


def test_a_task_that_leaves_nothing_is_warned_of_once_with_the_count():
    params = {"w": np.ones((2, 600), "f4")}
    training = packnet.begin(packnet.init(params, head=None, capacity=2))
    with pytest.warns(UserWarning, match="prune` leaves task 0 none of its 1,200 wei"):
        packnet.prune(training, params, rate=1)
    late = r"leaves later tasks no weights: task 0 keeps all of its 1,200\."
    with pytest.warns(UserWarning, match="prune` " + late):
        pruned = packnet.prune(training, params, rate=0)
    state = packnet.commit(pruned, params)  # was said
    with pytest.warns(UserWarning, match="commit` " + late):
        packnet.commit(training, params)
    # The last task may keep all that there is, even if that is nothing.
    last = packnet.begin(state)
    packnet.commit(packnet.prune(last, params, rate=0), params)
    # Not known.
    jax.eval_shape(lambda t: packnet.prune(t, params, rate=1), training)


def test_a_leaf_that_the_first_task_leaves_empty_is_named():
    # Where a leaf keeps nothing, nothing gets through.
    small = {"wide": np.ones((4, 9), "f4"), "narrow": np.ones((2, 2), "f4")}
    first = packnet.begin(packnet.init(small, head=None, capacity=3))
    with pytest.warns(UserWarning, match="prune` leaves task 0 no weights in narrow"):
        pruned = packnet.prune(first, small, rate=0.9)
    second = packnet.begin(packnet.commit(pruned, small))
    packnet.prune(second, small, rate=0.9)  # which has those of the first


def test_phases_out_of_order_are_refused():
    params = {"w": np.ones((2, 5), "f4")}

    def phases(params):
        training = packnet.begin(packnet.init(params, head=None, capacity=4))
        pruned = packnet.prune(training, params, rate=0.5)
        return training.state, training, pruned

    state, training, pruned = jax.eval_shape(phases, params)
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


def test_tasks_without_room_and_unknown_ones_are_refused(history):
    with pytest.raises(
        ValueError, match="begin` needs room for 1 more, but 4 of 4 are"
    ):
        packnet.begin(history[-1])
    for task in (2, -3, 7):
        needs = f"needs a learned task, got {task}, and 2 of 4 are learned"
        with pytest.raises(ValueError, match="mask` " + needs):
            packnet.mask(history[1], task)
        with pytest.raises(ValueError, match="params_of` " + needs):
            packnet.params_of(history[1], task)
    for task in (1.0, np.array([0, 1]), "first"):
        with pytest.raises(TypeError, match="params_of` needs `task` as one integer"):
            packnet.params_of(history[1], task)


def test_a_head_of_the_wrong_width_is_named(history):
    state, start = history[0], drawn()
    wide = {**start, "head": np.ones((6, 4), "f4")}
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
    half = {**start, "a": np.asarray(start["a"]).astype(jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"(?s)a: bfloat16 array.*network float32"):
        packnet.prune(training, half, rate=0.5)
    with pytest.raises(ValueError, match="(?s)only in `network`: head"):
        packnet.prune(training, {n: start[n] for n in ("a", "b", "bias")}, rate=0.5)


def test_bad_arguments_are_refused(history):
    start = drawn()
    with pytest.raises(ValueError, match="init` needs `capacity` of at least 1, got 0"):
        packnet.init(start, head=HEAD, capacity=0)
    for capacity in (2.5, jax.device_put(np.int32(2))):
        with pytest.raises(TypeError, match="init` needs `capacity` as a whole number"):
            packnet.init(start, head=HEAD, capacity=capacity)
    needs = r"`head` to choose.*where\.matching\('hed'\) chooses none of: a, b"
    with pytest.raises(ValueError, match=needs):
        packnet.init(start, head=where.matching("hed"), capacity=2)
    with pytest.raises(ValueError, match="weights that are not of the `head`"):
        packnet.init(start, head=where.kernels, capacity=2)
    with pytest.raises(TypeError, match="floating"):
        packnet.init({"w": np.ones((2, 2), int)}, head=None, capacity=2,
                     where=where.everything)  # fmt: skip
    state = history[0]
    with pytest.raises(ValueError, match="`fresh`, with `reinit_free` as 'init'"):
        packnet.begin(state, reinit_free="init")
    alone = packnet.init(start, head=None, capacity=2)
    with pytest.raises(ValueError, match="begin` needs `fresh` for a task's own.*none"):
        packnet.begin(alone, start)
    jax.eval_shape(lambda s: packnet.begin(s, start, reinit_free="init"), alone)
    with pytest.raises(
        ValueError, match="`reinit_free` as 'zero' or 'init', got 'one'"
    ):
        packnet.begin(state, reinit_free="one")
    training = packnet.begin(state)
    with pytest.raises(ValueError, match=r"`rate` in \[0, 1\], got 1.5"):
        packnet.prune(training, start, rate=1.5)
    with pytest.raises(ValueError, match="`scope` as 'leaf' or 'global'"):
        packnet.prune(training, start, rate=0.5, scope="layers")
