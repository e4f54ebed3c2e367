"""What the axes of a parameter do: stack layers, slide, come in, go out.

`Axes` says it for one leaf. `resolved` asks a predicate for the axes of every leaf that
has some, and raises one error that lists all that are unknown. `convention` reads names
and shapes alone; it answers only where they leave no doubt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from maskjax._core import checks, names
from maskjax._core.trees import Path, Predicate

Source = Literal["told", "traced", "convention"]
ROLES = ("stack", "window", "inputs", "outputs")
_STRENGTH = ("convention", "traced", "told")


@dataclasses.dataclass(frozen=True)
class Axes:
    """The roles of a parameter's axes: each axis, counted from 0, is in one of them.

    Attributes:
        stack: Axes that count layers, ensemble members or experts: each index is a
            kernel of its own.
        window: Places of a convolution's window.
        inputs: Axes that are contracted with what comes in.
        outputs: Axes that go out.
        lookup: Whether rows are looked up, as in an embedding, so that each output
            meets one input: the fan-in is 1.
        source: Who says so. "told" is stronger than "traced", and that is stronger than
            "convention".

    Raises:
        ValueError: If the axes are not 0, 1, ..., each once.

    Example:
        >>> axes = where.Axes(stack=(0,), inputs=(1,), outputs=(2, 3))
        >>> print(axes, axes.fan_in((12, 512, 8, 64)))
        stack inputs outputs outputs 512
    """

    stack: tuple[int, ...] = ()
    window: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    lookup: bool = False
    source: Source = dataclasses.field(default="told", compare=False)

    def __post_init__(self) -> None:
        for role in ROLES:  # a list would do, but could not be hashed
            object.__setattr__(self, role, tuple(self.of(role)))
        every = [axis for role in ROLES for axis in self.of(role)]
        if sorted(every) != list(range(len(every))):
            raise ValueError(
                "`maskjax.where.Axes` needs each axis from 0 on in one role, got "
                f"{', '.join(f'{role}={self.of(role)}' for role in ROLES)}."
            )

    def __str__(self) -> str:
        words = {axis: role for role in ROLES for axis in self.of(role)}
        return " ".join(words[axis] for axis in range(self.rank))

    @property
    def rank(self) -> int:
        """The number of axes."""
        return sum(len(self.of(role)) for role in ROLES)

    def of(self, role: str) -> tuple[int, ...]:
        """The axes of a role, by its name."""
        return getattr(self, role)

    def fan_in(self, shape: Sequence[int]) -> int:
        """How many inputs each output meets, for a parameter of that shape."""
        met = () if self.lookup else (*self.window, *self.inputs)
        return math.prod(shape[axis] for axis in met)

    def stacked(self, n: int = 1) -> Axes:
        """The axes of a parameter with n more axes in front, which stack."""
        moved = {r: tuple(axis + n for axis in self.of(r)) for r in ROLES}
        moved["stack"] = (*range(n), *moved["stack"])
        return dataclasses.replace(self, **moved)

    def unstacked(self) -> Axes:
        """The axes of one index of the stack, counted anew from 0."""
        left = sorted(axis for r in ROLES[1:] for axis in self.of(r))
        moved = {r: tuple(left.index(axis) for axis in self.of(r)) for r in ROLES[1:]}
        return dataclasses.replace(self, stack=(), **moved)


def parsed(words: str, *, source: Source = "told") -> Axes:
    """Axes from one word for each, such as "stack inputs outputs"."""
    roles: dict[str, Any] = dict.fromkeys(ROLES, ())
    for axis, word in enumerate(words.split()):
        roles[word] += (axis,)
    return Axes(**roles, source=source)


# Asking.

Told = Axes | str  # the axes, or why they are unknown


class Clash(str):
    """Why axes are unknown: a source contradicts itself or an equal. No weaker helps.

    Attributes:
        source: Who contradicts whom.
        stacks: Whether one of the answers is that an axis stacks.
    """

    source: Source
    stacks: bool

    def __new__(cls, why: str, source: Source, *, stacks: bool) -> Clash:
        clash = super().__new__(cls, why)
        clash.source, clash.stacks = source, stacks
        return clash


def of(where: Predicate, path: str, leaf: Any) -> Told:
    """What a predicate knows of a leaf's axes; plain functions know the convention."""
    asked: Callable[[str, Any], Told] = getattr(where, "axes", convention)
    return asked(path, leaf)


