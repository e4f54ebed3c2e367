"""Tasks over devices: each device trains and asks its own, and data stay there.

It runs in a process of its own, which pretends to have eight devices.
"""

import pytest

from tests import processes

_PROGRAM = '''
import json
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import maskjax
from maskjax import (
    algebra, bank, packing, score, select, stacking, storage, structure, superposition,
    where
)
from maskjax.recipes import supsup

K, results = 16, {}
rng = np.random.default_rng(0)
draw = lambda *shape: rng.normal(size=shape).astype("float32")
weights = {"hidden": jax.device_put(draw(128, 64)), "out": jax.device_put(draw(64, 8))}
data = draw(K, 48, 128)
tasks = bank.empty(weights, capacity=K)


def net(params, x):
    return jax.nn.relu(x @ params["hidden"]) @ params["out"]


def train(weights, x, *, key):
    def step(scores, _):
        def loss(scores):
            params = maskjax.apply(weights, supsup.soft_mask(scores))
            return superposition.logit_entropy(net(params, x))
        return jax.tree.map(jnp.subtract, scores, jax.grad(loss)(scores)), None

    scores = jax.lax.scan(step, supsup.init(weights, key=key), length=3)[0]
    return supsup.mask(scores), scores["out"][0, 0]


def learn(weights, tasks, data):
    one = lambda x, *, key: train(weights, x, key=key)
    return supsup.learn(one, tasks, data, key=jax.random.key(0))


def same(a, b):
    """Masks and counts to the bit, and floats nearly."""
    a, b = jax.tree.map(np.asarray, (a, b))
    near = lambda x: 1e-4 * (x.dtype.kind == "f")
    close = lambda x, y: np.allclose(x, y, rtol=near(x), atol=near(x))
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and close(x, y) for x, y in pairs)


alone = jax.jit(learn).lower(weights, tasks, data).compile()
expected = alone(weights, tasks, data)

for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("x",), (kind,))
    put = lambda tree, *spec: jax.device_put(
        tree, NamedSharding(mesh, PartitionSpec(*spec))
    )
    everywhere, sharded = put(weights), put(data, "x")
    ours = tasks._replace(masks=put(tasks.masks, "x"), counts=put(tasks.counts))
    program = jax.jit(learn).lower(everywhere, ours, sharded).compile()
    learned, values = program(everywhere, ours, sharded)
    travels = "all-gather|all-to-all|collective-permute|all-reduce"
    moved = re.findall(rf"= (.*?) (?:{travels})[-a-z]*\\(", program.as_text())
    moved = re.findall(r"\\w+\\[[0-9,]*\\]", " ".join(moved))
    # Integers, and counts of the masks that keep each of the 32 bits of a word.
    fine = re.compile(r"[us]32|f32\\[32,(4,64|2,8)\\]")
    work = [p.cost_analysis()["flops"] for p in (program, alone)]
    results[f"{kind.name} compiled"] = [
        same((learned, values), expected),
        [shape for shape in moved if not fine.match(shape)],
        work[0] / work[1] < 0.25,
        str(values.sharding.spec),
    ]
    learned, values = learn(everywhere, ours, sharded)
    results[f"{kind.name} eager"] = [
        same((learned, values), expected), [], True, str(values.sharding.spec)
    ]
    asked = superposition.infer(net, everywhere, learned, put(data[:, 0], "x"))
    whole = superposition.infer(net, weights, expected[0], data[:, 0])
    results[f"{kind.name} infer"] = [
        same(asked, whole), [], True, "P('x',)"
    ]

mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("x"))
spread = jax.device_put({"a": draw(256, 8), "b": draw(8)}, rows)
made = bank.empty(spread, capacity=3)
results["follows"] = [
    made.masks["a"].bits.sharding.spec == PartitionSpec(None, "x", None),
    made.counts["a"].sharding.spec == rows.spec,
]
shaped = lambda p: (bank.empty(p, capacity=3), select.random(
    p, density=0.5, key=jax.random.key(0), where=where.everything))
compiled, drawn = jax.jit(shaped)(spread)
results["follows under jit"] = [
    compiled.masks["a"].bits.sharding.spec == PartitionSpec(None, "x"),
    compiled.counts["a"].sharding.spec == rows.spec,
    [m.sharding.spec == rows.spec for m in drawn.values()] == [True, True],
    all(len(x.devices()) == 8 for x in jax.tree.leaves((compiled, drawn))),
]


def moves(function, *arguments, floats=True):
    """What a program gathers or exchanges, and what floats it adds up."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    kinds = "all-gather|all-to-all|collective-permute" + "|all-reduce" * floats
    return re.findall(rf"= (\\S+) (?:{kinds})\\(", text)


masks = {"a": rng.random((K, 64, 128)) < 0.5}
packed = jax.device_get(jax.vmap(packing.pack)(masks))
values = {"a": draw(64, 128)}
expected = np.tensordot(masks["a"], values["a"], 2)
for spec in ((None, "m"), ("m",)):
    mesh = jax.make_mesh((4, 2), ("t", "m"))
    put = lambda tree, *spec: jax.device_put(
        tree, NamedSharding(mesh, PartitionSpec(*spec))
    )
    given = put(packed, "t"), put(values, *spec)
    results[f"dot {spec[0]}"] = [
        np.allclose(packing.dot(*given), expected, atol=1e-3),
        moves(packing.dot, *given),
    ]

mesh = jax.make_mesh((8,), ("t",))
put = lambda tree, *spec: jax.device_put(
    tree, NamedSharding(mesh, PartitionSpec(*spec))
)
full = jax.device_get(bank.from_stack(packed, capacity=2 * K))
many = bank.MaskBank(put(full.masks, "t"), *map(put, full[1:]))
stack = put(masks, "t")
results["extend"] = [
    same(bank.extend(many, stack), jax.jit(bank.extend)(full, masks)),
    moves(bank.extend, many, stack),
]

mesh = jax.make_mesh((8,), ("t",), (AxisType.Auto,))
many = bank.MaskBank(put(full.masks, "t"), *map(put, full[1:]))
plain = lambda p, x: x @ p["a"]
for per in ("batch", "image"):
    tried = lambda bank, x: superposition.infer(
        plain, values, bank, x, method="exhaustive", per=per, batch_size=8)
    x = draw(8, 64)
    results[f"exhaustive {per}"] = [
        same(jax.jit(tried)(many, x), jax.jit(tried)(full, x)),
        [shape for shape in moves(tried, many, x, floats=False) if "u32" in shape],
    ]

blocks = lambda p: select.top_k(p, density=0.3, structure=structure.Block((4, 4)))
wide = {"kernel": draw(40, 48)}
one = jax.jit(blocks)(wide)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((8,), ("t",), (kind,))
    cut = jax.jit(blocks)(put(wide, "t"))
    results[f"blocks {kind.name}"] = [
        same(cut, one), cut["kernel"].sharding.shard_shape((40, 48)) == (5, 48)
    ]

mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
half = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=jax.devices()[:2])
at_3 = lambda x: jax.device_put(x, jax.devices()[3])
stages = {"a": at_3(draw(4, 4)), "b": jax.device_put(draw(4, 4), jax.devices()[5])}
back = jax.sharding.Mesh(np.array(jax.devices()[::-1]), ("x",))
backwards = {"a": np.ones((256, 8), bool), "b": None}
backwards = jax.device_put(backwards, NamedSharding(back, PartitionSpec()))
told = jax.make_mesh((8,), ("x",))
put_there = lambda x, *spec: jax.device_put(
    x, NamedSharding(told, PartitionSpec(*spec))
)
def unreduced(x):
    spec = NamedSharding(told, PartitionSpec(unreduced={"x"}))
    sums = jnp.einsum("ij,kj->ik", x, x, out_sharding=spec)
    return maskjax.apply({"a": sums}, {"a": np.ones((8, 8), bool)})
elsewhere = {"a": np.ones((256, 8), bool), "b": None}
elsewhere = jax.device_put(elsewhere, NamedSharding(half, PartitionSpec("x")))
for name, call in {
    "apply": lambda: maskjax.apply(spread, elsewhere),
    "packed": lambda: maskjax.apply(spread, packing.pack(elsewhere)),
    "append": lambda: bank.append(made, elsewhere),
    "reversed": lambda: maskjax.apply(spread, backwards),
    "top_k": lambda: select.top_k(stages, density=0.5),
    "count": lambda: algebra.count(select.threshold(stages, at=0.0)),
    "density": lambda: select.top_k(spread, density=at_3(jnp.float32(0.5))),
    "random": lambda: select.random(stages, density=0.5, key=jax.random.key(0)),
    "key": lambda: score.random(spread, key=at_3(jax.random.key(0))),
    "stack": lambda: stacking.stack([select.threshold(stages, at=0.0)] * 2),
    "predict": lambda: stacking.predict(plain, put(values), put(masks), at_3(x)),
    "infer": lambda: superposition.infer(plain, put(values), many, at_3(x)),
    "unreduced": lambda: jax.jit(unreduced)(put_there(x, None, "x")),
}.items():
    try:
        call()
    except ValueError as error:
        results[name] = str(error)
with tempfile.TemporaryDirectory() as folder:
    storage.save(f"{folder}/bank", full)
    again = storage.load(f"{folder}/bank", capacity=4 * K, like=many)
results["loaded"] = [
    same(again, bank.grow(full, 4 * K)),
    again.masks["a"].bits.sharding == many.masks["a"].bits.sharding,
    again.counts["a"].sharding == many.counts["a"].sharding,
]
leafwise = maskjax.apply(stages, packing.pack(select.threshold(stages, at=0.0)))
results["leafwise"] = [[d.id for d in x.devices()] for x in leafwise.values()]
print(json.dumps(results))
'''


