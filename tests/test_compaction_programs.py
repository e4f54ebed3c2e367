"""What the small function is as a program: its equations, its traces, its export."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, use_abstract_mesh

import maskjax
from maskjax import compaction, report
from maskjax.compaction import _evaluation
from tests import halved

NETWORKS = halved.small()


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)

    def draw(x):
        if np.issubdtype(x.dtype, np.integer):
            return rng.integers(0, 8, x.shape).astype(x.dtype)
        return rng.normal(size=x.shape).astype(x.dtype)

    return jax.tree.map(draw, shapes)


def equations(function, *args):
    """How many equations of each kind a function has, calls inlined."""
    found = collections.Counter()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name != "jit":
                found[equation.primitive.name] += 1
            for param in jax.tree.leaves(list(equation.params.values())):
                inside = getattr(param, "jaxpr", param)
                if hasattr(inside, "eqns"):
                    walk(inside)

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def small_args(net, plan):
    params = compaction.shrink(net.params, plan)
    return params, net.moments(params), *net.inputs


@pytest.mark.parametrize("name", NETWORKS)
def test_what_stays_has_the_shapes_of_a_network_built_small(name):
    net = NETWORKS[name]
    plan = net.plan()
    args = small_args(net, plan)
    assert args[:2] == (net.built, net.moments(net.built))
    out = jax.eval_shape(compaction.narrow(net.step, plan), *args)
    assert out == args[:2]


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_every_group_has_the_flops_of_a_network_built_at_half_the_width(name):
    """Which units are drawn, in a scan for each layer; heads become narrower too."""
    net, rng = NETWORKS[name], np.random.default_rng(0)
    whole, x = net.params, net.inputs[0]
    groups = compaction.groups(net.apply, whole, x)
    ranks = {g.name: np.broadcast_to(np.arange(g.size), g.shape) for g in groups}
    kept = {n: rng.permuted(r, axis=-1) < r.shape[-1] / 2 for n, r in ranks.items()}
    plan = compaction.plan(net.apply, whole, groups.spread(kept, whole), x)
    small = compaction.shrink(whole, plan)
    built = dataclasses.replace(net, halved=net.halved + "e").built
    assert small == built
    flops = report.flops(compaction.narrow(net.apply, plan), small, x)
    assert flops == report.flops(net.apply, built, x)
    # A kernel is used at as many places as before, so its FLOPs shrink as it does.
    trees = report.flops(net.apply, whole, x), flops, whole, built
    leaves = (jax.tree.leaves(t, is_leaf=lambda x: x is None) for t in trees)
    for before, after, a, b in zip(*leaves, strict=True):
        assert after == (None if before is None else before * b.size // a.size)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_is_that_of_the_masked_network(name):
    """In a scan, too, where layers keep other units and cut what all of them read."""
    net = NETWORKS[name]
    plan = net.plan()
    params, x, y = drawn((net.params, *net.inputs))
    moments = jax.tree.map(lambda m: np.zeros(m.shape, m.dtype), net.moments(params))

    @jax.jit
    def both(params, moments, x, y):
        masked = maskjax.apply(params, net.mask)
        whole = net.step(masked, moments, x, y)
        small = compaction.shrink((masked, moments), plan)
        ours = compaction.narrow(net.step, plan)(*small, x, y)
        return ours, compaction.shrink(whole, plan)

    for a, b in zip(*map(jax.tree.leaves, both(params, moments, x, y)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_that_keeps_all_adds_no_equation(name):
    net = NETWORKS[name]
    nothing = jax.tree.map(lambda _: None, net.params)
    plan = compaction.plan(net.apply, net.params, nothing, net.inputs[0])
    same = (net.params, net.inputs[0])
    narrow = compaction.narrow(net.apply, plan)
    assert equations(narrow, *same) == equations(net.apply, *same)
    step = (net.params, net.moments(net.params), *net.inputs)
    narrow = compaction.narrow(net.step, plan)
    assert not equations(narrow, *step) - equations(net.step, *step)


def test_layers_that_keep_other_units_look_up_no_constants():
    """What is the same at all positions, as a mask of attention is for all heads."""
    net = NETWORKS["scanned gpt"]
    plan = net.plan()
    ours = equations(compaction.narrow(net.step, plan), *small_args(net, plan))
    whole = equations(net.step, net.params, net.moments(net.params), *net.inputs)
    assert ours["gather"] == whole["gather"]


def test_the_second_call_is_neither_traced_nor_compiled():
    net, traces = NETWORKS["gpt"], []

    def counted(params, ids):
        traces.append(1)
        return net.apply(params, ids)

    plan = net.plan()
    narrow = jax.jit(compaction.narrow(counted, plan))
    traces.clear()
    for seed in range(3):
        narrow(*drawn((net.built, net.inputs[0]), seed))
    assert len(traces) == 1
    assert narrow._cache_size() == 1


def test_the_small_function_is_exported_and_read_back():
    net = NETWORKS["scanned gpt"]
    plan = net.plan()
    narrow = jax.jit(compaction.narrow(net.apply, plan))
    args = drawn((net.built, net.inputs[0]))
    written = export.export(narrow, platforms=("cpu", "cuda", "tpu"))(*args)
    read = export.deserialize(written.serialize())
    np.testing.assert_allclose(read.call(*args), narrow(*args), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_lowers_for_gpu_and_tpu(name):
    net = NETWORKS[name]
    plan = net.plan()
    args = small_args(net, plan)
    # Export knows no types of Optax's states, so the state goes in as leaves.
    leaves, treedef = jax.tree.flatten(args)

    def step(*leaves):
        out = compaction.narrow(net.step, plan)(*jax.tree.unflatten(treedef, leaves))
        return jax.tree.leaves(out)

    export.export(jax.jit(step), platforms=("cuda", "tpu"))(*leaves)


def explicit_mesh():
    return jax.make_mesh((1,), ("x",), (AxisType.Explicit,))


SURROUNDINGS = {
    "a mesh": lambda: jax.set_mesh(explicit_mesh()),
    "a mesh without devices": lambda: use_abstract_mesh(explicit_mesh().abstract_mesh),
    "a transfer guard": lambda: jax.transfer_guard("disallow"),
    "checks for nan": lambda: jax.debug_nans(True),
    "checks for inf": lambda: jax.debug_infs(True),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_plan_is_the_same_wherever_it_is_made(name, monkeypatch):
    """What is known by computing it: zeros after `h**2`, and which rows are read."""
    monkeypatch.setattr(_evaluation, "_memo", {})
    shapes = {"up": (5, 8), "down": (8, 3)}
    params = {path: np.ones(shape, np.float32) for path, shape in shapes.items()}
    mask = {"up": (np.arange(8) % 2 == 0)[None], "down": None}
    order = (np.arange(8) * 3 + 1) % 8

    def network(p, x):
        h = x @ p["up"]
        h = h * jax.lax.rsqrt((h**2).mean(-1, keepdims=True) + 1e-3)
        h = (h + jax.numpy.exp(jax.numpy.log(h * h)))[
            :, jax.numpy.asarray(order)
        ]  # log 0 is -inf
        return h[:, jax.numpy.asarray(np.argsort(order))] @ p["down"]

    with SURROUNDINGS[name]():
        inside = compaction.plan(network, params, mask, np.ones((2, 5), np.float32))
    after = compaction.plan(network, params, mask, np.ones((2, 5), np.float32))
    assert inside.shapes == after.shapes == {"up": (5, 4), "down": (4, 3)}
