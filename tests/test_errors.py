"""Every complaint: what it blames, and that it names the leaves at fault.

Each case is a call and the pattern that its message must match, dots across lines.
"""

import re
import sys

import flax.core
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import maskjax
from maskjax import (
    algebra,
    allocation,
    bank,
    calibration,
    estimator,
    initializer,
    masking,
    packing,
    report,
    score,
    select,
    stacking,
    superposition,
    where,
)
from maskjax.recipes import edge_popup, lottery_ticket
from maskjax.structure import Block, NofM, Units

KEY = jax.random.key(0)
PARAMS = {
    "dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
    "steps": jnp.ones((2, 2), jnp.int32),
    "phase": jnp.ones((2, 2), jnp.complex64),
}
SCORES = {"a": jnp.ones((4, 6)), "b": jnp.ones((3, 5)), "c": None}
MASK = {"a": jnp.ones((4, 6), bool), "b": jnp.ones((3, 5), bool), "c": None}
WEIGHTS = {"a": jnp.ones((4, 6)), "b": jnp.ones((3, 5)), "c": jnp.ones(2)}
STACK = {"a": jnp.ones((2, 4, 6), bool), "b": jnp.ones((2, 3, 5), bool), "c": None}
PACKED = jax.vmap(packing.pack)(STACK)
PACKED_MASK = packing.pack(MASK)


def replaced(tree, **leaves):
    return {**tree, **leaves}


def raises(kind, pattern):
    return pytest.raises(kind, match=re.compile(pattern, re.DOTALL))


# Which leaves are chosen.

CHOOSERS = {
    "maskjax.score.magnitude": lambda p, w: score.magnitude(p, where=w),
    "maskjax.score.movement": lambda p, w: score.movement(p, p, where=w),
    "maskjax.score.random": lambda p, w: score.random(p, where=w, key=KEY),
    "maskjax.select.random": lambda p, w: select.random(
        p, density=0.5, where=w, key=KEY
    ),
    "maskjax.allocation.uniform": lambda p, w: allocation.uniform(
        p, density=0.5, where=w
    ),
    "maskjax.allocation.erk": lambda p, w: allocation.erk(p, density=0.5, where=w),
    "maskjax.masking.everything": lambda p, w: masking.everything(p, where=w),
    "maskjax.initializer.redraw": lambda p, w: initializer.redraw(
        initializer.signed_constant(), p, where=w, key=KEY
    ),
    "maskjax.recipes.edge_popup.init": lambda p, w: edge_popup.init(
        p, where=w, key=KEY
    ),
}
over_choosers = pytest.mark.parametrize(("fn", "call"), CHOOSERS.items(), ids=CHOOSERS)


@over_choosers
def test_integer_and_complex_leaves_cannot_be_chosen(fn, call, transform):
    with raises(
        TypeError,
        rf"`{fn}` needs every leaf that `where` chooses to be a floating array.*"
        r"phase: complex64 array of shape \(2, 2\)\n"
        r"  steps: int32 array of shape \(2, 2\)",
    ):
        transform(lambda p: call(p, where.ndim_at_least(2)))(PARAMS)


@over_choosers
@pytest.mark.parametrize(
    "predicate", [where.matching("no such"), lambda path, leaf: False]
)
def test_a_predicate_must_choose_something(fn, call, predicate):
    with raises(
        ValueError,
        rf"`{fn}` needs `where` to choose at least one leaf, but .* chooses none of: "
        "dense/bias, dense/kernel, phase, steps",
    ):
        call(PARAMS, predicate)


@over_choosers
def test_an_empty_tree_has_nothing_to_choose(fn, call):
    with raises(ValueError, rf"`{fn}` .* chooses none of: an empty tree"):
        call({}, where.kernels)


@pytest.mark.parametrize("regex", ["(", "a**", 3])
def test_a_regular_expression_must_be_one(regex):
    with raises(ValueError, r"`maskjax.where.matching` needs a regular expression, "):
        where.matching(regex)


# Keys.

KEYED = {
    "maskjax.score.random": lambda k: score.random(WEIGHTS, key=k),
    "maskjax.select.random": lambda k: select.random(WEIGHTS, density=0.5, key=k),
    "maskjax.select.bernoulli": lambda k: select.bernoulli(SCORES, key=k),
    "maskjax.estimator.bernoulli": lambda k: estimator.bernoulli(SCORES, key=k),
    "maskjax.initializer.redraw": lambda k: initializer.redraw(
        initializer.signed_constant(), WEIGHTS, key=k
    ),
    "maskjax.recipes.edge_popup.init": lambda k: edge_popup.init(WEIGHTS, key=k),
}
over_keyed = pytest.mark.parametrize(("fn", "call"), KEYED.items(), ids=KEYED)


