"""What the parameters in a contraction meet: squares, or Gram matrices, of data."""

import itertools
import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maskjax._core import placement
from maskjax._core.trees import Array
from maskjax._core.walk import _grams, _sums, _windows
from maskjax._core.walk._grams import Leg
from maskjax._core.walk._parts import Factors
from maskjax._core.walk._sums import Measure
from maskjax._core.walk._trails import Factor, Label
from maskjax._core.walk._values import Value, Walk

_Measured = tuple[Factors, Array, Hashable] | str


def product(
    own: Value,
    other: Value,
    pairs: dict[int, int],
    crossed: set[int],
    walk: Walk,
) -> Measure:
    """What the parameters in an operand of a product meet.

    Args:
        own: The operand.
        other: The data.
        pairs: Axes of the operand, and axes of the data that they meet.
        crossed: Those of them that are contracted.
        walk: The walk.
    """
    data = other.array
    weights = _weights(own, data.shape, pairs.values(), walk)
    if walk.mode == "squares":
        kept = sorted(pairs.values())
        places = {axis: place for place, axis in pairs.items()}
        return _squared(
            ("squares", id(data), *kept),
            data,
            lambda: _sums.summed(_sums.squares(data, weights), kept),
            [places[axis] for axis in kept],
            walk,
        )

    def measure(leaf: int, axes: Sequence[Label]) -> _Measured:
        legs = [
            Leg(axes[axis], place, "crossed" if axis in crossed else "each")
            for axis, place in pairs.items()
        ]
        free = [label for axis, label in enumerate(axes) if axis not in pairs]
        return _grams.measured(_grams.rows_of(data, weights), legs, free, leaf, walk)

    return measure


def _squared(
    key: Hashable,
    data: Array,
    make: Callable[[], Array],
    places: Sequence[int],
    walk: Walk,
) -> Measure:
    """Sums of squares, made of data once.

    Args:
        key: As of `Found.once`.
        data: The data.
        make: Makes the sums.
        places: For each of their axes the axis of the parameter's value that it is.
        walk: The walk.
    """
    sums = walk.found.once(key, data, make)

    def measure(leaf: int, axes: Sequence[Label]) -> _Measured:
        met = _sums.placed(sums, places, len(axes))
        source = (key, *(axes[place] for place in places))
        return (*_sums.along(met, axes), source)

    return measure


def ragged(equation: Any, own: int, ins: list[Value], walk: Walk) -> Measure | str:
    """What the rows of each group of a ragged product meet."""
    params = equation.params["ragged_dot_dimension_numbers"]
    (contracted, batch), groups = (
        params.dot_dimension_numbers,
        params.rhs_group_dimensions,
    )
    (rows,) = params.lhs_ragged_dimensions
    why = f"goes into {equation.primitive.name}"
    if not own or not groups or any(batch[0]) or rows in contracted[0]:
        return why
    data, ends = ins[0].array, jnp.cumsum(ins[2].array)
    weights = _weights(ins[1], data.shape, contracted[0], walk)
    if walk.mode == "squares":

        def make() -> Array:
            squares = _sums.squares(data, weights)
            squares = _sums.summed(squares, [rows, *contracted[0]])
            count = jnp.arange(squares.shape[0], dtype=ends.dtype)
            group = jnp.searchsorted(ends, count, side="right")  # past all: none
            return jax.ops.segment_sum(squares, group, len(ends))

        key = ("ragged", id(data), id(ins[2].array), rows, *contracted[0])
        return _squared(key, data, make, [*groups, *contracted[1]], walk)
    data = jnp.moveaxis(_grams.wide(data, weights), rows, 0)

    def measure(leaf: int, axes: Sequence[Label]) -> _Measured:
        legs = [
            Leg(axes[axis], place + (place < rows), "crossed")
            for axis, place in zip(contracted[1], contracted[0], strict=True)
        ]
        roles, label = walk.axes[leaf], axes[groups[0]]
        plan = _grams.planned(data.ndim, legs, roles, walk.shapes[leaf])
        if isinstance(plan, str) or plan.single:
            return plan if isinstance(plan, str) else why
        if any(factor.axis not in roles.stack for factor in label):
            return why
        grams = _grams.by_group(plan.arranged(data), ends)
        met = (*groups, *contracted[1])
        free = [f for i, each in enumerate(axes) if i not in met for f in each]
        free += [
            Factor(a, walk.shapes[leaf][a], 1) for a in (*roles.window, *roles.inputs)
        ]
        lengths = *[f.size for f in label], *[1] * len(free)
        grams = grams.reshape(*lengths, *grams.shape[1:])
        return (*_sums.ordered([*label, *free], grams), object())

    return measure


