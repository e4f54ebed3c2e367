"""Masks stored with one bit an entry, and sums over packed masks.

    >>> packed = packing.pack({"w": jnp.array([[True, False], [False, True]])})
    >>> packing.unpack(packed)
    {'w': Array([[ True, False],
           [False,  True]], dtype=bool)}

2,500 masks over 266,200 weights take 83 MB packed, 665 MB as booleans and 2.7 GB as
float32. Pack a stack with `jax.vmap(packing.pack)(stack)`. Sums over many packed masks
(`dot`, `stacking.mix`, `superposition`) read the bits and never unpack a whole stack.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax._core import checks, dtypes, trees
from maskjax._core.packed import WORD, PackedMask
from maskjax._core.trees import Array, Mask

__all__ = ["PackedMask", "dot", "pack", "unpack"]

# Members handled together: enough to amortize the loop, few enough that their sums
# stay in cache. Between 16 and 64 the choice makes no measurable difference on CPU;
# below 16 XLA compiles `mix` to code that is eight times slower.
_CHUNK = 16


def pack(mask: Mask) -> Mask:
    """Store a mask with one bit an entry.

    Args:
        mask: Tree of boolean or packed leaves, or `None`. Packed leaves are returned as
            they are. For a stack use `jax.vmap(packing.pack)`.

    Returns:
        The same mask, every leaf a `PackedMask`: a bit of 1 keeps.

    Raises:
        TypeError: If a leaf is not boolean.

    Example:
        >>> stack = {"w": jnp.ones((3, 40), bool)}
        >>> jax.vmap(packing.pack)(stack)["w"].bits.shape
        (3, 2)
    """
    checks.boolean(mask, fn="maskjax.packing.pack")
    return trees.map_mask(_packed, mask)


def unpack(mask: Mask) -> Mask:
    """Undo `pack`.

    Args:
        mask: Tree of `PackedMask`, boolean leaves or `None`. The leaves of a packed
            stack of K masks become [K, ...]. Boolean leaves are returned as they are.

    Returns:
        The same mask, every leaf boolean: True keeps.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If the bits of a leaf do not fit its shape.

    Example:
        >>> mask = {"w": jnp.array([True, False, True])}
        >>> packing.unpack(packing.pack(mask))
        {'w': Array([ True, False,  True], dtype=bool)}
    """
    fn = "maskjax.packing.unpack"
    checks.boolean(mask, fn=fn)
    checks.packed(mask, fn=fn, stacked=None)
    return trees.map_mask(unpack_leaf, mask)


def dot(stack: Mask, tree: trees.Params) -> Array:
    """The inner product of each mask of a stack with a tree: sum(m_k * tree).

    If `tree` holds weights times their gradients at a mixed mask (`stacking.mix`), the
    result is the gradient of the loss with respect to the mixing coefficients.

    Args:
        stack: A packed stack of K masks.
        tree: Tree of floating leaves with the masks' structure. A mask's axis of length
            1 stands for all entries along it. Leaves without a mask are ignored.

    Returns:
        [K], float32, or float64 if a leaf is. Beside the result it needs memory for the
        words of 16 masks.

    Raises:
        TypeError: If a leaf of the stack is not packed.
        ValueError: If structures or shapes differ, or bits do not fit their shape.

    Example:
        >>> stack = {"w": jnp.array([[True, True], [True, False]])}
        >>> packing.dot(jax.vmap(packing.pack)(stack), {"w": jnp.array([3.0, 4.0])})
        Array([7., 3.], dtype=float32)

    References:
        Wortsman et al., arXiv:2006.14769, section 3.3: the gradient of the "One-Shot"
        algorithm.
    """
    fn = "maskjax.packing.dot"
    checks.packed_stack(stack, fn=fn)
    pairs = checks.shaped_like(tree, stack, fn=fn, names=("tree", "stack"))
    checks.floating_where_masked(pairs, tree, fn=fn, name="tree")
    sums = [dot_leaf(m, values) for values, m in pairs if m is not None]
    wide = any(s.dtype == jnp.float64 for s in sums)
    dtype = jnp.dtype("float64" if wide else "float32")
    return functools.reduce(jnp.add, [s.astype(dtype) for s in sums])


# Compiled, so that a call outside of `jit` is one program and not a hundred.
@jax.jit
def pack_leaf(leaf: Array | PackedMask) -> PackedMask:
    """One leaf with one bit an entry; it is not checked."""
    if isinstance(leaf, PackedMask):
        return leaf
    leaf = jnp.asarray(leaf)
    planes = _planes(leaf, padding=0)
    bits = jnp.zeros(planes.shape[1:], jnp.uint32)
    for j in range(WORD):
        bits |= planes[j].astype(jnp.uint32) << j
    return PackedMask(bits, leaf.shape)


def _packed(leaf: Array | PackedMask) -> PackedMask:
    return leaf if isinstance(leaf, PackedMask) else pack_leaf(leaf)


def unpack_leaf(leaf: Array | PackedMask) -> Array:
    """One leaf with a boolean an entry; it is not checked."""
    return _unpack_leaf(leaf) if isinstance(leaf, PackedMask) else leaf


@jax.jit
def _unpack_leaf(leaf: PackedMask) -> Array:
    lead = leaf.bits.shape[:-1]
    shifts = jnp.arange(WORD, dtype=jnp.uint32).reshape(*(1 for _ in lead), WORD, 1)
    flags = (leaf.bits[..., None, :] >> shifts) & 1 != 0
    flat = flags.reshape(*lead, flags.shape[-2] * flags.shape[-1])
    return flat[..., : leaf.size].reshape(*lead, *leaf.shape)


def _planes(values: Array, *, padding: float) -> Array:
    """An array as 32 bit planes, [32, W], with entry j * W + w at [j, w]."""
    words = PackedMask.words(values.shape)
    flat = jnp.pad(
        values.ravel(), (0, WORD * words - values.size), constant_values=padding
    )
    return flat.reshape(WORD, words)


@jax.jit
def mix_leaf(
    leaf: PackedMask,
    coefficients: Array,
    *,
    rows: Array | None = None,
    used: Array | None = None,
) -> Array:
    """One leaf of `stacking.mix`; it is not checked.

    Args:
        leaf: A packed stack of K masks.
        coefficients: [K], or [M] with `rows`; 0 from `used` on.
        rows: [M], which masks to mix; `None` for all K.
        used: How many of them to read. The time taken is for these only.
    """
    words, dtype = leaf.bits.shape[1], coefficients.dtype
    coefficients = coefficients.astype(dtypes.at_least_float32(dtype))
    members, size, rounds = _rounds(leaf, rows, used)
    shifts = jnp.arange(WORD, dtype=jnp.uint32)[:, None]

    def add(i: Array, total: Array) -> Array:
        start, bits = _chunk(leaf, i, size, rows)
        share = lax.dynamic_slice_in_dim(coefficients, start, size)
        # The last chunk starts early so that it is whole; what it repeats counts 0.
        again = start + jnp.arange(size, dtype=start.dtype) < i * size
        share = jnp.where(again, jnp.zeros((), share.dtype), share)
        for member in range(size):
            on = (bits[member][None, :] >> shifts) & 1 != 0
            total += jnp.where(on, share[member], jnp.zeros((), total.dtype))
        return total

    total = jnp.zeros((WORD, words), coefficients.dtype)
    total = lax.fori_loop(0, rounds, add, total)
    return total.ravel()[: leaf.size].reshape(leaf.shape).astype(dtype)


@jax.jit
def tally_leaf(leaf: PackedMask, used: Array) -> Array:
    """How many of the first `used` masks of a packed stack keep each entry, int32."""
    # float32 holds whole numbers exactly up to 2**24 masks.
    one_each = (jnp.arange(leaf.bits.shape[0], dtype=jnp.int32) < used).astype(
        jnp.float32
    )
    return mix_leaf(leaf, one_each, used=used).astype(jnp.int32)


def _rounds(leaf: PackedMask, rows: Array | None, used: Array | None) -> Any:
    """The number of members, how many a chunk holds, and the number of chunks."""
    members = leaf.bits.shape[0] if rows is None else rows.shape[0]
    size = min(_CHUNK, members)
    return members, size, -(-(members if used is None else used) // size)


def _chunk(
    leaf: PackedMask, i: Array, size: int, rows: Array | None
) -> tuple[Array, Array]:
    """The first member of the i-th chunk, and the words of its members, [size, W]."""
    members = leaf.bits.shape[0] if rows is None else rows.shape[0]
    start = jnp.minimum(i * size, members - size)
    if rows is None:
        return start, lax.dynamic_slice_in_dim(leaf.bits, start, size)
    return start, leaf.bits[lax.dynamic_slice_in_dim(rows, start, size)]


@jax.jit
def dot_leaf(
    leaf: PackedMask,
    values: Array,
    *,
    rows: Array | None = None,
    used: Array | None = None,
) -> Array:
    """One leaf of `dot`, not checked; `rows` and `used` are those of `mix_leaf`."""
    values = jnp.asarray(values)
    shared = tuple(
        axis
        for axis, (a, b) in enumerate(zip(leaf.shape, values.shape, strict=True))
        if a != b
    )
    values = values.astype(dtypes.at_least_float32(values.dtype))
    planes = _planes(jnp.sum(values, axis=shared, keepdims=True), padding=0)
    ones = jnp.ones(planes.shape[1:], planes.dtype)
    members, size, rounds = _rounds(leaf, rows, used)

    def of_members(i: Array, sums: Array) -> Array:
        """Selects plane by plane into lanes, which are summed once at the end."""
        start, bits = _chunk(leaf, i, size, rows)
        lanes = jnp.zeros(bits.shape, planes.dtype)
        for j in range(WORD):
            lanes += jnp.where((bits >> j) & 1 != 0, planes[j][None, :], 0)
        # A product with ones, as XLA on CPU sums the minor axis one scalar at a time.
        of_chunk = jnp.matmul(lanes, ones, precision=lax.Precision.HIGHEST)
        return lax.dynamic_update_slice_in_dim(sums, of_chunk, start, 0)

    sums = jnp.zeros(members, planes.dtype)
    return lax.fori_loop(0, rounds, of_members, sums)


@jax.jit
def population(leaf: PackedMask) -> Array:
    """How many entries each mask of a packed leaf keeps, int32."""
    return jnp.sum(lax.population_count(leaf.bits).astype(jnp.int32), axis=-1)


def valid_bits(shape: tuple[int, ...]) -> Array:
    """The words of the mask that keeps everything; padding bits are 0."""
    return pack_leaf(jnp.ones(shape, bool)).bits
