"""What a parameter's axes are, from what it met on the walk."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from maskjax._core import axes as _axes
from maskjax._core import checks, names
from maskjax._core.axes import ROLES, Axes, Clash, Told
from maskjax._core.walk._trails import Trail
from maskjax._core.walk._values import Found, Meeting

_COMES_IN = ("inputs", "window")
_PART = "it meets data only as a part of other parameters"
_FOLDED = "folded"
_MULTIPLICATIONS = ("mul", "select_n", "and", "div")


class Answer(NamedTuple):
    """Whether a leaf is a kernel, and the roles of its axes or why they are unknown."""

    kernel: bool
    told: Told


class _Notes(NamedTuple):
    """What was found about one leaf; as in `Found`."""

    meetings: list[Meeting]
    products: list[tuple[Meeting, bool]]
    touched: list[tuple[Trail, str]]


def answers(
    found: Found,
    named: Sequence[tuple[str, Any]],
    *,
    fn: str,
    every_kernel: bool,
) -> list[Answer]:
    """The answer for each leaf.

    Raises:
        ValueError: With `every_kernel`, if a leaf that is called `kernel` is in no
            contraction, or all that are in one meet constants there.
    """
    notes = [_Notes([], [], []) for _ in named]
    for meeting in found.meetings:
        notes[meeting.leaf].meetings.append(meeting)
    for product in found.products:
        notes[product[0].leaf].products.append(product)
    for i, trail, name in found.touched:
        notes[i].touched.append((trail, name))
    kernels = {i for i, (path, leaf) in enumerate(named) if _axes.is_kernel(path, leaf)}
    kinds = [_kind(path, leaf) for path, leaf in named]
    layers = {i for i, kind in enumerate(kinds) if kind in ("layer", "")}
    out, lines = [], []
    for i, (path, leaf) in enumerate(named):
        own = notes[i]
        if kinds[i] == "other" and path.split("/")[-1] != "kernel":
            own = _without_scalings(own, layers)
        if not checks.shaped(leaf):
            out.append(Answer(False, "it is no array"))
        elif own.meetings:
            out.append(_contracted(path, leaf, own, kernels))
        else:
            out.append(Answer(False, _touched(leaf, own)))
            wrong = not (own.products and found.meetings)
            # Some call the scale of a normalization so.
            scale = own.touched and names.is_normalization(path)
            if wrong and not scale and path.split("/")[-1] == "kernel":
                lines.append(f"{path}: {_absence(own)}")
    if lines and every_kernel:
        raise checks.listing(
            lines,
            f"`{fn}` needs every leaf called `kernel` to meet `inputs` in a dot "
            "product or convolution",
        )
    return out


def _absence(own: _Notes) -> str:
    """Why a kernel is in no contraction with data."""
    if own.products:
        return "meets constants only (pass all that it meets in `inputs`)"
    if not own.touched:
        return "never meets data (pass all that it meets in `inputs`)"
    names = sorted({name for _, name in own.touched})
    if any(name in _MULTIPLICATIONS for name in names):
        return (
            "meets an input by multiplication only (pass masks and keys by closure, "
            "as constants)"
        )
    return f"meets data in {', '.join(names)} only"


def _kind(path: str, leaf: Any) -> names.Kind | None:
    return names.kind_of(path, leaf.shape) if checks.shaped(leaf) else None


def _without_scalings(own: _Notes, layers: set[int]) -> _Notes:
    """The notes about a scale or bias, without those of kernels that it is folded into.

    In `x @ (scale[:, None] * w)` with one output both factors look alike.
    """
    folded = {
        meeting
        for meeting in own.meetings
        if not meeting.partial and meeting.beside & layers
    }
    left = [meeting for meeting in own.meetings if meeting not in folded]
    touched = [(Trail(None, meeting.gone), _FOLDED) for meeting in folded]
    return own._replace(meetings=left, touched=[*own.touched, *touched])


def _touched(leaf: Any, own: _Notes) -> Told:
    """The axes of a leaf that meets data, but not in a contraction."""
    touched, rank = own.touched, len(leaf.shape)
    looked = {axis for t, n in touched if n == "lookup" for axis in _gone(t, "lookup")}
    stack = {axis for t, _ in touched for axis in _gone(t, "stack")} - looked
    rest = tuple(axis for axis in range(rank) if axis not in (looked | stack))
    if looked:
        roles = {"stack": tuple(sorted(stack)), "inputs": tuple(sorted(looked))}
        return Axes(**roles, outputs=rest, lookup=True, source="traced")
    if touched and len(rest) < 2:
        return Axes(stack=tuple(sorted(stack)), outputs=rest, source="traced")
    if any(name == _FOLDED for _, name in touched):
        return "it is a scale or bias of a kernel"
    if own.products:
        return "it is contracted with constants and other parameters only"
    return "it meets data in no contraction" if touched else "it never meets data"


def _gone(trail: Any, how: str) -> set[int]:
    return {axis for role, axis in trail.gone if role == how and axis >= 0}


def _contracted(path: str, leaf: Any, own: _Notes, kernels: set[int]) -> Answer:
    """The axes of a leaf that meets data in contractions."""
    looked = any(name == "lookup" and _gone(trail, name) for trail, name in own.touched)
    chosen = any(how == "lookup" for m in own.meetings for how, _ in m.gone)
    kind = names.kind_of(path, leaf.shape)
    # A tied embedding is a kernel elsewhere, as the head whose labels choose columns.
    if looked and not chosen and kind != "layer":
        return Answer(False, _touched(leaf, own))
    maskable = checks.is_inexact(leaf) or _axes.is_kernel(path, leaf)
    whole = [meeting for meeting in own.meetings if not meeting.partial]
    if not whole:
        kernel, told = _factor(path, leaf, own, kernels)
        return Answer(kernel and maskable, told)
    if kind == "table" and all(meeting.rows for meeting in whole):
        return Answer(False, "by its name it is a table, and constants choose its rows")
    unknown = sorted({m.unknown for m in whole if m.unknown})
    if unknown:  # nor is it known whether it is a bias there: its name decides
        return Answer(_axes.is_kernel(path, leaf), f"it {unknown[0]}")
    told = _told(leaf, whole)
    roles = [role for m in whole for _, role in m.roles]
    kernel = bool(told.inputs) if isinstance(told, Axes) else {*roles} & {*_COMES_IN}
    return Answer(bool(kernel) and maskable, told)


def _factor(path: str, leaf: Any, own: _Notes, kernels: set[int]) -> Answer:
    """The axes of a leaf that meets data only after other parameters or constants.

    In `k @ (tokens @ w).T` tokens are what comes in, and w is the kernel. In
    `x @ (a @ b).T` both are factors of a kernel. The trace is the same.
    """
    # What is added to a kernel is one, as in x @ (w + a @ b).
    added = [meeting for meeting in own.meetings if meeting.beside & kernels]
    told = _told(leaf, added)
    if added and isinstance(told, Axes):
        return Answer(bool(told.inputs), told)
    by_name = len(leaf.shape) > 2 or isinstance(_axes.convention(path, leaf), Axes)
    if by_name and path.split("/")[-1] == "kernel":  # Flax's: inputs before outputs
        first = [meeting for meeting, _ in own.products if not meeting.partial]
        both = {_told(leaf, first), _told(leaf, own.meetings)}
        orders = [t for t in both if isinstance(t, Axes) and _is_in_order(t)]
        if len(orders) == 1:
            return Answer(True, orders[0])
    if not own.products:  # a bias of tokens, say
        return Answer(False, _PART)
    # Where constants are all that it meets before, it is no token that is learned.
    tokens = any(parameters for _, parameters in own.products)
    named = _axes.is_called_kernel(path) or not tokens
    return Answer(
        named and _axes.is_kernel(path, leaf),
        "it meets other parameters or constants before data, so that tracing can't "
        "tell inputs from outputs",
    )


def _is_in_order(axes: Axes) -> bool:
    """Whether stacks come first, then windows, inputs and outputs."""
    words = str(axes).split()
    return {"inputs", "outputs"} <= {*words} and words == sorted(words, key=ROLES.index)


def _collected(leaf: Any, meetings: Sequence[Meeting]) -> list[set[str]]:
    """The roles that each axis has in the meetings."""
    roles: list[set[str]] = [set() for _ in leaf.shape]
    for meeting in meetings:
        for axis, role in meeting.roles:
            roles[axis].add(role)
        for how, axis in meeting.gone:
            # Experts that data chooses are a stack of kernels.
            if how != "product" and axis >= 0:
                roles[axis].add("stack")
    for axis, each in enumerate(roles):
        if each == {"window", "inputs"}:  # patches, cut out by hand
            roles[axis] = {"inputs"}
        elif leaf.shape[axis] == 1 and len(each) > 1:
            roles[axis] = {min(each, key=("inputs", *ROLES).index)}
    return roles


def _told(leaf: Any, meetings: Sequence[Meeting]) -> Told:
    """The axes, if each has one role."""
    roles = _collected(leaf, meetings)
    mixed = [axis for axis, each in enumerate(roles) if len(each) > 1]
    if mixed:
        words = " and as ".join(sorted(roles[mixed[0]]))
        stacks = any("stack" in each for each in roles)
        why = f"its axis {mixed[0]} is used as {words}"
        return Clash(why, "traced", stacks=stacks)
    known = [next(iter(each), None) for each in roles]
    products = {axis for m in meetings for how, axis in m.gone if how == "product"}
    if products and not {*known} - {"stack", None}:
        return _PART
    # Of a factor that comes out as a part of a kernel's outputs, the rest comes in.
    comes_in = {*known} & {*_COMES_IN}
    for axis in products:
        known[axis] = known[axis] or ("outputs" if comes_in else "inputs")
    for axis, length in enumerate(leaf.shape):
        if known[axis] is None and length == 1:
            # One index was taken of it, as of a stack of one, or a reshape lost it.
            leads = len(known) > 2 and {*known[:axis]} <= {"stack"}
            known[axis] = "stack" if leads else "outputs"
        elif known[axis] is None:
            return f"its axis {axis} is gone before it meets data"
    if "inputs" not in known:  # the window is all that comes in
        known = ["inputs" if role == "window" else role for role in known]
    return _axes.parsed(" ".join(map(str, known)), source="traced")
