"""Selection over devices: the same mask, and nothing but counts is communicated.

It runs in a process of its own, which pretends to have eight devices.
"""

import functools
import json

import pytest

from tests import processes

_PROGRAM = '''
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from maskjax import select, structure

mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
SHAPES = {"tall": (64, 40), "wide": (32, 256), "conv": (8, 3, 4, 16), "twin": (64, 40)}
SHAPES |= {"flat": (2**15,)}
STRUCTURES = {
    "entries": structure.Entries(),
    "n_of_m": structure.NofM(2, 4, -2),
    "block": structure.Block((2, 2), (-2, -1)),
    "units": structure.Units(-1),
}


def spec(axis, rank):
    names = [None] * rank
    names[0 if axis == "first" else -1] = "x"
    return NamedSharding(mesh, PartitionSpec(*names))


def operations(text):
    """Every collective of a compiled program, with the shapes of its results."""
    found = []
    pattern = r"= (.*?) (all-\\w+|collective-\\w+|reduce-scatter)(?:-start)?\\("
    for line in text.splitlines():
        match = re.search(pattern, line)
        if match:
            shapes = re.findall(r"\\w+\\[([\\d,]*)\\]", match[1])
            sizes = [int(np.prod([int(d) for d in s.split(",") if d])) for s in shapes]
            found.append([match[2], max(sizes), match[1]])
    return found


def run(axis, scope, kind, guessed):
    names = SHAPES if kind == "entries" else ["tall", "wide", "conv", "twin"]
    scores = {n: jnp.asarray(rng.normal(size=SHAPES[n]), "float32") for n in names}
    shardings = {n: spec(axis, s.ndim) for n, s in scores.items()}
    guess = {n: jnp.float32(0.1) for n in names} if guessed else None

    def choose(scores, density):
        how = {"scope": scope, "structure": STRUCTURES[kind], "guess": guess}
        return select.top_k(scores, density=density, **how)

    density = jnp.float32(0.3)
    spread = jax.device_put(scores, shardings)
    program = jax.jit(choose).lower(spread, density).compile()
    single, equal = jax.jit(choose), True
    for density in map(jnp.float32, (0.001, 0.3, 0.999)):  # also close to both ends
        mask, whole = program(spread, density), single(scores, density)
        equal &= all(bool((mask[n] == whole[n]).all()) for n in names)
    return {
        "equal": equal,
        "spread": all(not m.is_fully_replicated for m in mask.values()),
        "operations": operations(program.as_text()),
    }


def explicit():
    """Shardings that are part of types, on two axes, in and out of a context."""
    pairs = jax.make_mesh((4, 2), ("x", "y"), (jax.sharding.AxisType.Explicit,) * 2)
    scores = jnp.asarray(rng.normal(size=(64, 32)), "float32")
    spread = jax.device_put(scores, NamedSharding(pairs, PartitionSpec("x", "y")))
    choose = lambda x: select.top_k([x, -x], density=0.3)
    outside = choose(spread), jax.jit(choose)(spread)
    with jax.set_mesh(pairs):
        inside = jax.jit(choose)(spread)
    found = [np.stack(masks) for masks in (*outside, inside)]
    return all(np.array_equal(np.stack(choose(scores)), masks) for masks in found)


def elsewhere():
    """What is lowered for GPU and TPU has no partitioning of its own."""
    scores = [jax.ShapeDtypeStruct((64, 32), "float32")] * 2
    choose = jax.jit(lambda x: select.top_k(x, density=0.3))
    lowered = choose.trace(scores).lower(lowering_platforms=("cuda", "tpu"))
    text = lowered.as_text()
    return "CustomSPMDPartitioning" not in text and "xla_python" not in text


def in_shard_map():
    """Each shard is ranked on its own."""
    scores = jnp.asarray(rng.normal(size=(64, 32)), "float32")
    rows = PartitionSpec("x")
    choose = lambda x: select.top_k(x, density=0.3)
    mapped = jax.shard_map(choose, mesh=mesh, in_specs=rows, out_specs=rows)
    shards = [choose(shard) for shard in jnp.split(scores, 8)]
    return bool((jax.jit(mapped)(scores) == jnp.concatenate(shards)).all())


cases = json.loads(sys.argv[1])
results = {" ".join(map(str, c)): run(*c) for c in cases}


def pruned(make_mask):
    """Pruning a sharded leaf keeps what pruning the whole one does."""
    from maskjax import optim

    whole = jnp.asarray(rng.normal(size=(64, 40)), jnp.float32)
    prune = optim.prune(0.5)
    expected = prune.update(whole, prune.init(whole), whole)[1].mask
    return bool((np.asarray(make_mask(prune, whole)) == np.asarray(expected)).all())


def explicitly(prune, whole):
    kind = jax.sharding.AxisType.Explicit
    sharding = NamedSharding(
        jax.make_mesh((8,), ("x",), axis_types=(kind,)), PartitionSpec("x")
    )
    leaf = jax.device_put(whole, sharding)
    return jax.jit(prune.update)(leaf, prune.init(leaf), leaf)[1].mask


def masks_elsewhere():
    """Masks and cutoffs of an Explicit mesh, sharded unlike the scores."""
    pairs = jax.make_mesh((4, 2), ("x", "y"), (jax.sharding.AxisType.Explicit,) * 2)
    scores = np.asarray(rng.normal(size=(16, 32)), "float32")
    held = rng.random((16, 32)) < 0.2
    put = lambda x, *spec: jax.device_put(x, NamedSharding(pairs, PartitionSpec(*spec)))
    same = True
    for mine, other in (("xy", "yx"), (("x", None), (None, "x")), (("x", None), ())):
        for change in (select.drop, select.grow):
            how = {"rate": 0.5} if change is select.drop else {"density": 0.5}
            found = change(put(scores, *mine), put(held, *other), **how)
            same &= bool((np.asarray(found) == change(scores, held, **how)).all())
    how = {"density": 0.5, "scope": "output", "return_cutoff": True}
    spread = {"kernel": put(scores, "y", "x")}
    mask, cutoff = select.top_k(spread, **how)
    again, _ = select.top_k(spread, guess=cutoff, **how)
    expected, _ = select.top_k({"kernel": scores}, **how)
    for found in (mask, again):
        same &= bool((np.asarray(found["kernel"]) == expected["kernel"]).all())
    nothing = select.top_k([put(np.zeros((16, 0), "f"), "x")], density=0.5)
    return same and nothing[0].shape == (16, 0)


def twins_mapped_over_a_sharded_axis():
    """Leaves that are searched as one stack, under `vmap` on an Explicit mesh."""
    row = jax.make_mesh((8,), ("x",), (jax.sharding.AxisType.Explicit,))
    scores = np.asarray(rng.normal(size=(8, 6, 4)), "float32")
    spread = jax.device_put(scores, NamedSharding(row, PartitionSpec("x")))
    choose = jax.vmap(lambda x: select.top_k([x, -x], density=0.3))
    expected = np.stack(choose(scores))
    with jax.set_mesh(row):
        found = jax.jit(choose)(spread)
    return bool((np.stack(found) == expected).all())


def held_by_all_shards():
    """In a shard_map: scores vary over devices, the mask does not."""
    scores = jnp.asarray(rng.normal(size=(64, 32)), "float32")
    held, rows = jnp.asarray(rng.random((8, 32)) < 0.5), PartitionSpec("x")
    how = {"mesh": mesh, "in_specs": (rows, PartitionSpec()), "out_specs": rows}
    same = True
    for change in (select.drop, select.grow):
        kind = {"rate": 0.5} if change is select.drop else {"density": 0.7}
        each = lambda x, m: change(x, m, **kind)
        found = jax.jit(jax.shard_map(each, **how))(scores, held)
        shards = [each(shard, held) for shard in jnp.split(scores, 8)]
        same &= bool((found == jnp.concatenate(shards)).all())
    return same


results |= {"explicit": explicit(), "shard_map": in_shard_map()}
results |= {"masks elsewhere": masks_elsewhere(), "held": held_by_all_shards()}
results |= {"mapped twins": twins_mapped_over_a_sharded_axis()}
results |= {"elsewhere": elsewhere()}
print(json.dumps({**results, "prune, explicit": pruned(explicitly)}))
'''

