"""Reductions of whole arrays to numbers, several in one pass over memory."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from maskjax._core import dtypes, placement
from maskjax._core.trees import Array

Kind = Literal["sum", "min", "max"]

_MERGE = {"sum": lax.add, "min": lax.min, "max": lax.max}

# Longer arrays are cut into lines, which run in parallel and vectorize.
_LONG = 2**13
_LINE_LENGTHS = range(256, 4097)


def fold(
    arrays: Sequence[Any],
    made: Callable[..., Sequence[Array]],
    kinds: Sequence[Kind],
    lead: int = 1,
    *,
    dtype: Any = "int32",
) -> tuple[Array, ...]:
    """Reduce what is made of each entry of arrays to numbers [R...], in one pass.

    XLA fuses plain reductions on GPU and TPU, and adds up over devices what each of
    them reduced. On CPU it turns a long reduction of a single operand into windows and
    first writes that operand to memory, which is ten times slower if it is a
    comparison; a reduction of several operands it leaves alone, but gathers their
    shards. So on CPU several operands are reduced together, unless the compiler alone
    knows how they are sharded.

    Args:
        arrays: Of one shape, [R..., ...], or `None`; the first is an array.
        made: From these arrays to integers, or flags whose sums count them, one for
            each kind. The axes after [R...] and those of `dtypes.blocks` may come in
            other lengths and numbers, but with the entries in the same order: a place
            among rows of any length would cost divisions.
        kinds: How to reduce each.
        lead: How many of the first axes, [R...], stay. The others are reduced.
        dtype: Of the sums. 64-bit numbers of each entry would take memory on TPU, so
            the entries of each block are added up in 32 bits, and the blocks in this.
            Where there is one block its sum is returned in 32 bits.
    """
    kinds = tuple(kinds)
    end = lead + dtypes.blocks(arrays[0].shape, lead)

    def numbers(*arrays: Array | None) -> list[Array]:
        found = made(*arrays)
        return [
            placement.vary_like(x.astype(jnp.int32) if kind == "sum" else x, found)
            for x, kind in zip(found, kinds, strict=True)
        ]

    found = lax.platform_dependent(
        *arrays,
        cpu=lambda *x: _fold_on_cpu(x, numbers, kinds, end),
        default=lambda *x: _fold_plainly(numbers(*x), kinds, end),
    )
    axes = tuple(range(lead, end))
    if not axes:
        return found
    return tuple(
        jnp.sum(x.astype(dtype), axis=axes, dtype=dtype)
        if kind == "sum"
        else {"min": jnp.min, "max": jnp.max}[kind](x, axis=axes)
        for x, kind in zip(found, kinds, strict=True)
    )


def _fold_plainly(
    operands: Sequence[Array], kinds: tuple[Kind, ...], lead: int
) -> tuple[Array, ...]:
    rest = tuple(range(lead, operands[0].ndim))
    # Not `jnp.sum`: with 64-bit integers it would add up every entry in these.
    return tuple(
        lax.reduce(x, _identity(kind, x), _MERGE[kind], rest)
        for kind, x in zip(kinds, operands, strict=True)
    )


def _fold_on_cpu(
    arrays: Sequence[Any],
    made: Callable[..., Sequence[Array]],
    kinds: tuple[Kind, ...],
    lead: int,
) -> tuple[Array, ...]:
    if len(kinds) == 1:
        twice = kinds * 2
        return _fold_on_cpu(arrays, lambda *x: [*made(*x)] * 2, twice, lead)[:1]
    sharding = jax.typeof(arrays[0]).sharding
    types = sharding.mesh.axis_types
    alone = sharding.mesh.empty and jax.device_count() == 1
    # Inside a shard_map the shard is the array.
    manual = bool(types) and set(types) == {AxisType.Manual}
    if alone or manual:
        return _fold_local(
            made(*jax.tree.map(lambda x: _lines(x, lead), arrays)), kinds, lead
        )
    operands = made(*arrays)
    if 0 in operands[0].shape:  # a shard_map of nothing does not compile
        return _fold_plainly(operands, kinds, lead)
    if sharding.mesh.empty or AxisType.Auto in types:  # the compiler decides
        devices = jax.device_count() if sharding.mesh.empty else sharding.mesh.size
        return _fold_in_groups(operands, kinds, lead, devices)
    by_shard = jax.shard_map(
        lambda *shards: _fold_shard(shards, kinds, sharding.spec, lead),
        mesh=sharding.mesh,
        in_specs=(sharding.spec,) * len(operands),
        out_specs=(PartitionSpec(*sharding.spec[:lead]),) * len(operands),
    )
    return by_shard(*operands)


def _fold_shard(
    shards: Sequence[Array], kinds: tuple[Kind, ...], spec: PartitionSpec, lead: int
) -> tuple[Array, ...]:
    """The reduction of arrays sharded by `spec`, on a device that has one shard."""
    parts = [p if isinstance(p, tuple) else (p,) for p in spec[lead:] if p is not None]
    names = tuple(name for part in parts for name in part)
    numbers = _fold_local(shards, kinds, lead)
    if not names:
        return numbers
    collective = {"sum": lax.psum, "min": lax.pmin, "max": lax.pmax}
    return tuple(
        collective[kind](x, names) for kind, x in zip(kinds, numbers, strict=True)
    )


def _fold_local(
    operands: Sequence[Array], kinds: tuple[Kind, ...], lead: int
) -> tuple[Array, ...]:
    """The reduction on one device: along lines first, then over the lines' totals."""
    operands = tuple(_lines(x, lead) for x in operands)
    while operands[0].ndim > lead:
        operands = _reduced(operands, kinds, operands[0].ndim - 1)
    return operands


