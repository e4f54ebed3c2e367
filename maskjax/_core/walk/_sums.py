"""Sums over data, and the entries of a parameter that they belong to.

Sums have one axis for each factor of the parameter that they run along, of the factor's
length, or of length 1 if the entries along it share them. They are put in the
parameter's order at the end (`onto`). Gram matrices have two more axes, last.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from maskjax._core import dtypes
from maskjax._core.trees import Array
from maskjax._core.walk._trails import STRANGE, Factor, Label, Trail
from maskjax._core.walk._values import Value, Walk

Factors = tuple[Factor, ...]
# For a parameter's number and trail: its factors and sums, or why there are none.
Measure = Callable[[int, Trail], tuple[Factors, Array] | str]


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
    rows = weights.astype(array.dtype)
    return rows.reshape(*rows.shape, *[1] * (array.ndim - rows.ndim))


def squares(array: Any, weights: Array | None = None) -> Array:
    """The squares of data, with weights for its rows."""
    squares = jnp.square(real(array))
    if weights is None:
        return squares
    rows = leading(weights, squares)
    # Rows of weight 0 may be inf or nan.
    return jnp.where(rows > 0, rows * squares, 0)


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


def along(met: Array, axes: Sequence[Label]) -> tuple[Factors, Array]:
    """Sums along the factors of a value, from sums along its axes.

    Args:
        met: With the value's axes, or length 1 along those that share a sum, or the
            number of groups of neighbors that do.
        axes: The value's labels, exact.
    """
    factors, lengths = [], []
    for axis, label in enumerate(axes):
        label = grouped(label, met.shape[axis])
        rest = met.shape[axis]
        for factor in label:
            lengths.append(factor.size if rest > 1 or not rest else 1)
            rest //= max(factor.size, 1) if rest > 1 else 1
        factors += label
    return ordered(factors, met.reshape(lengths))


def grouped(label: Label, groups: int) -> Label:
    """A label whose first factors are together as long as there are groups."""
    if groups < 2:
        return label
    out: list[Factor] = []
    for i, factor in enumerate(label):
        if groups == 1 or groups % factor.size == 0:
            groups //= factor.size if groups > 1 else 1
            out.append(factor)
            continue
        rest = factor.size // groups  # groups are parts of a factor
        out.append(factor._replace(size=groups, stride=factor.stride * rest))
        return (*out, factor._replace(size=rest), *label[i + 1 :])
    return tuple(out)


def ordered(factors: Sequence[Factor], array: Array) -> tuple[Factors, Array]:
    """Sums with their factors in the parameter's order, all of them forward.

    Strange factors are entries that occur more than once: their sums add up.
    """
    back = [i for i, factor in enumerate(factors) if factor.stride < 0]
    array = jnp.flip(array, back) if back else array
    lone = tuple(i for i, factor in enumerate(factors) if factor.axis == STRANGE)
    array = jnp.sum(array, axis=lone) if lone else array
    known = [f._replace(stride=abs(f.stride)) for f in factors if f.axis != STRANGE]
    order = sorted(range(len(known)), key=lambda i: (known[i].axis, -known[i].stride))
    rest = range(len(known), array.ndim)
    return tuple(known[i] for i in order), array.transpose([*order, *rest])


def onto(factors: Factors, array: Array, shape: Sequence[int]) -> Array:
    """Sums for the entries of a parameter.

    Args:
        factors: Ordered.
        array: The sums along them.
        shape: The parameter's.

    Returns:
        Of the parameter's rank, with length 1 along axes that share a sum.
    """
    out = [1] * len(shape)
    for factor, length in zip(factors, array.shape, strict=False):
        if length != 1:
            out[factor.axis] = shape[factor.axis]
    sizes = [f.size if out[f.axis] != 1 else 1 for f in factors]
    rest = array.shape[len(factors) :]
    return jnp.broadcast_to(array, (*sizes, *rest)).reshape(*out, *rest)


def add(value: Value, measure: Measure, walk: Walk) -> None:
    """Add sums to those of each parameter that a value is made of."""
    for leaf, trail in value.leaves.items():
        if trail.lost or trail.axes is None:
            walk.found.obstacles[leaf] = f"loses its axes in {trail.lost}"
            continue
        found = measure(leaf, trail)
        if isinstance(found, str):
            walk.found.obstacles[leaf] = found
        else:
            put(leaf, *found, walk)


def put(leaf: int, factors: Factors, array: Array, walk: Walk) -> None:
    """Add sums to those of a parameter that run along the same factors."""
    sums = walk.found.sums.setdefault(leaf, {})
    key = (factors, array.shape)
    known = sums.get(key)
    sums[key] = array if known is None else known + array.astype(known.dtype)


def over(sums: dict[Any, Array], shape: Sequence[int]) -> Array:
    """All the sums of a parameter together, of its rank."""
    parts = [onto(factors, array, shape) for (factors, _), array in sums.items()]
    total = parts[0]
    for part in parts[1:]:
        total = total + part.astype(total.dtype)
    return total
