"""Programs compiled for TPUs that are not there.

The package `libtpu` compiles for a description of chips, on any x86 machine with Linux.
Nothing runs. Settings are read when JAX starts, so this needs a process of its own,
started with `environment()`.
"""

import importlib.util
import os
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

V5E = "v5e:2x2"
KINDS = ("one", "auto", "explicit")  # one chip, or the axes of a mesh of all

_COLLECTIVE = re.compile(
    r"= (.*?) (all-\w+|collective-\w+|reduce-scatter|ragged-all-to-all)(?:-start)?\("
)


class Program(NamedTuple):
    """What the compiler says of a program, for one chip.

    Attributes:
        compile_cpu_s: Seconds of all cores for tracing, lowering and compiling.
        flops: Arithmetic, the body of a loop counted once.
        nbytes: Bytes read and written, the body of a loop counted once.
        code: Bytes of machine code.
        arguments: Bytes of the arguments.
        outputs: Bytes of the results.
        temporary: Bytes that are neither.
        collectives: For each collective operation its kind, and how many numbers each
            of its results has.
        calls: The targets of custom calls in what was lowered.
    """

    compile_cpu_s: float
    flops: float
    nbytes: float
    code: int
    arguments: int
    outputs: int
    temporary: int
    collectives: list[tuple[str, list[int]]]
    calls: list[str]


def installed() -> bool:
    """Whether there is a compiler for TPUs."""
    return importlib.util.find_spec("libtpu") is not None


def environment() -> dict[str, str]:
    """The environment of a process that compiles for TPUs."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # such programs can't be read back
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def mesh(kind: str, topology: str = V5E, *, names: str = "x") -> Mesh:
    """All chips of a topology, or only the first of them.

    Args:
        kind: One of `KINDS`.
        topology: The chips.
        names: The axes, one letter each. They are as even as they can be.
    """
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    chips = np.array(described.devices[: 1 if kind == "one" else None])
    even = round(chips.size ** (1 / len(names)))
    shape = (-1,) + (even,) * (len(names) - 1)
    axes = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    return Mesh(chips.reshape(shape), tuple(names), axis_types=(axes,) * len(names))


def spread(tree: Any, over: Mesh) -> Any:
    """Shapes with shardings: leaves of rank 2 and more by their first axis, if it fits.

    Args:
        tree: Tree of arrays, or of `jax.ShapeDtypeStruct`.
        over: A mesh from `mesh`.
    """

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        fits = len(leaf.shape) > 1 and leaf.shape[0] % over.size == 0
        spec = PartitionSpec("x") if fits and over.size > 1 else PartitionSpec()
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(over, spec)
        )

    return jax.tree.map(place, tree)


def compiled(
    fn: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> Program:
    """Compile a function for the chips that its arguments are said to be on.

    Args:
        fn: Is called with the arguments.
        args: Trees of shapes with shardings, from `spread`.
        donate: Which of them may be overwritten.
    """
    start = time.process_time()
    # A function of its own, for one compiled before would be found in the cache.
    jitted = jax.jit(lambda *args: fn(*args), donate_argnums=donate)
    lowered = jitted.lower(*args)
    program: Any = lowered.compile()
    seconds = time.process_time() - start
    cost, memory = program.cost_analysis(), program.memory_analysis()
    return Program(
        seconds,
        cost.get("flops", 0.0),
        cost.get("bytes accessed", 0.0),
        memory.generated_code_size_in_bytes,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
        collectives(program.as_text()),
        sorted(set(re.findall(r"custom_call @([\w.]+)", lowered.as_text()))),
    )


def collectives(text: str) -> list[tuple[str, list[int]]]:
    """The collective operations of a compiled program, with their results' sizes."""
    found = []
    for results, kind in _COLLECTIVE.findall(text):
        shapes = re.findall(r"\w+\[([\d,]*)\]", results)
        sizes = [int(np.prod([int(d) for d in s.split(",") if d])) for s in shapes]
        found.append((kind, sizes))
    return found