def convolution(
    equation: Any, kernel: Value, image: Value, walk: Walk
) -> Measure | str:
    """What each entry of a convolution's kernel meets, place by place of its window.

    Outputs come group by group, and each meets its group's inputs.
    """
    params = equation.params
    if params["batch_group_count"] != 1:
        return "is the kernel of a convolution in groups of the batch"
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    outputs, inputs, *window = numbers.rhs_spec
    batch, features, *places = numbers.lhs_spec
    data = image.array
    weights = _weights(kernel, data.shape, [features], walk)
    order = [batch, *places, features]
    names = "window_strides padding lhs_dilation rhs_dilation".split()
    key = (id(data), numbers, groups, *(tuple(params[name]) for name in names))
    key = (*key, tuple(equation.invars[1].aval.shape[axis] for axis in window))
    if walk.mode == "squares":

        def make() -> Array:
            squares = _sums.squares(data, weights).transpose(order).sum(0)
            squares = _windows.padded(equation, squares, batch=False)
            met = _windows.shifted(equation, squares, batch=False)
            return _by_group(met.sum(tuple(range(len(places)))), groups)

        return _squared(key, data, make, [*window, outputs, inputs], walk)
    if jnp.issubdtype(data.dtype, jnp.complexfloating):
        return "meets complex numbers in a convolution"

    def total(reduce: Callable[[Array], Array]) -> Array:
        moved = _grams.wide(data, weights).transpose(order)
        moved = _windows.padded(equation, moved)
        of = lambda x: reduce(_by_group(x, groups))  # noqa: E731
        return _windows.total(equation, moved, of)

    lead = 1 + len(places)
    patches = _grams.Data(data, ("patches", key), lead + len(window) + 2, total)

    def measure(leaf: int, axes: Sequence[Label]) -> _Measured:
        label = _sums.grouped(axes[outputs], groups)
        if groups > 1 and any(f.cut and f.axis >= 0 for f in label):
            return "is cut along the outputs of a convolution in groups"
        sizes = [1, *itertools.accumulate((f.size for f in label), operator.mul)]
        first, free = label[: sizes.index(groups)], label[sizes.index(groups) :]
        legs = [
            Leg(axes[axis], lead + i, "crossed")
            for i, axis in enumerate([*window, outputs, inputs])
            if axis != outputs
        ]
        legs.append(Leg(first, lead + len(window), "group"))
        return _grams.measured(patches, legs, [free], leaf, walk)

    return measure


def _by_group(array: Array, groups: int) -> Array:
    """The last axis, of features, as [groups, features of one]."""
    *lengths, n = array.shape
    return placement.split(array, *[(n,) for n in lengths], (groups, n // groups))


def _weights(
    own: Value, shape: Sequence[int], kept: Iterable[int], walk: Walk
) -> Array | None:
    """The weights of the rows of data, if they fit the axes that are summed over."""
    weights = walk.weights
    if weights is not None:
        rows = len(weights.shape)
        if tuple(shape[:rows]) != weights.shape or any(axis < rows for axis in kept):
            walk.found.misfits.update(dict.fromkeys(own.leaves, tuple(shape)))
            return None
    return weights
