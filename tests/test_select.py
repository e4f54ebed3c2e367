"""Selection against a stable descending sort in NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend import core

from maskjax import packing, select, where
from maskjax._core import dtypes
from maskjax.structure import Block, Entries, NofM, Units
from tests import trees
from tests.reference import selection

FLOATS = ["float32", "bfloat16", "float16"]
SPECIAL = [math.inf, -math.inf, math.nan, 0.0, -0.0, 1.0, -1.0]
SHAPES = {"a": (4, 6), "b": (4, 8, 4), "c": (4, 2)}


def special_scores(dtype, *, seed=0):
    """Scores with ties, both zeros, infinities, nan and subnormal numbers."""
    rng = np.random.default_rng(seed)
    tiny = float(jnp.finfo(dtype).smallest_subnormal)
    pool = np.array([*SPECIAL, tiny, -tiny, 3 * tiny, 2 * tiny, *rng.normal(size=9)])
    draw = {name: rng.choice(pool, size=shape) for name, shape in SHAPES.items()}
    return {name: x.astype(jnp.dtype(dtype)) for name, x in draw.items()}


def plain_scores(dtype="float32", *, seed=0):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=s).astype(jnp.dtype(dtype)) for k, s in SHAPES.items()}


def alive_half(*, seed=5):
    rng = np.random.default_rng(seed)
    return {name: rng.random(s) < 0.5 for name, s in SHAPES.items()}


@functools.cache
def chooser(scope="leaf", structure=Entries()):
    """`select.top_k` compiled, with numbers, masks and guesses as operands."""

    @jax.jit
    def choose(scores, density, within=None, guess=None):
        how = {"scope": scope, "structure": structure, "return_cutoff": True}
        return select.top_k(scores, density=density, within=within, guess=guess, **how)

    return choose


def wide(x):
    return np.asarray(x).astype(np.float64)


def reference(scores, density, *, scope="leaf", structure=Entries(), within=None):
    """The whole of `select.top_k`, from the parts in `tests.reference.selection`."""
    leaves = [wide(x) for x in scores.values()]
    alive = [np.ones(x.shape, bool) for x in leaves]
    if within is not None:
        pairs = zip(within.values(), leaves, strict=True)
        alive = [np.broadcast_to(np.asarray(m), x.shape) for m, x in pairs]
    both = list(zip(leaves, alive, strict=True))
    top_k = functools.partial(selection.top_k, density=density, scope=scope)
    if isinstance(structure, Entries):
        masks = top_k(leaves, alive=alive)
    elif isinstance(structure, NofM):
        n, m, axis = structure.n, structure.m, structure.axis
        allowed = [selection.best_of_groups(x, n, m, axis, a) for x, a in both]
        masks = top_k(leaves, alive=alive, allowed=allowed)
    else:
        if isinstance(structure, Block):
            pools = [selection.blocks(x, structure.shape, a) for x, a in both]
        else:
            pools = [selection.units(x, structure.axis, a) for x, a in both]
        masks = top_k([p for p, _ in pools], alive=[s for _, s in pools])
        if isinstance(structure, Block):
            masks = [selection.tile(m, structure.shape) for m in masks]
        if within is not None:
            masks = [m & a for m, a in zip(masks, alive, strict=True)]
    return dict(zip(scores, masks, strict=True))


def assert_masks_equal(mask, expected):
    assert mask.keys() == expected.keys()
    for name in expected:
        assert mask[name].dtype == bool
        np.testing.assert_array_equal(mask[name], expected[name], err_msg=name)


def assert_separates(cutoff, mask, scores, structure=Entries(), within=None):
    """Nothing that was kept scores below the cutoff, nothing else above."""
    for name, leaf in scores.items():
        x, kept = wide(leaf), np.asarray(mask[name])
        alive = np.ones(x.shape, bool) if within is None else np.asarray(within[name])
        if isinstance(structure, Block):
            x, alive = selection.blocks(x, structure.shape, alive)
            height, width = structure.shape
            rows, columns = x.shape[-2:]
            tiles = kept.reshape(*kept.shape[:-2], rows, height, columns, width)
            kept = tiles.any(axis=(-3, -1))
        elif isinstance(structure, Units):
            x, alive = selection.units(x, structure.axis, alive)
            axes = tuple(i for i, n in enumerate(x.shape) if n == 1)
            kept = kept.any(axis=axes, keepdims=True)
        at = wide(cutoff[name])
        assert at.shape == ()
        slack = 1e-6 if isinstance(structure, Block | Units) else 0.0  # of means
        assert not (x[kept] < at - slack).any()
        assert not (x[alive & ~kept] > at + slack).any()


def of_cases(*fast, every):
    """The cases that are always run, and the rest of the grid, marked slow."""
    rest = [case for case in every if case not in fast]
    return [*fast, *(pytest.param(*case, marks=pytest.mark.slow) for case in rest)]


CASES = of_cases(
    ("float32", "leaf", False),
    ("bfloat16", "leaf", True),
    ("float16", "global", False),
    ("float32", "global", True),
    every=[
        (d, s, w) for d in FLOATS for s in ("leaf", "global") for w in (False, True)
    ],
)
over_cases = pytest.mark.parametrize(("dtype", "scope", "masked"), CASES)


@over_cases
def test_top_k_is_a_stable_descending_sort(dtype, scope, masked):
    choose, within = chooser(scope), alive_half() if masked else None
    for seed in range(4):
        plain = plain_scores(dtype, seed=seed)
        for scores in (special_scores(dtype, seed=seed), plain):
            for density in (0.0, 0.125, 0.375, 0.5, 0.8125, 1.0):
                mask, cutoff = choose(scores, np.float32(density), within)
                expected = reference(scores, density, scope=scope, within=within)
                assert_masks_equal(mask, expected)
                if scores is plain:
                    assert {c.dtype for c in cutoff.values()} == {jnp.dtype(dtype)}
                    assert_separates(cutoff, mask, scores, within=within)
    empty = jax.tree.map(np.zeros_like, alive_half())
    if masked:
        mask, _ = choose(plain_scores(dtype), np.float32(1.0), empty)
        assert not any(np.asarray(m).any() for m in mask.values())


@pytest.mark.parametrize(
    ("scope", "masked"),
    of_cases(
        ("leaf", False),
        ("global", True),
        every=[(s, w) for s in ("leaf", "global") for w in (False, True)],
    ),
)
def test_top_k_is_a_stable_descending_sort_in_float64(scope, masked, x64):
    within = alive_half() if masked else None
    for seed in range(3):
        scores = special_scores("float64", seed=seed)
        if seed == 2:  # scores that float32 confuses
            close = {k: 1 + x * 2.0**-50 for k, x in plain_scores("float64").items()}
            scores = {k: x[::-1] for k, x in close.items()}
        for density in (0.0, 0.3, 0.5, 1.0):
            mask, _ = chooser(scope)(scores, np.float64(density), within)
            expected = reference(scores, density, scope=scope, within=within)
            assert_masks_equal(mask, expected)


@pytest.mark.parametrize(
    ("scope", "most", "members"),
    of_cases(
        *(("leaf", 20, True), ("global", 20, False), ("output", 20, False)),
        *(("leaf", 80, False), ("leaf", 10_000, False)),
        every=[
            *((scope, 20, True) for scope in ("global", "layer", "output")),
            *(("leaf", 80, True), ("global", 80, True), ("leaf", 10_000, True)),
        ],
    ),
)
def test_counts_that_need_more_than_31_bits(scope, most, members, monkeypatch):
    """As if 31 bits ended at 20: the same mask, which no number of 64 bits leaves."""
    rng, shapes = np.random.default_rng(0), {"a": (3, 10, 7), "b": (11, 7), "c": (5,)}
    if most == 80:  # blocks of one and of two axes
        shapes |= {"a": (5, 3, 4), "b": (3, 10, 7), "c": (7, 2, 3, 4)}
    if most == 10_000:  # blocks that are cut into lines
        shapes |= {"a": (3, 32, 128, 2), "b": (3, 9000), "c": (12_000,)}
    scores = {
        k: np.round(rng.normal(size=s), 1).astype("f4") for k, s in shapes.items()
    }
    within = {k: rng.random(s) < 0.7 for k, s in shapes.items()}
    roles = where.matching("a", axes="stack inputs outputs") | where.kernels
    if scope == "output":
        del scores["c"], within["c"]

    def masks(scores, within, density):
        how = {"scope": scope, "where": roles}
        one = (
            select.top_k(scores, density=density, **how),
            select.drop(scores, within, rate=0.3, **how),
            select.random_like(within, key=jax.random.key(0), **how),
        )
        if not members:
            return one
        both = jax.tree.map(lambda x: jnp.stack([x, -x]), scores)
        return one, jax.vmap(lambda x: select.top_k(x, density=0.37, **how))(both)

    expected = jax.jit(masks)(scores, within, np.float32(0.4))
    monkeypatch.setattr(dtypes, "_MOST", most)
    found = jax.jit(lambda *args: masks(*args))(scores, within, np.float32(0.4))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_leaves_of_more_entries_than_32_bits_count(scope):
    shapes = [(80, 8192, 28672), (80, 8192, 28672), (2**16, 2**15), (2**31 + 2,)]
    shapes.append((64, 8, 4096, 14336))
    leaves = [jax.ShapeDtypeStruct(shape, "bfloat16") for shape in shapes]
    choose = jax.make_jaxpr(lambda x: select.top_k(x, density=0.1, scope=scope))
    program = choose(leaves)
    assert [x.shape for x in program.out_avals] == shapes
    assert largest(program.jaxpr) == math.prod(shapes[-1])
    masks = [jax.ShapeDtypeStruct(shape, bool) for shape in shapes]
    like = functools.partial(select.random_like, scope=scope)
    found = jax.eval_shape(lambda m, key: like(m, key=key), masks, jax.random.key(0))
    assert [x.shape for x in found] == shapes


def largest(jaxpr):
    """The size of the largest array in a program."""
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    subs = [sub for eqn in jaxpr.eqns for sub in core.jaxprs_in_params(eqn.params)]
    return max([*sizes, *map(largest, subs)], default=0)


STRUCTURES = [
    NofM(1, 2, -2),
    NofM(2, 4, axis=-2),
    NofM(3, 4, axis=0),
    NofM(0, 2, axis=-1),
    Block((2, 2), (-2, -1)),
    Block((4, 1), (-2, -1)),
    Units(-1),
    Units(axis=-2),
    Units(axis=0),
]


@pytest.mark.parametrize(
    ("structure", "scope", "masked"),
    of_cases(
        (NofM(2, 4, -2), "leaf", False),
        (NofM(3, 4, axis=0), "global", True),
        (Block((2, 2), (-2, -1)), "global", True),
        (Block((4, 1), (-2, -1)), "leaf", False),
        (Units(-1), "global", True),
        (Units(axis=0), "leaf", False),
        every=[
            (structure, scope, masked)
            for structure in STRUCTURES
            for scope in ("leaf", "global")
            for masked in (False, True)
        ],
    ),
    ids=str,
)
def test_structured_top_k_agrees_with_the_reference(structure, scope, masked):
    scores, within = plain_scores(seed=3), alive_half() if masked else None
    scores, within = ({k: t[k] for k in "ab"} if t else None for t in (scores, within))
    for density in (0.0, 0.25, 0.5, 1.0):
        mask, cutoff = chooser(scope, structure)(scores, np.float32(density), within)
        expected = reference(
            scores, density, scope=scope, structure=structure, within=within
        )
        if not isinstance(structure, NofM):
            assert_separates(cutoff, mask, scores, structure, within)
        if masked:
            mask = {k: np.broadcast_to(m, SHAPES[k]) for k, m in mask.items()}
        assert_masks_equal(mask, expected)


@pytest.mark.parametrize(
    ("structure", "dtype"),
    of_cases(
        (NofM(1, 2, -2), "float16"),
        (Block((2, 2), (-2, -1)), "float16"),
        (Units(-1), "bfloat16"),
        every=[
            (s, d)
            for s in (NofM(1, 2, -2), Block((2, 2), (-2, -1)), Units(-1))
            for d in FLOATS
        ],
    ),
    ids=str,
)
def test_structures_rank_narrow_floats_with_specials(structure, dtype):
    scores = {"w": special_scores(dtype)["b"]}
    if not isinstance(structure, NofM):  # means of infinities are nan: ties all over
        finite = np.nan_to_num(wide(scores["w"]), posinf=4.0, neginf=-4.0)
        scores = {"w": (np.round(finite * 4) / 4).astype(jnp.dtype(dtype))}  # exact
    mask = select.top_k(scores, density=0.5, structure=structure)
    assert_masks_equal(mask, reference(scores, 0.5, structure=structure))


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_a_shared_within_counts_every_entry_that_it_covers_packed_or_not(scope):
    scores = plain_scores()
    within = {
        "a": np.array([[True], [False], [True], [True]]),
        "b": np.ones((1, 1, 1), bool),
        "c": np.array([[True, False]]),
    }
    given = within if scope == "global" else packing.pack(within)
    mask = select.top_k(scores, density=0.5, scope=scope, within=given)
    assert_masks_equal(mask, reference(scores, 0.5, scope=scope, within=within))


def test_what_lies_outside_within_is_never_kept_even_if_it_is_best():
    scores = {"w": np.array([np.inf, 5.0, np.nan, -np.inf, 1.0], "float32")}
    within = {"w": np.array([False, False, True, True, False])}
    for density, kept in ((1.0, [2, 3]), (0.5, [3])):
        mask = select.top_k(scores, density=density, within=within)["w"]
        assert np.flatnonzero(mask).tolist() == kept


def test_numbers_trees_of_them_and_none_leaves_are_one_program():
    scores = {**plain_scores(), "d": None}
    densities = {"a": 0.25, "b": 0.5, "c": 1.0, "d": None}
    given = [wide(scores[k]) for k in "abc"]
    for density in (0.25, densities):
        mask, cutoff = select.top_k(scores, density=density, return_cutoff=True)
        assert mask.pop("d") is None
        assert cutoff["d"] is None
        shares = [0.25, 0.5, 1.0] if isinstance(density, dict) else density
        expected = dict(zip("abc", selection.top_k(given, shares), strict=True))
        assert_masks_equal(mask, expected)
    compiled = jax.jit(lambda s: select.top_k(s, density=densities))(scores)
    compiled.pop("d")
    assert_masks_equal(compiled, expected)


@pytest.mark.parametrize(
    ("scope", "guessed"), [("global", False), ("global", True), ("leaf", True)]
)
def test_leaves_of_different_dtypes_are_ranked_together(scope, guessed):
    scores = {
        "a": np.array([1.0, 4.0, -2.0], "float32"),
        "b": np.array([3.0, 0.5, 2.0], jnp.bfloat16),
        "c": np.array([5.0, -1.0], "float16"),
    }
    guess = {name: leaf[0] for name, leaf in scores.items()} if guessed else None
    mask, cutoff = chooser(scope)(scores, np.float32(0.5), None, guess)
    assert_masks_equal(mask, reference(scores, 0.5, scope=scope))
    dtypes = {name: leaf.dtype for name, leaf in scores.items()}
    assert {name: c.dtype for name, c in cutoff.items()} == dtypes


def test_float32_and_float64_leaves_are_ranked_together(x64):
    scores = {
        "a": np.array([1.0, 4.0, -2.0], "float32"),
        "b": np.array([3.0, 0.5, 2.0, -5.0], "float64"),
    }
    mask = select.top_k(scores, density=0.5, scope="global")
    assert_masks_equal(mask, reference(scores, 0.5, scope="global"))


GUESSES = [None, math.nan, math.inf, -math.inf, 1e30, 0.0, 0.41]  # None: the cutoff


@over_cases
def test_a_guess_never_changes_the_mask(dtype, scope, masked):
    choose, within = chooser(scope), alive_half() if masked else None
    for scores in (plain_scores(dtype), special_scores(dtype)):
        for density in map(np.float32, (0.0, 0.3, 1.0)):
            expected, cutoff = choose(scores, density, within)
            for one in GUESSES:
                guess = cutoff
                if one is not None:
                    with np.errstate(over="ignore"):
                        guess = {k: np.asarray(one, x.dtype) for k, x in scores.items()}
                mask, _ = choose(scores, density, within, guess)
                assert_masks_equal(mask, expected)


def test_no_gradient_reaches_the_scores_through_the_cutoff():
    @jax.jit
    @jax.grad
    def slope(scores):
        return select.top_k({"w": scores}, density=0.5, return_cutoff=True)[1]["w"]

    np.testing.assert_array_equal(slope(np.arange(4, dtype="float32")), np.zeros(4))


@pytest.mark.parametrize(
    "structure",
    [
        Entries(),
        Block((2, 2), (-2, -1)),
        pytest.param(NofM(2, 4, -2), marks=pytest.mark.slow),
        pytest.param(Units(-1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_vmap_over_guesses_and_structures(structure):
    rng = np.random.default_rng(0)
    scores = {"w": rng.normal(size=(3, 4, 6)).astype("float32")}
    guess = {"w": np.array([0.0, np.nan, 1e9], "float32")}

    @jax.jit
    @jax.vmap
    def choose(s, g):
        return select.top_k(s, density=0.5, guess=g, structure=structure)

    mapped = choose(scores, guess)["w"]
    for i, mask in enumerate(np.asarray(mapped)):
        expected = reference({"w": scores["w"][i]}, 0.5, structure=structure)
        assert_masks_equal({"w": mask}, expected)


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_leaves_of_any_shape_can_be_selected_from(scope):
    shapes = [(), (0,), (2, 0), (0, 3), (2, 0, 5), (0, 3, 4), (4,), (1, 1)]
    rng = np.random.default_rng(0)
    scores = {str(s): rng.normal(size=s).astype("float32") for s in shapes}
    scores = {k: np.asarray(x, "float32") for k, x in scores.items()}
    mask = select.top_k(scores, density=0.75, scope=scope)
    assert_masks_equal(mask, reference(scores, 0.75, scope=scope))


def test_every_way_of_cutting_an_array_into_rows_counts_the_same():
    rng = np.random.default_rng(0)
    shapes = [(70_000,), (33, 5), (3, 40, 33), (257, 64)]
    scores = {str(s): rng.normal(size=s).astype("float32") for s in shapes}
    assert_masks_equal(select.top_k(scores, density=0.1), reference(scores, 0.1))


def test_a_stack_without_entries_has_a_mask_without_entries():
    scores = {"w": np.zeros((0, 100, 100), "f4"), "v": np.zeros((2, 100, 0), "f4")}
    roles = where.matching(".*", axes="stack inputs outputs")
    for scope in ("leaf", "layer", "global"):
        mask = select.top_k(scores, density=0.5, scope=scope, where=roles)
        assert {k: m.shape for k, m in mask.items()} == {
            k: x.shape for k, x in scores.items()
        }


def test_adversarial_scores_do_not_defeat_the_search():
    powers = 2.0 ** np.arange(-120.0, 120.0)
    scores = {"w": np.concatenate([powers, -powers]).astype("float32")}
    for k in (1, 5, 240, 479):
        mask = select.top_k(scores, density=k / 480)
        assert_masks_equal(mask, reference(scores, k / 480))


# Threshold, Bernoulli, random.


def test_threshold_keeps_what_reaches_it(every_transform):
    scores = {dtype: special_scores(dtype)["b"] for dtype in FLOATS} | {"none": None}
    choose = every_transform(lambda s, at: select.threshold(s, at=at))
    mask = choose(scores, np.float32(0.0))
    assert mask["none"] is None
    for dtype in FLOATS:
        with np.errstate(invalid="ignore"):
            expected = wide(scores[dtype]) >= 0
        np.testing.assert_array_equal(mask[dtype], expected)


@pytest.mark.parametrize("at", [-1e39, -1000, 0.29883, 1e-42, 0.1, 70000, math.nan])
def test_a_threshold_is_not_rounded_to_the_format_of_the_scores(at):
    pool = [-math.inf, -448, 0, 1e-45, 2e-42, 0.298828, 0.1, 0.10009, 448, math.inf]
    names = ["float8_e4m3fn", *FLOATS]
    with np.errstate(over="ignore"):
        single = np.float32(at)
        scores = {d: np.array(pool).astype(jnp.dtype(d)) for d in names}
    for given in (at, single):
        mask = select.threshold(scores, at=given)
        for name, leaf in scores.items():
            with np.errstate(invalid="ignore"):
                expected = wide(leaf) >= np.float64(given)
            np.testing.assert_array_equal(mask[name], expected, err_msg=name)


def test_a_threshold_for_each_leaf_and_bad_ones():
    scores = {**plain_scores(), "d": None}
    at = {"a": 0.5, "b": np.float32(-0.5), "c": np.zeros((4, 1), "float32"), "d": None}
    mask = select.threshold(scores, at=at)
    assert mask.pop("d") is None
    expected = {k: scores[k] >= np.float32(at[k]) for k in "abc"}
    assert_masks_equal(mask, expected)
    blame = "`maskjax.select.threshold` needs "
    wide = {**at, "a": np.zeros((2, 6))}
    for bad, kind, match in (
        ({"a": 0.5, "b": 0.5}, ValueError, "`scores` and `at` of the same structure"),
        ({**at, "b": None}, TypeError, "`at` as a number(.|\n)*b: NoneType None"),
        (wide, ValueError, r"`at` as scalars, or shaped(.|\n)*a: .*\(2, 6\)"),
        ("0.5", TypeError, "`at` as a number(.|\n)*a: str '0.5'\n  b: str"),
        (True, TypeError, "`at` as a number(.|\n)*a: bool True"),
    ):
        with pytest.raises(kind, match=blame + match):
            select.threshold(scores, at=bad)


def test_bernoulli_keeps_each_entry_with_its_probability():
    p = np.repeat(np.array([0.0, 0.2, 0.7, 1.0], "float32"), 4000).reshape(4, -1)
    p = {"w": p, "a": np.full(64, 0.5, "float32"), "b": np.full(64, 0.5, jnp.bfloat16)}
    p |= {"c": None, "nan": np.full(64, np.nan, "float32")}
    mask = select.bernoulli(p, key=jax.random.key(3))
    rates = np.asarray(mask["w"]).mean(axis=1)
    assert rates[[0, 3]].tolist() == [0, 1]
    deviations = 5 * np.sqrt(0.25 / 4000)
    np.testing.assert_allclose(rates[1:3], [0.2, 0.7], atol=deviations)
    assert mask["c"] is None
    assert not np.asarray(mask["nan"]).any()
    assert (np.asarray(mask["a"]) != np.asarray(mask["b"])).any()  # its own key each
    compiled = jax.jit(lambda p, k: select.bernoulli(p, key=k))
    trees.assert_same(compiled(p, jax.random.key(3)), mask)


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_random_has_an_exact_count_and_no_favourites(scope):
    shapes = {"a": (5, 5), "b": (4, 5), "bias": (5,)}
    params = {k: np.ones(s, "float32") for k, s in shapes.items()}
    draw = jax.jit(
        jax.vmap(lambda k: select.random(params, density=0.4, scope=scope, key=k))
    )
    masks = draw(jax.random.split(jax.random.key(0), 2000))
    assert masks["bias"] is None
    a, b = (np.asarray(masks[name]).reshape(2000, -1) for name in ("a", "b"))
    if scope == "leaf":
        assert (a.sum(1) == 10).all()
        assert (b.sum(1) == 8).all()
    both = np.concatenate([a, b], axis=1)
    assert (both.sum(1) == 18).all()
    deviation = 5 * np.sqrt(0.4 * 0.6 / 2000)
    np.testing.assert_allclose(both.mean(0), 0.4, atol=deviation)


def test_a_selection_can_be_exported():
    """Where there is one device, programs have no partitioning of their own."""
    scores = [np.ones((3, 4), "f4"), np.arange(12, dtype="f4").reshape(3, 4)]
    choose = jax.jit(lambda x: select.top_k(x, density=0.25))
    exported = export.export(choose, platforms=("cpu", "tpu", "cuda"))(scores)
    for a, b in zip(exported.call(scores), choose(scores), strict=True):
        np.testing.assert_array_equal(a, b)
