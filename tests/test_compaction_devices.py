"""Compaction over devices: data parallel in `shard_map`, and shardings that follow.

It runs in a process of its own, which pretends to have eight devices. Calls in every
other way are in `tests/calls.py`.
"""

import pytest

from tests import processes

_PROGRAM = '''
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import maskjax
from maskjax import compaction

rng = np.random.default_rng(0)
SHAPES = {"up": (8, 16), "bias": (16,), "down": (16, 8)}
params = {n: rng.normal(size=s).astype("f4") for n, s in SHAPES.items()}
x, y = (rng.normal(size=(16, 8)).astype("f4") for _ in range(2))


def mask_of(n):
    keep = np.arange(16) < n
    return {"up": keep[None], "bias": keep, "down": None}


def far(ones, others):
    pairs = zip(jax.tree.leaves(ones), jax.tree.leaves(others), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def apply(p, x):
    return jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"]


def loss(p, x, y):
    return jnp.mean((apply(p, x) - y) ** 2)


def stepped(p, gradients):
    return jax.tree.map(lambda a, g: a - 0.1 * g, p, gradients)


def refused(function, *args):
    """Why a function is refused, if it is."""
    try:
        function(*args)
    except ValueError as error:
        return str(error)


def parallel():
    """Data parallel steps, with the mean before or after the gradient."""
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))

    def of_loss(p, x, y):
        mean = lambda p: lax.pmean(loss(p, x, y), "x")
        return stepped(p, jax.grad(mean)(p))

    def of_gradient(p, x, y):
        own = lax.pcast(p, "x", to="varying")
        return stepped(p, lax.pmean(jax.grad(loss)(own, x, y), "x"))

    def unchecked(p, x, y):
        return stepped(p, lax.pmean(jax.grad(loss)(p, x, y), "x"))

    plan = compaction.plan(apply, params, mask_of(12), x)
    small = compaction.shrink(params, plan)
    alone = compaction.narrow(lambda p, x, y: stepped(p, jax.grad(loss)(p, x, y)), plan)
    found = {}
    for step in (of_loss, of_gradient, unchecked):
        over = jax.shard_map(
            compaction.narrow(step, plan),
            mesh=mesh,
            in_specs=(P(), P("x"), P("x")),
            out_specs=P(),
            check_vma=step is not unchecked,
        )
        found[step.__name__] = far(jax.jit(over)(small, x, y), alone(small, x, y))

    def inside(p, x, y):
        specs = {"in_specs": (P(), P("x"), P("x")), "out_specs": P()}
        return jax.shard_map(of_loss, mesh=mesh, **specs)(p, x, y)

    def counted(p, x):
        ones = lax.pcast(jnp.exp(p["bias"]), "x", to="varying")  # of masked units
        return (x @ p["up"] + lax.psum(ones, "x") - ones) @ p["down"]

    specs = {"in_specs": (P(), P("x")), "out_specs": P("x")}
    over = jax.shard_map(compaction.narrow(counted, plan), mesh=mesh, **specs)
    found["counted"] = refused(over, small, x)
    curved = lambda p, x: jnp.sinh(x @ p["up"] + p["bias"]) @ p["down"]
    over = jax.shard_map(compaction.narrow(curved, plan), mesh=mesh, **specs)
    found["curved"] = refused(over, small, x)
    found["inside"] = refused(compaction.narrow(inside, plan), small, x, y)
    return found


def gathered(tiled):
    """Hidden layers of all devices, one after the other, or along an axis."""
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    wide = {"down": rng.normal(size=(128 if tiled else 16, 8)).astype("f4")}
    mask = mask_of(12) | {"down": None}

    def apply(p, x):
        h = jnp.tanh(x @ p["up"] + p["bias"])
        every = lax.all_gather(h, "x", axis=1 if tiled else 0, tiled=tiled)
        return every @ p["down"]

    def slopes(p, x):
        mean = lambda p: lax.pmean((apply(p, x) ** 2).mean(), "x")
        return jax.grad(mean)(p)

    def over(function, out=P("x")):
        return jax.shard_map(
            function, mesh=mesh, in_specs=(P(), P("x")), out_specs=out, check_vma=False
        )

    plans = []
    over(lambda p, x: plans.append(compaction.plan(apply, p, mask, x)) or x)(
        params | wide, x
    )
    [plan] = plans
    masked = maskjax.apply(params | wide, mask)
    small = compaction.shrink(masked, plan)
    ours = [over(compaction.narrow(apply, plan))(small, x)]
    ours += [jax.jit(over(compaction.narrow(slopes, plan), P()))(small, x)]
    wanted = [over(apply)(masked, x)]
    wanted += [compaction.shrink(jax.jit(over(slopes, P()))(masked, x), plan)]
    return {"far": far(ours, wanted), "up": plan.shapes["up"]}


def explicit(n):
    """A hidden layer over one mesh axis, with shardings written in the function."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), (AxisType.Explicit,) * 2)
    specs = {"up": P(None, "y"), "bias": P("y"), "down": P("y", None)}

    def tensor_parallel(p, x):
        h = jax.nn.relu(x @ p["up"] + p["bias"])
        h = jax.sharding.reshard(h, P("x", None)) * jnp.ones(16)
        h = jax.sharding.reshard(h, P("x", "y"))
        h = h + p["up"].at[np.arange(16) % 8].get(out_sharding=P("x", "y"))
        h = h * jnp.broadcast_to(jnp.ones(()), (16, 16), out_sharding=P("x", "y"))
        return jnp.matmul(h, p["down"], out_sharding=P("x", None))

    with jax.set_mesh(mesh):
        masked = jax.device_put(maskjax.apply(params, mask_of(n)), specs)
        given = jax.device_put(x, P("x", None))
        plan = compaction.plan(tensor_parallel, masked, mask_of(n), given)
        small = compaction.shrink(masked, plan)
        narrow = compaction.narrow(tensor_parallel, plan)
        whole = jax.jit(tensor_parallel)(masked, given)
        square = lambda function: lambda p: jnp.mean(function(p, given) ** 2)
        gradients = jax.jit(jax.grad(square(narrow)))(small)
        wanted = jax.jit(jax.grad(square(tensor_parallel)))(masked)
        wanted = compaction.shrink(wanted, plan)
        ours = [narrow(small, given), jax.jit(narrow)(small, given)]
    return {
        "far": far(ours, [whole] * 2),
        "gradient": far(gradients, wanted),
        "specs": {k: str(v.sharding.spec) for k, v in small.items()},
    }


def auto(n):
    """What is put somewhere stays there; a constraint is fitted to what is left."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), (AxisType.Auto,) * 2)
    put = lambda spec: NamedSharding(mesh, spec)
    specs = {"up": put(P("x", "y")), "bias": put(P("y")), "down": put(P("y", "x"))}

    def constrained(p, x):
        h = jax.nn.relu(x @ p["up"] + p["bias"])
        return lax.with_sharding_constraint(h, put(P("x", "y"))) @ p["down"]

    masked = jax.device_put(maskjax.apply(params, mask_of(n)), specs)
    plan = compaction.plan(constrained, masked, mask_of(n), x)
    small = compaction.shrink(masked, plan)
    back = compaction.expand(small, plan)
    out = jax.jit(compaction.narrow(constrained, plan))(small, x)
    alone = jax.device_put(masked, jax.devices()[3])
    alone = compaction.expand(compaction.shrink(alone, plan), plan)
    return {
        "far": far([out, back], [jax.jit(constrained)(masked, x), expected(masked, n)]),
        "specs": {k: str(v.sharding.spec) for k, v in small.items()},
        "device": sorted({d.id for leaf in alone.values() for d in leaf.devices()}),
    }


def expected(masked, n):
    """What was taken out comes back as 0."""
    return masked | {"down": np.where(np.arange(16)[:, None] < n, masked["down"], 0)}


found = {"parallel": parallel()}
found |= {f"gathered {tiled}": gathered(tiled) for tiled in (True, False)}
for n in (12, 13):
    found |= {f"explicit {n}": explicit(n), f"auto {n}": auto(n)}
print(json.dumps(found))
'''
CUT = {"explicit": ("None, 'y'", "'y',", "'y', None")}
CUT["auto"] = ("'x', 'y'", "'y',", "'y', 'x'")
WHOLE = {"explicit": ("None, None", "None,", "None, None")}
WHOLE["auto"] = ("'x', None", "None,", "None, 'x'")


