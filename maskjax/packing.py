"""One bit an entry, and arithmetic that never unpacks a whole stack.

    >>> packed = packing.pack({"w": jnp.array([[True, False], [False, True]])})
    >>> packing.unpack(packed)
    {'w': Array([[ True, False],
           [False,  True]], dtype=bool)}

A bank of 2,500 masks over 266,200 weights takes 83 MB instead of 665 as booleans or
2.7 GB as floats. A stack is packed member by member, `jax.vmap(packing.pack)(stack)`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax._core import checks, dtypes, trees
from maskjax._core.packed import WORD, PackedMask
from maskjax._core.trees import Array, Mask, SoftMask

__all__ = ["PackedMask", "dot", "mix", "pack", "unpack"]

# Members handled together: enough to amortize the loop, few enough that their sums
# stay in cache. Between 16 and 64 the choice makes no measurable difference on CPU;
# below 16 XLA compiles `mix` to code that is eight times slower.
_CHUNK = 16


def pack(mask: Mask) -> Mask:
    """A mask with one bit an entry.

    Args:
        mask: Tree of boolean leaves or `None`; packed leaves stay as they are. The mask
            of a stack is packed under `jax.vmap`.

    Returns:
        The same mask, every leaf a `PackedMask`: 1 keeps.

    Raises:
        TypeError: If a leaf is not boolean.

    Example:
        >>> stack = {"w": jnp.ones((3, 40), bool)}
        >>> jax.vmap(packing.pack)(stack)["w"].bits.shape
        (3, 2)
    """
    checks.boolean(mask, fn="maskjax.packing.pack")
    return trees.map_mask(_pack_leaf, mask)


def unpack(mask: Mask) -> Mask:
    """A mask with a boolean an entry.

    Args:
        mask: Tree of `PackedMask`, boolean leaves or `None`; a packed stack of K is
            unpacked to leaves [K, ...].

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


def mix(stack: Mask, weights: Array) -> SoftMask:
    """The weighted sum of a stack's masks, sum_k weights[k] * m_k.

    Args:
        stack: A packed stack of K masks.
        weights: [K], floating.

    Returns:
        A soft mask: leaves of one mask's shape, in the dtype of `weights`. Memory for
        one such tree is all that it takes.

    Raises:
        TypeError: If a leaf is not packed, or the weights are not floating.
        ValueError: If the bits of a leaf do not fit its shape, or there are not K.

    Example:
        >>> stack = {"w": jnp.array([[True, True], [True, False]])}
        >>> packing.mix(jax.vmap(packing.pack)(stack), jnp.array([0.25, 0.5]))
        {'w': Array([0.75, 0.25], dtype=float32)}

    References:
        Wortsman et al., "Supermasks in Superposition", NeurIPS 2020. arXiv:2006.14769,
        section 3.3, equation 2.
    """
    fn = "maskjax.packing.mix"
    checks.packed_stack(stack, fn=fn)
    checks.weights(weights, stack, fn=fn)
    return trees.map_mask(lambda leaf: mix_leaf(leaf, weights), stack)


