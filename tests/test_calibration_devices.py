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
    norms = calibration.norms(calibration.check(stats))["out"].ravel()
    wanted = np.sqrt(np.diagonal(WHOLE["out"].sums))
    assert np.allclose(norms, wanted, rtol=1e-4, atol=1e-3)
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


def kept():
    """Heads are on two devices, width on four; nothing else shards by itself."""
    mesh_ = mesh(AxisType.Auto)
    shape = lambda *s: jax.ShapeDtypeStruct(s, "float32")
    like = {"query": shape(8, 4, 2), "out": shape(4, 2, 8), "head": shape(8, 3)}
    specs = {"query": P("x", "y"), "out": P("y", None, "x"), "head": P()}
    like = {n: shape.update(sharding=NamedSharding(mesh_, specs[n]))
            for n, shape in like.items()}

    def apply(p, x):
        h = jnp.tanh(jnp.einsum("bti,ihd->bthd", x, p["query"]))
        return jnp.einsum("bthd,hdo->bto", h, p["out"]) @ p["head"]

    told = calibration.memory(apply, like, X, where=where)
    stats = calibration.init(apply, like, X, where=where)
    params = {n: jax.device_put(normal(*x.shape), x.sharding) for n, x in like.items()}
    alike = calibration.init(apply, params, X, where=where)
    same = [a.sums.sharding == b.sums.sharding for a, b in
            zip(stats.values(), alike.values())]
    x = put(AxisType.Auto, np.nan_to_num(X), "x")
    places = jax.tree.map(lambda x: x.sharding, stats)  # as the docstring says
    how = {"donate_argnums": 0, "out_shardings": places}
    step = jax.jit(functools.partial(calibration.update, apply), **how)
    first = {n: own.sums.sharding for n, own in stats.items()}
    for _ in range(3):
        stats = step(stats, params, x)
    return {
        "spec": {n: str(where.spec) for n, where in first.items()},
        "stays": [own.sums.sharding == first[n] for n, own in stats.items()],
        "same": same,
        "programs": step._cache_size(),
        "told": [told.total, told.per_device],
        "taken": sum(own.sums.addressable_shards[0].data.nbytes
                     for own in stats.values()),
    }


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
    "kept": kept(),
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


def test_statistics_stay_where_they_began(results):
    found = results["kept"]
    specs = {"query": "P('x', None)", "out": "P('y', None)", "head": "P(None, None)"}
    assert found["spec"] == specs
    assert all(found["stays"])
    assert found["programs"] == 1


def test_statistics_begin_in_shards_without_parameters(results):
    assert all(results["kept"]["same"])


def test_bytes_on_each_device_are_told(results):
    sizes = {"query": 8 * 8 * 4, "out": 8 * 8 * 4, "head": 8 * 8 * 4}
    each = sizes["query"] // 4 + sizes["out"] // 2 + sizes["head"]
    assert results["kept"]["told"] == [sum(sizes.values()), each]
    assert results["kept"]["taken"] == each