@pytest.fixture(scope="module")
def found():
    return processes.run("-c", _PROGRAM)


@pytest.mark.parametrize("step", ["of_loss", "of_gradient", "unchecked"])
def test_a_data_parallel_step_is_that_of_one_device(step, found):
    assert found["parallel"][step] < 1e-5


@pytest.mark.parametrize("tiled", [True, False])
def test_hidden_layers_are_gathered_from_all_devices(tiled, found):
    assert found[f"gathered {tiled}"]["up"] == [8, 12]
    assert found[f"gathered {tiled}"]["far"] < 1e-5


def test_a_shard_map_inside_needs_all(found):
    assert "bias axis 0: 4 of 16 more: meets shard_map" in found["parallel"]["inside"]


def test_values_of_constants_are_found_inside_too(found):
    assert found["parallel"]["curved"] is None


def test_a_constant_of_one_device_is_another_where_all_are_summed(found):
    assert "up axis 1: 4 of 16 more: is not zero" in found["parallel"]["counted"]


@pytest.mark.parametrize("kind", ["explicit", "auto"])
@pytest.mark.parametrize("n", [12, 13])
def test_parameters_stay_sharded_where_it_is_even(n, kind, found):
    specs = found[f"{kind} {n}"]["specs"]
    wanted = (CUT if n % 2 == 0 else WHOLE)[kind]
    names = ("up", "bias", "down")
    spelled = {k: f"P({w})" for k, w in zip(names, wanted, strict=True)}
    assert {k: v.replace("PartitionSpec", "P") for k, v in specs.items()} == spelled


@pytest.mark.parametrize("kind", ["explicit 12", "explicit 13", "auto 12", "auto 13"])
def test_shardings_in_a_function_are_fitted_to_what_is_left(kind, found):
    assert found[kind]["far"] < 1e-5
    assert found[kind].get("gradient", 0) < 1e-5


def test_what_is_on_a_device_stays_on_it(found):
    assert found["auto 12"]["device"] == [3]
