"""Gram matrices of what a kernel meets, over its window and input axes together."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from maskjax._core import placement
from maskjax._core.axes import Axes
from maskjax._core.trees import Array
from maskjax._core.walk import _parts, _sums
from maskjax._core.walk._parts import Factors
from maskjax._core.walk._trails import STRANGE, Factor, Label
from maskjax._core.walk._values import Walk

# A large matrix is computed in panels, which are a multiple of so many rows: of 4, that
# are 5/8 of it. More would save little, and take longer to compile.
_LARGE, _PANELS, _LANES = 512, 4, 128


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


class Plan(NamedTuple):
    """How data are put in the order of a parameter's entries.

    Attributes:
        sizes: Into which lengths each axis of the data is split; `None` for rows, of
            which there may be any number.
        factors: Of the parameter along these, `None` along rows.
        single: Those that become the first axes, by number.
        rows: Those that are summed over.
        double: Those that become one axis, the last.
    """

    sizes: tuple[tuple[int, ...] | None, ...]
    factors: tuple[Factor | None, ...]
    single: tuple[int, ...]
    rows: tuple[int, ...]
    double: tuple[int, ...]

    def arranged(self, data: Array) -> Array:
        """[*single, *rows, d]."""
        axes = [*self.single, *self.rows, *self.double]
        known = [i for i, factor in enumerate(self.factors) if factor is not None]
        pairs = zip(self.sizes, data.shape, strict=True)
        data = placement.split(data, *((n,) if s is None else s for s, n in pairs))
        _, data = _sums.trimmed([self.factors[i] for i in known], data, known)  # type: ignore[misc]
        if axes != sorted(axes):
            data = data.transpose(axes)
        ones = [1] * (len(self.single) + len(self.rows))
        return placement.merge(data, *ones, len(self.double))

    def kept(self) -> list[Factor]:
        """The factors of the first axes."""
        return _forward(self.factors[i] for i in self.single)


def planned(
    rank: int, legs: Sequence[Leg], axes: Axes, whole: Sequence[int]
) -> Plan | str:
    """How to arrange data, or why that is not possible.

    Args:
        rank: How many axes the data have.
        legs: Those of its axes that entries of the parameter meet.
        axes: The roles of the parameter's axes.
        whole: The parameter's shape.
    """
    own = {leg.axis: leg for leg in legs}
    sizes, factors, kinds = [], [], []
    for axis in range(rank):
        leg = own.get(axis)
        label = (None,) if leg is None else leg.label
        sizes.append(None if leg is None else tuple(f.size for f in leg.label))
        factors += label
        kinds += [_kind(f, leg.how if leg else None, axes) for f in label]
    wrong = [kind for kind in kinds if kind not in ("single", "rows", "double")]
    if wrong:
        return wrong[0]

    def of(kind: str) -> tuple[int, ...]:
        found = [i for i, each in enumerate(kinds) if each == kind]
        if kind == "rows":
            return tuple(found)
        place = lambda i: (factors[i].axis, -abs(factors[i].stride))  # noqa: E731
        return tuple(sorted(found, key=place))

    plan = Plan(tuple(sizes), tuple(factors), of("single"), of("rows"), of("double"))
    met = _forward(factors[i] for i in plan.double)
    part = _parts.Part(tuple(met), frozenset(), (0,) * len(met))
    every = (*axes.window, *axes.inputs)
    return plan if all(part.covers(a, whole[a]) for a in every) else _APART


_APART = "meets different data along its inputs, which never meet together"


def _forward(factors: Iterable[Factor | None]) -> list[Factor]:
    """Factors as they are once an array is trimmed."""
    found = [f.reversed() if f.stride < 0 else f for f in factors if f is not None]
    return [f._replace(size=f.entries, low=0, high=0) for f in found]


def _kind(factor: Factor | None, how: str | None, axes: Axes) -> str:
    """What a factor of an axis of data is, or why it can't be any of it."""
    if factor is None:
        return "rows"
    if factor.axis == STRANGE:
        if how == "crossed" and factor.entries != 1:
            return "occurs more than once in one product"
        return "rows"
    if factor.axis in axes.stack:
        return "single"
    if factor.axis in axes.outputs:
        if how == "group" or factor.size == 1:
            return "single"
        return "meets different data along its outputs"
    return "double" if how == "crossed" or factor.size == 1 else _APART


class Data(NamedTuple):
    """What a parameter meets in a contraction.

    Attributes:
        held: The data themselves.
        key: Tells what is made of them, with their `id`.
        rank: How many axes what is made of them has.
        total: The sum of what a function of that gives, perhaps part by part.
    """

    held: Any
    key: Hashable
    rank: int
    total: Callable[[Callable[[Array], Array]], Array]


def rows_of(data: Any, weights: Array | None) -> Data:
    """Data as they are, with weights for their rows."""
    parts = jnp.issubdtype(data.dtype, jnp.complexfloating)  # as in `wide`
    rank = data.ndim + int(parts)
    return Data(data, id(data), rank, lambda make: make(wide(data, weights)))


