"""Sums over data, and the entries of a parameter that they belong to.

Sums have one axis for each factor of the parameter that they run along, of the factor's
length, or of length 1 if the entries along it share them. They are put
together at the end (`_parts`). Gram matrices have two more axes, last.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax.numpy as jnp

from maskjax._core import dtypes
from maskjax._core.trees import Array
from maskjax._core.walk._parts import Factors, Part
from maskjax._core.walk._trails import STRANGE, Factor, Label, split
from maskjax._core.walk._values import Value, Walk

# For a parameter's number and a value's labels: sums along factors, and what they are
# sums of (as in `Part.source`), or why there are none.
Measure = Callable[[int, Sequence[Label]], tuple[Factors, Array, Hashable] | str]


# Squares.


def real(array: Any) -> Array:
    """Real floating numbers of at least 32 bits, with the same squares."""
    array = jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.abs(array)
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    wide = dtypes.at_least_float32(array.dtype if floating else jnp.float32)
    return array.astype(wide)


def leading(weights: Array, array: Array) -> Array:
    """The weights of rows, in an array's dtype and with as many axes."""
    weights = weights.astype(array.dtype)
    return weights.reshape(*weights.shape, *[1] * (array.ndim - weights.ndim))


def squares(array: Any, weights: Array | None = None) -> Array:
    """The squares of data, with weights for its rows."""
    squares = jnp.square(real(array))
    if weights is None:
        return squares
    own = leading(weights, squares)
    # Rows of weight 0 may be inf or nan.
    return jnp.where(own != 0, own * squares, 0)


def summed(array: Array, kept: Sequence[int]) -> Array:
    """The sum over all axes but those kept, which come in the order given."""
    rest = tuple(i for i in range(array.ndim) if i not in kept)
    order = sorted(kept)
    return jnp.sum(array, axis=rest).transpose([order.index(i) for i in kept])


def placed(array: Array, places: Sequence[int], rank: int) -> Array:
    """The array with its axes at those places, and length 1 along all others."""
    shape = [1] * rank
    for length, place in zip(array.shape, places, strict=True):
        shape[place] = length
    order = sorted(range(array.ndim), key=lambda i: places[i])
    return array.transpose(order).reshape(shape)


# Along factors.


def along(met: Array, axes: Sequence[Label]) -> tuple[Factors, Array]:
    """Sums along the factors of a value, from sums along its axes.

    Args:
        met: With the value's axes, or length 1 along those that share a sum, or the
            number of groups of neighbors that do.
        axes: The value's labels, exact.
    """
    factors: list[Factor] = []
    lengths: list[int] = []
    for label, count in zip(axes, met.shape, strict=True):
        left = count  # groups that factors do not tell apart yet
        for factor in grouped(label, count):
            own = count == 0 or left > 1
            factors.append(factor)
            lengths.append(factor.size if own else 1)
            left //= factor.size if left > 1 else 1
    return ordered(factors, met.reshape(lengths))


def grouped(label: Label, groups: int) -> Label:
    """A label whose first factors are together as long as there are groups."""
    if groups < 2:
        return label
    out: list[Factor] = []
    for i, factor in enumerate(label):
        if groups > 1 and groups % factor.size:
            outer, inner = split(factor, groups)  # groups are parts of a factor
            return (*out, outer, inner or outer, *label[i + 1 :])
        groups = groups // factor.size if groups > 1 else 1
        out.append(factor)
    return tuple(out)


def ordered(factors: Sequence[Factor], array: Array) -> tuple[Factors, Array]:
    """Sums with their factors in the parameter's order, all of them forward.

    Strange factors are entries that occur more than once: their sums add up.
    """
    known, array = trimmed(factors, array, range(len(factors)))
    lone = tuple(i for i, factor in enumerate(known) if factor.axis == STRANGE)
    array = jnp.sum(array, axis=lone) if lone else array
    known = [factor for factor in known if factor.axis != STRANGE]
    order = sorted(range(len(known)), key=lambda i: (known[i].axis, -known[i].stride))
    others = range(len(known), array.ndim)
    return tuple(known[i] for i in order), array.transpose([*order, *others])


def trimmed(
    factors: Sequence[Factor], array: Array, axes: Sequence[int]
) -> tuple[list[Factor], Array]:
    """An array without places that have no entries, and with all entries forward.

    Args:
        factors: Of which one is along each of some axes.
        array: With these axes of the factor's length, or 1.
        axes: Which they are.
    """
    out, back, cuts = [], [], [slice(None)] * array.ndim
    for factor, axis in zip(factors, axes, strict=True):
        if (factor.low or factor.high) and array.shape[axis] != 1:
            cuts[axis] = slice(factor.low, factor.size - factor.high)
        if factor.stride < 0:
            factor = factor.reversed()
            back.append(axis)
        out.append(factor._replace(size=factor.entries, low=0, high=0))
    array = array[tuple(cuts)] if cuts != [slice(None)] * array.ndim else array
    return out, jnp.flip(array, back) if back else array


def add(value: Value, measure: Measure, walk: Walk) -> None:
    """Add sums to those of each parameter that a value is made of."""
    for leaf, trail in value.leaves.items():
        if trail.lost or trail.axes is None:
            walk.found.obstacles[leaf] = f"loses its axes in {trail.lost}"
            continue
        if not all(factor.entries for label in trail.axes for factor in label):
            if all(factor.size for label in trail.axes for factor in label):
                continue  # it is beside what was cut out
        found = measure(leaf, trail.axes)
        if isinstance(found, str):
            walk.found.obstacles[leaf] = found
        else:
            put(leaf, *found, trail.at, walk)


def put(
    leaf: int,
    factors: Factors,
    array: Array,
    source: Hashable,
    at: frozenset[tuple[int, int]],
    walk: Walk,
) -> None:
    """Add sums to those of a parameter that belong to the same entries."""
    part = Part(factors, at, array.shape)
    for axis, length in enumerate(walk.shapes[leaf]):
        if part.shared(axis) and not part.covers(axis, length):
            part = part._replace(source=source)
    sums = walk.found.sums.setdefault(leaf, {})
    while part.source is not None and part in sums:
        part = part._replace(copy=part.copy + 1)
    known = sums.get(part)
    sums[part] = array if known is None else known + array.astype(known.dtype)
