"""Runs calls of the registry in every way in which arrays lie on eight devices.

`run` starts a process that pretends to have eight devices. By hand, for one call:

    python -c 'from tests.everywhere import run; print(run([["bank.put", "vmap"]]))'
"""

import functools
import json
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from tests import processes
from tests.calls import CALLS, Call

DEVICES = 8
WAYS = ("auto", "explicit", "shard_map", "vmap", "eager")
_SIZES = {"x": 4, "y": 2}
_MEMBERS = PartitionSpec(("x", "y"))
_MOVES = {
    "all-gather": "gather",
    "all-to-all": "exchange",
    "collective-permute": "exchange",
}


def run(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The complaint of each pair of a call and a way, "" where all is well."""
    return processes.run("-m", "tests.everywhere", json.dumps(pairs))


def complaint(call: Call, way: str) -> str:
    """What is wrong with a call in one way, or "" if nothing is."""
    try:
        return _RUNS[way](call)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = [f for f in where if "/maskjax/" in f.filename]
        line = "".join(f" ({f.filename}:{f.lineno})" for f in ours[-1:])
        return f"{type(error).__name__}: {error}{line}"


def types(call: Call, way: str) -> str:
    """The same as far as types tell, without devices.

    Shardings on an Explicit mesh, and what varies in a `shard_map`, are parts of types,
    so most of what is wrong shows while tracing.
    """
    try:
        return _TYPES[way](call)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh(tuple(_SIZES.values()), tuple(_SIZES), (kind,) * len(_SIZES))


def _abstract(kind: AxisType) -> AbstractMesh:
    return AbstractMesh(tuple(_SIZES.values()), tuple(_SIZES), (kind,) * len(_SIZES))


def _shaped(call: Call, mesh: AbstractMesh, specs: Any, *lead: int) -> tuple[Any, ...]:
    """The arguments, with shapes and shardings only."""

    def one(x: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        shape, sharding = (*lead, *x.shape), NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

    return jax.tree.map(one, call.arguments(), specs)


def _explicit_types(call: Call) -> str:
    mesh = _abstract(AxisType.Explicit)
    shaped = _shaped(call, mesh, call.shardings(_SIZES))
    with jax.sharding.use_abstract_mesh(mesh):
        out = jax.eval_shape(call.run, *shaped)
    return _strays(call, shaped, out)


def _shard_map_types(call: Call) -> str:
    if call.members:
        mesh = _abstract(AxisType.Auto)
        specs = jax.tree.map(lambda _: _MEMBERS, call.arguments())
        shaped = _shaped(call, mesh, specs, DEVICES)
        jax.eval_shape(_by_shard(call.run, mesh), *shaped)
    return ""


def _one_varies_types(call: Call) -> str:
    """One argument differs between devices, and all others are the same on them."""
    mesh, arguments = _abstract(AxisType.Auto), call.arguments()
    if not call.members or len(arguments) < 2:
        return ""
    lines = []
    for i in range(len(arguments)):
        specs = [PartitionSpec()] * len(arguments)
        specs[i] = PartitionSpec(tuple(_SIZES))
        stacked = list(arguments)
        stacked[i] = jax.tree.map(lambda x: np.stack([x] * DEVICES), arguments[i])

        def one(*given: Any, i: int = i) -> Any:
            own = jax.tree.map(lambda x: x[0], given[i])
            out = call.run(*given[:i], own, *given[i + 1 :])
            return jax.tree.map(lambda x: jax.numpy.asarray(x)[None], out)

        mapped = jax.shard_map(
            one, mesh=mesh, in_specs=tuple(specs), out_specs=_MEMBERS
        )
        try:
            jax.eval_shape(mapped, *stacked)
        except Exception as error:
            lines.append(f"argument {i}: {error}")
    return "\n".join(lines)


def _spread(call: Call, kind: AxisType) -> tuple[Any, ...]:
    """The arguments, each leaf sharded as the registry says."""
    mesh = _mesh(kind)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        call.shardings(_SIZES),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
    return jax.device_put(call.arguments(), shardings)


def _sharded(call: Call, *, kind: AxisType) -> str:
    spread = _spread(call, kind)
    with jax.set_mesh(_mesh(kind)):
        program = jax.jit(call.run).lower(*spread).compile()
    problems = _collectives(program.as_text(), call.moves)
    out = program(*spread)
    problems = problems or _strays(call, spread, out)
    return problems or _differences(out, _alone(call, [0])[0])


def _mapped(call: Call, *, transform: Callable[..., Any]) -> str:
    """Each device runs a call of its own, of other arguments."""
    if not call.members:
        return ""
    mesh, seeds = _mesh(AxisType.Auto), range(DEVICES)
    stacked = jax.tree.map(lambda *x: np.stack(x), *map(call.arguments, seeds))
    spread = jax.device_put(stacked, NamedSharding(mesh, _MEMBERS))
    program = jax.jit(transform(call.run, mesh)).lower(*spread).compile()
    problems = _collectives(program.as_text(), frozenset())
    each = jax.tree.map(lambda *x: np.stack(x), *_alone(call, seeds))
    return problems or _differences(program(*spread), each)


def _by_shard(run: Callable[..., Any], mesh: Any) -> Callable[..., Any]:
    def one(*stacked: Any) -> Any:
        out = run(*jax.tree.map(lambda x: x[0], stacked))
        return jax.tree.map(lambda x: jax.numpy.asarray(x)[None], out)

    return jax.shard_map(one, mesh=mesh, in_specs=_MEMBERS, out_specs=_MEMBERS)


def _by_vmap(run: Callable[..., Any], mesh: Any) -> Callable[..., Any]:
    del mesh
    return jax.vmap(run)


def _eager(call: Call) -> str:
    """Without `jit`: where the results are."""
    if not call.follows:
        return ""
    for kind in (AxisType.Auto, AxisType.Explicit):
        spread = _spread(call, kind)
        out = call.run(*spread)
        problem = _strays(call, spread, out)
        problem = problem or _differences(out, _alone(call, [0])[0])
        if problem:
            return f"{kind}: {problem}"
    return ""


def _strays(call: Call, arguments: Any, out: Any) -> str:
    """Results that are not sharded as arguments of the same shape are."""
    if not call.follows:
        return ""
    shardings = {x.shape: x.sharding for x in jax.tree.leaves(arguments)}
    lines = [
        f"{jax.tree_util.keystr(path)}: {x.sharding}"
        for path, x in jax.tree_util.tree_leaves_with_path(out)
        if x.shape in shardings
        and not x.sharding.is_equivalent_to(shardings[x.shape], x.ndim)
    ]
    return f"not sharded as its parameters: {'; '.join(lines)}" if lines else ""


_TYPES: dict[str, Callable[[Call], str]] = {
    "explicit": _explicit_types,
    "shard_map": _shard_map_types,
    "one varies": _one_varies_types,
}
_RUNS: dict[str, Callable[[Call], str]] = {
    "auto": functools.partial(_sharded, kind=AxisType.Auto),
    "explicit": functools.partial(_sharded, kind=AxisType.Explicit),
    "shard_map": functools.partial(_mapped, transform=_by_shard),
    "vmap": functools.partial(_mapped, transform=_by_vmap),
    "eager": _eager,
}


@functools.cache
def _on_one_device(call: str) -> Callable[..., Any]:
    return jax.jit(BY_NAME[call].run)


def _alone(call: Call, seeds: Sequence[int]) -> list[Any]:
    """The results on one device, as NumPy arrays."""
    run = _on_one_device(call.name)
    return [jax.tree.map(_numpy, run(*call.arguments(seed))) for seed in seeds]


def _numpy(x: Any) -> np.ndarray:
    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x)


def _collectives(text: str, allowed: frozenset[str]) -> str:
    """The collectives of a compiled program that move what they should not."""
    found = []
    pattern = r"= (.*?) (all-\w+|all-to-all|collective-\w+|reduce-scatter)(?:-start)?\("
    for line in text.splitlines():
        match = re.search(pattern, line)
        if match and _MOVES.get(match[2]) not in {*allowed, None}:
            found.append(f"{match[2]} of {match[1]}")
    return f"it communicates: {'; '.join(found)}" if found else ""


def _differences(out: Any, expected: Any) -> str:
    """Where results differ: in a bit, or in floats by more than reordered sums do."""
    out = jax.tree.map(_numpy, out)
    if jax.tree.structure(out) != jax.tree.structure(expected):
        return f"another structure: {jax.tree.structure(out)}"
    lines = []
    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(out), strict=True)
    for i, (a, b) in enumerate(pairs):
        if a.shape != b.shape or a.dtype != b.dtype:
            lines.append(f"leaf {i}: {b.dtype}{b.shape}, not {a.dtype}{a.shape}")
        elif not _close(a, b):
            lines.append(f"leaf {i}: {np.sum(a != b)} of {a.size} differ")
    return f"another result: {'; '.join(lines)}" if lines else ""


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if not np.issubdtype(a.dtype, np.floating):
        return np.array_equal(a, b)
    finite = np.abs(a[np.isfinite(a)])
    scale = max(1.0, float(finite.max(initial=0.0)))
    return np.allclose(a, b, rtol=0, atol=1e-6 * scale, equal_nan=True)


BY_NAME = {call.name: call for call in CALLS}


def _main(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return {f"{n} {way}": complaint(BY_NAME[n], way) for n, way in pairs}


if __name__ == "__main__":
    print(json.dumps(_main(json.loads(sys.argv[1]))))
