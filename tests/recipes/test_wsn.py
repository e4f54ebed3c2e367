"""Winning SubNetworks: by hand, against NumPy, and as the paper promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskjax
from maskjax import algebra, bank, optim, packing, where
from maskjax.recipes import edge_popup, wsn
from tests import trees
from tests.networks import HEAD, SHAPES, drawn, loss, network
from tests.reference import wsn as reference
from tests.reference.selection import quota

TASKS, DENSITY, STEPS, LR = 4, 0.3, 6, 1.0
RNG = np.random.default_rng(0)
X = RNG.normal(size=(TASKS, 12, 5)).astype(np.float32)
Y = RNG.normal(size=(TASKS, 12, 3)).astype(np.float32)
HEADS = RNG.normal(size=(TASKS, *SHAPES["head"])).astype(np.float32)
KEY = jax.random.key(5)
NAMES = ("a", "b")


def fit(training, x, y, density, optimizer):
    """A user's own loop, over weights and scores together."""
    frozen = optim.mask_updates((training.mask, True))
    optimizer = optax.chain(optimizer, frozen)

    def objective(both):
        params, scores = both
        soft = wsn.soft_mask(scores, density=density)
        return loss(maskjax.apply(params, soft), x, y)

    def step(carry, _):
        both, opt_state = carry
        slopes = jax.grad(objective)(both)
        with jax.numpy_dtype_promotion("standard"):  # which Adam needs
            updates, opt_state = optimizer.update(slopes, opt_state, both)
        return (optax.apply_updates(both, updates), opt_state), None

    start = training.params, training.scores
    carry = start, optimizer.init(start)
    return jax.lax.scan(step, carry, length=STEPS)[0][0]


def learn(state, x, y, density, fresh, optimizer=optax.sgd(LR)):
    """One task, from beginning to end."""
    training = wsn.begin(state, fresh)
    params, scores = fit(training, x, y, density, optimizer)
    mask = wsn.mask(scores, density=density)
    return wsn.commit(training, params, scores, mask)


LEARN = jax.jit(learn)


def turn(state, task, density=DENSITY):
    """A task learned by the one program that most tests share."""
    fresh = {**drawn(), "head": HEADS[task]}
    return LEARN(state, X[task], Y[task], np.float32(density), fresh)


def empty(*, capacity=TASKS, seed=0):
    return wsn.init(drawn(seed=seed), head=HEAD, capacity=capacity, key=KEY)