@pytest.fixture(scope="module")
def results():
    return processes.run("-c", _PROGRAM)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("way", ["compiled", "eager", "infer"])
def test_each_device_has_its_own_tasks(kind, way, results):
    """The same results, only bits move, an eighth of the work; where results are."""
    assert results[f"{kind} {way}"] == [True, [], True, "P('x',)"]


def test_an_empty_bank_is_where_its_parameters_are(results):
    assert results["follows"] == [True, True]


@pytest.mark.parametrize("call", ["apply", "packed", "append"])
def test_arrays_that_meet_are_on_the_same_devices(call, results):
    fn = "maskjax.bank.append" if call == "append" else "maskjax.apply"
    assert f"`{fn}` needs leaves that meet on the same devices" in results[call]
    assert "a: " in results[call]
    assert "mask on devices 0, 1" in results[call]


def test_what_depends_on_shapes_only_is_where_its_parameters_are(results):
    assert results["follows under jit"] == [True] * 4


@pytest.mark.parametrize("axis", [None, "m"])
def test_a_tree_on_another_axis_than_tasks_is_not_gathered(axis, results):
    """Sums of 4 tasks for each device; K numbers travel."""
    assert results[f"dot {axis}"] == [True, ["f32[4]{0}"]]


def test_masks_that_were_gathered_are_counted_where_they_are(results):
    assert results["extend"] == [True, ["u32[16,64,4]{2,1,0}"]]


