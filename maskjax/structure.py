"""What is kept or removed together: entries, blocks, units, or N of every M.

A structure is a frozen value. `pool` turns scores into one score per decision, and
`spread` turns decisions into a mask; `select` does the rest.

    >>> structure.Block((2, 2)).pool(jnp.arange(8.0).reshape(2, 4))
    Array([[2.5, 4.5]], dtype=float32)
"""

import dataclasses
import numbers
from typing import Protocol

import jax
import jax.numpy as jnp

from maskjax._core import dtypes
from maskjax._core.trees import Array

__all__ = ["Block", "Entries", "NofM", "Structure", "Units"]


class Structure(Protocol):
    """What `select` needs from a structure. Your own classes may implement it."""

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """What is wrong with a leaf of this shape, or None."""
        ...

    def pool(self, scores: Array, alive: Array | None = None) -> Array:
        """One score per decision, from the scores of its entries that are alive."""
        ...

    def spread(self, decisions: Array) -> Array:
        """The decisions as a mask, where an axis of 1 shares its decision."""
        ...


@dataclasses.dataclass(frozen=True)
class Entries:
    """Every entry on its own: unstructured sparsity.

    Example:
        >>> select.top_k(
        ...     {"w": jnp.array([[3.0, 1.0], [2.0, 4.0]])},
        ...     density=0.5,
        ...     structure=structure.Entries(),
        ... )
        {'w': Array([[ True, False],
               [False,  True]], dtype=bool)}
    """

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """None: any shape fits."""
        return None

    def pool(self, scores: Array, alive: Array | None = None) -> Array:
        """The scores themselves."""
        return scores

    def spread(self, decisions: Array) -> Array:
        """The decisions themselves."""
        return decisions


@dataclasses.dataclass(frozen=True)
class NofM:
    """At most n of every m consecutive entries along an axis, as in 2:4 sparsity.

    Only the n best of each group can be kept. A density of n / m, or more, keeps all of
    them: exactly n of every m. A smaller density removes more, within the pattern.

    Attributes:
        n: The most entries to keep in a group, 0 <= n <= m.
        m: The length of a group. It must divide the axis.
        axis: The axis along which groups lie. The default, -2, is the input axis of
            dense (in, out) and convolution (height, width, in, out) kernels.

    Raises:
        ValueError: If n and m are not whole numbers with 0 <= n <= m and m >= 1, or
            `axis` is not a whole number.

    Example:
        >>> select.top_k(
        ...     {"w": jnp.array([[4.0], [3.0], [2.0], [1.0]])},
        ...     density=0.5,
        ...     structure=structure.NofM(1, 2),
        ... )["w"].ravel()
        Array([ True, False,  True, False], dtype=bool)

    References:
        Mishra et al., "Accelerating Sparse Deep Neural Networks". arXiv:2104.08378,
        section 3.
    """

    n: int
    m: int
    axis: int = -2

    def __post_init__(self) -> None:
        whole = isinstance(self.n, int) and isinstance(self.m, int)
        if not whole or self.m < 1 or not 0 <= self.n <= self.m:
            raise ValueError(
                "`maskjax.structure.NofM` needs whole numbers 0 <= n <= m and m >= 1, "
                f"got n={self.n}, m={self.m}."
            )
        _check_axis(self.axis, "NofM")

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """The axis must exist, and m must divide it."""
        problem = _axis_complaint(self.axis, shape)
        if problem is None and shape[self.axis] % self.m:
            length = shape[self.axis]
            problem = (
                f"axis {self.axis} of length {length} is not divisible by {self.m}"
            )
        return problem

    def pool(self, scores: Array, alive: Array | None = None) -> Array:
        """The scores themselves; `select` limits each group to its n best."""
        return scores

    def spread(self, decisions: Array) -> Array:
        """The decisions themselves."""
        return decisions

    def group(self, x: Array) -> Array:
        """The leaf as [..., groups, m], the axis moved last."""
        x = jnp.moveaxis(x, self.axis, -1)
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.m, self.m)

    def ungroup(self, x: Array) -> Array:
        """The inverse of `group`."""
        x = x.reshape(*x.shape[:-2], x.shape[-2] * self.m)
        return jnp.moveaxis(x, -1, self.axis)