def measured(
    data: Data,
    legs: Sequence[Leg],
    others: Iterable[Label],
    leaf: int,
    walk: Walk,
) -> tuple[Factors, Array, Hashable] | str:
    """The Gram matrices of what a parameter meets in a product; see `Measure`.

    Args:
        data: What it meets.
        legs: Axes of the data that entries of the parameter meet.
        others: The labels of all axes of the parameter's value that go out.
        leaf: The parameter's number.
        walk: The walk.
    """
    axes, shape = walk.axes[leaf], walk.shapes[leaf]
    plan = planned(data.rank, legs, axes, shape)
    if isinstance(plan, str):
        return plan
    source, lead = ("gram", data.key, plan), len(plan.single)
    # Kernels that meet the same data share a matrix.
    made = walk.found.once(
        source, data.held, lambda: data.total(lambda x: gram(plan.arranged(x), lead))
    )
    free = _forward(f for label in others for f in label if f.axis != STRANGE)
    # Of the window and inputs there are all entries, or there would be no plan.
    inputs = (*axes.window, *axes.inputs)
    free += [Factor(axis, shape[axis], 1) for axis in inputs]
    made = made.reshape(*made.shape[:lead], *[1] * len(free), *made.shape[lead:])
    return (*_sums.ordered([*plan.kept(), *free], made), source)


def gram(x: Array, lead: int) -> Array:
    """[*lead, d, d]: the sums of products of [*lead, *rows, d] over rows.

    Of the symmetric matrix little more than a half is computed, panel by panel.
    """
    d = x.shape[-1]
    if _is_cut(x):
        return product(x, x, lead)
    if d < _LARGE:
        return _symmetric(product(x, x, lead))
    width = -(-d // (_PANELS * _LANES)) * _LANES
    x = lax.optimization_barrier(x)  # or it would be computed anew for each panel
    starts = range(0, d, width)
    panels = []
    for start in starts:
        left = lax.slice_in_dim(x, start, min(start + width, d), axis=-1)
        panels.append(product(left, lax.slice_in_dim(x, start, d, axis=-1), lead))
    rows = []
    for i, start in enumerate(starts):
        above = [
            panel[..., start - first : start - first + width]
            for first, panel in zip(starts[:i], panels, strict=False)
        ]
        own, right = panels[i][..., :width], panels[i][..., width:]
        left = [jnp.swapaxes(part, -1, -2) for part in above]
        rows.append(jnp.concatenate([*left, _symmetric(own), right], axis=-1))
    return jnp.concatenate(rows, axis=-2)


def _symmetric(x: Array) -> Array:
    """A matrix whose upper half is on both sides."""
    rows = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 2)
    columns = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.where(rows <= columns, x, jnp.swapaxes(x, -1, -2))


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


def by_group(x: Array, ends: Array) -> Array:
    """[groups, d, d]: Gram matrices of the rows of each group, one after another.

    Args:
        x: [rows, ..., d].
        ends: [groups] Where each group ends; rows after the last are in none.
    """
    numbers = jnp.arange(x.shape[0], dtype=ends.dtype)
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])
    if placement.left_to_compiler(x) or placement.explicit(x):
        # Rows may be sharded: each group is summed over all of them.
        return lax.map(lambda own: _within(x, numbers, *own), (starts, ends))
    # Blocks of about as many rows as a group has, cut where a group ends.
    size = -(-x.shape[0] // len(ends))
    blocks = -(-x.shape[0] // size)
    x = jnp.pad(x, [(0, blocks * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    firsts = size * jnp.arange(blocks, dtype=ends.dtype)
    cuts = jnp.sort(jnp.concatenate([firsts, starts]))
    nexts = jnp.concatenate([cuts[1:], jnp.full(1, blocks * size, ends.dtype)])

    def add(total: Array, cut: tuple[Array, Array]) -> tuple[Array, None]:
        first = jnp.minimum(cut[0] // size, blocks - 1) * size
        block = lax.dynamic_slice_in_dim(x, first, size)
        group = jnp.searchsorted(ends, cut[0], side="right")  # past all groups: none
        end = jnp.minimum(cut[1], ends.at[group].get(mode="clip"))
        new = _within(block, first + numbers[:size], cut[0], end)
        return total.at[group].add(new, mode="drop"), None

    d = x.shape[-1]
    zeros = placement.vary_like(jnp.zeros((len(ends), d, d), x.dtype), x, ends)
    return lax.scan(add, zeros, (cuts, nexts))[0]


def _within(x: Array, numbers: Array, start: Array, end: Array) -> Array:
    """The Gram matrix of the rows whose numbers are in a range."""
    own = ((numbers >= start) & (numbers < end)).reshape(-1, *[1] * (x.ndim - 1))
    return gram(jnp.where(own, x, 0), 0)


def wide(array: Array, weights: Array | None) -> Array:
    """Real rows times the roots of their weights; of complex ones, both parts."""
    array = jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], -1)
    array = _sums.real(array)
    if weights is None:
        return array
    rows = _sums.leading(weights, array)
    return jnp.where(rows != 0, jnp.sqrt(rows) * array, 0)