def _fold_in_groups(
    operands: Sequence[Array], kinds: tuple[Kind, ...], lead: int, devices: int
) -> tuple[Array, ...]:
    """Groups of entries first that are on one device, together; then what they give.

    The compiler gathers no axis that is whole on each device, so that it takes several
    operands there. Plain reductions write theirs to memory, each as large as the
    scores, and take ten times as long.
    """
    axis, size = _group(operands[0].shape, lead, devices)
    if size > 1:
        operands = tuple(placement.cut(x, axis, size) for x in operands)
        operands = _reduced(operands, kinds, axis + 1)
    return _fold_plainly(operands, kinds, lead)


def _group(shape: tuple[int, ...], lead: int, devices: int) -> tuple[int, int]:
    """An axis, and how many neighbors along it are on one device, however it is cut."""
    sizes = [
        (_length(n // math.gcd(n, devices)), axis)
        for axis, n in enumerate(shape)
        if axis >= lead and n
    ]
    if not sizes:
        return lead, 1
    size, axis = max((size if size <= _LONG else 1, axis) for size, axis in sizes)
    last, end = sizes[-1]
    return (end, last) if 16 <= last <= _LONG else (axis, size)


def _reduced(
    operands: Sequence[Array], kinds: tuple[Kind, ...], axis: int
) -> tuple[Array, ...]:
    """Along one axis, in one pass."""
    seeds = tuple(_identity(kind, x) for kind, x in zip(kinds, operands, strict=True))

    def combine(a: tuple, b: tuple) -> tuple:
        return tuple(_MERGE[kind](x, y) for kind, x, y in zip(kinds, a, b, strict=True))

    return tuple(lax.reduce(tuple(operands), seeds, combine, (axis,)))


def _identity(kind: Kind, x: Array) -> Array:
    limits = jnp.iinfo(x.dtype)
    value = {"sum": 0, "min": limits.max, "max": limits.min}[kind]
    return jnp.array(value, x.dtype)


def _lines(x: Array, lead: int) -> Array:
    """The same rows as vectors if they are short, else cut into long lines."""
    rows, size = x.shape[:lead], math.prod(x.shape[lead:])
    if size < _LONG:
        return x.reshape(*rows, size)
    length = _length(size)
    return x.reshape(*rows, size // length, length)


@functools.cache
def _length(size: int) -> int:
    """Whole vectors of lanes where possible, and the longest such lines."""
    length = max(_LINE_LENGTHS, key=lambda d: (size % d == 0, math.gcd(d, 64), d))
    return length if size % length == 0 else size
