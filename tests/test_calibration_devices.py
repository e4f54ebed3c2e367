"""Statistics over devices: the same sums, and nothing but sums is communicated.

It runs in a process of its own, which pretends to have eight devices.
"""

import pytest

from tests import processes

_PROGRAM = '''
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskjax import calibration

rng = np.random.default_rng(0)
normal = lambda *shape: np.asarray(rng.normal(size=shape), "float32")
P = PartitionSpec
PARAMS = {"layers": normal(3, 8, 8) / 3, "wide": normal(8, 256), "out": normal(256, 4)}
X, KEEP = normal(16, 5, 8), rng.random((16, 5)) < 0.7
X[~KEEP] = np.nan


def network(p, x):
    h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["layers"])[0]
    return jax.nn.relu(h @ p["wide"]) @ p["out"]


where = lambda path, _: True
START = calibration.init(network, PARAMS, X, where=lambda *_: True)
update = lambda s, p, x, w: calibration.update(network, s, p, x, weights=w)
WHOLE = jax.device_get(jax.jit(update)(START, PARAMS, X, KEEP))


def close(stats):
    pairs = zip(jax.tree.leaves(stats), jax.tree.leaves(WHOLE), strict=True)
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in pairs)


def moves(program):
    kinds = r"= .*? (all-\\w+|collective-\\w+|reduce-scatter)(?:-start)?\\("
    return sorted(set(re.findall(kinds, program.as_text())))


def mesh(kind):
    return jax.make_mesh((4, 2), ("x", "y"), (kind,) * 2)


def put(kind, tree, *spec):
    where = NamedSharding(mesh(kind), P(*spec))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, where), tree)


def by_rows(kind):
    args = put(kind, START), put(kind, PARAMS), *(put(kind, a, "x") for a in (X, KEEP))
    program = jax.jit(update).lower(*args).compile()
    return {"close": close(program(*args)), "moves": moves(program)}


def by_rows_and_features(kind):
    """A hidden layer's units are on two devices, and so are the rows of its matrix."""
    params = {
        "layers": put(kind, PARAMS["layers"]),
        "wide": put(kind, PARAMS["wide"], None, "y"),
        "out": put(kind, PARAMS["out"], "y"),
    }
    args = params, *(put(kind, a, "x") for a in (X, KEEP))
    apply = network
    if kind == AxisType.Explicit:  # where one has to say how a sum is sharded
        def apply(p, x):
            h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["layers"])[0]
            h = jax.nn.relu(h @ p["wide"])
            return jnp.matmul(h, p["out"], out_sharding=P("x"))
    how = functools.partial(calibration.update, apply)
    step = jax.jit(lambda s, p, x, w: how(s, p, x, weights=w))
    with jax.set_mesh(mesh(kind)):
        stats = step(calibration.init(apply, *args[:2], where=where), *args)
    spec = stats["out"].sums.sharding.spec
    return {"close": close(stats), "spec": [str(part) for part in spec]}


def in_shard_map():
    """Each device adds its rows; then the devices are added up."""
    def own(stats, params, x, keep):
        new = update(jax.lax.pcast(stats, "x", to="varying"), params, x, keep)
        return jax.lax.psum(new, "x")

    specs = (P(), P(), P("x"), P("x"))
    row = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    how = {"mesh": row, "in_specs": specs, "out_specs": P()}
    program = jax.jit(jax.shard_map(own, **how))
    program = program.lower(START, PARAMS, X, KEEP).compile()
    return {"close": close(program(START, PARAMS, X, KEEP)), "moves": moves(program)}


def by_layers():
    """Statistics of stacked layers are where the layers are."""
    params = {"layers": put(AxisType.Auto, normal(4, 8, 8), "x")}
    apply = lambda p, x: jax.lax.scan(lambda h, w: (h @ w, None), x, p["layers"])[0]
    stats = calibration.init(apply, params, X, where=where)
    return {"spec": [str(part) for part in stats["layers"].sums.sharding.spec]}


def collected():
    halves = zip(np.split(X, 2), np.split(KEEP, 2))
    batches = [put(AxisType.Auto, half, "x") for half in halves]
    apply = lambda p, x, keep: network(p, x)
    how = {"where": where, "weights": lambda x, keep: keep}
    params = put(AxisType.Auto, PARAMS)
    stats = calibration.collect(apply, params, batches, **how)
    return {"close": close(stats)}


results = {
    "auto": by_rows(AxisType.Auto),
    "explicit": by_rows(AxisType.Explicit),
    "auto, features": by_rows_and_features(AxisType.Auto),
    "explicit, features": by_rows_and_features(AxisType.Explicit),
    "shard_map": in_shard_map(),
    "layers": by_layers(),
    "collected": collected(),
}
print(json.dumps(results))
'''


@pytest.fixture(scope="module")
def results():
    return processes.run("-c", _PROGRAM)


@pytest.mark.parametrize(
    "case",
    ["auto", "explicit", "auto, features", "explicit, features", "shard_map"]
    + ["collected"],
)
def test_sums_of_devices_add_up_to_those_of_one(case, results):
    assert results[case]["close"]


@pytest.mark.parametrize("case", ["auto", "explicit", "shard_map"])
def test_only_sums_are_communicated(case, results):
    assert results[case]["moves"] == ["all-reduce"]


def test_a_matrix_is_sharded_as_its_kernel(results):
    for kind in ("auto", "explicit"):
        assert results[f"{kind}, features"]["spec"][0] == "y"
    assert results["layers"]["spec"][0] == "x"
