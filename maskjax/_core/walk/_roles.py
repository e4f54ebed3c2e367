"""What a parameter's axes are, from what it met on the walk."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from maskjax._core import axes as _axes
from maskjax._core import checks
from maskjax._core.axes import ROLES, Axes, Told
from maskjax._core.walk._values import Found, Meeting

_MULTIPLICATIONS = ("mul", "select_n", "and", "div")


class Answer(NamedTuple):
    """Whether a leaf is a kernel, and the roles of its axes or why they are unknown."""

    kernel: bool
    told: Told


def answers(found: Found, named: Sequence[tuple[str, Any]], *, fn: str) -> list[Answer]:
    """The answer for each leaf.

    Raises:
        ValueError: If a leaf that is called `kernel` meets no data in a contraction.
    """
    meetings: dict[int, list[Meeting]] = {}
    for meeting in found.meetings:
        meetings.setdefault(meeting.leaf, []).append(meeting)
    touched: dict[int, list[Any]] = {}
    for leaf, trail, name in found.touched:
        touched.setdefault(leaf, []).append((trail, name))
    out, lines = [], []
    for i, (path, leaf) in enumerate(named):
        if not checks.shaped(leaf):
            out.append(Answer(False, "it is no array"))
        elif i in meetings:
            out.append(_contracted(path, leaf, meetings[i], touched.get(i, ())))
        else:
            out.append(Answer(False, _touched(leaf, touched.get(i, ()))))
            if path.split("/")[-1] == "kernel":
                lines.append(f"{path}: {_absence(touched.get(i, ()))}")
    if lines:
        raise checks.listing(
            lines,
            f"`{fn}` needs every leaf called `kernel` to meet `inputs` in a dot "
            "product or convolution",
        )
    return out


def _absence(touched: Sequence[Any]) -> str:
    """Why a kernel is in no contraction with data."""
    if not touched:
        return "never meets data (pass all that it meets in `inputs`)"
    names = sorted({name for _, name in touched})
    if any(name in _MULTIPLICATIONS for name in names):
        return (
            "meets an input by multiplication only (pass masks and keys by closure, "
            "as constants)"
        )
    return f"meets data in {', '.join(names)} only"


def _touched(leaf: Any, touched: Sequence[Any]) -> Told:
    """The axes of a leaf that meets data, but not in a contraction."""
    rank = len(leaf.shape)
    looked = {axis for t, n in touched if n == "lookup" for axis in _gone(t, "lookup")}
    stack = {axis for t, _ in touched for axis in _gone(t, "stack")} - looked
    rest = tuple(axis for axis in range(rank) if axis not in (looked | stack))
    if looked:
        roles = {"stack": tuple(sorted(stack)), "inputs": tuple(sorted(looked))}
        return Axes(**roles, outputs=rest, lookup=True, source="traced")
    if touched and (len(rest) == 1 or not rest):
        return Axes(stack=tuple(sorted(stack)), outputs=rest, source="traced")
    return "it meets data in no contraction" if touched else "it never meets data"


def _gone(trail: Any, how: str) -> set[int]:
    return {axis for role, axis in trail.gone if role == how and axis >= 0}


def _contracted(
    path: str, leaf: Any, meetings: Sequence[Meeting], touched: Sequence[Any]
) -> Answer:
    """The axes of a leaf that meets data in contractions."""
    looked = {
        axis for t, name in touched if name == "lookup" for axis in _gone(t, "lookup")
    }
    chosen = any(how == "lookup" for m in meetings for how, _ in m.gone)
    if looked and not chosen:  # an embedding, which is a kernel elsewhere (tied)
        return Answer(False, _touched(leaf, touched))
    maskable = checks.is_inexact(leaf) or _axes.is_kernel(path, leaf)
    unknown = sorted({m.unknown for m in meetings if m.unknown})
    if unknown:
        return Answer(maskable and len(leaf.shape) > 1, f"it {unknown[0]}")
    roles = _collected(leaf, meetings)
    kernel = any(role in ("inputs", "window") for each in roles for role in each)
    products = {axis for m in meetings for how, axis in m.gone if how == "product"}
    dangling = {axis for axis in products if axis >= 0 and not roles[axis]}
    if dangling:
        told = _axes.convention(path, leaf)
        # The trace can't tell which of two parameters is the kernel; this name does.
        if path.split("/")[-1] == "kernel" and isinstance(told, Axes):
            return Answer(maskable, _axes.parsed(str(told), source="traced"))
        if not any(each - {"stack"} for each in roles):
            return Answer(False, "it meets data only as a part of other parameters")
        kernel = True
    told = _told(leaf, roles, dangling)
    if isinstance(told, Axes) and not told.inputs:
        kernel = False
    return Answer(kernel and maskable, told)


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


def _told(leaf: Any, roles: Sequence[set[str]], dangling: set[int]) -> Told:
    """The axes, if each has one role."""
    mixed = [axis for axis, each in enumerate(roles) if len(each) > 1]
    if mixed:
        words = " and as ".join(sorted(roles[mixed[0]]))
        return f"its axis {mixed[0]} is used as {words}"
    known = [next(iter(each), None) for each in roles]
    comes_in = any(role in ("inputs", "window") for role in known)
    for axis in dangling:
        known[axis] = "outputs" if comes_in else "inputs"
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