def dot(stack: Mask, tree: trees.Params) -> Array:
    """The inner product of each of a stack's masks with a tree, sum of m_k * tree.

    With `tree` the product of weights and their gradients at the mixed mask, this is
    the gradient of the loss by each mask's mixing weight.

    Args:
        stack: A packed stack of K masks.
        tree: Tree of floating leaves of the masks' structure; where an axis of a mask
            is 1, its entries share a decision. Leaves without a mask are ignored.

    Returns:
        [K], float32 (float64 if a leaf is). Beyond the result it takes memory for 16
        members' words.

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
    pairs = checks.mask_of(stack, tree, fn=fn, names=("tree", "stack"))
    checks.raise_all(
        (
            f"{path}: {checks.kind_of(values)}"
            for path, values, leaf in pairs
            if leaf is not None and not checks.is_floating(values)
        ),
        f"`{fn}` needs a floating array in `tree` for every mask",
        TypeError,
    )
    sums = [dot_leaf(m, values) for _, values, m in pairs if m is not None]
    wide = any(s.dtype == jnp.float64 for s in sums)
    dtype = jnp.dtype("float64" if wide else "float32")
    return functools.reduce(jnp.add, [s.astype(dtype) for s in sums])


def _pack_leaf(leaf: Array | PackedMask) -> PackedMask:
    if isinstance(leaf, PackedMask):
        return leaf
    planes = _planes(leaf, padding=0)
    bits = jnp.zeros(planes.shape[1:], jnp.uint32)
    for j in range(WORD):
        bits |= planes[j].astype(jnp.uint32) << j
    return PackedMask(bits, leaf.shape)


def unpack_leaf(leaf: Array | PackedMask) -> Array:
    """One leaf, boolean; it is not checked."""
    if not isinstance(leaf, PackedMask):
        return leaf
    lead = leaf.bits.shape[:-1]
    shifts = jnp.arange(WORD, dtype=jnp.uint32).reshape(*(1 for _ in lead), WORD, 1)
    flags = (leaf.bits[..., None, :] >> shifts) & 1 != 0
    flat = flags.reshape(*lead, flags.shape[-2] * flags.shape[-1])
    return flat[..., : leaf.size].reshape(*lead, *leaf.shape)


def _planes(values: Array, *, padding: float) -> Array:
    """An array as bit planes, [32, W]: entry j * W + w at [j, w]."""
    words = PackedMask.words(values.shape)
    flat = jnp.pad(
        values.ravel(), (0, WORD * words - values.size), constant_values=padding
    )
    return flat.reshape(WORD, words)


# Compiled also where the caller is not: a loop run eagerly compiles in every call.
@jax.jit
def mix_leaf(
    leaf: PackedMask,
    weights: Array,
    *,
    rows: Array | None = None,
    used: Array | None = None,
) -> Array:
    """One leaf of `mix`, unchecked: of some members, and of the first so many.

    Args:
        leaf: A packed stack of K masks.
        weights: [K], or [M]; 0 past `used`.
        rows: [M], which members; `None` for all K.
        used: How many of them; the time taken is for these only.
    """
    words, dtype = leaf.bits.shape[1], weights.dtype
    weights = weights.astype(dtypes.at_least_float32(dtype))
    members, size, rounds = _rounds(leaf, rows, used)
    shifts = jnp.arange(WORD, dtype=jnp.uint32)[:, None]

    def add(i: Array, total: Array) -> Array:
        start, bits = _chunk(leaf, i, size, rows)
        weight = lax.dynamic_slice_in_dim(weights, start, size)
        # The last chunk begins early to be whole; what it repeats weighs nothing.
        again = start + jnp.arange(size, dtype=start.dtype) < i * size
        weight = jnp.where(again, jnp.zeros((), weight.dtype), weight)
        for member in range(size):
            on = (bits[member][None, :] >> shifts) & 1 != 0
            total += jnp.where(on, weight[member], jnp.zeros((), total.dtype))
        return total

    total = jnp.zeros((WORD, words), weights.dtype)
    total = lax.fori_loop(0, rounds, add, total)
    return total.ravel()[: leaf.size].reshape(leaf.shape).astype(dtype)


@jax.jit
def tally_leaf(leaf: PackedMask, used: Array) -> Array:
    """How many of the first masks of a packed stack keep each entry, int32."""
    # Whole numbers of float32 are exact, up to 2**24 masks.
    one_each = (jnp.arange(leaf.bits.shape[0], dtype=jnp.int32) < used).astype(
        jnp.float32
    )
    return mix_leaf(leaf, one_each, used=used).astype(jnp.int32)


def _rounds(leaf: PackedMask, rows: Array | None, used: Array | None) -> Any:
    """How many members there are, are taken at a time, and how many times."""
    members = leaf.bits.shape[0] if rows is None else rows.shape[0]
    size = min(_CHUNK, members)
    return members, size, -(-(members if used is None else used) // size)


def _chunk(
    leaf: PackedMask, i: Array, size: int, rows: Array | None
) -> tuple[Array, Array]:
    """Where the i-th chunk of members starts, and its words, [size, W]."""
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
    """One leaf of `dot`, unchecked; `rows` and `used` as in `mix_leaf`."""
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
        """A select a plane, summed lane by lane, reduced once."""
        start, bits = _chunk(leaf, i, size, rows)
        lanes = jnp.zeros(bits.shape, planes.dtype)
        for j in range(WORD):
            lanes += jnp.where((bits >> j) & 1 != 0, planes[j][None, :], 0)
        # A product with ones: XLA reduces the minor axis one scalar at a time on CPU.
        of_chunk = jnp.matmul(lanes, ones, precision=lax.Precision.HIGHEST)
        return lax.dynamic_update_slice_in_dim(sums, of_chunk, start, 0)

    sums = jnp.zeros(members, planes.dtype)
    return lax.fori_loop(0, rounds, of_members, sums)


def population(leaf: PackedMask) -> Array:
    """How many entries are kept, for each mask."""
    return jnp.sum(lax.population_count(leaf.bits).astype(jnp.int32), axis=-1)


def valid_bits(shape: tuple[int, ...]) -> Array:
    """The word pattern in which every bit that stands for an entry is 1."""
    return _pack_leaf(jnp.ones(shape, bool)).bits
