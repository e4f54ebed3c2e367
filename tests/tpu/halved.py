"""Compiles training steps of compacted networks, and of the same ones built small.

    python -m tests.tpu.halved auto '["gpt", "resnet"]'

It is a process of its own (`benchmarks._chips`), and prints a JSON object a line.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import _chips
from maskjax import compaction
from tests import halved
from tests.tpu.compiling import ROOT

SIZES = {"v": 512, "d": 256, "h": 8, "e": 32, "f": 1024}
WIDTHS = {"a": 64, "b": 128, "m": 64, "n": 128}
NETWORKS = {
    "gpt": lambda: halved.gpt(scan=False, layers=2, batch=(8, 128), **SIZES),
    "scanned gpt": lambda: halved.gpt(scan=True, layers=4, batch=(8, 128), **SIZES),
    "resnet": lambda: halved.resnet(batch=32, image=32, **WIDTHS),
}
KINDS = ("compacted", "built")


def programs(chips: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the compiler says of each network's step, compacted and built small."""
    mesh = _chips.mesh(chips, names="xy")
    for name in names:
        net = NETWORKS[name]()
        plan = net.plan()
        for kind in KINDS:
            params, step = net.built, net.step
            if kind == "compacted":
                params = compaction.shrink(net.params, plan)
                step = compaction.narrow(net.step, plan)
            moments = net.moments(params)
            args = [*_by_units(net, (params, moments), mesh), *_by_rows(net, mesh)]
            with jax.set_mesh(mesh):
                found = _chips.compiled(step, *args)._asdict()
            yield {"name": name, "kind": kind, **found}


def _by_units(net: halved.Network, tree: Any, mesh: Mesh) -> Any:
    """Heads, hidden units and channels that come out are cut over one mesh axis."""
    params, moments = tree
    of = dict(jax.tree_util.tree_leaves_with_path(net.axes))

    def place(path: Any, x: Any) -> jax.ShapeDtypeStruct:
        ends = [n for p, n in of.items() if path[-len(p) :] == p[-len(path) :]]
        letters = ends[0] if ends and len(ends[0]) == len(x.shape) else ""
        cut = ["y" if n in "hfmn" else None for n in letters]
        where = NamedSharding(mesh, PartitionSpec(*cut))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return [jax.tree_util.tree_map_with_path(place, t) for t in (params, moments)]


def _by_rows(net: halved.Network, mesh: Mesh) -> list[jax.ShapeDtypeStruct]:
    where = NamedSharding(mesh, PartitionSpec("x"))
    return [x.update(sharding=where) for x in net.inputs]


def compiled(chips: str, names: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """The same by network and kind, found by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tpu.halved", chips, json.dumps(list(names))],
        cwd=ROOT,
        env=_chips.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    if len(lines) < len(names) * len(KINDS):
        raise RuntimeError(f"the compiler ended the process: {done.stderr[-2000:]}")
    return {(line.pop("name"), line.pop("kind")): line for line in lines}


if __name__ == "__main__":
    for found in programs(sys.argv[1], json.loads(sys.argv[2])):
        print(json.dumps(found), flush=True)
    os._exit(0)  # libtpu takes seconds to close, and has nothing to say
