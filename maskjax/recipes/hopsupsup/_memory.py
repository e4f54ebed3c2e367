"""A Hopfield network for each layer: masks stored, and their energy."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from maskjax import packing
from maskjax._core import checks, placement, rows
from maskjax._core.packed import PackedMask
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, SoftMask, map_mask


@stored("maskjax.recipes.hopsupsup.Memory")
class Memory(NamedTuple):
    """Stored masks, in space that does not depend on their number; a pytree.

    Attributes:
        psi: [d, d], float32 and symmetric, for each leaf of d entries, or `None`.
        sums: int32: how many masks keep an entry, minus how many remove it.
        learned: int32, the number of masks stored so far.
    """

    psi: Any
    sums: Any
    learned: Array


def init(mask: Mask) -> Memory:
    """A memory without a mask.

    Args:
        mask: Any mask of the shapes to be stored. Its values are ignored.

    Returns:
        The memory: 4 d^2 bytes for a leaf of d entries.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If all leaves are `None`.

    Example:
        >>> hopsupsup.init({"scale": jnp.ones(3, bool)}).psi["scale"].shape
        (3, 3)
    """
    fn = "maskjax.recipes.hopsupsup.init"
    checks.boolean(mask, fn=fn)
    if not jax.tree.leaves(mask):
        raise ValueError(f"`{fn}` needs `mask` with at least one leaf, got none.")

    def zeros(m: Array, shape: tuple[int, ...], dtype: str) -> Array:
        like = m.bits if isinstance(m, PackedMask) else m
        return placement.zeros(shape, dtype, like, spec=(None,) * len(shape))

    psi = map_mask(lambda m: zeros(m, (m.size, m.size), "float32"), mask)
    sums = map_mask(lambda m: zeros(m, m.shape, "int32"), mask)
    return Memory(psi, sums, jnp.zeros((), jnp.int32))


def store(
    memory: Memory, mask: Mask, *, rule: Literal["storkey", "hebbian"] = "storkey"
) -> Memory:
    """A memory with one more mask. Scan over a stack to store many.

    Args:
        memory: The memory.
        mask: The mask to store, packed or not.
        rule: "hebbian" adds z z' / d. "storkey" adds (z z' - I - z h' - h z') / d with
            h = psi z, so that similar masks disturb each other less.

    Returns:
        The memory.

    Raises:
        TypeError: If a leaf of the mask is neither boolean nor packed.
        ValueError: If the mask does not fit the memory, or the rule is unknown.

    Example:
        >>> mask = {"scale": jnp.array([True, False])}
        >>> hopsupsup.store(hopsupsup.init(mask), mask, rule="hebbian").psi["scale"][0]
        Array([ 0.5, -0.5], dtype=float32)
    """
    fn = "maskjax.recipes.hopsupsup.store"
    checks.one_of(rule, ("storkey", "hebbian"), fn=fn, name="rule")
    checks.boolean(mask, fn=fn)

    _check(memory, mask, fn)
    return _stored(memory, mask, rule=rule)


def energy(memory: Memory, mask: Mask | SoftMask) -> Array:
    """The sum over layers of -s' psi s / 2, s = 2 mask - 1; low for stored masks.

    Args:
        memory: The memory.
        mask: A mask, or a soft mask, through which gradients flow.

    Returns:
        A scalar, float32.

    Raises:
        ValueError: If the mask does not fit the memory.

    Example:
        >>> mask = {"scale": jnp.array([True, False])}
        >>> memory = hopsupsup.store(hopsupsup.init(mask), mask, rule="hebbian")
        >>> print(hopsupsup.energy(memory, mask))
        -1.0
    """
    _check(memory, mask, "maskjax.recipes.hopsupsup.energy")
    return _energy(memory, mask)


def _check(memory: Memory, mask: Any, fn: str) -> None:
    checks.same_shapes(memory.sums, mask, fn=fn, names=("memory", "mask"))
    checks.packed(mask, fn=fn, stacked=False)


def _signs(mask: Any) -> Any:
    """+-1 for each entry, whole on every device, as every entry of psi needs two."""
    return placement.whole(
        map_mask(lambda m: 2 * packing.unpack_leaf(m).astype(jnp.float32) - 1, mask)
    )


@functools.partial(jax.jit, static_argnames="rule")
def _stored(memory: Memory, mask: Mask, *, rule: str) -> Memory:
    def learned(z: Array, psi: Array) -> Array:  # 2.
        new = jnp.outer(z, z)
        if rule == "storkey":
            cross = jnp.outer(z, rows.times(psi, z))
            # In this order psi is symmetric bit for bit.
            new -= jnp.eye(z.size, dtype=z.dtype) + (cross + cross.T)
        return psi + new / z.size

    z = _signs(mask)
    psi = map_mask(lambda z, psi: learned(z.ravel(), psi), z, memory.psi)
    sums = map_mask(lambda z, total: total + z.astype(jnp.int32), z, memory.sums)
    return Memory(psi, sums, memory.learned + 1)


@jax.jit
def _energy(memory: Memory, mask: Mask | SoftMask) -> Array:
    signs = jax.tree.leaves(_signs(mask))
    pairs = zip(map(jnp.ravel, signs), jax.tree.leaves(memory.psi), strict=True)
    sums = [jnp.vdot(s, rows.times(psi, s)) for s, psi in pairs]
    return -jnp.stack(sums).sum() / 2
