"""Compiles SparseGPT of a large kernel, sharded by its outputs over four chips.

    python -m tests.tpu.large auto

It is a process of its own (`benchmarks._chips`), and prints a JSON object.
"""

import json
import os
import subprocess
import sys
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import _chips
from maskjax.calibration import Statistics
from maskjax.recipes import sparsegpt
from maskjax.where import Axes
from tests.tpu.compiling import ROOT

SIZE = 4096


def program(kind: str) -> dict[str, Any]:
    """What the compiler says of it."""
    mesh = _chips.mesh(kind)

    def prune(w: Any, gram: Any) -> Any:
        stats = Statistics(gram, Axes(inputs=(0,), outputs=(1,)), w.shape)
        return sparsegpt.prune({"w": w}, {"w": stats}, density=0.5)

    def shaped(*spec: str | None) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct((SIZE, SIZE), "float32", sharding=where)

    with jax.set_mesh(mesh):
        return _chips.compiled(prune, shaped(None, "x"), shaped())._asdict()


def compiled(kind: str) -> dict[str, Any]:
    """The same, found by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tpu.large", kind],
        cwd=ROOT,
        env=_chips.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line[:1] == "{"]
    if not lines:
        raise RuntimeError(f"the compiler ended the process: {done.stderr[-2000:]}")
    return json.loads(lines[-1])


if __name__ == "__main__":
    print(json.dumps(program(sys.argv[1])), flush=True)
    os._exit(0)  # libtpu takes seconds to close, and has nothing to say