@over_keyed
def test_a_key_is_a_typed_key(fn, call):
    for key, kind in [(jax.random.PRNGKey(0), "uint32 array"), (0, "int 0")]:
        with raises(TypeError, rf"`{fn}` needs `key` as a typed key, .* got {kind}"):
            call(key)


@over_keyed
def test_a_key_is_a_single_one(fn, call):
    with raises(ValueError, rf"`{fn}` needs `key` as a single key, .* \(3,\)"):
        call(jax.random.split(KEY, 3))


# Densities.

DENSE = {
    "maskjax.select.top_k": lambda d: select.top_k(SCORES, density=d),
    "maskjax.select.random": lambda d: select.random(WEIGHTS, density=d, key=KEY),
    "maskjax.allocation.uniform": lambda d: allocation.uniform(WEIGHTS, density=d),
    "maskjax.allocation.erk": lambda d: allocation.erk(WEIGHTS, density=d),
    "maskjax.initializer.signed_constant": initializer.signed_constant,
}
over_dense = pytest.mark.parametrize(("fn", "call"), DENSE.items(), ids=DENSE)


@over_dense
@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan"), float("inf"), 2])
def test_a_density_lies_between_0_and_1(fn, call, density):
    with raises(ValueError, rf"`{fn}` needs `density` in \[0, 1\], got {density}"):
        call(density)


@over_dense
def test_a_density_may_be_a_numpy_array_without_axes(fn, call):
    call(np.asarray(0.5, "float32"))
    with raises(ValueError, rf"`{fn}` needs `density` in \[0, 1\], got nan"):
        call(np.asarray(np.nan))
    with raises(TypeError, rf"`{fn}` needs `density` as a number .* got bool array"):
        call(np.asarray(1, bool))


@over_dense
@pytest.mark.parametrize(
    ("density", "kind"), [("0.5", "str '0.5'"), (True, "bool True"), (1j, "complex 1j")]
)
def test_a_density_is_a_number(fn, call, density, kind):
    with raises(TypeError, rf"`{fn}` needs `density` as a number .* got {kind}"):
        call(density)


@over_dense
def test_a_density_is_a_scalar(fn, call):
    with raises(ValueError, rf"`{fn}` needs `density` as a scalar, .* \(2,\)"):
        call(jnp.array([0.1, 0.2]))


def test_a_tree_of_densities_fits_the_scores():
    fn = "`maskjax.select.top_k`"
    with raises(ValueError, rf"{fn} needs `scores` and `density` of the same struc.*b"):
        select.top_k(SCORES, density={"a": 0.5, "c": None})
    with raises(ValueError, rf"{fn} needs a `density` for every leaf .*\n  b: None"):
        select.top_k(SCORES, density={"a": 0.5, "b": None, "c": None})
    with raises(ValueError, rf"{fn} needs `density\[b\]` in \[0, 1\], got 1.5"):
        select.top_k(SCORES, density={"a": 0.5, "b": 1.5, "c": None})
    with raises(
        ValueError,
        rf"{fn} needs one `density` for scope=.global.*Use scope=.leaf., or "
        "scope=.layer. for a number for each layer",
    ):
        select.top_k(SCORES, density={"a": 0.5, "b": 0.5, "c": None}, scope="global")


def test_an_initializer_needs_a_density_above_0_and_a_fan_in():
    fn = "`maskjax.initializer.signed_constant` needs "
    with raises(ValueError, f"{fn}`density` above 0"):
        initializer.signed_constant(0.0)
    with raises(ValueError, f"{fn}a shape with a fan"):
        initializer.signed_constant()(KEY, (3,))


# Scores, structures, and what goes with them.

SCORED = {
    "maskjax.select.top_k": lambda s: select.top_k(s, density=0.5),
    "maskjax.select.threshold": lambda s: select.threshold(s, at=0.5),
    "maskjax.select.bernoulli": lambda s: select.bernoulli(s, key=KEY),
    "maskjax.estimator.threshold": lambda s: estimator.threshold(s),
    "maskjax.estimator.bernoulli": lambda s: estimator.bernoulli(s, key=KEY),
    "maskjax.estimator.straight_through": lambda s: estimator.straight_through(s, s),
}


@pytest.mark.parametrize(("fn", "call"), SCORED.items(), ids=SCORED)
def test_scores_are_floating(fn, call):
    bad = replaced(SCORES, a=jnp.ones(2, jnp.int32), b=jnp.ones(2, bool))
    with raises(
        TypeError,
        rf"`{fn}` needs every leaf of `\w+` to be a floating array or None, got:\n"
        r"  a: int32 array of shape \(2,\)\n  b: bool array of shape \(2,\)",
    ):
        call(bad)
    with raises(TypeError, rf"`{fn}` .*\n  a: float 1.0"):
        call({"a": 1.0})
    with raises(ValueError, rf"`{fn}` needs `\w+` with at least one leaf, got none"):
        call({"a": None})


