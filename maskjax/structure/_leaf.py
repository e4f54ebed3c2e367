"""Structures of one leaf: entries, tiles, whole units, N of every M."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import numbers
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import dtypes, placement
from maskjax._core.axes import ROLES
from maskjax._core.trees import Array

# What learns a number for each pattern has this many for every group of m weights.
_MOST_PATTERNS = 256


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
    """At most n of every m consecutive inputs of each output, as in 2:4 sparsity.

    Only the n best of each group can be kept. A density of n / m, or more, keeps all of
    them: exactly n of every m. A smaller density removes more, within the pattern.
    Several axes of inputs count as one, row-major. Groups never cross outputs, places
    of a window, or layers of a stack. A leaf whose shards do not hold whole groups is
    gathered.

    Attributes:
        n: The most entries to keep in a group, 0 <= n <= m.
        m: The length of a group. It must divide the number of inputs.
        axis: Along what groups lie: a role, or the number of an axis.

    Raises:
        ValueError: If n and m are not whole numbers with 0 <= n <= m and m >= 1, or
            `axis` is neither a role nor a whole number.

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
    axis: str | int = "inputs"

    def __post_init__(self) -> None:
        whole = _whole(self.n) and _whole(self.m)
        if not whole or self.m < 1 or not 0 <= self.n <= self.m:
            raise ValueError(
                "`maskjax.structure.NofM` needs whole numbers 0 <= n <= m and m >= 1, "
                f"got n={self.n!r}, m={self.m!r}."
            )
        object.__setattr__(self, "n", int(self.n))  # NumPy's can't be JSON
        object.__setattr__(self, "m", int(self.m))
        _check_axis(self.axis, "NofM")

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """The axis must exist, and m must divide it."""
        axis = _number(self.axis)
        problem = _axis_complaint(axis, shape)
        if problem is None and shape[axis] % self.m:
            problem = (
                f"axis {axis} of length {shape[axis]} is not divisible by {self.m}"
            )
        return problem

    def pool(self, scores: Array, alive: Array | None = None) -> Array:
        """The scores themselves; `select` limits each group to its n best."""
        return scores

    def spread(self, decisions: Array) -> Array:
        """The decisions themselves."""
        return decisions

    def patterns(self) -> np.ndarray:
        """Every way to keep exactly n of m entries, in order: first those of the first.

        Returns:
            Booleans [P, m] with P = m! / (n! (m - n)!), not writeable: True keeps.

        Raises:
            ValueError: If there are more than 256.

        Example:
            >>> structure.NofM(1, 2).patterns()
            array([[ True, False],
                   [False,  True]])
            >>> [structure.NofM(n, m).patterns().shape for n, m in [(2, 4), (4, 8)]]
            [(6, 4), (70, 8)]
        """
        count = math.comb(self.m, self.n)
        if count > _MOST_PATTERNS:
            raise ValueError(
                f"`maskjax.structure.NofM.patterns` needs n and m with at most "
                f"{_MOST_PATTERNS} patterns, got n={self.n}, m={self.m}, which have "
                f"{count}."
            )
        return _patterns(self.n, self.m)

    def group(self, x: Array) -> Array:
        """The leaf as [..., groups, m], the axis moved last."""
        x = jnp.moveaxis(x, _number(self.axis), -1)
        return placement.cut(x, x.ndim - 1, self.m)

    def ungroup(self, x: Array) -> Array:
        """The inverse of `group`."""
        x = x.reshape(*x.shape[:-2], x.shape[-2] * self.m)
        return jnp.moveaxis(x, -1, _number(self.axis))


