"""Gram matrices of what a kernel meets, over its window and input axes together."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from maskjax._core import placement
from maskjax._core.axes import Axes
from maskjax._core.trees import Array
from maskjax._core.walk import _sums
from maskjax._core.walk._sums import Factors
from maskjax._core.walk._trails import STRANGE, Factor, Label

_PANEL = 128  # the least width of the parts in which a half of a matrix is computed
_PANELS = 8


class Leg(NamedTuple):
    """An axis of data, and the entries of a parameter that meet it.

    Attributes:
        label: Of the parameter's value, along the axis that it is contracted with.
        axis: Of the data.
        how: "crossed" if it is contracted, so that all pairs of entries meet; "each" if
            each entry meets data of its own; "group" if each group of outputs does.
    """

    label: Label
    axis: int
    how: Literal["crossed", "each", "group"]


class Met(NamedTuple):
    """Data as a kernel meets it.

    Attributes:
        factors: Of the parameter, one for each of the first axes.
        array: [*factors, *rows, d].
    """

    factors: Factors
    array: Array


def arranged(
    data: Array, legs: Sequence[Leg], axes: Axes, shape: Sequence[int]
) -> Met | str:
    """Data with its axes in the order of a parameter's, or why there is none."""
    sizes = [(n,) for n in data.shape]
    factors: list[Factor | None] = []
    hows: dict[int, str] = {}
    for leg in legs:
        sizes[leg.axis] = tuple(factor.size for factor in leg.label)
    at = {leg.axis: leg for leg in legs}
    for axis in range(data.ndim):
        if axis in at:
            for factor in at[axis].label:
                hows[len(factors)] = at[axis].how
                factors.append(factor)
        else:
            factors.append(None)
    single, double, rows = [], [], []
    for i, factor in enumerate(factors):
        kind = _kind(factor, hows.get(i), axes)
        if kind not in ("single", "double", "rows"):
            return kind
        {"single": single, "double": double, "rows": rows}[kind].append(i)
    met = {axis: 1 for axis in (*axes.window, *axes.inputs)}
    for i in double:
        met[factors[i].axis] *= factors[i].size
    if any(n != shape[axis] for axis, n in met.items()):
        return "meets different data along its inputs, which never meet together"

    def place(i: int) -> tuple[int, int]:
        return factors[i].axis, -abs(factors[i].stride)

    single.sort(key=place)
    double.sort(key=place)
    data = placement.split(data, *sizes)
    back = [i for i in (*single, *double) if factors[i].stride < 0]
    data = jnp.flip(data, back) if back else data
    data = data.transpose([*single, *rows, *double])
    counts = [1] * (len(single) + len(rows)) + [len(double)]
    kept = tuple(factors[i]._replace(stride=abs(factors[i].stride)) for i in single)
    return Met(kept, placement.merge(data, *counts))


def _kind(factor: Factor | None, how: str | None, axes: Axes) -> str:
    """What a factor of an axis of data is, or why it can't be any of it."""
    if factor is None:
        return "rows"
    if factor.axis == STRANGE:
        if how == "crossed" and factor.size != 1:
            return "occurs more than once in one product"
        return "rows"
    if factor.axis in axes.stack:
        return "single"
    if factor.axis in axes.outputs:
        if how == "group":
            return "single"
        return _is_one(factor) or "meets different data along its outputs"
    if how == "crossed":
        return "double"
    return _is_one(factor) or (
        "meets different data along its inputs, which never meet together"
    )


def _is_one(factor: Factor) -> str | None:
    return "rows" if factor.size == 1 else None


def gram(met: Met) -> Array:
    """[*factors, d, d]: the sums of products over rows."""
    x, lead = met.array, len(met.factors)
    d = x.shape[-1]
    width = -(-d // (_PANELS * _PANEL)) * _PANEL
    if width >= d or _is_cut(x):
        return product(x, x, lead)
    panels = []
    for start in range(0, d, width):
        left = lax.slice_in_dim(x, start, min(start + width, d), axis=-1)
        right = lax.slice_in_dim(x, start, d, axis=-1)
        part = product(left, right, lead)
        panels.append(jnp.pad(part, [(0, 0)] * (lead + 1) + [(start, 0)]))
    upper = jnp.concatenate(panels, axis=-2)
    rows = lax.broadcasted_iota(jnp.int32, upper.shape, upper.ndim - 2)
    columns = lax.broadcasted_iota(jnp.int32, upper.shape, upper.ndim - 1)
    return jnp.where(rows <= columns, upper, jnp.swapaxes(upper, -1, -2))


def _is_cut(x: Array) -> bool:
    """Whether features may be sharded, so that parts of them would travel."""
    return placement.left_to_compiler(x) or placement.spec_of(x)[-1] is not None


def product(left: Array, right: Array, lead: int) -> Array:
    """Products of [*lead, *rows, a] and [*lead, *rows, b] summed over rows."""
    rows = tuple(range(lead, left.ndim - 1))
    batch = tuple(range(lead))
    where = None
    if placement.explicit(left):
        spec = placement.spec_of(left)
        where = NamedSharding(
            placement.sharding(left).mesh,
            PartitionSpec(*spec[:lead], spec[-1], None),
        )
    return lax.dot_general(
        left,
        right,
        ((rows, rows), (batch, batch)),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=left.dtype,
        out_sharding=where,
    )


def by_group(met: Met, ends: Array) -> Array:
    """[groups, d, d]: Gram matrices of the rows of each group, one after another.

    Args:
        met: [rows, ..., d], without factors.
        ends: [groups] Where each group ends.
    """
    x = met.array
    count = jnp.arange(x.shape[0], dtype=ends.dtype)

    def of(group: tuple[Array, Array]) -> Array:
        own = (count >= group[0]) & (count < group[1])
        own = own.reshape(-1, *[1] * (x.ndim - 1))
        return gram(Met((), jnp.where(own, x, 0)))

    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])
    return lax.map(of, (starts, ends))


def wide(array: Array, weights: Array | None) -> Array:
    """Real rows times the roots of their weights; of complex ones, both parts."""
    array = jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], -1)
    array = _sums.real(array)
    if weights is None:
        return array
    rows = _sums.leading(weights, array)
    return jnp.where(rows > 0, jnp.sqrt(rows) * array, 0)