CASES = (  # each factor
    ("first", "leaf", "entries", False),
    ("first", "global", "entries", True),
    ("last", "global", "n_of_m", False),
)
ONE_BY_ONE = (  # each factor by itself
    ("last", "leaf", "entries", False),
    ("first", "global", "entries", False),
    ("first", "leaf", "n_of_m", False),
)


@functools.cache
def run(cases):
    return processes.run("-c", _PROGRAM, json.dumps(cases))


@pytest.fixture
def results(request):
    """Of the cases that the test is one of."""
    slow = request.node.get_closest_marker("slow") is not None
    return run(ONE_BY_ONE if slow else CASES)


def named(case):
    return " ".join(map(str, case))


over_cases = pytest.mark.parametrize(
    "case",
    [
        *map(named, CASES),
        *(pytest.param(named(case), marks=pytest.mark.slow) for case in ONE_BY_ONE),
    ],
)


@over_cases
def test_a_sharded_mask_is_the_unsharded_one(case, results):
    assert results[case]["equal"]
    assert results[case]["spread"]


@over_cases
def test_nothing_is_gathered_or_moved_between_devices(case, results):
    kinds = {kind for kind, _, _ in results[case]["operations"]}
    assert kinds == {"all-reduce"}


@over_cases
def test_only_a_number_for_each_leaf_is_summed_over_devices(case, results):
    """Leaves of one shape are searched together: here there are at most two."""
    assert [op for op in results[case]["operations"] if op[1] > 2] == []


@pytest.mark.parametrize(
    "mode",
    [
        *("elsewhere", "explicit", "shard_map", "prune, explicit"),
        *("masks elsewhere", "held", "mapped twins"),
    ],
)
def test_other_ways_of_sharding_choose_the_same(mode, results):
    assert results[mode]
