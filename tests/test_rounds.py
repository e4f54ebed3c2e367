"""Masks cut, filled up and drawn anew, against sorting in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax import packing, score, select, structure
from maskjax.structure import Block, NofM, Units
from tests import trees
from tests.reference import rounds as reference

SHAPES = {"a": (4, 6), "b": (2, 8, 4), "c": (4, 2)}
KEY = jax.random.key(0)


def make(*, seed=0, ties=False):
    """Scores and a mask that is half alive."""
    rng = np.random.default_rng(seed)
    pool = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, 2.0])
    draw = (lambda s: rng.choice(pool, s)) if ties else (lambda s: rng.normal(size=s))
    scores = {k: draw(s).astype("float32") for k, s in SHAPES.items()}
    mask = {k: rng.random(s) < 0.5 for k, s in SHAPES.items()}
    return scores, mask


def changed(scores, mask, rate, density, scope):
    return (
        select.drop(scores, mask, rate=rate, scope=scope),
        select.shrink(scores, mask, density=density, scope=scope),
        select.grow(scores, mask, density=1 - density, scope=scope),
    )


def assert_changed(found, scores, mask, rate, density, scope):
    leaves, alive = list(scores.values()), list(mask.values())
    expected = (
        reference.drop(leaves, alive, rate, scope=scope),
        reference.shrink(leaves, alive, density, scope=scope),
        reference.grow(leaves, alive, 1 - density, scope=scope),
    )
    for ours, theirs in zip(found, expected, strict=True):
        for name, leaf in zip(SHAPES, theirs, strict=True):
            np.testing.assert_array_equal(ours[name], leaf)


def test_changes_are_those_of_the_reference_and_new_numbers_compile_nothing():
    for ties, rate, density in ((False, 0.35, 0.25), (True, 0.5, 0.125), (True, 0, 1)):
        scores, mask = make(ties=ties)
        found = changed(scores, mask, rate, density, "leaf")
        assert_changed(found, scores, mask, rate, density, "leaf")
    scores, mask = make()
    packed = select.drop(scores, packing.pack(mask), rate=0.5)
    trees.assert_same(packed, select.drop(scores, mask, rate=0.5))
    trees.assert_same(select.grow(scores, mask, density=0.1), mask)
    trees.assert_same(select.shrink(scores, mask, density=0.9), mask)


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_changes_with_traced_numbers_are_mapped_over_members(scope):
    cases = [
        (make(ties=ties, seed=seed), rate, density)
        for ties, seed, rate, density in (
            (False, 0, 0.25, 0.125),
            (True, 1, 0.5, 0.25),  # halves are rounded up
            (True, 2, 0.0, 1.0),
            (False, 3, 1.0, 0.0),
        )
    ]
    change = jax.jit(jax.vmap(functools.partial(changed, scope=scope)))
    (scores, masks), rates, densities = jax.tree.map(
        lambda *x: np.stack([np.asarray(one) for one in x]), *cases
    )
    found = change(scores, masks, rates.astype("f4"), densities.astype("f4"))
    for i, ((one, mask), rate, density) in enumerate(cases):
        mine = jax.tree.map(lambda x, i=i: np.asarray(x)[i], found)
        assert_changed(mine, one, mask, rate, density, scope)
    change(scores, masks, densities.astype("f4"), rates.astype("f4"))
    assert change._cache_size() == 1


def test_rates_of_each_leaf():
    scores, mask = make()
    mask = jax.tree.map(np.ones_like, mask)
    rates = {"a": 0.5, "b": 0.25, "c": jnp.float32(0.125)}
    left = select.drop(scores, mask, rate=rates)
    assert [np.asarray(m).sum() for m in left.values()] == [12, 48, 7]


def test_rounds_of_dropping_keep_the_counts_of_the_paper():
    """784-300-100-10 at 20 %, 20 % and 10 %: 21.1 % after seven rounds."""
    sizes = {"a": 235_200, "b": 30_000, "c": 1_000}
    rates = {"a": 0.2, "b": 0.2, "c": 0.1}
    scores = {k: np.arange(n, dtype="float32") for k, n in sizes.items()}
    mask, counts = {k: np.ones(n, bool) for k, n in sizes.items()}, dict(sizes)
    for _ in range(7):
        mask = select.drop(scores, mask, rate=rates)
        counts = {
            k: n - int(np.floor(n * round(rates[k] * 10) / 10 + 0.5))
            for k, n in counts.items()
        }
        assert {k: int(np.asarray(m).sum()) for k, m in mask.items()} == counts
    assert round(sum(counts.values()) / sum(sizes.values()), 3) == 0.211


@pytest.mark.parametrize(
    "pattern", [Block((2, 2), (-2, -1)), Units(-1), NofM(1, 2, -2)], ids=str
)
def test_structures_are_cut_and_grown_whole(pattern):
    scores = {"w": make()[0]["a"]}

    @jax.jit
    def law(scores):
        dense = {"w": jnp.ones((4, 6), bool)}
        half = select.top_k(scores, density=0.5, structure=pattern)
        dropped = select.drop(scores, half, rate=2 / 3, structure=pattern)
        shrunk = select.shrink(scores, dense, density=0.5, structure=pattern)
        cut = select.shrink(scores, half, density=1 / 6, structure=pattern)
        grown = select.grow(scores, cut, density=0.5, structure=pattern)
        whole = select.iterative_top_k(
            lambda p: p, scores, density=1.0, rounds=1, structure=pattern
        )
        return half, dropped, cut, shrunk, grown, whole

    masks = [np.asarray(m["w"]) for m in law(scores)]
    half, dropped, cut, shrunk, grown, whole = masks
    np.testing.assert_array_equal(grown, np.broadcast_to(half, grown.shape))
    full = [np.broadcast_to(m, (4, 6)) for m in masks]
    assert [m.sum() for m in full[:5]] == [12, 4, 4, 12, 12]
    assert not (full[1] & ~full[0]).any()
    assert not (full[2] & ~full[0]).any()
    if not isinstance(pattern, NofM):
        assert whole.all()
        assert whole.shape == half.shape


NARROW = [
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e8m0fnu"),
    *("bfloat16", "float16", "float32"),
]


def test_what_is_held_stays_in_every_float_format():
    """Above every score, infinite ones and formats without infinity included."""
    held = {d: np.arange(8) % 3 == 0 for d in NARROW}  # three of eight
    most = {d: jnp.finfo(d).max for d in NARROW}
    scores = {d: np.array([0.5, 1, 2, 4, 8, 4, most[d], 2]).astype(d) for d in NARROW}
    scores["float32"][6], scores["float32"][[2, 5]] = np.inf, (1e-45, 4e-45)
    law = jax.jit(lambda s, m, d: select.grow(s, m, density=d))
    order = np.argsort(-np.array([9, 1, 2, 9, 8, 4, 9, 2]), kind="stable")
    for count in (3, 4, 5):
        mask = law(scores, held, np.float32(count / 8))
        for dtype in NARROW[:-1]:
            assert np.flatnonzero(mask[dtype]).tolist() == sorted(order[:count]), dtype
    kept = np.flatnonzero(mask["float32"]).tolist()
    assert kept == [0, 3, 4, 6, 7]
    scores["float32"][1] = np.inf
    mask = law(scores, held, np.float32(3 / 8))
    assert np.flatnonzero(mask["float32"]).tolist() == [0, 3, 6]
    scores["float32"][[1, 4, 7]] = -0.0  # subnormal numbers are above zero, in order
    for count, kept in ((4, [0, 3, 5, 6]), (5, [0, 2, 3, 5, 6])):
        mask = law(scores, held, np.float32(count / 8))
        assert np.flatnonzero(mask["float32"]).tolist() == kept


@pytest.mark.parametrize("value", [-np.inf, np.nan, 3e38, -3e38])
def test_a_unit_is_held_whatever_its_scores_are(value):
    scores = np.tile(np.arange(4, dtype="f4"), (2, 1))
    scores[:, 0] = value
    held = {"w": np.array([[True, False, False, False]] * 2)}
    grow = jax.jit(lambda s, d: select.grow(s, held, density=d, structure=Units(-1)))
    for count, kept in ((1, [0]), (2, [0, 3])):
        mask = grow({"w": scores}, np.float32(count / 4))["w"]
        assert np.flatnonzero(np.asarray(mask).all(0)).tolist() == kept


def test_what_is_held_counts_even_where_the_pattern_has_no_place_for_it():
    scores = {"w": np.array([1.0, 2.0, 3.0, 4.0], "f4")}
    held = {"w": np.array([True, True, False, False])}
    for density, kept in ((0.5, [0, 1]), (0.75, [0, 1, 3])):
        mask = select.grow(scores, held, density=density, structure=NofM(1, 2, -1))
        assert np.flatnonzero(mask["w"]).tolist() == kept


def test_random_masks_of_the_same_counts():
    _, mask = make()
    mask = {"b": mask["b"], "d": None}
    mask["units"] = np.array([[True, False, False]])
    draw = jax.jit(lambda m, k: select.random_like(m, key=k))
    together = jax.jit(lambda m, k: jax.vmap(lambda k: select.random_like(m, key=k))(k))
    jointly = jax.jit(lambda m, k: select.random_like(m, scope="global", key=k))
    keys = jax.random.split(KEY, 3)
    one, all_of_them = draw(mask, keys[0]), together(packing.pack(mask), keys)
    assert one["d"] is None
    assert one["units"].shape == (1, 3)
    trees.assert_same(jax.tree.map(lambda m: np.asarray(m)[0], all_of_them), one)
    for name in ("b", "units"):
        counts = np.asarray(all_of_them[name]).reshape(3, -1).sum(axis=1)
        assert (counts == mask[name].sum()).all()
    assert len({np.asarray(m).tobytes() for m in (mask["b"], *all_of_them["b"])}) == 4
    joint = jax.tree.leaves(jointly(mask, KEY))
    total = sum(m.sum() for m in jax.tree.leaves(mask))
    assert sum(np.asarray(m).sum() for m in joint) == total


def test_iterative_selection_is_a_loop_over_rounds(transforms):
    params = {"w": make()[0]["a"], "bias": np.ones(6, "float32")}

    def among_neighbours(params):
        """A score that depends on what else is alive."""
        w = params["w"]
        alive = jnp.sum((w != 0).astype(w.dtype), axis=1, keepdims=True)
        return {"w": jnp.abs(w) / (1 + alive) ** 3, "bias": None}

    def prune(params):
        once = select.top_k(among_neighbours(params), density=0.25)
        how = {"density": 0.25, "rounds": 3}
        return select.iterative_top_k(among_neighbours, params, **how), once

    w, alive = params["w"], np.ones((4, 6), bool)
    for i in (1, 2, 3):
        masked = w * alive
        worth = np.abs(masked) / (1 + (masked != 0).sum(axis=1, keepdims=True)) ** 3
        (alive,) = reference.shrink([worth], [alive], 0.25 ** (i / 3), scope="leaf")
    for name in ("jit", "vmap"):
        found, once = transforms[name](prune)(params)
        np.testing.assert_array_equal(found["w"], alive)
        assert found["bias"] is None
        assert alive.sum() == 6
        assert (np.asarray(once["w"]) != alive).any()


def test_counts_that_float32_can_not_hold():
    n = 2**24 + 3
    scores, mask = {"w": np.zeros(n, "float32")}, {"w": np.ones(n, bool)}
    left = select.drop(scores, mask, rate=1e-7)["w"]
    assert np.asarray(left).sum() == n - 2


CALLS = {
    "drop": lambda s, m, **k: select.drop(s, m, rate=0.1, **k),
    "shrink": lambda s, m, **k: select.shrink(s, m, density=0.1, **k),
    "grow": lambda s, m, **k: select.grow(s, m, density=0.1, **k),
}


@pytest.mark.parametrize("name", CALLS)
def test_masks_scopes_and_structures_that_do_not_fit_are_refused(name):
    (scores, mask), call = make(), CALLS[name]
    blame = f"`maskjax.select.{name}` needs "
    with pytest.raises(ValueError, match=blame + "a leaf of `mask`(.|\n)*b: None"):
        call(scores, mask | {"b": None})
    with pytest.raises(ValueError, match=r"a: mask \(4, 2\), scores \(4, 6\)"):
        call(scores, mask | {"a": mask["c"]})
    with pytest.raises(TypeError, match=blame + "every leaf of `mask`"):
        call(scores, mask | {"a": scores["a"]})
    with pytest.raises(ValueError, match="`scope` as 'leaf' or 'global'"):
        call(scores, mask, scope="layers")
    with pytest.raises(ValueError, match="every leaf to fit Block"):
        call(scores, mask, structure=Block((3, 3), (-2, -1)))
    with pytest.raises(TypeError, match=blame + r".*Write `structure.Units\(\)`"):
        call(scores, mask, structure=structure.Units)


def test_scores_of_rounds_are_shaped_as_a_tree_like_the_parameters():
    params = {"w": jnp.ones((4, 2))}
    blame = r"`maskjax.select.iterative_top_k` needs `params` and `score\(params\)`"
    with pytest.raises(ValueError, match=blame + r" of the same structure(.|\n)*z"):
        select.iterative_top_k(lambda p: {"z": p["w"]}, params, density=0.5, rounds=2)
    few = lambda p: {"w": p["w"][:2]}  # noqa: E731
    blame = "(?s)`maskjax.select.iterative_top_k` needs .*w: mask .2, 2., params .4, 2."
    with pytest.raises(ValueError, match=blame):
        select.iterative_top_k(few, params, density=0.5, rounds=2)


def test_bad_input_is_refused():
    scores, mask = make()
    params = {"w": np.ones((2, 2), "float32")}
    with pytest.raises(ValueError, match=r"select.drop` needs `rate` in \[0, 1\]"):
        select.drop(scores, mask, rate=1.2)
    with pytest.raises(ValueError, match=r"`rate\[b\]` in \[0, 1\]"):
        select.drop(scores, mask, rate={"a": 0.1, "b": -1.0, "c": 0.1})
    with pytest.raises(ValueError, match='one `rate` for scope="global"'):
        select.drop(scores, mask, rate={"a": 0.1, "b": 0.1, "c": 0.1}, scope="global")
    for function in (select.shrink, select.grow):
        with pytest.raises(ValueError, match=r"`density` in \[0, 1\], got -0.1"):
            function(scores, mask, density=-0.1)
    blame = "`maskjax.select.random_like` needs "
    with pytest.raises(TypeError, match=blame + "`key` as a typed key"):
        select.random_like(mask, key=0)
    with pytest.raises(ValueError, match=blame + "`scope`"):
        select.random_like(mask, scope="layers", key=KEY)
    with pytest.raises(ValueError, match=blame + "`mask` with at least one leaf"):
        select.random_like({"a": None}, key=KEY)
    with pytest.raises(TypeError, match=blame + "every leaf of `mask` to be a boolean"):
        select.random_like(scores, key=KEY)
    blame = "`maskjax.select.iterative_top_k` needs "
    prune = functools.partial(select.iterative_top_k, score.magnitude, params)
    with pytest.raises(ValueError, match=blame + "`rounds` of at least 1, got 0"):
        prune(density=0.5, rounds=0)
    with pytest.raises(ValueError, match=blame + r"`density` in \[0, 1\]"):
        prune(density=5, rounds=1)
    with pytest.raises(TypeError, match=blame + r".*Write `structure.NofM\(2, 4\)`"):
        prune(density=0.5, rounds=1, structure="2:4")
