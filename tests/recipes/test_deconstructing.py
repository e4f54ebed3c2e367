"""Deconstructing lottery tickets: by hand, against NumPy, and the paper's laws."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskjax import masking, packing, select
from maskjax.recipes import deconstructing
from tests import trees
from tests.reference import deconstructing as reference
from tests.reference import selection
from tests.reference.selection import quota

SHAPES = {"a": (5, 8), "b": (5, 8)}  # of one shape, for one program
RATES = {"a": 0.2, "b": 0.1, "bias": None}
KEPT = ("rewind", "reinit", "reshuffle", "constant")
SIGNS = ("original", "random")
SHRUNK = ("freeze_init_zero_mask", "freeze_init_zero_all")
REMOVED = (
    *("zero", "freeze_init"),
    *(a + b for a, b in itertools.product(SHRUNK, ("", "_rev"))),
)
RESHUFFLED = tuple(name + "_reshuffle" for name in SHRUNK)


KEY = jax.random.key(0)


def weights(seed, **shapes):
    rng = np.random.default_rng(seed)
    shapes = shapes or {**SHAPES, "bias": (3,)}
    return {k: rng.normal(size=s).astype("float32") for k, s in shapes.items()}


def everything():
    return {k: np.ones(s, bool) for k, s in SHAPES.items()} | {"bias": None}


def some():
    """What a round of pruning left."""
    rng = np.random.default_rng(7)
    return {k: rng.random(s) < 0.7 for k, s in SHAPES.items()} | {"bias": None}


TRAINED, GRADIENTS = (weights(0), weights(1)), weights(2)
ALIVE = everything(), some()


def table_of(initial, final, alive, gradients=GRADIENTS, seed=0):
    how = {"gradients": gradients, "key": jax.random.key(seed)}
    return jax.device_get(deconstructing.scores(initial, final, alive, **how))


def _cut(scores, alive, rates):
    return select.drop(scores, alive, rate=rates)


CUT = jax.jit(jax.vmap(_cut, in_axes=(0, None, None)))
CUTS = jax.jit(jax.vmap(_cut, in_axes=(None, None, 0)))


def masks_of(table, alive):
    """One program for every criterion: scores stacked, selection mapped."""
    stack = jax.tree.map(lambda *leaves: np.stack(leaves), *table.values())
    rates = jax.tree.map(np.float32, RATES)
    masks = jax.device_get(CUT(stack, alive, rates))
    return {
        name: jax.tree.map(lambda m, i=i: m[i], masks) for i, name in enumerate(table)
    }


def restarted(trained, mask, *, seed=0, **actions):
    key = jax.random.key(seed)
    return jax.device_get(deconstructing.restart(*trained, mask, key=key, **actions))


def test_scores_by_hand():
    initial = {"w": np.float32([[1, -2, 3, -4]])}
    final = {"w": np.float32([[-5, -1, 4, 2]])}
    table = table_of(initial, final, {"w": np.ones((1, 4), bool)}, None)
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


@pytest.mark.parametrize("alive", ALIVE, ids=["everything", "a mask"])
def test_every_criterion_agrees_with_the_reference(alive):
    table = table_of(*TRAINED, alive)
    masks = masks_of(table, alive)
    assert len(masks) == 15
    for name in SHAPES:
        before = alive[name]
        n = int(before.sum())
        k = n - quota(RATES[name], n)
        arguments = *(w[name] for w in (*TRAINED, GRADIENTS)), before, k
        for criterion, mask in masks.items():
            assert mask["bias"] is None
            assert mask[name].sum() == k
            assert not (mask[name] & ~before).any()
            if criterion != "random":
                expected = reference.mask(criterion, *arguments)
                np.testing.assert_array_equal(mask[name], expected, err_msg=criterion)


@pytest.mark.parametrize("alive", ALIVE, ids=["everything", "a mask"])
def test_criteria_that_rank_do_so_at_every_count(alive):
    before = alive["b"]
    n, (w_i, w_f) = int(before.sum()), (w["b"] for w in TRAINED)
    table = table_of(*TRAINED, alive)
    rates = np.float32(1 - np.arange(before.size + 1) / n)
    for criterion in reference.RANKED:
        scores = {"b": table[criterion]["b"]}
        masks = jax.device_get(CUTS(scores, {"b": before}, np.maximum(rates, 0)))["b"]
        for k, kept in enumerate(masks[: n + 1]):
            expected = reference.mask(criterion, w_i, w_f, w_i, before, k)
            np.testing.assert_array_equal(kept, expected, err_msg=f"{k} of {n}")


def test_dead_weights_do_not_change_ranks():
    alive = some()
    loud = [
        {
            k: w if alive[k] is None else np.where(alive[k], w, 99 * w)
            for k, w in t.items()
        }
        for t in TRAINED
    ]
    table, expected = table_of(*loud, alive), table_of(*TRAINED, alive)
    for criterion in reference.RANKED:
        for k in SHAPES:
            found, same = (t[criterion][k][alive[k]] for t in (table, expected))
            np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("alive", ALIVE, ids=["everything", "a mask"])
def test_counts_are_exact_when_every_score_is_equal(alive):
    equal = [jax.tree.map(np.ones_like, t) for t in (*TRAINED, GRADIENTS)]
    masks = masks_of(table_of(*equal[:2], alive, equal[2]), alive)
    masks.pop("random")
    assert len(masks) == 14
    for name in SHAPES:
        flat = alive[name].ravel()
        k = flat.sum() - quota(RATES[name], int(flat.sum()))
        lowest = (flat & (np.cumsum(flat) <= k)).reshape(SHAPES[name])
        for mask in masks.values():
            np.testing.assert_array_equal(mask[name], lowest)


def test_criteria_depend_on_what_they_should():
    initial, final = TRAINED
    mask = everything()
    table = table_of(initial, final, mask)
    other = table_of(initial, weights(5), mask, seed=1)
    swapped = table_of(final, initial, mask)
    flipped = table_of(jax.tree.map(np.negative, initial), final, mask)
    of_initial = {"large_init", "small_init", "snip", "grad"}
    for name in of_initial:
        trees.assert_same(table[name], other[name])
    for name in table.keys() - of_initial:
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


def test_masks_of_one_sign_are_where_scores_are_positive():
    initial, final = TRAINED
    still = {**final, "a": final["a"] * (np.arange(5)[:, None] > 0).astype("f4")}
    table = table_of(initial, still, everything())
    for name in SHAPES:
        turn = initial[name] * still[name]
        same = table["large_final_same_sign"][name] > 0
        diff = table["large_final_diff_sign"][name] > 0
        np.testing.assert_array_equal(same, turn > 0)
        np.testing.assert_array_equal(diff, turn < 0)


@pytest.mark.parametrize(
    ("kept", "removed"),
    [("constant", "zero"), *(("rewind", removed) for removed in REMOVED)],
)
def test_actions_agree_with_the_reference(kept, removed):
    mask = some()
    start = restarted(TRAINED, mask, kept=kept, removed=removed)
    trees.assert_same(start["bias"], TRAINED[0]["bias"])
    for name in SHAPES:
        arguments = (tree[name] for tree in (*TRAINED, mask))
        expected = reference.start(*arguments, kept, removed)
        np.testing.assert_array_equal(start[name] == 0, expected == 0)
        gone = ~mask[name]
        np.testing.assert_array_equal(start[name][gone], expected[gone])
        rtol = 1e-6 if kept == "constant" else 0  # a deviation is a sum
        np.testing.assert_allclose(start[name], expected, rtol=rtol)


def test_weights_that_did_not_move_are_zeroed_neither_way():
    w_i, w_f = np.float32([[1, -2, 3, -4]]), np.float32([[0.5, 2, -4, -5]])
    mask = {"w": np.array([[False, False, False, True]])}
    for removed, expected in (
        ("freeze_init_zero_mask", [0, -2, 3, -4]),
        ("freeze_init_zero_mask_rev", [1, -2, 0, -4]),
        ("freeze_init_zero_all", [0, -2, 3, -4]),
        ("freeze_init_zero_all_rev", [1, -2, 0, 0]),
    ):
        start = restarted(({"w": w_i}, {"w": w_f}), mask, removed=removed)
        np.testing.assert_array_equal(start["w"], [expected], err_msg=removed)


@pytest.mark.parametrize("removed", RESHUFFLED)
def test_control_zeros_are_as_many_at_random_places(removed):
    mask = some()
    starts = [restarted(TRAINED, mask, removed=removed, seed=i) for i in range(2)]
    aimed = removed.removesuffix("_reshuffle")
    for name in SHAPES:
        w_i, w_f, kept = (tree[name] for tree in (*TRAINED, mask))
        expected = reference.zeros(w_i, w_f, kept, aimed)
        first, second = (start[name] == 0 for start in starts)
        assert first.sum() == second.sum() == expected.sum()
        assert (first != second).any()
        assert (first != expected).any()
        assert (first & kept).any() == ("all" in removed)
        np.testing.assert_array_equal(starts[0][name][~first], w_i[~first])


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("kept", KEPT)
def test_kept_weights_have_the_values_and_signs_asked_for(kept, sign):
    mask = some()
    run = {"kept": kept, "sign": sign, "removed": "freeze_init"}
    start, again = (restarted(TRAINED, mask, seed=i, **run) for i in range(2))
    for name in SHAPES:
        w_i, m, new, other = (t[name] for t in (TRAINED[0], mask, start, again))
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


def test_reinit_under_a_full_mask_is_a_permutation():
    actions = {"kept": "reinit", "sign": "random", "removed": "freeze_init"}
    start = restarted(TRAINED, everything(), **actions)
    for name in SHAPES:
        old, new = TRAINED[0][name], start[name]
        np.testing.assert_array_equal(np.sort(old.ravel()), np.sort(new.ravel()))
        assert (old != new).any()


def test_permutations_are_uniform():
    # Two of three are kept. "reshuffle" swaps them or not, and "reinit" brings each of
    # three values to each of two places, equally often.
    w = {"w": np.float32([[1, 2, 3]])}
    mask = {"w": np.array([[True, False, True]])}

    @jax.jit
    @jax.vmap
    def run(key):
        return {
            kept: deconstructing.restart(w, w, mask, kept=kept, key=key)["w"][0]
            for kept in ("reshuffle", "reinit")
        }

    start = jax.device_get(run(jax.random.split(KEY, 2000)))
    assert all((values[:, 1] == 0).all() for values in start.values())
    swapped = (start["reshuffle"] == [[3, 0, 1]]).all(1)
    np.testing.assert_allclose(swapped.mean(), 0.5, atol=0.05)
    for place, value in itertools.product((0, 2), (1, 2, 3)):
        share = (start["reinit"][:, place] == value).mean()
        np.testing.assert_allclose(share, 1 / 3, atol=0.05)


@pytest.mark.parametrize("alive", ALIVE, ids=["everything", "a mask"])
def test_large_final_rewind_and_zero_are_the_lottery_ticket(alive):
    mask = masks_of(table_of(*TRAINED, alive), alive)["large_final"]
    start = restarted(TRAINED, mask)
    for k in SHAPES:
        size, n = abs(TRAINED[1][k]).ravel(), int(alive[k].sum())
        ticket = selection.best(size, n - quota(RATES[k], n), alive[k].ravel())
        ticket = ticket.reshape(SHAPES[k])
        np.testing.assert_array_equal(start[k], np.where(ticket, TRAINED[0][k], 0))


def test_what_is_removed_stays_where_it_was_put():
    mask = some()
    decay = optax.add_decayed_weights(0.1)
    optimizer = optax.chain(decay, optax.sgd(0.01, momentum=0.9))

    @jax.jit
    def train(start):
        effective = lambda params: masking.apply(params, mask, fill=start)  # noqa: E731
        loss = lambda params: sum(  # noqa: E731
            jnp.sum(x**4) for x in effective(params).values()
        )

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = start, optimizer.init(start)
        return effective(jax.lax.scan(step, carry, length=5)[0][0])

    for removed in ("zero", *SHRUNK):
        start = restarted(TRAINED, mask, removed=removed)
        after = jax.device_get(train(start))
        for name in SHAPES:
            gone, a, b = ~mask[name], start[name], after[name]
            assert a[gone].tobytes() == b[gone].tobytes()
            moved = a != 0 if removed == SHRUNK[1] else np.ones_like(gone)
            assert (a != b)[~gone & moved].all()


def test_vmap_over_seeds_is_a_loop_compiled_once_or_not_at_all():
    each = [(weights(i), weights(2 + i)) for i in range(2)]
    both = jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    def run(initial, final, key):
        trained, how = (initial, final, some()), {"gradients": initial, "key": key}
        actions = {"kept": "reshuffle", "sign": "random", "removed": RESHUFFLED[1]}
        table = deconstructing.scores(*trained, **how)
        return table, deconstructing.restart(*trained, key=key, **actions)

    keys = jax.random.split(KEY, 2)
    every = jax.device_get(jax.jit(jax.vmap(run))(*both, keys))
    compiled = jax.jit(run)
    for i, how in enumerate((compiled, run)):
        one = jax.device_get(how(*each[i], keys[i]))
        trees.assert_same(jax.tree.map(lambda x, i=i: x[i], every), one)
    compiled(*each[1], keys[1])
    assert compiled._cache_size() == 1
    random = every[0]["random"]["a"]
    assert (random[0] != random[1]).all()


@pytest.mark.parametrize("name", trees.NAMES)
def test_every_kind_of_tree_is_taken_apart(name):
    initial = jax.eval_shape(functools.partial(trees.make, name, "bfloat16"))
    actions = {"kept": "constant", "removed": "freeze_init_zero_all", "key": KEY}

    def run(initial, final):
        mask = masking.everything(initial)
        trained = initial, final, mask
        table = deconstructing.scores(*trained, gradients=final, key=KEY)
        return mask, table, deconstructing.restart(*trained, **actions)

    mask, table, start = jax.eval_shape(run, initial, initial)
    assert len(table) == 15
    full = jax.tree.map(lambda m: (m.shape, np.dtype("float32")), mask)
    kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert all(kinds(scores) == full for scores in table.values())
    assert kinds(start) == kinds(initial)


def test_doubles_are_scored_as_doubles_and_halves_as_floats(x64):
    half = {"w": np.ones((2, 3), jnp.bfloat16)}
    for initial, dtype in (({"w": np.ones((2, 3))}, "float64"), (half, "float32")):
        mask = {"w": np.ones((2, 3), bool)}
        scores = functools.partial(deconstructing.scores, key=KEY)
        scores = jax.eval_shape(scores, initial, initial, mask)
        assert all(s["w"].dtype == dtype for s in scores.values())
        start = functools.partial(deconstructing.restart, key=KEY)
        assert (
            jax.eval_shape(start, initial, initial, mask)["w"].dtype
            == initial["w"].dtype
        )


def test_masks_may_be_packed_or_share_decisions():
    rows = {"a": np.arange(5)[:, None] < 2, "b": np.ones((1, 1), bool), "bias": None}
    full = {
        k: m if m is None else m | np.zeros(SHAPES[k], bool) for k, m in rows.items()
    }
    packed = jax.jit(packing.pack)(full)

    @jax.jit
    def run(*masks):
        return [
            (
                deconstructing.restart(*TRAINED, mask, key=KEY),
                deconstructing.scores(*TRAINED, mask, key=KEY)[reference.RANKED[0]],
            )
            for mask in masks
        ]

    expected, *others = jax.device_get(run(full, rows, packed))
    for found in others:
        trees.assert_same(found, expected)


def test_weights_that_are_zero_before_training_are_positive():
    w, mask = {"w": np.float32([[0, -1, 1]])}, {"w": np.array([[True] * 3])}
    start = restarted((w, w), mask, kept="constant")
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
def test_unknown_actions_are_refused_and_the_known_are_listed(action, known):
    ((name, word),) = action.items()
    text = rf"restart` needs `{name}` as {known}.*, got '{word}'"
    with pytest.raises(ValueError, match=text):
        restarted(TRAINED, everything(), **action)


WHOLE = TRAINED[0] | {"a": np.ones((5, 8), "int32")}
SWAPPED = everything() | {"a": np.ones((8, 3), bool)}
BAD = [  # what is other than it should be, the error, and its text
    ({"key": np.zeros(2, "uint32")}, TypeError, "{blame} `key` as a typed key"),
    (
        {"final": TRAINED[1] | {"b": WHOLE["bias"]}},
        ValueError,
        "{blame} `initial` and `fi",
    ),
    ({"final": TRAINED[1] | {"c": WHOLE["a"]}}, ValueError, r"only in `final`: c"),
    ({"mask": SWAPPED}, ValueError, r"a: mask \(8, 3\), initial \(5, 8\)"),
    ({"mask": TRAINED[0]}, TypeError, "{blame} every leaf of `mask` to be a boolean"),
    ({"initial": WHOLE}, TypeError, r"`initial` under `mask` to be a .*\n  a: int32"),
    (
        {"final": WHOLE},
        TypeError,
        r"`final` under `mask` to be a floating.*\n  a: int32",
    ),
    (
        {"mask": dict.fromkeys(SWAPPED)},
        ValueError,
        "`initial` under `mask` with at lea",
    ),
]


@pytest.mark.parametrize("function", [deconstructing.scores, deconstructing.restart])
@pytest.mark.parametrize(("other", "kind", "text"), BAD)
def test_trees_that_do_not_fit_are_refused(function, other, kind, text):
    blame = f"deconstructing.{function.__name__}` needs"
    fine = {"initial": TRAINED[0], "final": TRAINED[1], "mask": everything()}
    with pytest.raises(kind, match=text.replace("{blame}", blame)):
        function(**{"key": KEY} | fine | other)


def test_gradients_that_do_not_fit_are_refused():
    wrong = GRADIENTS | {"a": GRADIENTS["bias"]}
    with pytest.raises(ValueError, match=r"`gradients` of the same shapes, got:\n  a"):
        deconstructing.scores(*TRAINED, everything(), gradients=wrong, key=KEY)