def test_a_scope_is_a_known_word():
    for call in (
        lambda: select.top_k(SCORES, density=0.5, scope="layers"),
        lambda: select.random(WEIGHTS, density=0.5, scope="layers", key=KEY),
        lambda: estimator.top_k(SCORES, density=0.5, scope="layers"),
    ):
        with raises(ValueError, "needs `scope` as 'leaf' or .*'output', got 'layers'"):
            call()


@pytest.mark.parametrize(
    ("structure", "lines"),
    [
        (NofM(2, 4, -2), "  b: axis -2 of length 3 is not divisible by 4"),
        (NofM(2, 5, -1), "  a: axis -1 of length 6 is not divisible by 5"),
        (NofM(1, 2, 2), "  a: shape \\(4, 6\\) has no axis 2\n  b: shape"),
        (
            Block((2, 3), (-2, -1)),
            "  b: axis -2 of length 3 is not divisible by 2",
        ),
        (Block((5, 7), (-2, -1)), "  a: axis -2 of length 4 .*\n  b: axis -2 of"),
        (Units(-3), "  a: shape \\(4, 6\\) has no axis -3\n  b: shape"),
    ],
    ids=str,
)
def test_every_leaf_fits_the_structure(structure, lines):
    name = type(structure).__name__
    fitting = rf"`maskjax.select.top_k` needs every leaf to fit {name}"
    with raises(ValueError, f"{fitting}.*{lines}"):
        select.top_k(SCORES, density=0.5, structure=structure)


@pytest.mark.parametrize(
    "structure", [Block((1, 1), (-2, -1)), Units(-1), NofM(1, 2, -2)], ids=str
)
def test_a_scalar_has_no_blocks_units_or_groups(structure):
    with raises(ValueError, r"\n  net/scalar: shape \(\) has"):
        select.top_k(
            {"net": {"scalar": jnp.ones(())}}, density=0.5, structure=structure
        )


@pytest.mark.parametrize(("n", "m"), [(3, 2), (-1, 2), (0, 0), (1.0, 2), (1, 2.0)])
def test_n_of_m_takes_whole_numbers(n, m):
    with raises(ValueError, "`maskjax.structure.NofM` needs whole numbers .* got n="):
        NofM(n, m, -2)


@pytest.mark.parametrize("shape", [(0, 2), (2,), (2, 2, 2), (1.0, 2), (-1, 1)])
def test_a_block_takes_two_positive_whole_numbers(shape):
    with raises(ValueError, "`maskjax.structure.Block` needs two positive whole num"):
        Block(shape, (-2, -1))


def test_within_fits_the_scores():
    def choose(within):
        select.top_k(SCORES, density=0.5, within=within)

    fn = "`maskjax.select.top_k`"
    with raises(ValueError, rf"{fn} needs `scores` and `within` of the same structure"):
        choose({"a": MASK["a"], "c": None})
    with raises(ValueError, rf"{fn} needs a leaf of `within` for .*\n  b: None"):
        choose(replaced(MASK, b=None))
    with raises(
        TypeError, rf"{fn} needs every leaf of `within` to be a boolean .*b: f"
    ):
        choose(replaced(MASK, b=jnp.ones((3, 5))))
    bad = replaced(MASK, a=jnp.ones((4, 5), bool), b=jnp.ones(5, bool))
    with raises(
        ValueError,
        rf"{fn} needs every leaf of `within` shaped like its parameter.*"
        r"a: within \(4, 5\), scores \(4, 6\)\n  b: within \(5,\), scores \(3, 5\)",
    ):
        choose(bad)
    with raises(ValueError, "needs packed masks whose bits fit their shapes"):
        broken = packing.PackedMask(jnp.zeros(2, jnp.uint32), (4, 6))
        choose(replaced(MASK, a=broken))
    with raises(ValueError, "(?i)stack"):
        choose(jax.tree.map(lambda x: x, {**PACKED}))


def test_a_guess_fits_the_scores():
    fn = "`maskjax.select.top_k`"
    with raises(ValueError, rf"{fn} needs `scores` and `guess` of the same structure"):
        select.top_k(SCORES, density=0.5, guess={"a": jnp.ones(())})
    near = {"a": jnp.ones(2), "b": jnp.ones(()), "c": None}
    with raises(ValueError, rf"{fn} needs a scalar in `guess` .*\n  a: float32 array"):
        select.top_k(SCORES, density=0.5, guess=near)
    with raises(
        (TypeError, ValueError), rf"{fn} needs a scalar in `guess` .*\n  a: None"
    ):
        near = {"a": None, "b": jnp.ones(()), "c": None}
        select.top_k(SCORES, density=0.5, guess=near)


def test_a_count_past_31_bits_needs_64():
    huge = {"w": jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16)}
    with raises(
        ValueError, r"`maskjax.algebra.count` needs 64-bit integers to count 2"
    ):
        algebra.count({"w": jnp.ones((1, 1), bool)}, huge)


# Masks and parameters.


