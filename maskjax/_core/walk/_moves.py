"""How primitives move the axes of a value.

A rule takes the primitive's parameters, the shapes before and after, and the labels
before. It returns the labels after, or `None` where they are lost.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from maskjax._core.walk._trails import (
    STRANGE,
    Factor,
    Label,
    Trail,
    anywhere,
    part,
    reshaped,
    sized,
    strange,
    within,
)

Labels = tuple[Label, ...]
Shape = tuple[int, ...]


def moved(equation: Any, shape: Shape, trail: Trail, place: int, out: int = 0) -> Trail:
    """Where an equation puts the axes of an operand.

    Args:
        equation: Of a jaxpr.
        shape: The operand's.
        trail: The operand's.
        place: Which operand it is.
        out: Which of the outputs is asked for.
    """
    name, after = equation.primitive.name, equation.outvars[out].aval.shape
    found, axes = None, trail.axes
    if axes is not None and not (place and name in _FIRST):
        if name == "unstack":  # as a slice, then a squeeze
            axis = equation.params["axis"]
            one = part(axes[axis], out, 1) or sized(axes[axis], 1) or ()
            trail = _settled(trail, (*axes[:axis], one, *axes[axis + 1 :]), name)
            found = (*axes[:axis], *axes[axis + 1 :])
        elif name == "stack":
            axis, n = equation.params["axis"], len(equation.invars)
            new = (Factor(STRANGE, 1, 0).within(place, n),)
            found = (*axes[:axis], new, *axes[axis:])
        elif name in CUTS:
            found = _cut(equation, shape, after, axes, place, out)
        elif name in MOVES:
            found = MOVES[name](equation.params, shape, after, axes)
    if found is None and math.prod(after) == 1:  # there are no axes to tell apart
        found = tuple(() for _ in after)
    if found is None:
        return trail._replace(axes=None, lost=trail.lost or name)
    collapsed = ()
    if name == "gather":
        collapsed = equation.params["dimension_numbers"].collapsed_slice_dims
    return _settled(trail, found, name, collapsed)


def _settled(
    trail: Trail, found: Labels, name: str, collapsed: Sequence[int] = ()
) -> Trail:
    """A trail with other labels.

    Args:
        trail: Before.
        found: The labels.
        name: Of the primitive.
        collapsed: Axes of which one index was taken.
    """
    lost, gone, at = trail.lost, trail.gone, dict(trail.at)
    if trail.axes is not None:
        for axis, start in _indexed(trail.axes, found):
            at[axis] = at.get(axis, 0) + start
        left = {factor.axis for label in found for factor in label}
        taken = {axis for axis in _taken(trail.axes, collapsed) if axis not in left}
        gone |= {("stack", axis) for axis in taken}
    cut = any(f.axis != STRANGE and not f.stride for label in found for f in label)
    if lost is None and (cut or name not in EXACT):
        lost = name
    return Trail(found, gone, lost, trail.product, frozenset(at.items()))


def moves(name: str) -> bool:
    """Whether it is known how a primitive moves axes."""
    return name in MOVES or name in CUTS or name in _STACKS


def _indexed(before: Labels, after: Labels) -> Iterator[tuple[int, int]]:
    """Parts of length 1 that are gone: the axis, and how far along it they were."""
    left = {(f.axis, f.start) for label in after for f in label if f.size == 1}
    for label in before:
        for factor in label:
            pair = (factor.axis, factor.start)
            if factor.size == 1 and factor.start and pair not in left:
                yield pair


def _taken(axes: Labels, collapsed: Sequence[int]) -> Iterator[int]:
    """The parameter's axes of which one index was taken, so that they may vanish."""
    for i, label in enumerate(axes):
        for factor in label:
            if factor.axis != STRANGE:
                if i in collapsed or (factor.size == 1 and factor.cut):
                    yield factor.axis


def _elementwise(_: Any, shape: Shape, out: Shape, axes: Labels) -> Labels:
    if shape == out:
        return axes
    if not shape:  # a scalar meets every entry
        return tuple(strange(n) for n in out)
    return _spread(axes, shape, out, range(len(out)))