@dataclasses.dataclass(frozen=True)
class Block:
    """Tiles of the last two axes, kept or removed by the mean of their scores.

    Attributes:
        shape: Height and width of a tile. They must divide the last two axes.

    Raises:
        ValueError: If the shape is not a tuple of two positive whole numbers.

    Example:
        >>> select.top_k(
        ...     {"w": jnp.array([[1.0, 1.0, 5.0, 0.0]])},
        ...     density=0.5,
        ...     structure=structure.Block((1, 2)),
        ... )
        {'w': Array([[False, False,  True,  True]], dtype=bool)}

    References:
        Gray et al., "GPU Kernels for Block-Sparse Weights", 2017. Narang et al.,
        "Block-Sparse Recurrent Neural Networks". arXiv:1711.02782, section 3.
    """

    shape: tuple[int, int]

    def __post_init__(self) -> None:
        shape = self.shape
        pair = isinstance(shape, tuple) and len(shape) == 2
        if not pair or not all(isinstance(s, int) and s >= 1 for s in shape):
            raise ValueError(
                "`maskjax.structure.Block` needs two positive whole numbers, got "
                f"{shape}."
            )

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """There must be two axes, and the tile must divide the last two."""
        if len(shape) < 2:
            return f"shape {shape} has fewer than the two axes of a block"
        if shape[-2] % self.shape[0] or shape[-1] % self.shape[1]:
            return f"the last axes of {shape} are not divisible by block {self.shape}"
        return None

    def pool(self, scores: Array, alive: Array | None = None) -> Array:
        """The mean score of each tile, [..., rows, columns]."""
        height, width = self.shape
        *outer, rows, columns = scores.shape

        def tiles(x: Array) -> Array:
            return x.reshape(*outer, rows // height, height, columns // width, width)

        return _mean(tiles(scores), None if alive is None else tiles(alive), (-3, -1))

    def spread(self, decisions: Array) -> Array:
        """Every decision repeated over its tile."""
        height, width = self.shape
        return jnp.repeat(jnp.repeat(decisions, height, axis=-2), width, axis=-1)


@dataclasses.dataclass(frozen=True)
class Units:
    """Whole slices along an axis, kept or removed by the mean of their scores.

    The mask has length 1 on every other axis, so a unit costs one bit.

    Attributes:
        axis: The axis that counts units. The default, -1, is the output axis of dense
            and convolution kernels: neurons, or channels. -2 is their inputs.

    Raises:
        ValueError: If `axis` is not a whole number.

    Example:
        >>> select.top_k(
        ...     {"w": jnp.array([[1.0, 5.0], [2.0, 0.0]])},
        ...     density=0.5,
        ...     structure=structure.Units(),
        ... )
        {'w': Array([[False,  True]], dtype=bool)}

    References:
        Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017.
        arXiv:1608.08710, section 3.
    """

    axis: int = -1

    def __post_init__(self) -> None:
        _check_axis(self.axis, "Units")

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """The axis must exist."""
        return _axis_complaint(self.axis, shape)

    def pool(self, scores: Array, alive: Array | None = None) -> Array:
        """The mean score of each unit; other axes have length 1."""
        axis = self.axis % scores.ndim
        others = tuple(i for i in range(scores.ndim) if i != axis)
        return _mean(scores, alive, others, keepdims=True)

    def spread(self, decisions: Array) -> Array:
        """The decisions themselves, which `apply` broadcasts."""
        return decisions


def _check_axis(axis: int, name: str) -> None:
    if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
        raise ValueError(
            f"`maskjax.structure.{name}` needs `axis` as a whole number, got {axis!r}."
        )


def _axis_complaint(axis: int, shape: tuple[int, ...]) -> str | None:
    if -len(shape) <= axis < len(shape):
        return None
    return f"shape {shape} has no axis {axis}"


def _mean(
    scores: Array,
    alive: Array | None,
    axes: tuple[int, ...],
    *,
    keepdims: bool = False,
) -> Array:
    """The mean over axes of the entries that are alive, in float32 at least."""
    wide = dtypes.at_least_float32(scores.dtype)
    if alive is None:
        return jnp.mean(scores, axis=axes, dtype=wide, keepdims=keepdims)
    total = jnp.sum(
        jnp.where(alive, scores.astype(wide), 0), axis=axes, keepdims=keepdims
    )
    count = jnp.sum(alive, axis=axes, keepdims=keepdims, dtype=jnp.int32)
    return total / jnp.maximum(count, 1).astype(wide)


def any_alive(structure: Structure, alive: Array) -> Array:
    """For each decision, whether at least one of its entries is alive."""
    return structure.pool(jax.lax.convert_element_type(alive, jnp.float32)) > 0
