"""Masked parameters of many devices on disk: they come back to where they were.

Programs run in processes of their own, which pretend to have eight devices.
"""

import re

import pytest

from tests import processes

_PROGRAM = """
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

import maskjax
from maskjax import packing, storage

path, results = f"{sys.argv[1]}/net", {}
rng = np.random.default_rng(0)
SPECS = {"w": ("x",), "run": ("x",), "both": (None, ("x", "y")), "b": (), "k": ("y",)}
SHAPES = {"w": (256, 12), "run": (8, 9), "both": (6, 64), "b": (7,), "k": (4, 5)}
whole = {n: rng.normal(size=s).astype(jnp.bfloat16) for n, s in SHAPES.items()}
keep = {n: rng.random(s) < 0.3 for n, s in SHAPES.items()}
keep |= {"k": rng.random((4, 1)) < 0.5, "b": None}
masked = maskjax.apply(whole, keep)
storage.save_params(f"{path}0", whole, keep)
with open(f"{path}0", "rb") as file:
    alone = file.read()


def same(loaded, like):
    params, mask = loaded
    bits = lambda x: np.asarray(x).tobytes()
    meet = maskjax.apply(params, mask)  # which are on the same devices
    return [
        all(bits(params[n]) == bits(masked[n]) == bits(meet[n]) for n in whole),
        all(x.sharding.is_equivalent_to(like[n].sharding, x.ndim)
            for n, x in params.items()),
        all(
            mask[n] is None if keep[n] is None
            else (np.asarray(packing.unpack(mask[n])) == keep[n]).all()
            and mask[n].bits.sharding.device_set == like[n].sharding.device_set
            for n in whole
        ),
    ]


for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ("x", "y"), (kind, kind))
    where = {n: NamedSharding(mesh, PartitionSpec(*s)) for n, s in SPECS.items()}
    params = jax.device_put(whole, where)
    for name, mask in (
        ("of NumPy", keep),
        ("packed", packing.pack(keep)),
        ("sharded", jax.device_put(keep, {**where, "b": None})),
    ):
        storage.save_params(path, params, mask)
        with open(path, "rb") as file:
            results[f"{kind.name}, {name}"] = [
                file.read() == alone, all(x._npy_value is None for x in params.values())
            ]
    loaded = storage.load_params(path, like=params)
    results[f"{kind.name}, arrays"] = same(loaded, params)
    bits = loaded[1]["w"].bits
    results[f"{kind.name}, bits"] = [
        bits.sharding.spec == PartitionSpec("x", None), bits.shape == (8, 12)
    ]
    shapes = {
        n: jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=where[n])
        for n, s in SHAPES.items()
    }
    loaded = storage.load_params(path, like=shapes)
    results[f"{kind.name}, shapes"] = same(loaded, shapes)

abstract = jax.eval_shape(lambda p: p, params)  # on axes, but on no devices
with jax.set_mesh(mesh):
    loaded = storage.load_params(path, like=abstract)
results["axes of the mesh that is set"] = same(loaded, params)
try:
    storage.load_params(path, like=abstract)
except ValueError as error:
    results["axes without devices"] = str(error)
last = jax.devices()[-1]
like = jax.device_put(whole, last)
results["one device"] = same(storage.load_params(path, like=like), like)
on_last = {
    n: jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=SingleDeviceSharding(last))
    for n, s in SHAPES.items()
}
results["its shapes"] = same(storage.load_params(path, like=on_last), on_last)
loaded, mask = storage.load_params(path)
results["default"] = [not x.committed for x in jax.tree.leaves((loaded, mask))]
stages = {n: jax.device_put(whole[n], jax.devices()[i]) for i, n in enumerate(whole)}
storage.save_params(path, stages, keep)
results["stages"] = same(storage.load_params(path, like=stages), stages)
print(json.dumps(results, default=bool))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return processes.run("-c", _PROGRAM, str(tmp_path_factory.mktemp("devices")))


def test_what_is_sharded_is_saved_as_if_it_were_not(results):
    names = [f"{kind}, {how}" for kind in ("Auto", "Explicit") for how in
             ("of NumPy", "packed", "sharded")]  # fmt: skip
    for name in names:
        assert results[name] == [True, True], name


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_leaves_and_their_masks_come_back_to_where_like_is(kind, results):
    assert results[f"{kind}, arrays"] == [True, True, True]
    assert results[f"{kind}, shapes"] == [True, True, True]
    assert results[f"{kind}, bits"] == [True, True]


def test_axes_of_a_mesh_need_its_devices(results):
    assert results["axes of the mesh that is set"] == [True, True, True]
    assert re.search(
        r"`maskjax.storage.load_params` needs devices for the axes that `like` names: "
        r"call it within `jax.set_mesh\(mesh\)`.*\n  b: NamedSharding",
        results["axes without devices"],
    )


def test_single_devices_are_kept(results):
    for name in ("one device", "its shapes", "stages"):
        assert results[name] == [True, True, True], name
    assert all(results["default"])
