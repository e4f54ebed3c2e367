"""Tasks over devices: each device trains and asks its own, and data stay there.

It runs in a process of its own, which pretends to have eight devices.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

_PROGRAM = '''
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import maskjax
from maskjax import bank, packing, stacking, superposition
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
half = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=jax.devices()[:2])
elsewhere = {"a": np.ones((256, 8), bool), "b": None}
elsewhere = jax.device_put(elsewhere, NamedSharding(half, PartitionSpec("x")))
for name, call in {
    "apply": lambda: maskjax.apply(spread, elsewhere),
    "packed": lambda: maskjax.apply(spread, packing.pack(elsewhere)),
    "append": lambda: bank.append(made, elsewhere),
}.items():
    try:
        call()
    except ValueError as error:
        results[name] = str(error)
print(json.dumps(results))
'''


@pytest.fixture(scope="module")
def results():
    flags = "--xla_force_host_platform_device_count=8"
    flags += " --xla_cpu_use_fusion_emitters=false"  # compiles faster
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # it runs once
        },
        cwd=pathlib.Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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