def _spread(axes: Labels, shape: Shape, out: Shape, places: Any) -> Labels:
    found = [strange(n) for n in out]
    for label, length, place in zip(axes, shape, places, strict=True):
        if length == out[place]:
            found[place] = label
    return tuple(found)


def _broadcast(params: Any, shape: Shape, out: Shape, axes: Labels) -> Labels:
    return _spread(axes, shape, out, params["broadcast_dimensions"])


def _transpose(params: Any, shape: Shape, out: Shape, axes: Labels) -> Labels:
    return tuple(axes[i] for i in params["permutation"])


def _squeeze(params: Any, shape: Shape, out: Shape, axes: Labels) -> Labels:
    return tuple(a for i, a in enumerate(axes) if i not in params["dimensions"])


def _reshape(params: Any, shape: Shape, out: Shape, axes: Labels) -> Labels | None:
    order = params["dimensions"]  # `jax.vmap` of a convolution transposes first
    if order is not None:
        return reshaped([axes[i] for i in order], out)
    return axes if shape == out else reshaped(axes, out)


def _reverse(params: Any, shape: Shape, out: Shape, axes: Labels) -> Labels:
    return tuple(
        tuple(f.reversed() for f in label) if i in params["dimensions"] else label
        for i, label in enumerate(axes)
    )


def _reduce(params: Any, shape: Shape, out: Shape, axes: Labels) -> Labels:
    return tuple(a for i, a in enumerate(axes) if i not in params["axes"])


def _cut(
    equation: Any, shape: Shape, after: Shape, axes: Labels, place: int, out: int
) -> Labels | None:
    """Parts of axes, or more than they were; the ranks are the same."""
    found: list[Label | None] = []
    name = equation.primitive.name
    spans = CUTS[name](equation, place, out)
    for axis, label in enumerate(axes):
        span, size = spans[axis], after[axis]
        exact = label
        if span is None:
            exact = None
        elif span.longer:
            exact = within(label, span.start, size)
        elif size != shape[axis]:
            exact = part(label, span.start, size, span.step)
        if exact is None:
            exact = label if size == shape[axis] else sized(label, size)
            if exact is not None and name in ("concatenate", "pad"):
                exact = anywhere(exact)
        found.append(exact)
    return None if None in found else tuple(found)  # type: ignore[return-value]


class Span(NamedTuple):
    """The places of an axis that a value gets, or that a value gives to it."""

    start: int = 0
    step: int = 1
    longer: bool = False


Spans = list[Span | None]  # for each axis; `None` if they are not known


def _of_slice(equation: Any, place: int, out: int) -> Spans:
    params = equation.params
    steps = params["strides"] or [1] * len(params["start_indices"])
    return [Span(*pair) for pair in zip(params["start_indices"], steps, strict=True)]


def _of_split(equation: Any, place: int, out: int) -> Spans:
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    spans: Spans = [Span()] * equation.outvars[out].aval.ndim
    spans[axis] = Span(int(sum(sizes[:out])))
    return spans


def _of_dynamic_slice(equation: Any, place: int, out: int) -> Spans:
    whole, sizes = equation.invars[0].aval.shape, equation.params["slice_sizes"]
    spans: Spans = []
    for start, n, size in zip(equation.invars[1:], whole, sizes, strict=True):
        if n == size:
            spans.append(Span())
        elif hasattr(start, "val"):
            spans.append(Span(min(max(int(start.val), 0), n - size)))
        else:
            spans.append(None)
    return spans


def _of_concatenate(equation: Any, place: int, out: int) -> Spans:
    axis = equation.params["dimension"]
    before = (atom.aval.shape[axis] for atom in equation.invars[:place])
    spans: Spans = [Span()] * equation.outvars[out].aval.ndim
    spans[axis] = Span(sum(before), longer=True)
    return spans


def _of_pad(equation: Any, place: int, out: int) -> Spans:
    return [
        Span(low, longer=bool(low or high))
        if not inner and min(low, high) >= 0
        else None
        for low, high, inner in equation.params["padding_config"]
    ]


CUTS: dict[str, Callable[[Any, int, int], Spans]] = {
    "concatenate": _of_concatenate,
    "dynamic_slice": _of_dynamic_slice,
    "pad": _of_pad,
    "slice": _of_slice,
    "split": _of_split,
}