def of_members(told: Told, n: int) -> Told:
    """What is known of a leaf with n more axes in front, from what is of one member."""
    if isinstance(told, Axes):
        return told.stacked(n)
    if n and isinstance(told, Clash):
        return Clash(f"in one member, {told}", told.source, stacks=True)
    return f"in one member, {told}" if n else told


def strongest(one: Told, other: Told) -> Told:
    """The answer of the stronger source; unknown is the weakest."""
    for answer in (one, other):
        if not isinstance(answer, Told):  # `asked` says who gave it
            return answer
    mine, its = _strength(one), _strength(other)
    if mine != its or one == other:
        return one if mine >= its else other
    if isinstance(one, Axes) and isinstance(other, Axes):
        why = f"its axes were {one.source} as '{one}' and as '{other}'"
        return Clash(why, one.source, stacks=bool(one.stack or other.stack))
    return other if isinstance(other, Clash) else one


def _strength(told: Told) -> int:
    known = isinstance(told, Axes | Clash)
    return _STRENGTH.index(told.source) if known else -1


_MISSED = " ({!r} chooses none of them)"


def asked(
    where: Predicate,
    named: Sequence[tuple[Path, Any]],
    needed: Sequence[bool],
    *,
    fn: str,
) -> list[Told | None]:
    """What a predicate says of the axes of leaves; `None` where it is not needed.

    Raises:
        TypeError: If it says anything but axes, or why they are unknown.
    """
    told = [
        of(where, path, leaf) if need else None
        for (path, leaf), need in zip(named, needed, strict=True)
    ]
    checks.raise_all(
        (
            f"{path}: {checks.kind_of(answer)}"
            for (path, _), answer, need in zip(named, told, needed, strict=True)
            if need and not isinstance(answer, Told)
        ),
        f"`{fn}` needs `.axes` of {where!r} to return `where.Axes`, or a sentence that "
        "says why they are unknown",
        TypeError,
    )
    return told


def resolved(
    where: Predicate,
    named: Sequence[tuple[Path, Any]],
    needed: Sequence[bool],
    *,
    fn: str,
    why: str,
) -> list[Axes | None]:
    """The axes of the leaves that need them, `None` for the others.

    Args:
        where: The predicate to ask.
        named: Leaves with their paths.
        needed: For each of them, whether its axes are needed.
        fn: The public function that errors blame.
        why: What they are needed for, as in "for the fan-in".

    Raises:
        TypeError: As `asked`.
        ValueError: If the axes of such a leaf are unknown, or do not cover its shape;
            every such leaf is named, with its shape, the reason and the remedies.
    """
    told = asked(where, named, needed, fn=fn)
    lines, missed = [], True  # whether `where` chooses none of them, as by a typo
    for (path, leaf), axes in zip(named, told, strict=True):
        if isinstance(axes, Axes) and axes.rank != len(leaf.shape):
            count = f"{axes.rank} words for {len(leaf.shape)} axes"
            axes = f"its axes were {axes.source} as '{axes}', {count}"
        if isinstance(axes, str):
            lines.append(f"{path}: shape {tuple(leaf.shape)}, {axes}")
            missed = missed and not where(path, leaf)
    if lines:
        raise checks.listing(
            lines,
            f"`{fn}` needs to know the axes of these leaves {why}. Pass "
            "`where=where.traced(apply, params, *inputs)`, or say it by hand, with a "
            'word for each axis: `where=where.matching(regex, axes="stack inputs '
            f'outputs") | where.kernels`{_MISSED.format(where) if missed else ""}',
        )
    return told  # type: ignore[return-value]