@dataclasses.dataclass(frozen=True)
class Block:
    """Tiles of inputs by outputs, kept or removed by the mean of their scores.

    A leaf whose shards do not hold whole tiles is gathered.

    Attributes:
        shape: Height and width of a tile. They must divide the numbers of inputs and
            of outputs; several axes of a role count as one, row-major.
        axes: What height and width count: two roles, or the numbers of two axes.

    Raises:
        ValueError: If the shape is not a tuple of two positive whole numbers, or `axes`
            not one of two roles or two whole numbers.

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
    axes: tuple[str, str] | tuple[int, int] = ("inputs", "outputs")

    def __post_init__(self) -> None:
        shape, axes = self.shape, self.axes
        pair = isinstance(shape, tuple) and len(shape) == 2
        if not pair or not all(_whole(s) and s >= 1 for s in shape):
            raise ValueError(
                "`maskjax.structure.Block` needs two positive whole numbers, got "
                f"{shape}."
            )
        two = isinstance(axes, tuple) and len(axes) == 2
        if not two or isinstance(axes[0], str) != isinstance(axes[1], str):
            raise ValueError(
                "`maskjax.structure.Block` needs `axes` as two roles or two whole "
                f"numbers, got {axes!r}."
            )
        for axis in axes:
            _check_axis(axis, "Block", "axes")
        if axes[0] == axes[1]:
            raise ValueError(
                f"`maskjax.structure.Block` needs two different `axes`, got {axes!r}."
            )

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """The axes must exist and differ, and the tile must divide them."""
        numbers = [_number(axis) for axis in self.axes]
        for axis in numbers:
            if problem := _axis_complaint(axis, shape):
                return problem
        if len({axis % len(shape) for axis in numbers}) < 2:
            return f"shape {shape} has no two different axes {self.axes}"
        for axis, size in zip(numbers, self.shape, strict=True):
            if shape[axis] % size:
                return f"axis {axis} of length {shape[axis]} is not divisible by {size}"
        return None

    def pool(self, scores: Array, alive: Array | None = None) -> Array:
        """The mean score of each tile; both axes are shorter."""
        sizes = self._sizes(scores.ndim)
        inner = tuple(
            i + sum(map(bool, sizes[:i])) + 1 for i, s in enumerate(sizes) if s
        )
        alive = None if alive is None else _tiled(alive, sizes)
        return _mean(_tiled(scores, sizes), alive, inner)

    def spread(self, decisions: Array) -> Array:
        """Every decision repeated over its tile."""
        for axis, size in enumerate(self._sizes(decisions.ndim)):
            decisions = placement.repeated(decisions, axis, size) if size else decisions
        return decisions

    def _sizes(self, rank: int) -> list[int]:
        """The size of a tile along each axis, 0 for those that are not cut."""
        sizes = [0] * rank
        for axis, size in zip(self.axes, self.shape, strict=True):
            sizes[_number(axis) % rank] = size
        return sizes


@dataclasses.dataclass(frozen=True)
class Units:
    """Whole neurons or channels, kept or removed by the mean of their scores.

    The mask has length 1 on every axis but those that count units, so a unit costs one
    bit. By role, each layer of a stack has units of its own. They are ranked together,
    and a layer with small weights may lose all of them: `scope="layer"` keeps the same
    fraction of each layer.

    Biases carry no mask by default. To remove those of the units too, give them the
    decisions of the kernel, as below. The units of the last layer are the outputs of
    the network: leave it out, `where=where.kernels & ~where.matching("head")`.

    Attributes:
        axis: What counts units: a role, or the number of an axis, or a tuple of them.
            The default is the outputs: neurons of a dense layer, channels of a
            convolution. "inputs" are those of the layer before.

    Raises:
        ValueError: If `axis` is neither a role nor a whole number nor a tuple of whole
            numbers.

    Example:
        >>> select.top_k(
        ...     {"w": jnp.array([[1.0, 5.0], [2.0, 0.0]])},
        ...     density=0.5,
        ...     structure=structure.Units(),
        ... )
        {'w': Array([[False,  True]], dtype=bool)}
        >>> params = {"w": jnp.array([[1.0, 5.0], [2.0, 0.0]]), "b": jnp.ones(2)}
        >>> scores = score.magnitude(params)
        >>> mask = select.top_k(scores, density=0.5, structure=structure.Units())
        >>> mask["b"] = mask["w"].reshape(params["b"].shape)
        >>> maskjax.apply(params, mask)["b"]
        Array([0., 1.], dtype=float32)

    References:
        Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017.
        arXiv:1608.08710, section 3.
    """

    axis: str | int | tuple[int, ...] = "outputs"

    def __post_init__(self) -> None:
        axes = self.axis if isinstance(self.axis, tuple) and self.axis else (self.axis,)
        several = len(axes) > 1 and any(isinstance(axis, str) for axis in axes)
        for axis in axes:
            _check_axis(self.axis if several else axis, "Units")

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """The axes must exist."""
        problems = (_axis_complaint(axis, shape) for axis in self._numbers())
        return next(filter(None, problems), None)

    def pool(self, scores: Array, alive: Array | None = None) -> Array:
        """The mean score of each unit; other axes have length 1."""
        units = {axis % scores.ndim for axis in self._numbers()}
        others = tuple(i for i in range(scores.ndim) if i not in units)
        return _mean(scores, alive, others, keepdims=True)

    def spread(self, decisions: Array) -> Array:
        """The decisions themselves, which `apply` broadcasts."""
        return decisions

    def _numbers(self) -> list[int]:
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return [_number(axis) for axis in axes]


@functools.lru_cache(maxsize=64)
def _patterns(n: int, m: int) -> np.ndarray:
    kept = list(itertools.combinations(range(m), n))
    found = np.zeros((len(kept), m), bool)
    for pattern, places in zip(found, kept, strict=True):
        pattern[list(places)] = True
    found.flags.writeable = False
    return found


def _tiled(x: Array, sizes: list[int]) -> Array:
    """Each axis that has a size, cut into parts of that size, the last axis first."""
    for axis in reversed(range(x.ndim)):
        x = placement.cut(x, axis, sizes[axis]) if sizes[axis] else x
    return x


def _whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_axis(axis: Any, name: str, argument: str = "axis") -> None:
    if isinstance(axis, str) and axis in ROLES:
        return
    if not _whole(axis):
        also = " or a tuple of whole numbers" if name == "Units" else ""
        raise ValueError(
            f"`maskjax.structure.{name}` needs `{argument}` as one of the words "
            f"{', '.join(ROLES)}, or as a whole number{also}, got {axis!r}."
        )


def _number(axis: str | int) -> int:
    """The number of an axis; those of roles are known to `select` alone."""
    if isinstance(axis, str):
        raise ValueError(
            "`maskjax.structure` needs numbers for axes where no leaf is known, got "
            f"{axis!r}. `maskjax.select` finds the axes of a role, by its `where`."
        )
    return axis


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
