"""Deconstructing lottery tickets: by hand, against NumPy, and the paper's laws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import masking, packing, score, select, stacking
from maskjax.recipes import deconstructing
from tests import trees
from tests.reference import deconstructing as reference
from tests.reference.selection import quota

SHAPES = {"a": (5, 8), "b": (8, 3)}
RATES = {"a": 0.2, "b": 0.1, "bias": None}
KEPT = ("rewind", "reinit", "reshuffle", "constant")
SIGNS = ("original", "random")
SHRUNK = ("freeze_init_zero_mask", "freeze_init_zero_all")
REMOVED = (
    *("zero", "freeze_init"),
    *(a + b for a, b in itertools.product(SHRUNK, ("", "_rev"))),
)
RESHUFFLED = tuple(name + "_reshuffle" for name in SHRUNK)


def weights(seed, **shapes):
    rng = np.random.default_rng(seed)
    shapes = shapes or {**SHAPES, "bias": (3,)}
    return {k: jnp.asarray(rng.normal(size=s), "float32") for k, s in shapes.items()}


def numpy(tree):
    return {k: None if x is None else np.asarray(x) for k, x in tree.items()}


@pytest.fixture
def trained():
    return weights(0), weights(1)


@pytest.fixture
def gradients():
    return weights(2)


@pytest.fixture
def alive(trained):
    """Everything, and what a round left of it."""
    mask = select.random(trained[0], density=0.7, key=jax.random.key(7))
    return masking.everything(trained[0]), mask


@jax.jit
def table_of(initial, final, alive, gradients=None, seed=0):
    return deconstructing.scores(
        initial, final, alive, gradients=gradients, key=jax.random.key(seed)
    )


def masks_of(initial, final, alive, gradients, rates):
    """One program for every criterion: scores stacked, selection mapped."""
    table = deconstructing.scores(
        initial, final, alive, gradients=gradients, key=jax.random.key(0)
    )
    stack = stacking.stack(list(table.values()))
    masks = jax.vmap(lambda scores: select.drop(scores, alive, rate=rates))(stack)
    return dict(zip(table, stacking.unstack(masks), strict=True))


RESTART = jax.jit(deconstructing.restart, static_argnames=("kept", "sign", "removed"))


def restarted(trained, mask, *, seed=0, **actions):
    return RESTART(*trained, mask, key=jax.random.key(seed), **actions)


def test_scores_by_hand():
    initial = {"w": jnp.array([[1.0, -2.0, 3.0, -4.0]])}
    final = {"w": jnp.array([[-5.0, -1.0, 4.0, 2.0]])}
    table = table_of(initial, final, masking.everything(initial))
    expected = {
        "large_final": [5, 1, 4, 2],
        "small_final": [-5, -1, -4, -2],
        "large_init": [1, 2, 3, 4],
        "small_init": [-1, -2, -3, -4],
        # From the highest, ranks are 4 3 2 1 and 1 4 2 3: the worse ones are 4 4 2 3.
        "large_init_large_final": [1, 1, 3, 2],
        # Ranks are 1 2 3 4 and 4 1 3 2: the worse ones are 4 2 3 4.
        "small_init_small_final": [-4, -2, -3, -4],
        "magnitude_increase": [4, -1, 1, -2],
        "movement": [6, 1, 1, 6],
        "large_final_same_sign": [0, 1, 4, 0],
        "large_final_diff_sign": [5, 0, 0, 2],
        "magnitude_increase_same_sign": [0, -1, 1, 0],
        "magnitude_increase_diff_sign": [4, 0, 0, -2],
    }
    random = table.pop("random")["w"]
    assert ((random >= 0) & (random < 1)).all()
    assert table.keys() == expected.keys()
    for name, scores in table.items():
        np.testing.assert_array_equal(scores["w"], [expected[name]], err_msg=name)


@pytest.mark.parametrize("first", [True, False], ids=["everything", "a mask"])
def test_every_criterion_agrees_with_the_reference(
    first, trained, gradients, alive, every_transform
):
    alive = alive[0] if first else alive[1]
    rates = jax.tree.map(jnp.float32, RATES)
    masks = every_transform(masks_of)(*trained, alive, gradients, rates)
    w_i, w_f, slope, before = map(numpy, (*trained, gradients, alive))
    for name in SHAPES:
        n = int(before[name].sum())
        k = n - quota(RATES[name], n)
        arguments = w_i[name], w_f[name], slope[name], before[name], k
        for criterion, mask in masks.items():
            assert mask["bias"] is None
            assert mask[name].sum() == k
            assert not (mask[name] & ~before[name]).any()
            if criterion != "random":
                expected = reference.mask(criterion, *arguments)
                np.testing.assert_array_equal(mask[name], expected, err_msg=criterion)


def test_criteria_that_rank_do_so_at_every_count(trained, alive):
    cut = jax.vmap(lambda s, m, rate: select.drop(s, m, rate=rate), (None, None, 0))
    w_i, w_f = (numpy(w)["b"] for w in trained)
    for mask in alive:
        before = np.asarray(mask["b"])
        n = int(before.sum())
        rates = 1 - jnp.arange(n + 1, dtype=jnp.float32) / n
        table = table_of(*trained, mask)
        for criterion in reference.RANKED:
            masks = jax.jit(cut)(table[criterion], mask, rates)["b"]
            for k, kept in enumerate(np.asarray(masks)):
                expected = reference.mask(criterion, w_i, w_f, w_i, before, k)
                np.testing.assert_array_equal(kept, expected, err_msg=f"{k} of {n}")


def test_dead_weights_do_not_change_ranks(trained, alive):
    _, mask = alive
    loud = [
        masking.apply(w, mask, fill=jax.tree.map(lambda x: 99 * x, w)) for w in trained
    ]
    table, expected = (table_of(*pair, mask) for pair in (loud, trained))
    for name in reference.RANKED:
        trees.assert_same(
            masking.apply(table[name], mask), masking.apply(expected[name], mask)
        )


def test_counts_are_exact_when_every_score_is_equal(trained, gradients, alive):
    equal = [jax.tree.map(jnp.ones_like, tree) for tree in (*trained, gradients)]
    for before in alive:
        masks = masks_of(*equal[:2], before, equal[2], RATES)
        masks.pop("random")
        assert len(masks) == 14
        for name in SHAPES:
            flat = np.asarray(before[name]).ravel()
            k = flat.sum() - quota(RATES[name], int(flat.sum()))
            lowest = (flat & (np.cumsum(flat) <= k)).reshape(SHAPES[name])
            for mask in masks.values():
                np.testing.assert_array_equal(mask[name], lowest)


def test_criteria_depend_on_what_they_should(trained, alive):
    initial, final = trained
    mask = alive[0]
    negative = jax.tree.map(jnp.negative, initial)
    table = table_of(initial, final, mask)
    other = table_of(initial, weights(5), mask, seed=1)
    swapped = table_of(final, initial, mask)
    flipped = table_of(negative, final, mask)
    for name in ("large_init", "small_init"):
        trees.assert_same(table[name], other[name])
    for name in table.keys() - {"large_init", "small_init"}:
        assert (table[name]["a"] != other[name]["a"]).any(), name
    trees.assert_same(table["movement"], swapped["movement"])
    for name in ("magnitude_increase", "large_final", *reference.RANKED):
        trees.assert_same(table[name], flipped[name])
    for name in ("large_final", "magnitude_increase"):
        same, diff = f"{name}_same_sign", f"{name}_diff_sign"
        trees.assert_same(table[same], flipped[diff])
        trees.assert_same(table[diff], flipped[same])
        for leaf in SHAPES:
            assert not ((table[same][leaf] != 0) & (table[diff][leaf] != 0)).any()


def test_masks_of_one_sign_are_where_scores_are_positive(trained, alive):
    initial, final = trained
    still = {**final, "a": final["a"].at[0].set(0.0)}
    table = table_of(initial, still, alive[0])
    for name in SHAPES:
        w_i, w_f = np.asarray(initial[name]), np.asarray(still[name])
        same = table["large_final_same_sign"][name] > 0
        diff = table["large_final_diff_sign"][name] > 0
        np.testing.assert_array_equal(same, w_i * w_f > 0)
        np.testing.assert_array_equal(diff, w_i * w_f < 0)


@pytest.mark.parametrize("removed", REMOVED)
@pytest.mark.parametrize("kept", ["rewind", "constant"])
def test_actions_agree_with_the_reference(kept, removed, trained, alive):
    mask = alive[1]
    start = restarted(trained, mask, kept=kept, removed=removed)
    trees.assert_same(start["bias"], trained[0]["bias"])
    for name in SHAPES:
        arguments = (numpy(tree)[name] for tree in (*trained, mask))
        expected = reference.start(*arguments, kept, removed)
        np.testing.assert_array_equal(start[name] == 0, expected == 0)
        gone = ~np.asarray(mask[name])
        np.testing.assert_array_equal(start[name][gone], expected[gone])
        rtol = 1e-6 if kept == "constant" else 0  # a deviation is a sum
        np.testing.assert_allclose(start[name], expected, rtol=rtol)


@pytest.mark.parametrize("removed", RESHUFFLED)
def test_control_zeros_are_as_many_at_random_places(removed, trained, alive):
    mask = alive[1]
    starts = [restarted(trained, mask, removed=removed, seed=i) for i in range(2)]
    aimed = removed.removesuffix("_reshuffle")
    for name in SHAPES:
        w_i, w_f, kept = (numpy(tree)[name] for tree in (*trained, mask))
        expected = reference.zeros(w_i, w_f, kept, aimed)
        first, second = (np.asarray(start[name] == 0) for start in starts)
        assert first.sum() == second.sum() == expected.sum()
        if name == "a":  # which is large enough not to meet by chance
            assert (first != second).any()
            assert (first != expected).any()
        assert (first & kept).any() == ("all" in removed)
        np.testing.assert_array_equal(np.asarray(starts[0][name])[~first], w_i[~first])


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("kept", KEPT)
def test_kept_weights_have_the_values_and_signs_asked_for(kept, sign, trained, alive):
    mask = alive[1]
    run = {"kept": kept, "sign": sign, "removed": "freeze_init"}
    start, again = (restarted(trained, mask, seed=i, **run) for i in range(2))
    for name in SHAPES:
        w_i, m = np.asarray(trained[0][name]), np.asarray(mask[name])
        new, other = np.asarray(start[name]), np.asarray(again[name])
        np.testing.assert_array_equal(new[~m], w_i[~m])
        if sign == "original":
            np.testing.assert_array_equal(np.sign(new[m]), np.sign(w_i[m]))
        else:
            assert (np.sign(new[m]) != np.sign(w_i[m])).any()
            assert (np.sign(new[m]) == np.sign(w_i[m])).any()
        fixed = sign == "original" and kept in ("rewind", "constant")
        assert (new == other).all() == fixed
        sizes, whole = np.abs(new[m]), np.abs(w_i)
        if kept == "rewind":
            np.testing.assert_array_equal(sizes, whole[m])
        elif kept == "constant":
            assert len(np.unique(sizes)) == 1
            np.testing.assert_allclose(sizes, w_i.std(), rtol=1e-6)
        elif kept == "reshuffle":
            np.testing.assert_array_equal(np.sort(sizes), np.sort(whole[m]))
            if sign == "random":  # values come with their signs
                np.testing.assert_array_equal(np.sort(new[m]), np.sort(w_i[m]))
        else:
            assert np.isin(sizes, whole).all()
            assert len(np.unique(sizes)) == m.sum()
            assert not np.isin(sizes, whole[m]).all()


def test_reinit_under_a_full_mask_is_a_permutation(trained, alive):
    start = restarted(trained, alive[0], kept="reinit", sign="random")
    for name in SHAPES:
        old, new = np.asarray(trained[0][name]), np.asarray(start[name])
        np.testing.assert_array_equal(np.sort(old.ravel()), np.sort(new.ravel()))
        assert (old != new).any()


def test_permutations_are_uniform():
    # Two of three are kept. "reshuffle" swaps them or not, and "reinit" brings each of
    # three values to each of two places, equally often.
    w = {"w": jnp.array([[1.0, 2.0, 3.0]])}
    mask = {"w": jnp.array([[True, False, True]])}

    @jax.jit
    @jax.vmap
    def run(key):
        return {
            kept: deconstructing.restart(w, w, mask, kept=kept, key=key)["w"][0]
            for kept in ("reshuffle", "reinit")
        }

    start = run(jax.random.split(jax.random.key(0), 2000))
    assert all((values[:, 1] == 0).all() for values in start.values())
    swapped = (start["reshuffle"] == jnp.array([[3.0, 0.0, 1.0]])).all(1)
    np.testing.assert_allclose(swapped.mean(), 0.5, atol=0.05)
    for place, value in itertools.product((0, 2), (1, 2, 3)):
        share = (start["reinit"][:, place] == value).mean()
        np.testing.assert_allclose(share, 1 / 3, atol=0.05)


def test_large_final_rewind_and_zero_are_the_lottery_ticket(trained, alive):
    for before in alive:
        table = table_of(*trained, before)
        mask = select.drop(table["large_final"], before, rate=RATES)
        ticket = select.drop(score.magnitude(trained[1]), before, rate=RATES)
        trees.assert_same(mask, ticket)
        trees.assert_same(restarted(trained, mask), masking.apply(trained[0], ticket))


@pytest.mark.parametrize("removed", ["zero", *SHRUNK])
def test_what_is_removed_stays_where_it_was_put(removed, trained, alive):
    mask = alive[1]
    start = restarted(trained, mask, removed=removed)
    optimizer = optax.chain(
        optax.add_decayed_weights(0.1), optax.sgd(0.01, momentum=0.9)
    )

    def effective(params):
        return masking.apply(params, mask, fill=start)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            slope = jax.grad(
                lambda p: sum(jnp.sum(x**4) for x in effective(p).values())
            )
            updates, state = optimizer.update(slope(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=5)[0][0]

    after = effective(train(start))
    for name in SHAPES:
        gone = ~np.asarray(mask[name])
        a, b = np.asarray(start[name]), np.asarray(after[name])
        assert a[gone].tobytes() == b[gone].tobytes()
        moved = a != 0 if removed == "freeze_init_zero_all" else np.ones_like(gone)
        assert (a != b)[~gone & moved].all()


def test_vmap_over_seeds_is_a_loop_compiled_once_or_not_at_all(alive):
    initial, final = (
        stacking.stack([weights(seed, a=SHAPES["a"]) for seed in seeds])
        for seeds in ((3, 4, 5), (6, 7, 8))
    )
    mask = {"a": alive[1]["a"]}

    def run(initial, final, key):
        table = deconstructing.scores(initial, final, mask, key=key)
        actions = {"kept": "reshuffle", "sign": "random", "removed": RESHUFFLED[1]}
        return table, deconstructing.restart(initial, final, mask, key=key, **actions)

    compiled = jax.jit(run)
    keys = jax.random.split(jax.random.key(0), 3)
    every = jax.jit(jax.vmap(run))(initial, final, keys)
    for i, how in enumerate((compiled, compiled, run)):
        one = how(stacking.take(initial, i), stacking.take(final, i), keys[i])
        trees.assert_same(stacking.take(every, i), one)
    assert compiled._cache_size() == 1
    random = np.asarray(every[0]["random"]["a"])
    assert (random[0] != random[1]).all()


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree_is_taken_apart(name):
    initial, final = (trees.make(name, "bfloat16", seed=i) for i in range(2))
    mask = masking.everything(initial)
    actions = {"kept": "constant", "removed": "freeze_init_zero_all"}

    @jax.jit
    def run(initial, final):
        key = jax.random.key(0)
        table = deconstructing.scores(initial, final, mask, gradients=final, key=key)
        start = deconstructing.restart(initial, final, mask, key=key, **actions)
        return stacking.stack(list(table.values())), start

    stack, start = run(initial, final)
    assert stacking.size(stack) == 15
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(stack))
    assert jax.tree.structure(start) == jax.tree.structure(initial)
    for before, after, scored in zip(
        *map(jax.tree.leaves, (initial, start)),
        jax.tree.structure(initial).flatten_up_to(stack),
        strict=True,
    ):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        if scored is None:
            np.testing.assert_array_equal(trees.to_numpy(before), trees.to_numpy(after))


def test_doubles_are_scored_as_doubles(x64):
    initial, final = (
        {"w": jnp.asarray(np.random.default_rng(i).normal(size=(2, 3)))}
        for i in range(2)
    )
    table = table_of(initial, final, masking.everything(initial))
    assert all(s["w"].dtype == jnp.float64 for s in table.values())


def test_masks_may_be_packed_or_share_decisions(trained):
    rows = {"a": jnp.arange(5)[:, None] < 2, "b": jnp.ones((1, 1), bool), "bias": None}
    full = {
        k: m if m is None else m | jnp.zeros(SHAPES[k], bool) for k, m in rows.items()
    }

    @jax.jit
    def run(mask):
        key = jax.random.key(0)
        start = deconstructing.restart(*trained, mask, kept="constant", key=key)
        table = deconstructing.scores(*trained, mask, key=key)
        return start, table[reference.RANKED[0]]

    expected = run(full)
    trees.assert_same(run(rows), expected)
    trees.assert_same(run(packing.pack(full)), expected)


def test_weights_that_are_zero_before_training_are_positive():
    w, mask = {"w": jnp.array([[0.0, -1.0, 1.0]])}, {"w": jnp.array([[True] * 3])}
    start = deconstructing.restart(w, w, mask, kept="constant", key=jax.random.key(0))
    np.testing.assert_array_equal(np.sign(start["w"]), [[1, -1, 1]])


@pytest.mark.parametrize(
    ("action", "known"),
    [
        ({"kept": "rewound"}, "'rewind' or 'reinit' or 'reshuffle' or 'constant'"),
        ({"sign": "same"}, "'original' or 'random'"),
        (
            {"removed": "freeze"},
            "'zero' or 'freeze_init' or 'freeze_init_zero_mask' or ",
        ),
    ],
)
def test_unknown_actions_are_refused_and_the_known_are_listed(
    action, known, trained, alive
):
    ((name, word),) = action.items()
    with pytest.raises(
        ValueError, match=rf"restart` needs `{name}` as {known}.*, got '{word}'"
    ):
        deconstructing.restart(*trained, alive[0], key=jax.random.key(0), **action)


@pytest.mark.parametrize("function", [deconstructing.scores, deconstructing.restart])
def test_trees_that_do_not_fit_are_refused(function, trained, alive):
    initial, final = trained
    mask, key = alive[0], jax.random.key(0)
    blame = f"deconstructing.{function.__name__}` needs"
    with pytest.raises(TypeError, match=f"{blame} `key` as a typed key"):
        function(initial, final, mask, key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(
        ValueError, match=f"{blame} `initial` and `final` of the same s"
    ):
        function(initial, {**final, "b": final["a"]}, mask, key=key)
    with pytest.raises(ValueError, match=r"only in `final`: c"):
        function(initial, {**final, "c": final["a"]}, mask, key=key)
    with pytest.raises(ValueError, match=r"a: mask \(8, 3\), initial \(5, 8\)"):
        function(initial, final, {**mask, "a": mask["b"]}, key=key)
    with pytest.raises(
        TypeError, match=f"{blame} every leaf of `mask` to be a boolean"
    ):
        function(initial, final, {**mask, "a": final["a"]}, key=key)
    whole = {**initial, "a": initial["a"].astype(jnp.int32)}
    with pytest.raises(
        TypeError, match=r"`initial` under `mask` to be a floating .*\n  a: int32"
    ):
        function(whole, final, mask, key=key)
    with pytest.raises(
        TypeError, match=r"`final` under `mask` to be a floating .*\n  a: int32"
    ):
        function(initial, whole, mask, key=key)
    nothing = dict.fromkeys(mask)
    with pytest.raises(
        ValueError, match=r"`initial` under `mask` with at least one leaf"
    ):
        function(initial, final, nothing, key=key)


def test_gradients_that_do_not_fit_are_refused(trained, gradients, alive):
    gradients["a"] = gradients["b"]
    with pytest.raises(ValueError, match=r"`gradients` of the same shapes, got:\n  a"):
        table_of(*trained, alive[0], gradients)