# The convention.
_EITHER_WAY = "are (in, out) in one framework and (out, in) in another"


def is_called_kernel(path: str) -> bool:
    """Whether a leaf has a name that only kernels have."""
    _, name = names.last_two(path)
    return names.is_called_kernel(name)


def is_kernel(path: str, leaf: Any) -> bool:
    """Whether a leaf is a kernel by its name, rank and dtype."""
    if not checks.shaped(leaf) or len(leaf.shape) < 2:
        return False
    if names.kind_of(path, leaf.shape) not in ("layer", ""):
        return False
    named = checks.is_integer(leaf) and is_called_kernel(path)
    return checks.is_inexact(leaf) or named


def is_embedding(path: str, leaf: Any) -> bool:
    """Whether a leaf is a table of embeddings by its name."""
    inexact = checks.is_inexact(leaf) and len(leaf.shape) > 1
    return inexact and names.kind_of(path, leaf.shape) == "table"


def convention(path: str, leaf: Any) -> Told:
    """The axes by name and shape, where they leave no doubt, else why they do."""
    if not checks.shaped(leaf):
        return "it is no array"
    shape, (parent, name) = tuple(leaf.shape), names.last_two(path)
    rank = len(shape)
    if rank < 2:
        return "it has fewer than 2 axes"
    kind = names.kind_of(path, leaf.shape)
    if kind == "other":
        return "by its name it is no kernel"
    if kind == "table":
        if names.is_position(path):
            return "tables of positions may be added as they are, or looked up"
        if rank == 2:
            return Axes(inputs=(0,), outputs=(1,), lookup=True, source="convention")
        return f"embeddings with {rank} axes may be stacked"
    if names.says_weight(name) or parent == "weight":
        return f"weights {_EITHER_WAY}"
    if parent in ("c_attn", "c_fc", "c_proj", "q_attn"):
        return f"kernels of GPT-2 {_EITHER_WAY}"
    if rank == 2:
        return Axes(inputs=(0,), outputs=(1,), source="convention")
    return (
        _window(parent, name, shape)
        or _heads(path.split("/"), shape)
        or (f"{rank} axes could stack layers, be windows, or be inputs or outputs")
    )


def _window(parent: str, name: str, shape: tuple[int, ...]) -> Axes | None:
    """The axes of a convolution whose window has one axis, or two in a square."""
    rank = len(shape)
    own = parent if names.window_axes(name) is None else name
    dims = names.window_axes(own)
    if dims is None or dims and rank != dims + 2:
        return None
    # What has 3 axes and is only called a convolution may be stacked layers of a graph.
    one = rank == 3 and (dims or names.is_linen_convolution(own))
    if one or rank == 4 and shape[0] == shape[1]:
        window = tuple(range(rank - 2))
        return Axes((), window, (rank - 2,), (rank - 1,), source="convention")
    return None


def _heads(parts: Sequence[str], shape: tuple[int, ...]) -> Axes | None:
    """The axes of Flax's attention, where they can hardly be those of a stack."""
    *_, above, parent, _ = ("", "", *parts)
    if len(shape) != 3:
        return None
    # A stack of layers of these names would have as many layers as one has entries.
    if parent in ("query", "key", "value") and shape[0] == shape[1] * shape[2]:
        return Axes(inputs=(0,), outputs=(1, 2), source="convention")
    # It would be in an attention whose heads are together as many times narrower than
    # its output as there are layers.
    if (
        parent == "out"
        and names.is_attention(above)
        and shape[0] * shape[1] == shape[2]
    ):
        return Axes(inputs=(0, 1), outputs=(2,), source="convention")
    return None