@pytest.fixture(scope="module")
def history():
    """The states after each task."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        state, states = empty(), []
        for task in range(TASKS):
            state = turn(state, task)
            states.append(state)
    assert LEARN._cache_size() == 1
    return states


def masks_of(state):
    """The masks of all slots, as booleans."""
    return {n: np.asarray(packing.unpack(state.masks.masks)[n]) for n in NAMES}


def test_two_tasks_by_hand():
    start = {"w": np.float32([[1, 2, 3, 4]]), "head": np.float32([[9]])}
    kept = [{"w": np.array([[True, True, False, False]]), "head": None},
            {"w": np.array([[True, False, True, False]]), "head": None}]  # fmt: skip
    moved = [
        {"w": np.float32([[5, 6, 7, 8]]), "head": np.float32([[1]])},
        {"w": np.float32([[50, 60, 70, 80]]), "head": np.float32([[2.0]])},
    ]
    state = wsn.init(start, head=HEAD, capacity=2, key=KEY)
    first = wsn.begin(state)
    trees.assert_same(first.params, jax.tree.map(jnp.asarray, start))
    assert np.all(first.mask["w"])
    scores = jax.tree.map(lambda s: s + 1, first.scores)
    state = wsn.commit(first, moved[0], scores, kept[0])
    np.testing.assert_array_equal(state.params["w"], [[5, 6, 7, 8]])
    second = wsn.begin(state)
    # What the first task uses is frozen; the head is new, the scores go on.
    np.testing.assert_array_equal(second.mask["w"], [[False, False, True, True]])
    np.testing.assert_array_equal(second.params["head"], [[9]])
    trees.assert_same(second.scores, scores)
    state = wsn.commit(second, moved[1], scores, packing.pack(kept[1]))
    np.testing.assert_array_equal(state.params["w"], [[5, 6, 70, 80]])
    np.testing.assert_array_equal(state.counts, [2, 2])
    np.testing.assert_array_equal(state.reused, [0, 1])
    np.testing.assert_array_equal(wsn.union(state)["w"], [[True, True, True, False]])
    for task, (w, head) in enumerate((([[5, 6, 0, 0]], 1), ([[5, 0, 70, 0]], 2))):
        found = wsn.params_of(state, task)
        np.testing.assert_array_equal(found["w"], w)
        np.testing.assert_array_equal(found["head"], [[head]])


def test_a_sequence_agrees_with_the_reference(history):
    wide = {name: np.float64(w) for name, w in drawn().items()}
    scores = {name: np.float64(empty().scores[name]) for name in NAMES}
    pairs = [(np.float64(a), np.float64(b)) for a, b in zip(X, Y, strict=True)]
    how = {"density": DENSITY, "steps": STEPS, "lr": LR}
    learned = reference.learn(wide, scores, [*np.float64(HEADS)], pairs, **how)
    state = history[-1]
    for name in NAMES:
        found = masks_of(state)[name]
        np.testing.assert_array_equal(found, [m[name] for m in learned.masks])
        np.testing.assert_allclose(
            state.scores[name], learned.scores[name], rtol=1e-4, atol=1e-5
        )
    for name in (*NAMES, "bias"):
        expected = learned.params[name]
        np.testing.assert_allclose(state.params[name], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        state.slots["head"], np.stack(learned.heads), rtol=1e-4, atol=1e-5
    )


def test_what_a_task_uses_is_frozen_and_the_rest_trains(history):
    used = {name: np.zeros(SHAPES[name], bool) for name in NAMES}
    before = empty()
    for task, state in enumerate(history):
        training = wsn.begin(before) if task else wsn.begin(empty())
        for name in NAMES:
            np.testing.assert_array_equal(training.mask[name], ~used[name])
            same = np.asarray(state.params[name]) == np.asarray(before.params[name])
            assert same[used[name]].all()
            mine = masks_of(state)[name][task]
            assert not same[mine & ~used[name]].all() or not (mine & ~used[name]).any()
            moved = np.asarray(state.scores[name]) != np.asarray(before.scores[name])
            assert moved[used[name]].any() or task == 0  # scores move everywhere
            assert moved[~mine].any()
            used[name] |= mine
            np.testing.assert_array_equal(wsn.union(state)[name], used[name])
        before = state
    assert wsn.union(state)["bias"] is wsn.union(state)["head"] is None


def test_capacity_is_that_of_the_union_and_reuse_the_overlap_with_the_past(history):
    sizes = [int(np.prod(SHAPES[name])) for name in NAMES]
    each = sum(quota(DENSITY, n) for n in sizes)
    past = {name: np.zeros(SHAPES[name], bool) for name in NAMES}
    for task, state in enumerate(history):
        masks = masks_of(state)
        again = sum((masks[n][task] & past[n]).sum() for n in NAMES)
        past = {n: m | masks[n][task] for n, m in past.items()}
        assert state.counts[task] == each
        assert state.reused[task] == again
        assert not np.any(state.counts[task + 1 :])
        used = sum(m.sum() for m in past.values())
        np.testing.assert_allclose(
            algebra.density(wsn.union(state)), used / sum(sizes), rtol=1e-6
        )
        np.testing.assert_array_equal(
            np.cumsum(state.counts - state.reused)[task], used
        )  # each task adds what it does not reuse
    assert 0 < np.sum(state.reused)


def test_old_tasks_say_the_same_to_the_bit_under_adam_and_weight_decay():
    adam = optax.adamw(0.05, weight_decay=0.1)
    train = jax.jit(functools.partial(learn, optimizer=adam))
    says = jax.jit(lambda state, task, x: network(wsn.params_of(state, task), x))
    state, said, before = empty(), [], []
    for task in range(TASKS):
        fresh = {**drawn(), "head": HEADS[task]}
        state = train(state, X[task], Y[task], np.float32(0.5), fresh)
        said.append(np.asarray(says(state, task, X[0])))
        before.append(jax.device_get(wsn.params_of(state, task)))
        for old in range(task + 1):
            found = np.asarray(says(state, old, X[0]))
            assert found.tobytes() == said[old].tobytes()
            trees.assert_same(jax.device_get(wsn.params_of(state, old)), before[old])
    assert len({out.tobytes() for out in said}) == TASKS
    assert train._cache_size() == 1
    # Free weights moved by decay alone: they are not what a task uses.
    free = ~np.asarray(wsn.union(state)["a"])
    assert not free.any() or (np.asarray(state.params["a"]) != drawn()["a"])[free].all()


def test_weights_of_no_task_are_0_and_masks_are_of_one_bit(history):
    state = history[-1]
    for task in range(TASKS):
        params, mask = wsn.params_of(state, task), bank.take(state.masks, task)
        for name in NAMES:
            kept = np.asarray(packing.unpack(mask)[name])
            assert kept.sum() == quota(DENSITY, kept.size)
            expected = np.where(kept, state.params[name], 0)
            np.testing.assert_array_equal(params[name], expected)
        np.testing.assert_array_equal(params["head"], state.slots["head"][task])
        np.testing.assert_array_equal(params["bias"], state.params["bias"])
    wide = wsn.init({"w": np.ones((64, 96), "f4")}, head=None, capacity=20, key=KEY)
    assert wide.masks.masks["w"].nbytes == 20 * 64 * 96 // 8


def test_the_soft_mask_is_that_of_edge_popup_and_its_gradient_reaches_weights_too():
    scores = {"w": jnp.float32([[-0.3, 0.2, 0.1, -0.9]])}
    params = {"w": jnp.float32([[2.0, -1.0, 4.0, 3.0]])}

    @functools.partial(jax.jit, static_argnames="recipe")
    def pull(params, scores, density, recipe):
        def total(params, scores):
            soft = recipe(scores, density=density)
            return jnp.sum(maskjax.apply(params, soft)["w"]), soft

        return jax.grad(total, argnums=(0, 1), has_aux=True)(params, scores)

    (by_params, by_scores), soft = pull(params, scores, 0.5, wsn.soft_mask)
    np.testing.assert_array_equal(soft["w"], [[1, 0, 0, 1]])
    np.testing.assert_array_equal(by_params["w"], [[1, 0, 0, 1]])
    # The weight times the sign of the score, also where the mask is 0.
    np.testing.assert_array_equal(by_scores["w"], [[-2, -1, 4, -3]])
    for density in (0.0, 0.3, 1.0):
        found = pull(params, scores, density, wsn.soft_mask)
        trees.assert_same(found, pull(params, scores, density, edge_popup.soft_mask))


def test_a_guess_changes_nothing_and_cutoffs_lie_between():
    scores = {name: drawn()[name] for name in NAMES}
    how = {"density": 0.4, "scope": "global"}
    soft, cutoffs = wsn.soft_mask(scores, **how, return_cutoff=True)
    hard = wsn.mask(scores, **how)
    trees.assert_same(soft, jax.tree.map(lambda m: m.astype(jnp.float32), hard))
    trees.assert_same(wsn.soft_mask(scores, **how, guess=cutoffs), soft)
    assert sum(m.sum() for m in hard.values()) == quota(0.4, 88)
    for name, m in hard.items():
        sizes = np.abs(scores[name])
        assert sizes[np.asarray(m)].min() >= cutoffs[name]
        assert sizes[~np.asarray(m)].max() <= cutoffs[name]


def test_a_scan_over_tasks_is_a_loop(history):
    def one(state, task):
        x, y, head = task
        return learn(state, x, y, np.float32(DENSITY), {**drawn(), "head": head}), ()

    scanned, _ = jax.jit(lambda s: jax.lax.scan(one, s, (X, Y, HEADS)))(empty())
    for a, b in zip(*map(jax.tree.leaves, (scanned, history[-1])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    trees.assert_same(scanned.masks, history[-1].masks)


def one_task(state, params, scores, density):
    training = wsn.begin(state)
    mask = wsn.mask(scores, density=density)
    return wsn.commit(training, params, scores, mask)


def test_seeds_side_by_side_are_those_apart():
    together = jax.vmap(lambda p, k: wsn.init(p, head=HEAD, capacity=2, key=k))
    seeds = [drawn(seed=i) for i in range(3)]
    starts = jax.tree.map(lambda *x: np.stack(x), *seeds)
    keys = jax.random.split(KEY, 3)
    both = jax.jit(
        lambda p, k: jax.vmap(one_task, (0, 0, 0, None))(
            s := together(p, k), p, s.scores, jnp.float32(0.4)
        )
    )(starts, keys)
    for i, params in enumerate(seeds):
        state = wsn.init(params, head=HEAD, capacity=2, key=keys[i])
        state = one_task(state, params, state.scores, jnp.float32(0.4))
        trees.assert_same(jax.tree.map(lambda x, i=i: x[i], both), state)


def test_biases_are_of_the_first_task_and_heads_of_each(history):
    biases = np.stack([state.params["bias"] for state in history])
    assert (biases[0] != np.asarray(drawn()["bias"])).any()
    np.testing.assert_array_equal(biases, np.broadcast_to(biases[0], biases.shape))
    heads = np.asarray(history[-1].slots["head"])
    assert len({head.tobytes() for head in heads}) == TASKS
    np.testing.assert_array_equal(history[-1].params["head"], drawn()["head"])


def test_where_all_weights_are_used_later_tasks_still_learn_masks_and_heads(history):
    state = turn(turn(empty(), 0, 1), 1)
    assert np.all(wsn.union(state)["a"])
    assert state.reused[1] == state.counts[1] == history[0].counts[0]
    first = turn(empty(), 0, 1)
    for name in NAMES:
        np.testing.assert_array_equal(state.params[name], first.params[name])
        assert (np.asarray(state.scores[name]) != np.asarray(first.scores[name])).any()
    assert (np.asarray(state.slots["head"][1]) != HEADS[1]).any()


def test_without_room_a_traced_task_changes_nothing(history):
    full = history[-1]
    begun = jax.jit(wsn.begin)(full)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(begun.mask))
    after = turn(full, 0)
    assert after.masks.overflowed == 1
    masks = after.masks._replace(overflowed=full.masks.overflowed)
    trees.assert_same(after._replace(masks=masks), full)


def test_tasks_are_counted_from_the_last_and_traced_ones_are_no_error(history):
    state = history[1]
    trees.assert_same(wsn.params_of(state, -1), wsn.params_of(state, 1))
    trees.assert_same(wsn.params_of(state, -2), wsn.params_of(state, 0))
    view = jax.jit(wsn.params_of)
    for task in (2, 3, 99, -3):
        params = view(state, task)
        assert not any(np.any(params[name]) for name in (*NAMES, "head"))


def test_a_loop_may_donate_what_it_is_given():
    start = {n: jax.device_put(w) for n, w in drawn().items()}
    descend = jax.jit(
        lambda both: jax.tree.map(lambda w: w + 1, both), donate_argnums=0
    )
    state = wsn.init(start, head=HEAD, capacity=2, key=KEY)
    for _ in range(2):
        training = wsn.begin(state)
        given = training.params, training.scores
        params, scores = descend(given)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        later = wsn.commit(training, params, scores, wsn.mask(scores, density=0.3))
        descend((params, scores))
        state = jax.jit(lambda s: s._replace(counts=s.counts + 0), donate_argnums=0)(
            later
        )
    early = wsn.params_of(state, 0)
    descend(wsn.params_of(state, 0))  # a copy
    trees.assert_same(wsn.params_of(state, 0), early)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(start))


def two_tasks(params, *, choose):
    state = wsn.init(params, head=None, capacity=2, where=choose, key=KEY)
    for _ in range(2):
        state = one_task(state, params, state.scores, 0.4)
    return state, wsn.params_of(state, 0)


@pytest.mark.parametrize("name", trees.NAMES)
def test_trees_of_every_kind_keep_structure_and_dtypes(name):
    choose = trees.WHERE & where.matching("^(?!empty)")  # without fan-in
    for dtype in trees.DTYPES:
        params = trees.make(name, dtype)
        run = functools.partial(two_tasks, choose=choose)
        state, then = jax.eval_shape(run, params)
        shapes = jax.eval_shape(lambda w: w, params)
        assert state.params == then == shapes
        for w, s in trees.pairs(params, state.scores):
            assert s is None or s.shape == w.shape


# --- bad input


def test_phases_out_of_order_and_wrong_states_are_refused():
    params = {"w": np.ones((2, 5), "f4")}
    init = functools.partial(wsn.init, head=None, capacity=4, key=KEY)
    state = jax.eval_shape(init, params)
    training = jax.eval_shape(wsn.begin, state)
    order = "For each task call `begin` and `commit`, in this order"
    with pytest.raises(
        TypeError, match="wsn.begin` needs a `WSNState`, got Training. " + order
    ):
        wsn.begin(training)
    with pytest.raises(
        TypeError, match="wsn.commit` needs a `Training`, got WSNState. " + order
    ):
        wsn.commit(state, params, params, params)


def test_tasks_without_room_and_unknown_ones_are_refused(history):
    with pytest.raises(
        ValueError, match="wsn.begin` needs room for 1 more, but 4 of 4"
    ):
        wsn.begin(history[-1])
    training = wsn.begin(history[-2])
    late = training._replace(state=history[-1])
    mask = wsn.mask(training.scores, density=0.5)
    with pytest.raises(ValueError, match="wsn.commit` needs room for 1 more, but 4 of"):
        wsn.commit(late, training.params, training.scores, mask)
    for task in (2, -3, 7):
        needs = f"params_of` needs a learned task, got {task}, and 2 of 4 are learned"
        with pytest.raises(ValueError, match=needs):
            wsn.params_of(history[1], task)
    with pytest.raises(TypeError, match="params_of` needs `task` as one integer"):
        wsn.params_of(history[1], 1.0)


def test_trees_that_do_not_fit_are_named(history):
    state, start = history[0], drawn()
    wide = {**start, "head": np.ones((6, 4), "f4")}
    shapes = r"head: float32 array of shape \(6, 4\), network .*\(6, 3\)"
    with pytest.raises(ValueError, match="(?s)begin` needs `fresh` of the.*" + shapes):
        wsn.begin(state, wide)
    training = wsn.begin(state)
    mask = wsn.mask(training.scores, density=0.5)
    commit = functools.partial(wsn.commit, training)
    with pytest.raises(ValueError, match="(?s)commit` needs `params` of.*" + shapes):
        commit(wide, training.scores, mask)
    with pytest.raises(ValueError, match="(?s)commit` needs `network` and `scores` of"):
        commit(start, {name: training.scores[name] for name in NAMES}, mask)
    narrow = {**training.scores, "a": np.ones((5, 8), "f2")}
    with pytest.raises(ValueError, match="(?s)`scores` of the.*a: float16.*float32"):
        commit(start, narrow, mask)
    units = {**mask, "a": np.ones((5, 1), bool)}
    with pytest.raises(
        ValueError, match=r"(?s)commit` needs `network` and `mask`.*a: .*mask \(5, 1\)"
    ):
        commit(start, training.scores, units)
    with pytest.raises(ValueError, match=r"(?s)commit` needs.*bias: .*None, mask \(8,"):
        commit(start, training.scores, {**mask, "bias": np.ones(8, bool)})
    with pytest.raises(TypeError, match="(?s)commit` needs every leaf of `mask` to be"):
        commit(start, training.scores, training.scores)
    stack = jax.tree.map(lambda m: jnp.stack([m, m]), mask)
    with pytest.raises(ValueError, match=r"(?s)commit` needs packed.*a stack of masks"):
        commit(start, training.scores, jax.vmap(packing.pack)(stack))


def test_bad_arguments_are_refused():
    start = drawn()
    init = functools.partial(wsn.init, head=HEAD, capacity=2, key=KEY)
    with pytest.raises(ValueError, match="wsn.init` needs `capacity` of at least 1"):
        init(start, capacity=0)
    with pytest.raises(TypeError, match="wsn.init` needs `capacity` as a whole number"):
        init(start, capacity=2.5)
    with pytest.raises(TypeError, match="wsn.init` needs `key` as a typed key"):
        init(start, key=np.uint32([0, 1]))
    with pytest.raises(ValueError, match="(?s)wsn.init` needs `head` to choose.*'hed'"):
        init(start, head=where.matching("hed"))
    with pytest.raises(ValueError, match="weights that are not of the `head`"):
        init(start, head=where.kernels)
    with pytest.raises(TypeError, match="(?s)wsn.init` needs.*floating.*w: int"):
        init({"w": np.ones((2, 2), int)}, head=None, where=where.everything)
    with pytest.raises(ValueError, match="(?s)maskjax.recipes.wsn.init` needs.*bias"):
        init(start, where=where.floating)  # a bias has no fan-in
    alone = init(start, head=None)
    with pytest.raises(ValueError, match="begin` needs `fresh` for a task's own.*none"):
        wsn.begin(alone, start)
    scores = alone.scores
    for rule, name in ((wsn.mask, "mask"), (wsn.soft_mask, "soft_mask")):
        with pytest.raises(
            ValueError, match=rf"wsn.{name}` needs `density` in \[0, 1\]"
        ):
            rule(scores, density=1.5)
        with pytest.raises(
            TypeError, match=f"wsn.{name}` needs every leaf of `scores`"
        ):
            rule({"w": np.ones(2, int)}, density=0.5)
        with pytest.raises(ValueError, match=f"wsn.{name}` needs `scope` as 'leaf'"):
            rule(scores, density=0.5, scope="layers")