def test_mask_and_parameters_have_one_structure(transform):
    mask = {"a": MASK["a"], "d": None}
    with raises(
        ValueError,
        "`maskjax.apply` needs `params` and `mask` of the same structure, got:\n"
        "  only in `params`: b\n  only in `params`: c\n  only in `mask`: d",
    ):
        transform(masking.apply)(WEIGHTS, mask)
    with raises(
        ValueError, r"only in `params`: dense/kernel\n  only in `mask`: dense$"
    ):
        masking.apply({"dense": {"kernel": jnp.ones(2)}}, {"dense": np.ones(1, bool)})
    for nothing, said in ((None, "NoneType None"), ({}, "empty")):
        with raises(ValueError, f"same structure, got:\n  `params` is {said}"):
            masking.apply(nothing, MASK)
    with raises(TypeError, "array or None, got:\n  the root: dict"):
        masking.apply(WEIGHTS["c"], MASK)


def test_what_takes_long_to_print_is_told_by_its_type():
    with raises(TypeError, "array or None, got:\n  a: Long$"):
        algebra.count({"a": Long()})
    with raises(TypeError, r"got list\. Write"):
        score.magnitude(WEIGHTS, where=[np.ones(100)])


class Long:
    def __repr__(self):
        return "all of it " * 20


def test_prefixes_that_fit_are_not_to_blame():
    params = {name: {"w": np.ones(2), "b": np.ones(1)} for name in ("body", "head")}
    for mask, lines in (
        ({"head": True}, "  only in `params`: body/b\n  only in `params`: body/w"),
        ({"head": None, "body": False, "tail": True}, "  only in `mask`: tail"),
        ({"head": False, "body": {"w": True}}, "  only in `params`: body/b"),
    ):
        with pytest.raises(ValueError, match="of the same structure") as told:
            masking.apply(params, mask)
        assert str(told.value).split("got:\n")[1] == lines


