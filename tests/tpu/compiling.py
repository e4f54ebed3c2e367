"""Compiles calls of the registry for chips that are not there.

    python -m tests.tpu.compiling auto v5e:2x2 '["select.top_k", "bank.put"]'

It is a process of its own (`benchmarks._chips`), and prints a JSON object a line: a
call's name, and what the compiler says of it or why it refused.
"""

import json
import os
import pathlib
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from benchmarks import _chips
from tests.calls import CALLS, Call

ROOT = pathlib.Path(__file__).parents[2]


def programs(
    kind: str, topology: str, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """What comes of each call, for one chip or a mesh of all."""
    mesh = _chips.mesh(kind, topology, names="xy")
    by_name = {call.name: call for call in CALLS}
    for name in names:
        yield {"name": name, **_outcome(by_name[name], mesh)}


def _outcome(call: Call, mesh: Mesh) -> dict[str, Any]:
    def place(x: Any, spec: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            np.shape(x), x.dtype, sharding=NamedSharding(mesh, spec)
        )

    args = call.arguments()
    placed = jax.tree.map(place, args, call.shardings(dict(mesh.shape)))
    try:
        with jax.set_mesh(mesh):
            return _chips.compiled(call.run, *placed)._asdict()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/maskjax/" in f.filename]
        line = f" ({ours[-1].filename.split('/maskjax/')[-1]}:{ours[-1].lineno})"
        told = f"{type(error).__name__}: {error}"[:600]
        return {"error": f"{told}{line if ours else ''}"}


def compiled(
    kind: str, topology: str, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What comes of each call, by its name, found by a process of its own."""
    given = [kind, topology, json.dumps(list(names))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.tpu.compiling", *given],
        cwd=ROOT,
        env=_chips.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    ended = {"error": f"the compiler ended the process: {done.stderr[-2000:]}"}
    return dict.fromkeys(names, ended) | {each.pop("name"): each for each in found}


if __name__ == "__main__":
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for found in programs(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])):
            print(json.dumps(found), flush=True)
    os._exit(0)  # libtpu takes seconds to close, and has nothing to say
