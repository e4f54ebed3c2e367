"""FedPM's clients on eight devices: the same states, and bits alone travel.

It runs in a process of its own, which pretends to have eight devices.
"""

import pytest

from tests import processes

_PROGRAM = '''
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import maskjax
from maskjax.recipes import fedpm, supermask

K, results = 8, {}
rng = np.random.default_rng(0)
draw = lambda *shape: rng.normal(size=shape).astype("float32")
weights = jax.tree.map(jax.device_put, {"a": draw(128, 64) / 8, "b": draw(64, 16) / 8})
x, y, keys = draw(K, 16, 128), draw(K, 16, 16), jax.random.split(jax.random.key(1), K)
some = np.arange(K) != 3


def loss(scores, x, y, key):
    params = maskjax.apply(weights, supermask.soft_mask(scores, key=key))
    return jnp.mean((jax.nn.relu(x @ params["a"]) @ params["b"] - y) ** 2)


def client(state, weights, x, y, key, own=lambda scores: scores):
    scores = own(fedpm.scores(state))
    for k in jax.random.split(key, 2):
        slope = jax.grad(loss)(scores, x, y, k)
        scores = jax.tree.map(lambda s, g: s - 30 * g, scores, slope)
    return fedpm.message(state, weights, scores, key=key), scores


def step(state, weights, x, y, keys, some):
    messages, scores = jax.vmap(client, (None, None, 0, 0, 0))(
        state, weights, x, y, keys)
    return fedpm.aggregate(state, messages, participates=some), messages, scores


def by_shard(mesh):
    """Each device is a client, inside of `shard_map`; the server is outside."""
    def one(state, weights, x, y, key):
        # Without it JAX would sum the gradients of all clients.
        own = lambda scores: jax.lax.pcast(scores, "clients", to="varying")
        found = client(state, weights, x[0], y[0], key[0], own)
        return jax.tree.map(lambda leaf: leaf[None], found)

    row, every = PartitionSpec("clients"), PartitionSpec()
    mapped = jax.shard_map(
        one, mesh=mesh, in_specs=(every, every, row, row, row), out_specs=row,
    )

    def step(state, weights, x, y, keys, some):
        messages, scores = mapped(state, weights, x, y, keys)
        return fedpm.aggregate(state, messages, participates=some), messages, scores

    return step


def moved(program):
    """How many words of bits travel between devices, and the largest of all else."""
    travels = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
    found = re.findall(rf"= (.*?) (?:{travels})[-a-z]*\\(", program.as_text())
    found = re.findall(r"(\\w+)\\[([0-9,]*)\\]", " ".join(found))
    sizes = [(kind, int(np.prod([int(n) for n in dims.split(",") if n])))
             for kind, dims in found]
    words = sum(size for kind, size in sizes if kind == "u32" and size > 16)
    rest = [size for kind, size in sizes if kind != "u32" or size <= 16]
    return words, max(rest, default=0)


start = jax.jit(fedpm.init)(weights)
alone = jax.jit(step)(start, weights, x, y, keys, some)
again = jax.jit(fedpm.aggregate)(start, alone[1], participates=some)
same = lambda a, b: all(
    np.asarray(p).tobytes() == np.asarray(q).tobytes()
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
results["alone"] = same(alone[0], again)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("clients",), (kind,))
    put = lambda tree, *spec: jax.device_put(
        tree, NamedSharding(mesh, PartitionSpec(*spec)))
    data = put((x, y, keys), "clients")
    given = *put((start, weights)), *data, put(some)
    for way, run in {"vmap": step, "shard_map": by_shard(mesh)}.items():
        with jax.set_mesh(mesh):
            program = jax.jit(run).lower(*given).compile()
        state, messages, scores = program(*given)
        near = [np.abs(np.asarray(p) - np.asarray(q)).max() < 1e-4 for p, q in zip(
            jax.tree.leaves(scores), jax.tree.leaves(alone[2]), strict=True)]
        results[f"{kind.name} {way}"] = [
            same((state, messages), alone[:2]) and all(near), *moved(program)]
    # The server alone, on messages that are sharded by clients.
    close = lambda s, m, f: fedpm.aggregate(s, m, participates=f)
    given = put(start), put(alone[1], "clients"), put(some)
    with jax.set_mesh(mesh):
        program = jax.jit(close).lower(*given).compile()
    results[f"{kind.name} server"] = [same(program(*given), alone[0]), *moved(program)]
    results[f"{kind.name} eager"] = [same(close(*given), alone[0]), 0, 0]
    sharded = put(weights, "clients")
    results[f"{kind.name} network"] = same(
        jax.jit(fedpm.init)(sharded).network, start.network)
print(json.dumps(results))
'''

WAYS = ["Auto vmap", "Auto shard_map", "Explicit vmap", "Explicit shard_map"]
WAYS += ["Auto server", "Explicit server", "Auto eager", "Explicit eager"]
# One word for 32 weights of two leaves and eight clients. Beside: which of the eight
# sent a message of this round, and the two words of each fingerprint.
WORDS, SMALL = 8 * (4 * 64 + 2 * 16), 16


@pytest.fixture(scope="module")
def results():
    return processes.run("-c", _PROGRAM)


@pytest.mark.parametrize("way", WAYS)
def test_clients_on_devices_make_the_same_state_and_bits_alone_travel(way, results):
    same, words, other = results[way]
    assert same
    if way.startswith("Explicit"):
        assert words == (0 if way.endswith("eager") else WORDS)
    elif not way.endswith("eager"):  # the compiler may move some bits twice
        assert WORDS <= words <= 2 * WORDS
    assert other <= SMALL


def test_the_server_counts_the_same_wherever_it_is(results):
    assert results["alone"]


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_fingerprint_is_the_same_on_any_number_of_devices(kind, results):
    assert results[f"{kind} network"]