@pytest.mark.parametrize("per", ["batch", "image"])
def test_masks_are_tried_where_they_are(per, results):
    assert results[f"exhaustive {per}"] == [True, []]


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_blocks_across_shards_are_sharded_as_their_parameters(kind, results):
    assert results[f"blocks {kind}"] == [True, True]


def test_the_order_of_devices_matters(results):
    assert "b" not in results["reversed"].partition("got:")[2].split(":")[0]
    assert "mask on devices 7, 6, 5, 4, 3, 2, 1, 0" in results["reversed"]


@pytest.mark.parametrize(
    ("call", "fn", "first", "second"),
    [
        ("top_k", "select.top_k", "scores/a: device 3", "scores/b: device 5"),
        ("count", "algebra.count", "mask/a: device 3", "mask/b: device 5"),
        ("density", "select.top_k", "density: device 3", "scores/a, scores/b: devices"),
        ("random", "select.random", "params/a: device 3", "params/b: device 5"),
        ("key", "score.random", "a: params on devices 0", "key on device 3"),
        ("stack", "stacking.stack", "masks/0/a, masks/1/a: device 3", "/b: device 5"),
        ("predict", "stacking.predict", "inputs/0: device 3", "stack/a: devices 0, 1"),
        ("infer", "superposition.infer", "images: device 3", "params/a: devices 0, 1"),
        ("unreduced", "apply", "a: P(None, None, unreduced={'x'})", "reshard"),
    ],
)
def test_arrays_of_one_program_are_on_the_same_devices(
    call, fn, first, second, results
):
    assert f"`maskjax.{fn}` needs" in results[call]
    assert first in results[call]
    assert second in results[call]


def test_leaves_by_themselves_stay_where_they_are(results):
    assert results["leafwise"] == [[3], [5]]


def test_a_bank_is_loaded_where_another_one_is(results):
    assert results["loaded"] == [True, True, True]
