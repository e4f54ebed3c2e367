"""The laws of compaction on a zoo of networks.

The small network computes what the masked one does, its gradients are slices of the
other's, and exactly the masked units leave. Both sides are compiled, in one program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maskjax
from maskjax import compaction
from maskjax._core import trees
from tests import compaction_zoo as zoo
from tests.compaction_zoo import masks

# One of each kind: all of a law is seconds. The others are among the slow tests.
FEW = (
    "linen/mlp_normed",
    "linen/cnn",
    "linen/flat",
    "linen/llama_scanned",
    "nnx/lora",
    "equinox/mlp",
    "plain/convolutions",
    "plain/cond",
    "plain/cuts",
    "plain/permuted",
    "plain/straight_through",
)
UNKNOWN = ("plain/fft", "plain/cholesky", "plain/callback", "plain/straight_through")
NOT_FINITE = ("equinox/weight_norm",)  # 0 / 0 where a kernel is masked
NO_GRADIENT = ("plain/fori_unknown", "plain/callback", "plain/odd", "plain/reduced")
TOLERANCE = {"plain/half": 0.02}


def each(names, few=FEW):
    """One test for each name; those not among the few are slow."""
    slow = pytest.mark.slow
    marked = [n if n in few else pytest.param(n, marks=slow) for n in names]
    return pytest.mark.parametrize("name", marked)


every_network = each(zoo.NAMES)
# A mask of each kind, and for the slow tests seven more of some.
DRAWN = [
    pytest.param(
        name,
        kind,
        seed,
        marks=[] if name in FEW and kind in few else pytest.mark.slow,
    )
    for name in zoo.NAMES
    for few in [("units", "slabs") if name.startswith("plain") else ("mixed",)]
    for seed, kind in enumerate(
        ["units", "slabs", "entries", "mixed", "leaf", "none", "units", "mixed"]
    )
]


@functools.cache
def groups_of(name):
    net = zoo.get(name)
    return compaction.groups(net.predict or net.apply, net.params, *net.inputs)


def planned(name, mask):
    """A plan by shapes alone."""
    net = zoo.get(name)
    return compaction.plan(net.apply, net.params, mask, *net.inputs)


def shapes_of(tree):
    return {path: leaf.shape for path, leaf in trees.named_leaves(tree)}


def small_shapes(name, plan):
    """The shapes of what `shrink` leaves, by path."""
    shrink = lambda params: compaction.shrink(params, plan)  # noqa: E731
    return shapes_of(jax.eval_shape(shrink, zoo.get(name).params))


def shrunk_outputs(name, outputs, plan):
    """Outputs of the masked network as the small one gives them: state is smaller."""
    if not zoo.get(name).state:
        return outputs
    out, state = outputs
    return out, compaction.shrink(state, plan)


def agree(ours, masked, *, tolerance=1e-5, scale=None):
    """Trees agree, relative to the largest entry of a leaf, or to `scale`."""
    assert jax.tree.structure(ours) == jax.tree.structure(masked)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(masked), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.isfinite(b).all()
        a, b = a.astype("f8"), b.astype("f8")
        largest = np.abs(b).max(initial=1e-3) if scale is None else scale
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest)


# The law.


@pytest.mark.parametrize(("name", "kind", "seed"), DRAWN)
def test_the_small_network_computes_what_the_masked_one_does(name, kind, seed):
    net = zoo.get(name)
    mask = masks.draw(kind, groups_of(name), net.params, seed)
    plan = planned(name, mask)

    @jax.jit
    def both(params, inputs):
        masked = maskjax.apply(params, mask)
        small = compaction.shrink(masked, plan)
        ours = compaction.narrow(net.apply, plan)(small, *inputs)
        return ours, shrunk_outputs(name, net.apply(masked, *inputs), plan)

    ours, masked = both(zoo.make(name, seed), zoo.data(name, seed))
    if name in NOT_FINITE and not all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(masked)
    ):
        return
    agree(ours, masked, tolerance=TOLERANCE.get(name, 1e-5))


def halved(name, seed=0):
    """A mask of units, and its plan."""
    mask = masks.draw("units", groups_of(name), zoo.get(name).params, seed)
    return mask, planned(name, mask)


@each(["linen/mlp_normed", "linen/cnn", "linen/llama_scanned", "plain/cond"], ())
def test_it_does_so_without_compiling_mapped_and_with_another_batch(name):
    net = zoo.get(name)
    mask, plan = halved(name)
    narrow = compaction.narrow(net.apply, plan)
    members = [zoo.make(name, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    inputs, more = zoo.data(name), zoo.data(name, batch=5)
    by_member = (0, *(None for _ in inputs))

    @jax.jit
    def masked(stacked, inputs, more):
        masked = maskjax.apply(stacked, jax.tree.map(lambda leaf: leaf[None], mask))
        first = jax.tree.map(lambda leaf: leaf[0], masked)
        small = jax.vmap(lambda params: compaction.shrink(params, plan))(masked)
        return (
            (first, small, net.apply(first, *inputs)),
            (net.apply(first, *more), jax.vmap(net.apply, by_member)(masked, *inputs)),
        )

    (_, small, plainly), other = masked(stacked, inputs, more)
    first = jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[0], small))
    agree(narrow(first, *inputs), plainly)
    run = jax.jit(lambda first, small, inputs, more: (
        narrow(first, *more), jax.vmap(narrow, by_member)(small, *inputs)
    ))  # fmt: skip
    agree(run(first, small, inputs, more), other)


# What leaves.


@each(zoo.TOLD)
def test_the_groups_are_those_told_by_hand(name):
    found = sorted(
        ((*group.stack, group.size), sorted((m.path, m.axis) for m in group.members))
        for group in groups_of(name)
    )
    told = sorted((size, sorted(members)) for size, members in zoo.get(name).groups)
    assert found == told


@every_network
def test_a_mask_of_trues_removes_nothing(name):
    """Whatever the values are, for they are not read."""
    net = zoo.get(name)
    mask = masks.draw("all", (), net.params)
    assert small_shapes(name, planned(name, mask)) == shapes_of(net.params)
    nothing = jax.tree.map(lambda _: None, net.params)
    assert small_shapes(name, planned(name, nothing)) == shapes_of(net.params)


@every_network
def test_one_unit_of_every_group_leaves_and_nothing_else(name):
    groups, net = groups_of(name), zoo.get(name)
    decisions = masks.one_less(groups, np.random.default_rng(0))
    mask = masks.tree(net.params, masks.spread(groups, decisions, net.params))
    expected = masks.sizes(groups, decisions, net.params)
    assert small_shapes(name, planned(name, mask)) == expected


@each(zoo.NAMES, ("linen/shuffled", "plain/relative"))
def test_one_unit_of_each_group_leaves_alone(name):
    groups, net = groups_of(name), zoo.get(name)
    for group in groups:
        decisions = masks.one_less(groups, np.random.default_rng(1), group.name)
        mask = masks.tree(net.params, masks.spread(groups, decisions, net.params))
        expected = masks.sizes(groups, decisions, net.params)
        assert small_shapes(name, planned(name, mask)) == expected, group.name


# Units that nothing reads stay: another function of the parameters may read them.
UNREAD = {"plain/cuts": {"first/w axis 1": [6]}}


@each(zoo.NAMES, ("linen/cnn", "linen/llama", "plain/cuts", "plain/experts_apart"))
def test_half_of_every_group_leaves_exactly(name):
    groups, net = groups_of(name), zoo.get(name)
    rng = np.random.default_rng(2)
    decisions = {}
    for group in groups:
        order = np.tile(np.arange(group.size), (*group.stack, 1))
        half = rng.permuted(order, axis=-1) < (group.size + 1) // 2
        decisions[group.name] = half.reshape(*group.stack, group.size)
    mask = masks.tree(net.params, masks.spread(groups, decisions, net.params))
    for unread, units in UNREAD.get(name, {}).items():
        decisions[unread][..., units] = True
    expected = masks.sizes(groups, decisions, net.params)
    assert small_shapes(name, planned(name, mask)) == expected


@each(["linen/llama_scanned", "linen/gpt_scanned", "equinox/gpt_rms", "plain/nested"])
def test_layers_of_a_scan_keep_as_many_as_the_one_that_keeps_most(name):
    groups, net = groups_of(name), zoo.get(name)
    rng = np.random.default_rng(3)
    decisions = masks.one_less(groups, rng)
    for group in groups:
        if group.stack:  # the last layer keeps all
            decisions[group.name][-1] = True
    mask = masks.tree(net.params, masks.spread(groups, decisions, net.params))
    expected = masks.sizes(groups, decisions, net.params)
    assert small_shapes(name, planned(name, mask)) == expected


# Gradients.


def loss_of(name):
    """`(apply, params, inputs) -> ` a sum of all outputs, each with its own weight."""
    state = zoo.get(name).state

    def loss(apply, params, inputs):
        out = apply(params, *inputs)
        leaves = jax.tree.leaves(out[0] if state else out)
        return sum(
            (
                leaf.astype("float32")
                * jnp.cos(jnp.arange(1.0, leaf.size + 1)).reshape(leaf.shape)
            ).sum()
            for leaf in leaves
        )

    return loss


def gradients(name, mask, plan):
    """`(params, inputs) -> ` gradients of the small network, and of the masked one."""
    net, loss = zoo.get(name), loss_of(name)

    @jax.jit
    def both(params, inputs):
        run = lambda p: loss(net.apply, maskjax.apply(p, mask), inputs)  # noqa: E731
        masked = compaction.shrink(jax.grad(run)(params), plan)
        narrow = compaction.narrow(net.apply, plan)
        left = compaction.shrink(mask, plan)
        run = lambda p: loss(narrow, maskjax.apply(p, left), inputs)  # noqa: E731
        return jax.grad(run)(compaction.shrink(params, plan)), masked

    return both


def close(name, ours, masked):
    """Whether gradients agree, relative to the largest of all."""
    leaves = [np.asarray(leaf, "f8") for leaf in jax.tree.leaves(masked)]
    if name in NOT_FINITE and not all(np.isfinite(leaf).all() for leaf in leaves):
        return
    largest = max(np.abs(leaf).max(initial=1e-3) for leaf in leaves)
    agree(ours, masked, tolerance=TOLERANCE.get(name, 1e-5), scale=largest)


GRADIENTS = ("linen/mlp_normed", "linen/llama_scanned", "plain/checkpointed")


@each([name for name in zoo.NAMES if name not in NO_GRADIENT], GRADIENTS)
def test_gradients_are_slices_of_those_of_the_masked_network(name):
    net = zoo.get(name)
    mask = masks.draw("units", groups_of(name), net.params, 5)
    both = gradients(name, mask, planned(name, mask))
    close(name, *both(zoo.make(name), zoo.data(name)))


@each([name for name in zoo.NAMES if name not in NO_GRADIENT], GRADIENTS)
def test_a_step_of_training_is_a_slice_of_that_of_the_masked_network(name):
    """The step itself is made small, with the gradients inside it."""
    net, loss = zoo.get(name), loss_of(name)
    mask = masks.draw("units", groups_of(name), net.params, 12)
    plan = planned(name, mask)

    def step(params, inputs):
        slopes = jax.grad(lambda params: loss(net.apply, params, inputs))(params)
        return jax.tree.map(lambda p, slope: p - slope / 8, params, slopes)

    @jax.jit
    def both(params, inputs):
        masked = maskjax.apply(params, mask)
        small = compaction.shrink(masked, plan)
        ours = compaction.narrow(step, plan)(small, inputs)
        return ours, compaction.shrink(step(masked, inputs), plan)

    close(name, *both(zoo.make(name), zoo.data(name)))


@pytest.mark.parametrize("name", ["plain/relu", "plain/gentle", "plain/checkpointed"])
def test_gradients_where_an_activation_is_at_zero(name):
    """The slope of relu at 0 is JAX's, and that of a custom rule is the rule's."""
    net = zoo.get(name)
    mask = masks.draw("units", groups_of(name), net.params, 6)
    zero = lambda tree: jax.tree.map(np.zeros_like, tree)  # noqa: E731
    params = zoo.make(name)
    if name == "plain/gentle":  # what comes in is 0, and what meets it is not
        params["first"] = zero(params["first"])
    else:
        params["first"]["b"] = np.zeros_like(params["first"]["b"])
    both = gradients(name, mask, planned(name, mask))
    inputs = zero(zoo.data(name)) if name != "plain/gentle" else zoo.data(name)
    ours, masked = both(params, inputs)
    largest = max(np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(masked))
    assert largest > 0.01
    agree(ours, masked, scale=largest)


# Back, again, and more.


BACK = ("linen/cnn", "linen/llama_scanned", "plain/odd")


@each(zoo.NAMES, BACK)
def test_expanding_brings_back_what_was_kept(name):
    mask = masks.draw("mixed", groups_of(name), zoo.get(name).params, 7)
    plan = planned(name, mask)

    @jax.jit
    def law(params):
        small = compaction.shrink(params, plan)
        back = compaction.expand(small, plan)
        ones = jax.tree.map(jnp.ones_like, small)
        return small, back, compaction.shrink(back, plan), compaction.expand(ones, plan)

    params = zoo.make(name)
    small, back, again, kept = jax.tree.map(np.asarray, law(params))
    leaves = map(jax.tree.leaves, (params, small, back, again, kept))
    for whole, less, full, twice, where in zip(*leaves, strict=True):
        np.testing.assert_array_equal(full, np.where(where, whole, 0))
        np.testing.assert_array_equal(twice, less)
        assert where.sum() == less.size
        assert full.dtype == whole.dtype


@each(zoo.NAMES, BACK)
def test_the_small_network_under_a_mask_of_trues_is_left_alone(name):
    net = zoo.get(name)
    mask = masks.draw("units", groups_of(name), net.params, 8)
    plan = planned(name, mask)
    shrink = lambda params: compaction.shrink(params, plan)  # noqa: E731
    small = jax.eval_shape(shrink, net.params)
    narrow = compaction.narrow(net.apply, plan)
    trues = masks.draw("all", (), small)
    again = compaction.plan(narrow, small, trues, *net.inputs)
    found = jax.eval_shape(lambda small: compaction.shrink(small, again), small)
    assert shapes_of(found) == shapes_of(small)


@each(zoo.NAMES, BACK)
def test_a_larger_mask_has_a_larger_plan(name):
    """By sizes: layers of a scan are filled up with positions that are masked."""
    net = zoo.get(name)
    less = masks.KINDS["mixed"](np.random.default_rng(9), groups_of(name), net.params)
    some = masks.KINDS["slabs"](np.random.default_rng(10), (), net.params)
    more = {path: less[path] | some[path] for path in less.keys() & some.keys()}
    small, larger = (
        small_shapes(name, planned(name, masks.tree(net.params, mask)))
        for mask in (less, more)
    )
    for path, leaf in trees.named_leaves(net.params):
        for a, b, whole in zip(small[path], larger[path], leaf.shape, strict=True):
            assert min(whole, 1) <= a <= b <= whole, path


def test_a_plan_is_of_the_mask_and_the_shapes_alone():
    name = "linen/cnn"
    net = zoo.get(name)
    mask, plan = halved(name)
    values = zoo.make(name), mask, *zoo.data(name)
    again = compaction.plan(net.apply, *values)
    assert plan == again
    assert hash(plan) == hash(again)
    assert str(plan) == str(again)
    other = masks.draw("units", groups_of(name), net.params, 1)
    assert plan != planned(name, other)


def test_an_equal_plan_does_not_compile_again():
    name = "linen/cnn"
    net = zoo.get(name)
    mask, plan = halved(name)
    params, inputs = zoo.make(name), zoo.data(name)

    @functools.partial(jax.jit, static_argnames="plan")
    def run(params, inputs, plan):
        small = compaction.shrink(params, plan)
        return compaction.narrow(net.apply, plan)(small, *inputs)

    for _ in range(2):
        run(params, inputs, plan=planned(name, mask))
    assert run._cache_size() == 1


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_no_rule_is_known_for_stays_and_is_named(name):
    """The last hidden layer leaves all the same."""
    groups, net = groups_of(name), zoo.get(name)
    assert [(group.stack, group.size) for group in groups] == [((), 8)]
    mask = masks.draw("slabs", groups, net.params, 11)
    plan = planned(name, mask)
    assert small_shapes(name, plan)["first/w"] == (5, 7)


def test_channels_of_a_half_width_network_are_those_of_one_built_so():
    name = "linen/cnn"
    net, groups = zoo.get(name), groups_of(name)
    halves = {group.name: np.arange(group.size) % 2 == 0 for group in groups}
    mask = masks.tree(net.params, masks.spread(groups, halves, net.params))
    plan = planned(name, mask)
    found = small_shapes(name, plan)
    assert found["params/stem/kernel"] == (3, 3, 4, 3)
    assert found["params/first/kernel"] == (3, 3, 3, 4)
    assert found["params/second/kernel"] == (3, 3, 4, 5)
    assert found["batch_stats/bn_3/var"] == (5,)
    assert found["params/head/kernel"] == (5, 11)
