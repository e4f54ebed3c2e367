"""Sums over the masks of a packed stack, which is never unpacked as a whole.

Masks are read a chunk at a time. Where a stack is sharded by its masks, every device
reads its own: the type of an array on an Explicit mesh says so, and the loop is then in
a `shard_map`. On an Auto mesh types say nothing. So there the masks are cut into as
many groups as there are devices, and one loop goes through all groups side by side:
whichever way the compiler shards the stack, a group lies on one device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from maskjax._core import dtypes, placement
from maskjax._core.packed import WORD, PackedMask
from maskjax._core.trees import Array
from maskjax.packing._bits import from_planes, planes_first

# Members handled together: enough to amortize the loop, few enough that their sums
# stay in cache. Between 16 and 64 the choice makes no measurable difference on CPU;
# below 16 XLA compiles `mix` to code that is eight times slower.
_CHUNK = 16


class _Chosen(NamedTuple):
    """Which masks are read, as much of it as is given."""

    alive: Array | None  # [K], boolean
    used: Array | None  # the first so many


@jax.jit
def mix_leaf(
    leaf: PackedMask,
    coefficients: Array,
    *,
    alive: Array | None = None,
    used: Array | None = None,
) -> Array:
    """One leaf of `stacking.mix`; it is not checked.

    Args:
        leaf: A packed stack of K masks.
        coefficients: [K]; 0 for masks that are not read.
        alive: [K], which masks to read, or `None` for all.
        used: Read only the first so many. The time taken is for what is read.
    """
    dtype = coefficients.dtype
    coefficients = coefficients.astype(dtypes.at_least_float32(dtype))

    def mixed(bits: Array, _: None, coefficients: Array, chosen: _Chosen) -> Array:
        groups = placement.groups(bits)
        if bits.shape[0] < WORD * groups:
            groups = 1  # to gather the bits moves less than to add up the groups' sums
        return _by_group(_mix, bits, None, coefficients, chosen, groups).sum(0)

    operands = leaf.bits, None, coefficients, _Chosen(alive, used)
    total = _on_shards(mixed, *operands, over_members=True)
    return from_planes(total, leaf.shape).astype(dtype)


@jax.jit
def dot_leaf(
    leaf: PackedMask,
    values: Array,
    *,
    alive: Array | None = None,
    used: Array | None = None,
) -> Array:
    """One leaf of `dot`, not checked; `alive` and `used` are those of `mix_leaf`."""
    values = jnp.asarray(values)
    shared = tuple(
        axis
        for axis, (a, b) in enumerate(zip(leaf.shape, values.shape, strict=True))
        if a != b
    )
    values = values.astype(dtypes.at_least_float32(values.dtype))
    planes = planes_first(jnp.sum(values, axis=shared, keepdims=True))
    # Where masks are whole and the values are not, each device reads words of its own.
    spec = None, *placement.spec_of(planes)[1:]
    bits = placement.cut_as(leaf.bits, spec, like=planes)

    def dots(bits: Array, planes: Array, _: None, chosen: _Chosen) -> Array:
        return _by_group(
            _dot, bits, planes, None, chosen, placement.groups(bits)
        ).ravel()

    operands = bits, planes, None, _Chosen(alive, used)
    return _on_shards(dots, *operands, over_members=False)


@jax.jit
def tally_leaf(leaf: PackedMask, used: Array) -> Array:
    """How many of the first `used` masks of a packed stack keep each entry, int32."""
    # float32 holds whole numbers exactly up to 2**24 masks.
    one_each = (jnp.arange(leaf.bits.shape[0], dtype=jnp.int32) < used).astype(
        jnp.float32
    )
    return mix_leaf(leaf, one_each, used=used).astype(jnp.int32)


# On many devices.


def _on_shards(
    function: Callable[..., Array],
    bits: Array,
    planes: Array | None,
    coefficients: Array | None,
    chosen: _Chosen,
    *,
    over_members: bool,
) -> Array:
    """A function of a stack, run on each device's part of it if types tell the parts.

    Args:
        function: `(bits, planes, coefficients, chosen) -> sums`.
        bits: [K, *words].
        planes: [32, *words], or `None`.
        coefficients: [K], or `None`.
        chosen: Which masks are read.
        over_members: Whether the function sums over the masks, and returns planes.
            Otherwise it sums over entries, and returns a number for each mask.
    """
    if not placement.explicit(bits):
        return function(bits, planes, coefficients, chosen)
    members, *words = placement.spec_of(bits)
    of_mask, of_planes = PartitionSpec(members), PartitionSpec(None, *words)
    names, over_words = placement.names_of([members]), placement.names_of(words)
    if not names and not over_words:
        return function(bits, planes, coefficients, chosen)

    def local(bits: Array, planes: Any, coefficients: Any, chosen: _Chosen) -> Array:
        if chosen.used is not None and names:
            before = lax.axis_index(names) * bits.shape[0]
            chosen = chosen._replace(used=chosen.used - before)
        sums = function(bits, planes, coefficients, chosen)
        over = names if over_members else over_words
        return lax.psum(sums, over) if over else sums

    def placed(x: Array | None, spec: PartitionSpec) -> Array | None:
        return None if x is None else placement.place(x, tuple(spec), like=bits)

    mesh = placement.sharding(bits).mesh
    specs = PartitionSpec(members, *words), of_planes, of_mask
    return jax.shard_map(
        local,
        mesh=mesh,
        axis_names={*names, *over_words},
        in_specs=(*specs, _Chosen(of_mask, PartitionSpec())),  # type: ignore[arg-type]
        out_specs=of_planes if over_members else of_mask,
    )(
        bits,
        placed(planes, of_planes),
        placed(coefficients, of_mask),
        _Chosen(placed(chosen.alive, of_mask), placed(chosen.used, PartitionSpec())),
    )


def _by_group(
    function: Callable[..., Array],
    bits: Array,
    planes: Array | None,
    coefficients: Array | None,
    chosen: _Chosen,
    groups: int,
) -> Array:
    """`function` of each group of masks, all of them in one loop: [groups, ...]."""
    members = bits.shape[0] // groups
    size = min(_CHUNK, members)

    def cut(x: Array) -> Array:
        return x.reshape(groups, members, *x.shape[1:])

    rows, most = None, members
    if chosen.used is not None:
        most = jnp.clip(chosen.used, 0, members)  # the first group has the most
    if chosen.alive is not None:
        alive = chosen.alive.reshape(groups, members)
        rows = jnp.argsort(~alive, axis=1, stable=True).astype(jnp.int32)
        most = jnp.max(jnp.sum(alive, axis=1, dtype=jnp.int32))
    rounds = -(-most // size)

    def of_group(bits: Array, coefficients: Any, rows: Any) -> Array:
        return function(bits, planes, coefficients, rows, rounds, size)

    if groups == 1:  # compiles faster
        return of_group(bits, coefficients, None if rows is None else rows[0])[None]
    return jax.vmap(of_group)(cut(bits), jax.tree.map(cut, coefficients), rows)


# In one group.


def _mix(
    bits: Array,
    planes: None,
    coefficients: Array,
    rows: Array | None,
    rounds: int | Array,
    size: int,
) -> Array:
    """The weighted sum of a group's masks, as planes [32, *words]."""
    rest = (1,) * (bits.ndim - 1)
    shifts = jnp.arange(WORD, dtype=jnp.uint32).reshape(WORD, *rest)

    def add(i: Array, total: Array) -> Array:
        start, at = _chunk(bits.shape[0], i, size)
        share = _read(coefficients, at, rows, size)
        words = _read(bits, at, rows, size)
        # What the last chunk repeats counts 0.
        again = start < i * size
        share = jnp.where(again, jnp.zeros((), share.dtype), share)
        for member in range(size):
            on = (words[member][None] >> shifts) & 1 != 0
            total += jnp.where(on, share[member], jnp.zeros((), total.dtype))
        return total

    total = jnp.zeros((WORD, *bits.shape[1:]), coefficients.dtype)
    total = placement.vary_like(total, bits, coefficients, rows, rounds)
    return lax.fori_loop(0, rounds, add, total)


