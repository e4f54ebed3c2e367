"""Masks cut, filled up and drawn anew, against sorting in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import algebra, masking, packing, score, select
from maskjax.structure import Block, Entries, NofM, Units
from tests import trees
from tests.reference import rounds as reference

SHAPES = {"a": (4, 6), "b": (2, 8, 4), "c": (4, 2)}
KEY = jax.random.key(0)


def make(*, seed=0, ties=False):
    """Scores and a mask that is half alive."""
    rng = np.random.default_rng(seed)
    pool = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, 2.0])
    draw = (lambda s: rng.choice(pool, s)) if ties else (lambda s: rng.normal(size=s))
    scores = {k: jnp.asarray(draw(s), jnp.float32) for k, s in SHAPES.items()}
    mask = {k: jnp.asarray(rng.random(s) < 0.5) for k, s in SHAPES.items()}
    return scores, mask


def assert_equal(ours, expected):
    for name, leaf in zip(SHAPES, expected, strict=True):
        np.testing.assert_array_equal(ours[name], leaf)


@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize("ties", [False, True])
def test_the_three_are_those_of_the_reference(scope, ties, every_transform):
    scores, mask = make(ties=ties)
    leaves = [np.asarray(x) for x in scores.values()]
    alive = [np.asarray(m) for m in mask.values()]
    functions = {
        "drop": lambda s, m: select.drop(s, m, rate=0.35, scope=scope),
        "shrink": lambda s, m: select.shrink(s, m, density=0.2, scope=scope),
        "grow": lambda s, m: select.grow(s, m, density=0.7, scope=scope),
    }
    ours = every_transform(lambda s, m: [f(s, m) for f in functions.values()])
    dropped, shrunk, grown = ours(scores, mask)
    assert_equal(dropped, reference.drop(leaves, alive, 0.35, scope=scope))
    assert_equal(shrunk, reference.shrink(leaves, alive, 0.2, scope=scope))
    assert_equal(grown, reference.grow(leaves, alive, 0.7, scope=scope))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_drop_removes_halves_rounded_up(rate, transform):
    scores = {"w": jnp.arange(9.0)}
    mask = {"w": jnp.arange(9) < 5}
    traced = transform(lambda r: select.drop(scores, mask, rate=r))(jnp.float32(rate))
    left = {0.0: 5, 0.5: 2, 1.0: 0}[rate]
    expected = np.arange(9) >= 5 - left
    expected[5:] = False
    for found in (traced, select.drop(scores, mask, rate=rate)):
        np.testing.assert_array_equal(found["w"], expected)


def test_rates_of_each_leaf():
    scores, mask = make()
    mask = jax.tree.map(jnp.ones_like, mask)
    rates = {"a": 0.5, "b": 0.25, "c": jnp.float32(0.125)}
    left = select.drop(scores, mask, rate=rates)
    assert [int(m.sum()) for m in left.values()] == [12, 48, 7]


def test_rounds_of_dropping_keep_the_counts_of_the_paper():
    """784-300-100-10 at 20 %, 20 % and 10 %: 21.1 % after seven rounds."""
    sizes = {"a": 235_200, "b": 30_000, "c": 1_000}
    rates = {"a": 0.2, "b": 0.2, "c": 0.1}
    scores = {k: jnp.arange(float(n)) for k, n in sizes.items()}
    step = jax.jit(lambda m: select.drop(scores, m, rate=rates))
    mask, counts = jax.tree.map(lambda s: jnp.ones(s.shape, bool), scores), dict(sizes)
    for _ in range(7):
        mask = step(mask)
        counts = {
            k: n - int(np.floor(n * round(rates[k] * 10) / 10 + 0.5))
            for k, n in counts.items()
        }
        assert {k: int(m.sum()) for k, m in mask.items()} == counts
    assert round(sum(counts.values()) / sum(sizes.values()), 3) == 0.211


@pytest.mark.parametrize("structure", [Block((2, 2)), Units(), NofM(1, 2)], ids=str)
def test_structures_are_cut_and_grown_whole(structure):
    scores = {"w": make()[0]["a"]}
    dense = {"w": jnp.ones((4, 6), bool)}
    half = select.top_k(scores, density=0.5, structure=structure)
    for part, count in (
        (select.shrink(scores, half, density=1 / 6, structure=structure), 4),
        (select.drop(scores, half, rate=2 / 3, structure=structure), 4),
        (select.shrink(scores, dense, density=0.5, structure=structure), 12),
    ):
        assert int(algebra.count(part, scores)) == count
        assert not (part["w"] & ~jnp.broadcast_to(half["w"], (4, 6))).any()
        again = select.grow(scores, part, density=0.5, structure=structure)
        whole = jnp.broadcast_to(half["w"], again["w"].shape)
        np.testing.assert_array_equal(again["w"], whole)


def test_what_holds_more_than_is_asked_stays_as_it_is():
    scores, mask = make()
    trees.assert_same(select.grow(scores, mask, density=0.1), mask)
    trees.assert_same(select.shrink(scores, mask, density=0.9), mask)
    packed = select.drop(scores, packing.pack(mask), rate=0.5)
    trees.assert_same(packed, select.drop(scores, mask, rate=0.5))


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_random_masks_of_the_same_counts(scope, transform):
    _, mask = make()
    mask["d"] = None
    mask["units"] = jnp.array([[True, False, False]])
    draw = transform(lambda m, k: select.random_like(m, scope=scope, key=k))
    one, other = draw(mask, KEY), draw(mask, jax.random.key(1))
    assert one["d"] is None
    assert one["units"].shape == (1, 3)
    total = sum(int(m.sum()) for m in jax.tree.leaves(mask))
    assert sum(int(m.sum()) for m in jax.tree.leaves(one)) == total
    if scope == "leaf":
        for name in ("a", "b", "c", "units"):
            assert one[name].sum() == mask[name].sum()
    assert (one["b"] != mask["b"]).any()
    assert (one["b"] != other["b"]).any()
    trees.assert_same(draw(mask, KEY), one)
    trees.assert_same(select.random_like(packing.pack(mask), scope=scope, key=KEY), one)


def test_members_draw_their_own():
    _, mask = make()
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(lambda k: select.random_like(mask, key=k))(keys)
    for i in range(3):
        alone = select.random_like(mask, key=keys[i])
        trees.assert_same(jax.tree.map(lambda m, i=i: m[i], together), alone)


def test_iterative_selection_is_a_loop_over_rounds(every_transform):
    params = {"w": make()[0]["a"], "bias": jnp.ones(6)}

    def among_neighbours(params):
        """A score that depends on what else is alive."""
        w = params["w"]
        alive = jnp.sum((w != 0).astype(w.dtype), axis=1, keepdims=True)
        return {"w": jnp.abs(w) / (1 + alive) ** 3, "bias": None}

    found = every_transform(
        lambda p: select.iterative_top_k(among_neighbours, p, density=0.25, rounds=3)
    )(params)
    w, alive = np.asarray(params["w"]), np.ones((4, 6), bool)
    for i in (1, 2, 3):
        masked = w * alive
        worth = np.abs(masked) / (1 + (masked != 0).sum(axis=1, keepdims=True)) ** 3
        (alive,) = reference.shrink([worth], [alive], 0.25 ** (i / 3), scope="leaf")
    np.testing.assert_array_equal(found["w"], alive)
    assert found["bias"] is None
    assert int(found["w"].sum()) == 6
    once = select.top_k(among_neighbours(params), density=0.25)
    assert (once["w"] != found["w"]).any()


def test_counts_that_float32_can_not_hold():
    n = 2**24 + 3
    scores, mask = {"w": jnp.zeros(n)}, {"w": jnp.ones(n, bool)}
    assert int(select.drop(scores, mask, rate=1e-7)["w"].sum()) == n - 2


def test_no_new_program_for_a_new_rate():
    scores, mask = make()
    traces = []

    @jax.jit
    def cut(rate):
        traces.append(0)
        return select.drop(scores, mask, rate=rate, scope="global")

    for rate in (0.1, 0.2, 0.9):
        cut(jnp.float32(rate))
    assert len(traces) == 1


def test_bad_input_is_refused():
    scores, mask = make()
    params = {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"select.drop` needs `rate` in \[0, 1\]"):
        select.drop(scores, mask, rate=1.2)
    with pytest.raises(ValueError, match=r"`rate\[b\]` in \[0, 1\]"):
        select.drop(scores, mask, rate={"a": 0.1, "b": -1.0, "c": 0.1})
    with pytest.raises(ValueError, match='one `rate` for scope="global"'):
        select.drop(scores, mask, rate={"a": 0.1, "b": 0.1, "c": 0.1}, scope="global")
    for function in (select.shrink, select.grow):
        with pytest.raises(ValueError, match=r"`density` in \[0, 1\], got -0.1"):
            function(scores, mask, density=-0.1)
    calls = {
        "drop": lambda s, m, **k: select.drop(s, m, rate=0.1, **k),
        "shrink": lambda s, m, **k: select.shrink(s, m, density=0.1, **k),
        "grow": lambda s, m, **k: select.grow(s, m, density=0.1, **k),
    }
    for name, call in calls.items():
        blame = f"`maskjax.select.{name}` needs "
        with pytest.raises(ValueError, match=blame + "a leaf of `mask`(.|\n)*b: None"):
            call(scores, mask | {"b": None})
        with pytest.raises(ValueError, match=r"a: mask \(4, 2\), scores \(4, 6\)"):
            call(scores, mask | {"a": mask["c"]})
        with pytest.raises(TypeError, match=blame + "every leaf of `mask`"):
            call(scores, mask | {"a": scores["a"]})
        with pytest.raises(ValueError, match="`scope` as 'leaf' or 'global'"):
            call(scores, mask, scope="layer")
        with pytest.raises(ValueError, match="every leaf to fit Block"):
            call(scores, mask, structure=Block((3, 3)))
    blame = "`maskjax.select.random_like` needs "
    with pytest.raises(TypeError, match=blame + "`key` as a typed key"):
        select.random_like(mask, key=0)
    with pytest.raises(ValueError, match=blame + "`scope`"):
        select.random_like(mask, scope="layer", key=KEY)
    with pytest.raises(ValueError, match=blame + "`mask` with at least one leaf"):
        select.random_like({"a": None}, key=KEY)
    with pytest.raises(TypeError, match=blame + "every leaf of `mask` to be a boolean"):
        select.random_like(scores, key=KEY)
    blame = "`maskjax.select.iterative_top_k` needs "
    with pytest.raises(ValueError, match=blame + "`rounds` of at least 1, got 0"):
        select.iterative_top_k(score.magnitude, params, density=0.5, rounds=0)
    with pytest.raises(ValueError, match=blame + r"`density` in \[0, 1\]"):
        select.iterative_top_k(score.magnitude, params, density=5, rounds=1)


def test_the_mask_of_everything_has_the_shape_of_its_structure():
    params = {"w": jnp.ones((4, 6))}
    for structure in (Entries(), Units(), Block((2, 2))):
        kept = select.iterative_top_k(
            score.magnitude, params, density=1.0, rounds=1, structure=structure
        )
        trees.assert_same(
            maskjax.apply(params, kept),
            maskjax.apply(params, masking.everything(params)),
        )
