"""Contractions: what the parameters in each operand meet, and in which roles."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from maskjax._core.walk import _measures, _sums
from maskjax._core.walk._sums import Measure
from maskjax._core.walk._trails import (
    STRANGE,
    Factor,
    Label,
    Trail,
    merged,
    strange,
)
from maskjax._core.walk._values import Found, Meeting, Value, Walk

# For each axis of an operand its role; a list has one for each factor of the axis.
Roles = list[str] | list[str | list[str]]


def dot(equation: Any, ins: list[Value], walk: Walk) -> dict[int, Trail]:
    """`dot_general`, and `ragged_dot_general` as one product for each row."""
    numbers, groups = equation.params.get("dimension_numbers"), ()
    if numbers is None:
        ragged = equation.params["ragged_dot_dimension_numbers"]
        numbers, groups = ragged.dot_dimension_numbers, ragged.rhs_group_dimensions
    contracted, batch = numbers
    shapes = [atom.aval.shape for atom in equation.invars]
    lengths = [shapes[0][axis] for axis in contracted[0]]
    flops = 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lengths)
    for own, other in ((0, 1), (1, 0)):
        roles: Roles = ["outputs"] * len(shapes[own])
        for axis in contracted[own]:
            roles[axis] = "inputs"
        for axis in (*batch[own], *(groups if own else ())):
            roles[axis] = "stack"
        met: Measure | str | None = None
        if walk.evaluates and ins[own].leaves and ins[other].data:
            if len(ins) == 2:
                pairs = {
                    **dict(zip(batch[own], batch[other], strict=True)),
                    **dict(zip(contracted[own], contracted[other], strict=True)),
                }
                crossed = set(contracted[own])
                met = _measures.product(ins[own], ins[other], pairs, crossed, walk)
            else:
                met = _measures.ragged(equation, own, ins, walk)
        unknown = ambiguous(equation, len(shapes[own])) if ins[other].data else None
        each = dict.fromkeys(ins[own].leaves, roles)
        _note(ins[own], ins[other], each, met, flops, unknown, walk)
    if len(ins) > 2 or walk.evaluates:
        return {}
    return _product(ins, contracted, batch, shapes)


def convolution(equation: Any, ins: list[Value], walk: Walk) -> dict[int, Trail]:
    """`conv_general_dilated`: the kernel slides over the image."""
    image, kernel = ins
    numbers, flops = equation.params["dimension_numbers"], _convolution_flops(equation)
    outputs, inputs, *_ = numbers.rhs_spec
    met: Measure | str | None = None
    if walk.evaluates and kernel.leaves and image.data:
        met = _measures.convolution(equation, kernel, image, walk)
    roles: list[Any] = ["window"] * len(numbers.rhs_spec)
    roles[inputs], roles[outputs] = "inputs", "outputs"
    groups = equation.params["feature_group_count"]
    each = {leaf: list(roles) for leaf in kernel.leaves}
    for leaf, trail in kernel.leaves.items():
        if trail.axes is not None:
            out = _groups(trail.axes[outputs], groups, walk.shapes[leaf])
            each[leaf][outputs] = out
    _note(kernel, image, each, met, flops, None, walk)
    why = "is the image of a convolution"
    met = why if walk.evaluates and kernel.data else None
    none = dict.fromkeys(image.leaves, [])
    _note(image, kernel, none, met, flops, why, walk)
    if walk.evaluates:
        return {}
    return {
        leaf: trail._replace(axes=None, lost=equation.primitive.name, product=True)
        for value in ins
        for leaf, trail in value.leaves.items()
    }


def _groups(label: Label, groups: int, shape: Sequence[int]) -> list[str]:
    """The roles of the factors of a kernel's outputs.

    `jax.vmap` of a convolution is one convolution, with a group for each member.
    """
    roles = ["outputs"] * len(label)
    for i, factor in enumerate(label[:-1]):
        own = factor.axis != STRANGE and factor.size == shape[factor.axis]
        if not own or groups % factor.size:
            break
        roles[i] = "stack"
        groups //= factor.size
    return roles


def _convolution_flops(equation: Any) -> int:
    numbers = equation.params["dimension_numbers"]
    image, kernel = (atom.aval.shape for atom in equation.invars)
    out = equation.outvars[0].aval.shape
    # A transposed convolution puts zeros between pixels, which are not counted.
    spatial = zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)
    positions = (
        image[i] if dilation > 1 else out[o]
        for (i, o), dilation in zip(
            spatial, equation.params["lhs_dilation"], strict=True
        )
    )
    return 2 * out[numbers.out_spec[0]] * math.prod(positions) * math.prod(kernel)


CONTRACTIONS = {
    "conv_general_dilated": convolution,
    "dot_general": dot,
    "ragged_dot_general": dot,
}


def ambiguous(equation: Any, rank: int) -> str | None:
    """Why an operand's roles depend on the order in which an einsum is done, if so.

    In `einsum("bi,ij,bj->b", x, w, y)` both axes of w meet data.
    """
    for scope in equation.source_info.name_stack.stack:
        terms, arrow, out = scope.name.partition("->")
        if not arrow or terms.count(",") < 2:
            continue
        words = terms.split(",")
        for i, word in enumerate(words):
            partners = {
                j
                for letter in set(word) - set(out)
                for j, other in enumerate(words)
                if j != i and letter in other
            }
            if len(word) == rank and len(partners) > 1:
                return f"is between two operands in einsum {scope.name!r}"
    return None


def _product(
    ins: list[Value], contracted: Any, batch: Any, shapes: Any
) -> dict[int, Trail]:
    """What a product of parameters is made of, where no data meets them."""
    leaves: dict[int, Trail] = {}
    free = [
        [i for i in range(len(shape)) if i not in (*contracted[k], *batch[k])]
        for k, shape in enumerate(shapes)
    ]
    for own, other in ((0, 1), (1, 0)):
        alien = tuple(strange(shapes[other][i]) for i in free[other])
        for leaf, trail in ins[own].leaves.items():
            axes, gone = None, trail.gone
            if trail.axes is not None:
                mine = tuple(trail.axes[i] for i in free[own])
                both = tuple(trail.axes[i] for i in batch[own])
                axes = (*both, *mine, *alien) if own == 0 else (*both, *alien, *mine)
                labels = [trail.axes[i] for i in contracted[own]]
                gone |= {("product", f.axis) for x in labels for f in x}
            lost = trail.lost or "dot_general"
            new = Trail(axes, gone - {("product", STRANGE)}, lost, True)
            known = leaves.get(leaf)
            leaves[leaf] = merged(known, new, "dot_general") if known else new
    return leaves


# Notes.


def _note(
    value: Value,
    other: Value,
    roles: Mapping[int, Sequence[Any]],
    met: Measure | str | None,
    flops: int,
    unknown: str | None,
    walk: Walk,
) -> None:
    """Note what an operand meets: roles and sums along its axes, or no data."""
    found = walk.found
    if met is not None and not isinstance(met, str):
        _sums.add(value, met, walk)
    if walk.mode == "roles":
        _met(value, other, roles, unknown, found)
        return
    for leaf, trail in value.leaves.items():
        if walk.mode == "flops" and not trail.product:
            if walk.inside:
                found.obstacles[leaf] = f"goes into {walk.inside}"
            found.flops[leaf] = found.flops.get(leaf, 0) + walk.times * flops
        elif walk.evaluates:
            if met is None:
                found.ends[leaf] = "meets no data"
            elif isinstance(met, str):
                found.obstacles[leaf] = met


def _met(
    value: Value,
    other: Value,
    roles: Mapping[int, Sequence[Any]],
    unknown: str | None,
    found: Found,
) -> None:
    """Note the roles that the parameters in an operand have in a contraction."""
    partial = any(trail.partial for trail in value.leaves.values())
    whole = frozenset(
        leaf
        for leaf, trail in value.leaves.items()
        if _is_whole(trail, roles[leaf], partial=partial)
    )
    for leaf, trail in value.leaves.items():
        if _scales(trail, roles[leaf], partial=partial):
            if other.data:
                found.touched.add((leaf, trail, "broadcast_in_dim"))
            continue
        meeting = _meeting(leaf, trail, roles[leaf], unknown, whole)
        if not other.data:
            if not value.data:
                found.products.add((meeting, bool(other.leaves)))
        # Rows that data chooses are kernels where they are contracted and have
        # outputs, as experts do, and data elsewhere.
        elif not value.data or {"inputs", "outputs"} <= {r for _, r in meeting.roles}:
            found.meetings.add(meeting)


def _free(trail: Trail, roles: Sequence[Any]) -> list[Factor]:
    """The factors of the axes that go out."""
    return [
        factor
        for label, role in zip(trail.axes or (), roles, strict=False)
        for factor in label
        if "outputs" in role
    ]


def _is_whole(trail: Trail, roles: Sequence[Any], *, partial: bool) -> bool:
    """Whether a parameter is there as it is, along all that goes out.

    Of a single output it has no axis, unless a product with other parameters is there.
    """
    if trail.axes is None or trail.product or not roles:
        return False
    every = [factor for label in trail.axes for factor in label]
    free = bool(_free(trail, roles)) or not partial and _is_single(trail, roles)
    return free and all(f.axis != STRANGE for f in every)


def _is_single(trail: Trail, roles: Sequence[Any]) -> bool:
    """Whether nothing goes out but one number."""
    return all(factor.size == 1 for factor in _free(trail, roles))


def _scales(trail: Trail, roles: Sequence[Any], *, partial: bool) -> bool:
    """Whether all outputs share the entries: a scale or bias of what comes in.

    Beside a product with other parameters it also is one if there is a single output.
    """
    if trail.axes is None or trail.product:
        return False
    free = _free(trail, roles)
    return bool(free or partial) and all(factor.axis == STRANGE for factor in free)


def _meeting(
    leaf: int,
    trail: Trail,
    roles: Sequence[Any],
    unknown: str | None,
    whole: frozenset[int],
) -> Meeting:
    partial, beside, rows = trail.partial, whole - {leaf}, trail.lost == "gather"
    if unknown or trail.axes is None:
        why = unknown or f"loses its axes in {trail.lost}"
        return Meeting(leaf, frozenset(), trail.gone, why, partial, beside, rows)
    pairs = []
    for label, role in zip(trail.axes, roles, strict=True):
        each = [role] * len(label) if isinstance(role, str) else role
        pairs += [(f.axis, r) for f, r in zip(label, each, strict=True)]
    own = frozenset(pair for pair in pairs if pair[0] != STRANGE)
    return Meeting(leaf, own, trail.gone, None, partial, beside, rows)