def _dot(
    bits: Array,
    planes: Array,
    coefficients: None,
    rows: Array | None,
    rounds: int | Array,
    size: int,
) -> Array:
    """The inner products of a group's masks with [32, *words]."""
    ones = jnp.ones(planes.shape[1:], planes.dtype)
    axes = tuple(range(1, bits.ndim)), tuple(range(bits.ndim - 1))

    def of_members(i: Array, sums: Array) -> Array:
        """Selects plane by plane into lanes, which are summed once at the end."""
        _, at = _chunk(bits.shape[0], i, size)
        words = _read(bits, at, rows, size)
        lanes = jnp.zeros(words.shape, planes.dtype)
        for j in range(WORD):
            lanes += jnp.where((words >> j) & 1 != 0, planes[j][None], 0)
        # A product with ones, as XLA on CPU sums the minor axis one scalar at a time.
        of_chunk = lax.dot_general(
            lanes, ones, (axes, ((), ())), precision=lax.Precision.HIGHEST
        )
        if rows is None:
            return lax.dynamic_update_slice_in_dim(sums, of_chunk, at, 0)
        return sums.at[lax.dynamic_slice_in_dim(rows, at, size)].set(of_chunk)

    sums = jnp.zeros(bits.shape[0], planes.dtype)
    sums = placement.vary_like(sums, bits, planes, rows, rounds)
    return lax.fori_loop(0, rounds, of_members, sums)


def _chunk(members: int, i: Array, size: int) -> tuple[Array, Array]:
    """The places of the i-th chunk's masks, and the first of them.

    The last chunk starts early so that it is whole.
    """
    first = jnp.minimum(i * size, members - size)
    return first + jnp.arange(size, dtype=first.dtype), first


def _read(x: Array, first: Array, rows: Array | None, size: int) -> Array:
    """Entries of [K, ...] at a chunk's places, [size, ...]."""
    if rows is None:
        return lax.dynamic_slice_in_dim(x, first, size)
    return x[lax.dynamic_slice_in_dim(rows, first, size)]