def _top(params: Any, shape: Shape, out: Shape, axes: Labels) -> Labels | None:
    axis = params.get("axis", len(out) - 1)
    label = axes[axis] if shape[axis] == out[axis] else sized(axes[axis], out[axis])
    return (
        None
        if label is None
        else _mixed(axes[:axis] + (label,) + axes[axis + 1 :], axis)
    )


def _all_gather(params: Any, shape: Shape, out: Shape, axes: Labels) -> Labels | None:
    axis = params["all_gather_dimension"]
    if params["tiled"]:
        label = sized(axes[axis], out[axis])
        return (
            None
            if label is None
            else (*axes[:axis], anywhere(label), *axes[axis + 1 :])
        )
    return (*axes[:axis], strange(out[axis]), *axes[axis:])


def _along(params: Any, shape: Shape, out: Shape, axes: Labels) -> Labels | None:
    """Entries are mixed or moved along an axis."""
    if len(shape) != len(out):
        return None
    axis = params.get("axis", params.get("dimension", len(out) - 1))
    return _mixed(axes, axis)


def _mixed(axes: Labels | None, axis: int) -> Labels | None:
    if axes is None:
        return None
    return tuple(
        anywhere(label) if i == axis else label for i, label in enumerate(axes)
    )


def _gather(params: Any, shape: Shape, out: Shape, axes: Labels) -> Labels | None:
    """Rows that are looked up run along the indices' axes."""
    numbers = params["dimension_numbers"]
    batch = [i for i in range(len(out)) if i not in numbers.offset_dims]
    found: list[Label | None] = [strange(n) for n in out]
    inside = iter(numbers.offset_dims)
    for axis, length in enumerate(params["slice_sizes"]):
        label: Label | None = axes[axis]
        if axis in numbers.operand_batching_dims:
            which = numbers.operand_batching_dims.index(axis)
            # The last axis of the indices is no axis of the output.
            place = batch[numbers.start_indices_batching_dims[which]]
            found[place] = anywhere(axes[axis])
        elif axis in numbers.collapsed_slice_dims:
            if len(label) == 1:
                for place in batch:
                    found[place] = (Factor(label[0].axis, out[place], 0, cut=True),)
        else:
            if length != shape[axis]:
                label = sized(axes[axis], length)
            found[next(inside)] = label
    return None if None in found else tuple(found)  # type: ignore[return-value]


def _scatter(_: Any, shape: Shape, out: Shape, axes: Labels) -> Labels:
    return tuple(anywhere(label) for label in axes)


# Operands after the first are indices, or what is put in.
_FIRST = "gather dynamic_slice scatter scatter_add dynamic_update_slice pad".split()
_ELEMENTWISE = (
    "abs acos acosh add add_any and asin asinh atan atan2 atanh "
    "bitcast_convert_type cbrt ceil clamp clz conj convert_element_type copy copy_p "
    "cos cosh device_put digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt "
    "imag integer_pow is_finite le lgamma log log1p logistic lt max mesh_cast min mul "
    "name ne neg nextafter not optimization_barrier or population_count pow psum "
    "psum_invariant pvary real reduce_precision rem round rsqrt select_n "
    "sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign "
    "sin sinh sqrt square stop_gradient sub tan tanh xor"
).split()
_SHAPES = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "rev": _reverse,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
_STACKS = ("stack", "unstack")
# After these, labels tell where each entry is.
EXACT = frozenset([*_ELEMENTWISE, *_SHAPES, *CUTS, *_STACKS])

MOVES: dict[str, Callable[[Any, Shape, Shape, Labels], Labels | None]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **_SHAPES,
    **dict.fromkeys(
        "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod "
        "reduce_sum reduce_xor".split(),
        _reduce,
    ),
    **dict.fromkeys("cumlogsumexp cummax cummin cumprod cumsum sort".split(), _along),
    **dict.fromkeys(["dynamic_update_slice", "scatter", "scatter_add"], _scatter),
    **dict.fromkeys(["all_gather", "all_gather_invariant"], _all_gather),
    "gather": _gather,
    "top_k": _top,
}
