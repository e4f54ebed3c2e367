"""Compiles updates of statistics for TPU chips that are not there.

    python -m tests.tpu.calibrating '["rows, auto"]'

It is a process of its own (`benchmarks._chips`), and prints a JSON object a line.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import _chips
from maskjax import calibration
from tests.tpu.compiling import ROOT

D, ROWS = 4096, (16, 512)
# How the rows of data are cut, the kernel, and the matrix.
SPECS = {
    "rows": (("x",), (), ()),
    "rows and matrix": (("x",), (), ("x",)),
    "features": ((None, None, "x"), ("x",), ("x",)),
}
CASES = [
    *(f"rows, {kind}" for kind in _chips.KINDS),
    *(f"rows and matrix, {kind}" for kind in ("auto", "explicit")),
    "features, auto",
]


_SEVERAL = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


def apply(params: Any, x: Any) -> Any:
    """A kernel with as many inputs as outputs, in bfloat16."""
    return x @ params["kernel"]


def programs(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the compiler says of each case."""
    for name in names:
        how, kind = name.split(", ")
        mesh = _chips.mesh(kind)
        rows, kernel, matrix = SPECS[how]

        def placed(shape: Any, dtype: Any, spec: Any, mesh: Any = mesh) -> Any:
            where = NamedSharding(mesh, PartitionSpec(*spec))
            return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

        params = {"kernel": placed((D, D), "bfloat16", kernel)}
        x = placed((*ROWS, D), "bfloat16", rows)
        with jax.set_mesh(mesh):
            init = functools.partial(calibration.init, apply)
            leaves, treedef = jax.tree.flatten(jax.eval_shape(init, params, x))
            (sums,) = leaves
            stats = treedef.unflatten([placed(sums.shape, sums.dtype, matrix)])
            step = functools.partial(calibration.update, apply)
            yield {"name": name, **_chips.compiled(step, stats, params, x)._asdict()}


def compiled(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The same by name, found by processes of their own."""
    found = {}
    for alone in (True, False):
        own = [name for name in names if name.endswith("one") is alone]
        done = subprocess.run(
            [sys.executable, "-m", "tests.tpu.calibrating", json.dumps(own)],
            cwd=ROOT,
            # With as many devices here as there: one is not sharded over.
            env={**_chips.environment(), **({} if alone else _SEVERAL)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [line for line in done.stdout.splitlines() if line[:1] == "{"]
        found |= {each.pop("name"): each for each in map(json.loads, lines)}
    return found


if __name__ == "__main__":
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for found in programs(json.loads(sys.argv[1])):
            print(json.dumps(found), flush=True)
    os._exit(0)  # libtpu takes seconds to close, and has nothing to say