def test_containers_of_two_kinds_are_named_with_the_way_out():
    pair, mask = {"a": WEIGHTS["a"], "b": WEIGHTS["b"]}, {"a": MASK["a"], "b": None}
    start = "`maskjax.apply` needs `params` and `mask` of the same structure, got:\n  "
    for params, kept, line in (
        ((1.0, 2.0), [None, True], "the root: `params` has tuple, `mask` list"),
        (
            {"net": pair},
            {"net": flax.core.freeze(mask)},
            "net: `params` has dict, `mask` FrozenDict (`flax.core.unfreeze`)",
        ),
        (
            {"a": flax.linen.Partitioned(WEIGHTS["a"], ("x", "y"))},
            {"a": MASK["a"]},
            "a: `params` has Partitioned (`flax.linen.meta.unbox`), `mask` bool array "
            "of shape (4, 6)",
        ),
        (
            nnx.State(pair),
            {"a": MASK["a"]},
            "the root: `params` has State (`flax.nnx.to_pure_dict`), `mask` dict\n  "
            "only in `params`: b",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(start + line) + "$"):
            masking.apply(params, kept)


def test_one_mask_for_a_stack_and_a_stack_for_one_mask_are_told():
    fits = "shaped like its parameter, .* a decision"
    for fn, call in TAKERS_OF_PARAMS.items():
        one = r"one mask for a stack\? `stacking.stack\(\[mask\]\)` is a stack of one"
        with raises(ValueError, rf"`{fn}` needs .*{fits} \({one}\), got:\n  a: .* \(6"):
            call({"a": np.ones((4, 6), bool), "b": np.ones((4, 5), bool), "c": None})
    with raises(ValueError, rf"{fits} \(a stack of masks\? .*`stacking.map`\), got:"):
        masking.apply(WEIGHTS, STACK)


TAKERS_OF_PARAMS = {
    "maskjax.stacking.predict": lambda s: stacking.predict(
        lambda p: p["a"], WEIGHTS, s
    ),
    "maskjax.recipes.lottery_ticket.retrain": lambda s: lottery_ticket.retrain(
        lambda params, mask, key: (params, ()), WEIGHTS, s, key=KEY
    ),
    "maskjax.superposition.one_shot": lambda s: superposition.one_shot(
        lambda p: p["a"].sum(), WEIGHTS, bank.from_stack(s)
    ),
}


def test_mask_leaves_have_the_shapes_of_parameters(transform):
    mask = replaced(MASK, a=jnp.ones((4, 2), bool), b=jnp.ones(5, bool))
    with raises(
        ValueError,
        "`maskjax.apply` needs every leaf of `mask` shaped like its parameter, or 1 "
        r"where entries share a decision, got:\n  a: mask \(4, 2\), params \(4, 6\)\n"
        r"  b: mask \(5,\), params \(3, 5\)",
    ):
        transform(masking.apply)(WEIGHTS, mask)


def test_mask_leaves_are_boolean_or_floating_arrays():
    with raises(
        TypeError, "`maskjax.apply` needs every leaf of `mask` to be .*a: str 'yes'"
    ):
        masking.apply(WEIGHTS, replaced(MASK, a="yes"))
    with raises(TypeError, "`maskjax.packing.pack` needs .* boolean .*a: bool True"):
        packing.pack({"a": True})
    with raises(
        TypeError, "`maskjax.apply` needs every leaf of `mask` to be a bool.*a: int"
    ):
        masking.apply(WEIGHTS, replaced(MASK, a=jnp.ones((4, 6), jnp.int32)))


def test_a_mask_needs_a_parameter_to_be_applied_to():
    params = replaced(WEIGHTS, a=None)
    with raises(ValueError, "`maskjax.apply` needs .*only in `mask`: a"):
        masking.apply(params, MASK)


def test_fill_fits_the_parameters():
    with raises(
        ValueError, "`maskjax.apply` needs `params` and `fill` of the same str"
    ):
        masking.apply(WEIGHTS, MASK, {"a": WEIGHTS["a"]})
    with raises(ValueError, r"needs every leaf of `fill` shaped .*a: fill \(2,\), par"):
        masking.apply(WEIGHTS, MASK, replaced(WEIGHTS, a=jnp.ones(2)))


def test_a_stack_is_not_applied_as_a_mask():
    with raises(
        ValueError, r"`maskjax.apply` .*\n  a: a stack of masks, \(2,\)\n  b: a"
    ):
        masking.apply(WEIGHTS, PACKED)


def test_movement_needs_trees_of_the_same_shapes():
    fn = "`maskjax.score.movement` needs `params` and `initial` of the same"
    with raises(ValueError, f"{fn} structure.*only in `params`: b"):
        score.movement(WEIGHTS, {"a": WEIGHTS["a"]})
    with raises(ValueError, rf"{fn} shapes.*a: params \(4, 6\), initial \(2,\)"):
        score.movement(WEIGHTS, replaced(WEIGHTS, a=jnp.ones(2)))


def test_hard_and_soft_have_the_same_shapes():
    fn = "`maskjax.estimator.straight_through` needs `soft` and `hard` of the same"
    with raises(ValueError, f"{fn} structure"):
        estimator.straight_through({"a": MASK["a"]}, SCORES)
    bad = replaced(MASK, a=jnp.ones((1, 6), bool), b=None)
    with raises(
        ValueError,
        rf"{fn} shapes.*a: soft \(4, 6\), hard \(1, 6\)\n  b: soft \(3, 5\), hard None",
    ):
        estimator.straight_through(bad, SCORES)


# Sets of masks.

SETS = {
    "maskjax.algebra.union": algebra.union,
    "maskjax.algebra.intersection": algebra.intersection,
    "maskjax.algebra.difference": algebra.difference,
    "maskjax.algebra.overlap": algebra.overlap,
}


@pytest.mark.parametrize(("fn", "call"), SETS.items(), ids=SETS)
def test_masks_that_are_combined_agree(fn, call):
    with raises(ValueError, rf"`{fn}` needs `mask 0` and `mask 1` of the same struct"):
        call(MASK, {"a": MASK["a"]})
    with raises(ValueError, rf"`{fn}` .* same shapes.*b: mask 0 \(3, 5\), mask 1 None"):
        call(MASK, replaced(MASK, b=None))
    with raises(ValueError, rf"`{fn}` .*a: mask 0 \(4, 6\), mask 1 \(1, 6\)"):
        call(MASK, replaced(MASK, a=jnp.ones((1, 6), bool)))
    with raises(
        TypeError, rf"`{fn}` needs every leaf of `mask 1` to be a bool.*a: flo"
    ):
        call(MASK, replaced(MASK, a=jnp.ones((4, 6))))


@pytest.mark.parametrize("call", [algebra.union, algebra.intersection])
def test_a_union_is_of_at_least_one_mask(call):
    with raises(ValueError, "` needs at least one mask, got none"):
        call()


BOOLEAN = {
    "maskjax.algebra.complement": algebra.complement,
    "maskjax.algebra.count": algebra.count,
    "maskjax.algebra.density": algebra.density,
    "maskjax.packing.pack": packing.pack,
    "maskjax.packing.unpack": packing.unpack,
    "maskjax.report.table": lambda m: report.table(m, WEIGHTS),
}


@pytest.mark.parametrize(("fn", "call"), BOOLEAN.items(), ids=BOOLEAN)
def test_masks_are_boolean(fn, call):
    bad = replaced(MASK, a=jnp.ones((4, 6)), b=jnp.ones((3, 5), jnp.int32))
    with raises(
        TypeError,
        rf"`{fn}` needs every leaf of `mask` to be a boolean array or None, got:\n"
        r"  a: float32 array of shape \(4, 6\)\n  b: int32 array of shape \(3, 5\)",
    ):
        call(bad)


@pytest.mark.parametrize("fn", [algebra.count, algebra.density])
def test_a_mask_that_is_counted_fits_the_parameters(fn):
    with raises(
        ValueError, f"`maskjax.algebra.{fn.__name__}` .* of the same structure"
    ):
        fn(MASK, {"a": WEIGHTS["a"]})
    with raises(
        ValueError, r"shaped like its parameter.*a: mask \(4, 6\), params \(9,"
    ):
        fn(MASK, replaced(WEIGHTS, a=jnp.ones((9, 6))))


# Packed masks.

BITS = {
    "maskjax.packing.unpack": packing.unpack,
    "maskjax.algebra.complement": algebra.complement,
    "maskjax.algebra.count": algebra.count,
    "maskjax.apply": lambda m: masking.apply({"net": {"w": jnp.ones((5, 7))}}, m),
    "maskjax.report.table": lambda m: report.table(m, {"net": {"w": jnp.ones((5, 7))}}),
}


@pytest.mark.parametrize(
    "bits",
    [
        jnp.zeros(1, jnp.uint32),
        jnp.zeros(3, jnp.uint32),
        jnp.zeros((), jnp.uint32),
        jnp.zeros(2, jnp.int32),
    ],
    ids=lambda bits: f"{bits.dtype}{bits.shape}",
)
@pytest.mark.parametrize(("fn", "call"), BITS.items(), ids=BITS)
def test_the_bits_of_a_packed_mask_fit_its_shape(fn, call, bits):
    with raises(
        ValueError,
        rf"`{fn}` needs packed masks whose bits fit their shapes.*net/w: {bits.dtype} "
        r"array of shape .* for shape \(5, 7\), which takes uint32 of shape \(2,\)",
    ):
        call({"net": {"w": packing.PackedMask(bits, (5, 7))}})


STACKED = {
    "maskjax.superposition.gradient": lambda s: superposition.gradient(
        lambda p: jnp.sum(p["a"]), WEIGHTS, s, jnp.ones(2)
    ),
    "maskjax.packing.dot": lambda s: packing.dot(s, WEIGHTS),
}


@pytest.mark.parametrize(("fn", "call"), STACKED.items(), ids=STACKED)
def test_arithmetic_on_bits_takes_packed_stacks(fn, call):
    with raises(
        TypeError, rf"`{fn}` needs every leaf of `stack` packed .*a: bool.*b: b"
    ):
        call(STACK)
    with raises(ValueError, rf"`{fn}` .*\n  a: one mask, not a stack"):
        call(packing.pack(MASK))
    broken = packing.PackedMask(jnp.zeros((2, 3), jnp.uint32), (4, 6))
    with raises(ValueError, rf"`{fn}` .*\n  a: uint32 array of shape \(2, 3\) for sha"):
        call(replaced(PACKED, a=broken))
    short = packing.PackedMask(PACKED["a"].bits[:1], (4, 6))
    with raises(ValueError, rf"`{fn}` needs .*same number of members.*a: 1\n  b: 2"):
        call(replaced(PACKED, a=short))
    with raises(ValueError, rf"`{fn}` needs `stack` with at least one leaf, got none"):
        call({"a": None})


def test_dot_needs_a_tree_that_fits():
    fn = "`maskjax.packing.dot`"
    with raises(ValueError, f"{fn} needs `tree` and `stack` of the same structure"):
        packing.dot(PACKED, {"a": WEIGHTS["a"]})
    with raises(ValueError, rf"{fn} .*a: stack \(4, 6\), tree \(2,\)"):
        packing.dot(PACKED, replaced(WEIGHTS, a=jnp.ones(2)))
    with raises(TypeError, rf"{fn} .*floating.*a: int32 array"):
        packing.dot(PACKED, replaced(WEIGHTS, a=jnp.ones((4, 6), jnp.int32)))
    with raises(ValueError, rf"{fn} .*only in `stack`: a"):
        packing.dot(PACKED, replaced(WEIGHTS, a=None))


# Stacks.


def test_masks_that_are_stacked_agree():
    fn = "`maskjax.stacking.stack`"
    with raises(ValueError, f"{fn} needs at least one mask, got none"):
        stacking.stack([])
    with raises(ValueError, f"{fn} needs `mask 0` and `mask 2` of the same structure"):
        stacking.stack([MASK, MASK, {"a": MASK["a"]}])
    with raises(ValueError, rf"{fn} .* same shapes.*a: mask 0 \(4, 6\), mask 1 \(1, 6"):
        stacking.stack([MASK, replaced(MASK, a=jnp.ones((1, 6), bool))])
    with raises(ValueError, rf"{fn} .*c: mask 0 None, mask 1 \(2,\)"):
        stacking.stack([MASK, replaced(MASK, c=jnp.ones(2, bool))])
    with raises(ValueError, rf"{fn} .* of the same kind.*a: bool and packed"):
        stacking.stack([MASK, packing.pack(MASK)])
    with raises(ValueError, rf"{fn} .* of the same kind.*a: bool and float32"):
        stacking.stack([MASK, replaced(MASK, a=jnp.ones((4, 6)))])


TAKERS = {
    "maskjax.stacking.size": stacking.size,
    "maskjax.stacking.unstack": stacking.unstack,
    "maskjax.stacking.take": lambda s: stacking.take(s, 0),
    "maskjax.stacking.counts": stacking.counts,
    "maskjax.stacking.mix": lambda s: stacking.mix(s, jnp.ones(2)),
    "maskjax.stacking.predict": lambda s: stacking.predict(
        lambda p: p["a"], WEIGHTS, s
    ),
}


@pytest.mark.parametrize(("fn", "call"), TAKERS.items(), ids=TAKERS)
def test_leaves_of_a_stack_agree_about_its_size(fn, call):
    same = rf"`{fn}` needs every leaf of `stack` with the same number of members"
    with raises(ValueError, rf"{same}.*a: 3\n  b: 2"):
        call(replaced(STACK, a=jnp.ones((3, 4, 6), bool)))
    with raises(ValueError, rf"{same}.*a: None\n  b: 2"):
        call(replaced(STACK, a=jnp.ones((), bool)))
    with raises(ValueError, rf"{same}.*a: one mask .*; pack a stack by `jax.vmap"):
        call(packing.pack(MASK))
    with raises(ValueError, rf"`{fn}` needs `stack` with at least one leaf, got none"):
        call({"a": None})


def test_an_index_is_an_integer_in_range():
    fn = "`maskjax.stacking.take`"
    for i in (1.0, True, jnp.ones(())):
        with raises(TypeError, f"{fn} needs `i` as an integer, got "):
            stacking.take(STACK, i)
    for i in (2, -3):
        for index in (i, np.int8(i), jnp.int32(i), jnp.array([0, i])):
            with raises(ValueError, rf"{fn} needs `i` in \[-2, 2\), got {i}"):
                stacking.take(STACK, index)
    with raises(TypeError, "`maskjax.stacking.size` needs every leaf .*\n  b: int 0"):
        stacking.size({"a": jnp.ones((2, 3)), "b": 0})


def test_there_is_one_floating_coefficient_for_each_member():
    needs = "`maskjax.stacking.mix` needs `coefficients`"
    for given, kind in [([0.5, 0.5], "list"), (np.ones(2, np.int32), "int32")]:
        with raises(TypeError, f"{needs} as a floating array, got {kind}"):
            stacking.mix(PACKED, given)
    for shape in ((3,), (), (2, 1)):
        with raises(ValueError, rf"{needs} of shape \(2,\), one for each"):
            stacking.mix(PACKED, np.ones(shape))


def test_members_are_told_by_a_flag_each():
    needs = "`maskjax.stacking.counts` needs `members`"
    for given, kind in [([True, False], "list"), (np.array([0, 1]), "int64")]:
        with raises(TypeError, f"{needs} as booleans, got {kind}"):
            stacking.counts(PACKED, given)
    with raises(ValueError, rf"{needs} of shape \(2,\), got \(3,\)"):
        stacking.counts(PACKED, np.ones(3, bool))
    with raises(TypeError, "`maskjax.stacking.counts` needs every leaf of `stack` to"):
        stacking.counts(replaced(STACK, a=jnp.ones((2, 4, 6))))
    broken = packing.PackedMask(jnp.zeros((2, 3), jnp.uint32), (4, 6))
    with raises(ValueError, "`maskjax.stacking.counts` needs packed masks whose bits"):
        stacking.counts(replaced(PACKED, a=broken))


def test_mix_takes_masks_only():
    with raises(
        TypeError, "`maskjax.stacking.mix` needs every leaf of `stack` to be a"
    ):
        stacking.mix(replaced(STACK, a=jnp.ones((2, 4, 6))), jnp.ones(2))
    broken = packing.PackedMask(jnp.zeros((2, 3), jnp.uint32), (4, 6))
    with raises(ValueError, "needs packed masks whose bits fit their shapes.*\n  a: "):
        stacking.mix(replaced(PACKED, a=broken), jnp.ones(2))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_a_member(batch_size):
    with raises(
        ValueError, "`maskjax.stacking.predict` needs `batch_size` of at least"
    ):
        stacking.predict(lambda p: p, WEIGHTS, STACK, batch_size=batch_size)


def test_predict_complains_when_a_member_does_not_fit():
    with raises(ValueError, r"shaped like its parameter.*a: mask \(4, 6\), params \(2"):
        stacking.predict(lambda p: p, replaced(WEIGHTS, a=jnp.ones((2, 2))), STACK)


# Reports, recipes, and ourselves.


def test_a_table_needs_values_that_fit(monkeypatch):
    fn = "`maskjax.report.table`"
    with raises(TypeError, f"{fn} needs a mask with values, got a traced one"):
        jax.jit(lambda m: report.table(m, WEIGHTS))(MASK)
    with raises(ValueError, f"{fn} needs `params` and `mask` of the same structure"):
        report.table(MASK, {"a": WEIGHTS["a"]})
    with raises(ValueError, rf"{fn} .*a: mask \(4, 6\), params \(2, 2\)"):
        report.table(MASK, replaced(WEIGHTS, a=jnp.ones((2, 2))))
    with raises(ValueError, rf"{fn} .*a: a stack of masks"):
        report.table(PACKED, WEIGHTS)
    monkeypatch.setitem(sys.modules, "rich", None)
    with raises(ImportError, f"{fn} draws with rich. Install it with .*maskjax.plot"):
        report.table(MASK, WEIGHTS)


@pytest.mark.parametrize(
    "call",
    [
        lambda: maskjax.select.top_k(SCORES, 0.5),
        lambda: maskjax.score.random(WEIGHTS, where.kernels, KEY),
        lambda: maskjax.select.bernoulli(SCORES, KEY),
        lambda: maskjax.allocation.erk(WEIGHTS, 0.5),
        lambda: maskjax.masking.everything(WEIGHTS, where.kernels),
    ],
)
def test_options_are_named(call):
    with raises(TypeError, r"takes .* positional argument"):
        call()


@pytest.mark.parametrize("density", [np.float32(0.25), np.float64(0.25), 0, 1])
def test_numbers_of_every_kind_are_densities(density):
    mask = select.top_k({"w": jnp.arange(8.0)}, density=density)
    assert int(mask["w"].sum()) == int(8 * density)


@pytest.mark.parametrize(("fn", "call"), TAKERS.items(), ids=TAKERS)
def test_a_stack_has_members(fn, call):
    empty = {name: jnp.ones((0, 4, 6), bool) for name in STACK}
    with raises(ValueError, rf"`{fn}` needs `stack` with at least one member"):
        call(empty)


PATHLESS = {
    "apply": lambda: masking.apply(WEIGHTS, MASK),
    "rescale": lambda: masking.rescale(WEIGHTS, PACKED_MASK),
    "pack": lambda: packing.pack(MASK),
    "union": lambda: algebra.union(MASK, PACKED_MASK),
    "density": lambda: algebra.density(MASK, WEIGHTS),
    "top_k": lambda: select.top_k(SCORES, density=0.5, within=MASK),
    "straight_through": lambda: estimator.straight_through(MASK, SCORES),
    "stack": lambda: stacking.stack([MASK, MASK]),
    "mix": lambda: stacking.mix(STACK, jnp.ones(2)),
    "dot": lambda: packing.dot(PACKED, WEIGHTS),
    "append": lambda: bank.append(bank.from_stack(PACKED, capacity=3), MASK),
    "one_shot": lambda: superposition.one_shot(
        lambda p: jnp.sum(p["a"]), WEIGHTS, bank.from_stack(PACKED)
    ),
}


@pytest.mark.parametrize("call", PATHLESS.values(), ids=PATHLESS)
def test_paths_become_strings_only_for_a_complaint(call, monkeypatch):
    def complain(*_):
        raise AssertionError("a path was made into a string")

    monkeypatch.setattr("maskjax._core.trees.path_string", complain)
    jax.eval_shape(call)


MIXED = {"a": {1: jnp.ones((2, 2)), "1": jnp.ones((2, 2))}, "b": None}
MIXED_MASK = {"a": {1: STACK["a"][0], "1": STACK["a"][0]}, "b": None}
UNSORTABLE = {
    "apply": lambda: masking.apply(MIXED, MIXED_MASK),
    "apply(mask)": lambda: masking.apply(WEIGHTS, MIXED_MASK),
    "select.top_k": lambda: select.top_k(MIXED, density=0.5),
    "score.magnitude": lambda: score.magnitude(MIXED),
    "algebra.density": lambda: algebra.density(MIXED_MASK),
    "stacking.stack": lambda: stacking.stack([MIXED_MASK, MIXED_MASK]),
    "bank.empty": lambda: bank.empty(MIXED, capacity=2),
    "bank.append": lambda: bank.append(bank.from_stack(PACKED), MIXED_MASK),
    "estimator.bernoulli": lambda: estimator.bernoulli(MIXED, key=KEY),
    "where.traced": lambda: where.traced(lambda p, x: x, MIXED, jnp.ones(2)),
    "calibration.collect": lambda: calibration.collect(lambda p, x: x, MIXED, []),
}


@pytest.mark.parametrize("call", UNSORTABLE)
def test_dicts_that_jax_cannot_sort_are_named(call):
    fn = f"`maskjax.{call.split('(')[0]}`"
    with raises(
        TypeError, rf"^{fn} needs dicts whose keys .*got:\n  \S*a: keys 1, '1'$"
    ):
        UNSORTABLE[call]()
