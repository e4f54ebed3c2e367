"""Reductions of whole arrays to scalars, several in one pass over memory."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskjax._core.trees import Array

Kind = Literal["sum", "min", "max"]

# Longer arrays are cut into rows, which run in parallel and vectorize.
_LONG = 2**13
_ROW_LENGTHS = range(256, 4097)


def fold(operands: Sequence[Array], kinds: Sequence[Kind]) -> tuple[Array, ...]:
    """Reduce two or more integer arrays of one shape to scalars, in one pass.

    On one device this is one reduction of several operands. On CPU, XLA turns a long
    reduction of a single operand into windows and first writes that operand to memory,
    which is ten times slower if it is a comparison; several operands it leaves alone.
    Across devices XLA would gather several operands, so each device reduces its own
    shard here, and the scalars are all-reduced.
    """
    if len(operands) < 2:
        raise AssertionError("a fold of one operand takes the slow path")
    sharding = jax.typeof(operands[0]).sharding
    types = sharding.mesh.axis_types
    if sharding.mesh.empty or AxisType.Auto in types:  # the compiler decides
        return _partitioned(tuple(kinds), operands[0].ndim)(*operands)
    if AxisType.Explicit not in types:  # inside a shard_map: the shard is the array
        return _fold_local(operands, tuple(kinds))
    by_shard = jax.shard_map(
        lambda *shards: _fold_shard(shards, tuple(kinds), sharding.spec),
        mesh=sharding.mesh,
        in_specs=(sharding.spec,) * len(operands),
        out_specs=(PartitionSpec(),) * len(operands),
    )
    return by_shard(*operands)


def tally(flags: Sequence[Array], dtype: jnp.dtype) -> list[Array]:
    """The number of True entries, for each of several flags of one shape."""
    kinds: list[Kind] = ["sum"] * len(flags)
    return list(fold([flag.astype(dtype) for flag in flags], kinds))


@functools.cache
def _partitioned(kinds: tuple[Kind, ...], rank: int) -> Callable[..., Any]:
    def local(*operands: Array) -> tuple[Array, ...]:
        return _fold_local(operands, kinds)

    def on_mesh(mesh: Any, operands: Any, results: Any) -> tuple[Any, ...]:
        spec = operands[0].sharding.spec

        def of_shard(*shards: Array) -> tuple[Array, ...]:
            return _fold_shard(shards, kinds, spec)

        everywhere = NamedSharding(mesh, PartitionSpec())
        alike = NamedSharding(mesh, spec)
        return mesh, of_shard, (everywhere,) * len(results), (alike,) * len(operands)

    def replicated(mesh: Any, operands: Any, results: Any) -> tuple[Any, ...]:
        return (NamedSharding(mesh, PartitionSpec()),) * len(results)

    axes = " ".join(f"axis{i}" for i in range(rank))
    inputs, outputs = [axes] * len(kinds), [""] * len(kinds)
    sharded = custom_partitioning(local)
    sharded.def_partition(
        partition=on_mesh,
        infer_sharding_from_operands=replicated,
        sharding_rule=f"{', '.join(inputs)} -> {', '.join(outputs)}",
    )

    @jax.custom_batching.custom_vmap
    def batchable(*operands: Array) -> tuple[Array, ...]:
        return sharded(*operands)

    @batchable.def_vmap
    def _(size: int, batched: list[bool], *operands: Array) -> tuple[Any, Any]:
        full = [
            x if mapped else jnp.broadcast_to(x, (size, *x.shape))
            for x, mapped in zip(operands, batched, strict=True)
        ]
        return jax.vmap(local)(*full), (True,) * len(full)

    return batchable


def _fold_shard(
    shards: Sequence[Array], kinds: tuple[Kind, ...], spec: PartitionSpec
) -> tuple[Array, ...]:
    """The reduction of arrays sharded by `spec`, on a device that has one shard."""
    parts = [p if isinstance(p, tuple) else (p,) for p in spec if p is not None]
    names = tuple(name for part in parts for name in part)
    scalars = _fold_local(shards, kinds)
    if not names:
        return scalars
    collective = {"sum": lax.psum, "min": lax.pmin, "max": lax.pmax}
    return tuple(
        collective[kind](x, names) for kind, x in zip(kinds, scalars, strict=True)
    )


def _fold_local(
    operands: Sequence[Array], kinds: tuple[Kind, ...]
) -> tuple[Array, ...]:
    """The reduction on one device: along rows first, then over the rows' totals."""
    operands = tuple(_rows(x) for x in operands)
    rank = operands[0].ndim
    seeds = tuple(_identity(kind, x) for kind, x in zip(kinds, operands, strict=True))
    merge = {"sum": jnp.add, "min": jnp.minimum, "max": jnp.maximum}

    def combine(a: tuple, b: tuple) -> tuple:
        return tuple(merge[kind](x, y) for kind, x, y in zip(kinds, a, b, strict=True))

    for axes in ((rank - 1,), tuple(range(rank - 1))):
        operands = lax.reduce(operands, seeds, combine, axes)
    return tuple(operands)


def _identity(kind: Kind, x: Array) -> Array:
    limits = jnp.iinfo(x.dtype)
    value = {"sum": 0, "min": limits.max, "max": limits.min}[kind]
    return jnp.array(value, x.dtype)


def _rows(x: Array) -> Array:
    """The same entries as a vector if they are few, else as long rows."""
    if x.size < _LONG:
        return x.reshape(-1)
    # Whole vectors of lanes where possible, and the longest such rows.
    length = max(_ROW_LENGTHS, key=lambda d: (x.size % d == 0, math.gcd(d, 64), d))
    return x.reshape(-1, length if x.size % length == 0 else x.size)
