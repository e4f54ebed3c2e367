"""Compaction by hand: small networks whose plan can be seen, and what is refused.

The laws on many networks are in `test_compaction_laws`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import maskjax
from maskjax import compaction

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
KEEP = np.array([True, False, True, False])


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense(p, x):
    return jax.nn.relu(x @ p["up"] + p["bias"][None]) @ p["down"]


PARAMS = {"up": draw(3, 4), "bias": draw(4, seed=1), "down": draw(4, 2, seed=2)}
UNITS = {"up": KEEP[None], "bias": KEEP, "down": None}
FILTERS = {"up": KEEP[None], "bias": None, "down": None}


def check(apply, params, mask, *inputs, **how):
    """The plan, once the small network was seen to say what the masked one does."""
    plan = compaction.plan(apply, params, mask, *inputs, **how)
    masked = maskjax.apply(params, mask)
    small = compaction.shrink(masked, plan)
    out = jax.jit(compaction.narrow(apply, plan))(small, *inputs)
    np.testing.assert_allclose(out, jax.jit(apply)(masked, *inputs), atol=1e-5)
    return plan


def test_units_leave_with_their_bias_and_what_reads_them():
    plan = check(dense, PARAMS, UNITS, X)
    assert plan.shapes == {"bias": (2,), "down": (2, 2), "up": (3, 2)}
    assert str(plan).startswith("24 -> 12 parameters")
    assert not plan.report


def test_what_stays_though_it_is_masked_is_told_with_a_remedy():
    plan = check(dense, PARAMS, FILTERS, X)
    assert plan.shapes["up"] == (3, 4)
    [line] = plan.report
    assert line.startswith("up axis 1: 2 of 4 masked, 0 removed: is not zero where it")
    assert "bias is not masked there" in line
    assert "fold=True" in line


def test_units_that_leave_in_groups_are_told():
    def apply(p, x):
        h = (x @ p["up"]).reshape(-1, 2, 2).sum(0) + p["shift"][:, None]
        return h.reshape(-1) @ p["down"]

    params = {"up": PARAMS["up"], "shift": draw(2), "down": PARAMS["down"]}
    mask = {"up": np.array([[True, False, True, True]]), "shift": None, "down": None}
    [line] = check(apply, params, mask, X).report
    assert line.endswith("in whole groups of 2, or from the same place of every group")


def test_steps_of_a_loop_tell_what_each_needs():
    def apply(p, x):
        layer = lambda h, p: (h + jax.nn.relu(h @ p["a"]) @ p["b"], None)  # noqa: E731
        return jax.lax.scan(layer, x, p)[0]

    params = {"a": draw(3, 3, 4), "b": draw(3, 4, 3)}
    mask = {"a": np.array([KEEP, ~KEEP, [True, True, False, True]])[:, None], "b": None}
    plan = check(apply, params, mask, X)
    assert plan.shapes == {"a": (3, 3, 3), "b": (3, 3, 3)}
    wanted = "5 of 12 masked, 3 removed: the steps of a loop need 2, 2, 3 positions"
    assert plan.report == (f"a axis 2: {wanted}, and each keeps 3",)


def test_constants_fold_into_the_next_operation():
    plan = check(dense, PARAMS, FILTERS, X, fold=True)
    assert plan.shapes == {"bias": (2,), "down": (2, 2), "up": (3, 2)}
    everything = jax.tree.map(lambda p: np.ones(p.shape, bool), PARAMS)
    zeros = {**PARAMS, "bias": np.zeros(4, np.float32)}
    plan = check(dense, zeros, everything, X, fold=True)
    assert plan.shapes["up"] == (3, 4)  # numbers that happen to be 0 take nothing out


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_folded_constants_come_right_at_borders_of_any_size(padding):
    def apply(p, x):
        conv = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
            x, k, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return conv(jnp.tanh(conv(x, p["up"]) + p["bias"][None, None, None]), p["down"])

    params = {"up": draw(3, 3, 2, 4), "bias": draw(4), "down": draw(3, 3, 4, 3)}
    mask = {"up": KEEP[None, None, None], "bias": None, "down": None}
    plan = check(apply, params, mask, draw(1, 6, 7, 2), fold=True)
    assert plan.shapes["down"] == (3, 3, 2, 3)
    masked = maskjax.apply(params, mask)
    x = draw(2, 9, 5, 2)
    out = compaction.narrow(apply, plan)(compaction.shrink(masked, plan), x)
    np.testing.assert_allclose(out, apply(masked, x), atol=1e-4)


def test_constants_fold_where_rows_are_mapped():
    """The rows count the steps of a loop, and each may keep other positions."""

    def apply(p, x):
        h = jax.lax.map(lambda row: jnp.tanh(row @ p["up"] + p["bias"]), x)
        return jax.nn.relu(h @ p["again"]) @ p["down"]

    params = PARAMS | {"again": draw(4, 4, seed=3)}
    mask = FILTERS | {"again": KEEP[None]}
    plan = check(apply, params, mask, X, fold=True)
    assert plan.shapes == {"again": (2, 2), "bias": (2,), "down": (2, 2), "up": (3, 2)}


def test_what_is_put_around_is_part_of_each_row():
    def apply(p, x):
        h = jnp.pad(x @ p["up"], ((0, 1), (1, 0)), constant_values=0.5)
        return h @ p["down"]

    params = {"up": PARAMS["up"], "down": draw(5, 2)}
    plan = check(apply, params, {"up": KEEP[None], "down": None}, X)
    assert plan.shapes["up"] == (3, 4)


@pytest.mark.parametrize(
    ("widths", "left"),
    [
        ((-1, 2, 0), (2, 3)),
        ((-1, -1, 0), (3, 1)),
        ((2, -1, 0), (3, 4)),
        ((1, 0, 1), (2, 6)),
    ],
)
def test_padding_may_cut_and_leave_gaps(widths, left):
    """Units that are cut off stay: nothing uses them, mask or no mask."""

    def apply(p, x):
        h = jax.lax.pad(x @ p["up"], jnp.float32(1), ((0, 0, 0), widths))
        return h @ p["down"]

    low, high, inner = widths
    params = {"up": PARAMS["up"], "down": draw(4 + low + high + 3 * inner, 2)}
    plan = check(apply, params, {"up": KEEP[None], "down": None}, X)
    assert plan.shapes == {"up": (3, left[0]), "down": (left[1], 2)}


def test_a_unit_that_is_read_twice_stays_if_one_reader_needs_it():
    order = jnp.array([0, 1, 2, 3, 0])

    def apply(p, x):
        return jnp.take(x @ p["up"], order, 1) @ p["down"]

    params = {"up": PARAMS["up"], "down": draw(5, 2)}
    rows = np.array([True, False, True, False, False])
    plan = check(apply, params, {"up": None, "down": rows[:, None]}, X)
    assert plan.shapes == {"up": (3, 2), "down": (3, 2)}


def test_one_of_several_equal_positions_stands_for_all_in_a_sum():
    def apply(p, x):
        h = x @ p["up"]
        h = h - h.mean(-1, keepdims=True)
        h = h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-3)
        return (h * p["scale"][None]) @ p["down"]

    keep = np.array([1, 1, 0, 0, 0, 1], bool)
    params = {"up": draw(3, 6), "scale": draw(6), "down": draw(6, 2)}
    mask = {"up": keep[None], "scale": keep, "down": None}
    assert check(apply, params, mask, X).shapes["up"] == (3, 6)
    assert check(apply, params, mask, X, ghosts=True).shapes["up"] == (3, 4)


def test_two_layers_may_start_from_the_same_zeros():
    def apply(p, x):
        start = jnp.zeros((2, 4))
        one, other = jnp.tanh(start + x @ p["a"]), jnp.tanh(start + x @ p["b"])
        return one @ p["c"] + other @ p["d"]

    params = {n: draw(3, 4, seed=i) for i, n in enumerate("ab")}
    params |= {n: draw(4, 2, seed=i) for i, n in enumerate("cd")}
    mask = {"a": KEEP[None], "b": ~KEEP[None], "c": None, "d": None}
    shapes = check(apply, params, mask, X).shapes
    assert shapes == {"a": (3, 2), "b": (3, 2), "c": (2, 2), "d": (2, 2)}
    assert len(compaction.groups(apply, params, X)) == 2


def test_what_changes_no_product_no_extreme_and_no_bits_leaves():
    def apply(p, x):
        h = x @ p["up"]
        product = (1 + h).prod(-1, keepdims=True)
        product += jnp.where(h > 0, h, -jnp.inf).max(-1, keepdims=True, initial=-1)
        bits = jnp.int32(8 * h)
        either = jax.lax.reduce_or(bits, (1,)) + jax.lax.reduce_xor(bits, (1,))
        every = jax.lax.reduce_and(~bits, (1,))
        return (h * product) @ p["down"] + (either + every)[:, None].astype(h.dtype)

    params = {name: PARAMS[name] for name in ("up", "down")}
    plan = check(apply, params, {"up": KEEP[None], "down": None}, X)
    assert plan.shapes["up"] == (3, 2)


def test_every_axis_keeps_at_least_one_position():
    mask = {"up": np.zeros((1, 4), bool), "bias": np.zeros(4, bool), "down": None}
    assert check(dense, PARAMS, mask, X).shapes["up"] == (1, 1)


def test_what_has_no_rule_stays_and_is_told():
    def apply(p, x):
        return jnp.fft.fft(x @ p["up"]).real @ p["down"]

    params = {"up": PARAMS["up"], "down": PARAMS["down"]}
    plan = check(apply, params, {"up": KEEP[None], "down": None}, X)
    assert plan.shapes["up"] == (3, 4)
    assert "meets fft, for which there is no rule" in plan.report[0]


def test_plans_are_values():
    one, other = (compaction.plan(dense, PARAMS, UNITS, X) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != compaction.plan(dense, PARAMS, FILTERS, X)


# Derivatives of the small function, also of what keeps its own.


@jax.custom_jvp
def stepped(x):
    return jnp.round(8 * x) / 8


@stepped.defjvp
def _(primals, tangents):
    out = stepped(*primals)  # calls itself, and so does its second derivative
    return out, (1 + out) * tangents[0]


HIDDEN = {
    "stepped": stepped,
    # Derivatives with integers among outputs, and with axes of 1 against n.
    "det": lambda h: h * jnp.linalg.det(h.T @ h + jnp.eye(4)),
    "slogdet": lambda h: h * jnp.linalg.slogdet(h.T @ h + jnp.eye(4))[1],
    "solve": lambda h: jnp.linalg.solve(h.T @ h + jnp.eye(4), h.T).T,
}


@pytest.mark.parametrize("name", HIDDEN)
def test_derivatives_are_those_of_the_masked_network(name):
    """The first and the second, forwards and backwards."""

    def loss(p, x):
        hidden = HIDDEN[name](jnp.tanh(x @ p["up"] + p["bias"][None]))
        return jnp.sin(hidden @ p["down"]).sum()

    plan = compaction.plan(loss, PARAMS, UNITS, X)
    small = compaction.narrow(loss, plan)

    def slopes(function, p):
        first = lambda p, x: jax.jvp(lambda x: function(p, x), (x,), (X + 1,))[1]  # noqa: E731
        return jax.grad(function)(p, X), jax.grad(first)(p, X)

    @jax.jit
    def both(p):
        masked = maskjax.apply(p, UNITS)
        ours = slopes(small, compaction.shrink(masked, plan))
        return ours, compaction.shrink(slopes(loss, masked), plan)

    ours, masked = both(PARAMS)
    if name == "stepped":
        assert plan.shapes["up"] == (3, 2)
    for one, other in zip(*map(jax.tree.leaves, (ours, masked)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def test_branches_of_other_platforms_are_not_compiled():
    elsewhere = core.Primitive("elsewhere")  # which nothing can compile
    elsewhere.def_abstract_eval(lambda x: x)

    def apply(p, x):
        hidden = jax.lax.platform_dependent(
            x @ p["up"], tpu=elsewhere.bind, default=jnp.tanh
        )
        return hidden @ p["down"]

    params = {name: PARAMS[name] for name in ("up", "down")}
    plan = check(apply, params, {"up": KEEP[None], "down": None}, X)
    assert "meets elsewhere, for which there is no rule" in plan.report[0]


# What is refused.


def test_a_mask_of_another_network():
    with pytest.raises(ValueError, match=r"`maskjax.compaction.plan` needs(.|\n)*up"):
        compaction.plan(dense, PARAMS, {**UNITS, "up": np.ones((1, 5), bool)}, X)


def test_a_traced_mask():
    def made(keep):
        return compaction.plan(dense, PARAMS, {**UNITS, "bias": keep}, X)

    with pytest.raises(ValueError, match="concrete mask.*traced leaf at bias"):
        jax.jit(made)(KEEP)


def test_folding_without_numbers():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PARAMS))
    assert compaction.plan(dense, shapes, UNITS, X).shapes["up"] == (3, 2)
    with pytest.raises(ValueError, match="the numbers of `params` for `fold=True`"):
        compaction.plan(dense, shapes, UNITS, X, fold=True)


def test_whole_parameters_where_small_ones_are_due():
    plan = compaction.plan(dense, PARAMS, UNITS, X)
    with pytest.raises(ValueError, match=r"`maskjax.compaction.narrow` needs(.|\n)*up"):
        compaction.narrow(dense, plan)(PARAMS, X)


def test_a_function_that_needs_what_left():
    plan = compaction.plan(dense, PARAMS, UNITS, X)
    small = compaction.shrink(maskjax.apply(PARAMS, UNITS), plan)
    needs = r"needs what was taken out(.|\n)*up axis 1: 2 of 4 more: is an output"
    with pytest.raises(ValueError, match=needs):
        compaction.narrow(lambda p, x: x @ p["up"] + 1, plan)(small, X)


def test_a_folded_plan_for_another_function():
    plan = compaction.plan(dense, PARAMS, FILTERS, X, fold=True)
    small = compaction.shrink(maskjax.apply(PARAMS, FILTERS), plan)
    with pytest.raises(ValueError, match="serves the function it was made for"):
        compaction.narrow(lambda p, x: 2 * dense(p, x), plan)(small, X)


def test_a_tree_that_belongs_to_no_parameter():
    plan = compaction.plan(dense, PARAMS, UNITS, X)
    for change in (compaction.shrink, compaction.expand):
        with pytest.raises(ValueError, match=f"compaction.{change.__name__}` needs"):
            change({"other": np.ones((7, 7))}, plan)


@pytest.mark.parametrize("make", [compaction.plan, compaction.groups])
def test_parameters_without_an_array_are_refused(make):
    masks = [{}] if make is compaction.plan else []
    needs = rf"`maskjax.compaction.{make.__name__}` needs `params` with at least one"
    with pytest.raises(ValueError, match=needs):
        make(lambda p, x: x, {}, *masks, X)


def test_what_is_no_plan_is_refused():
    plan = compaction.plan(dense, PARAMS, UNITS, X)
    for function, args in {
        compaction.shrink: (plan, PARAMS),
        compaction.expand: (PARAMS, None),
        compaction.narrow: (dense, None),
    }.items():
        needs = f"`maskjax.compaction.{function.__name__}` needs `plan` as a `Plan`"
        with pytest.raises(TypeError, match=needs):
            function(*args)
    with pytest.raises(ValueError, match="a tree without leaves"):
        compaction.shrink({}, plan)


def test_a_mask_that_is_no_stack_is_named():
    mask = {"up": np.ones((3, 4), bool), "bias": KEEP, "down": None}
    with pytest.raises(ValueError, match="every leaf of `mask` with the same number"):
        compaction.plan(dense, PARAMS, mask, X, stack=True)
