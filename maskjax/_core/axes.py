"""What the axes of a parameter do: stack layers, slide, come in, go out.

`Axes` says it for one leaf. `resolved` asks a predicate for the axes of every leaf that
has some, and raises one error that lists all that are unknown. `convention` reads names
and shapes alone; it answers only where they leave no doubt.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from maskjax._core import checks
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

    def stacked(self, n: int = 1) -> "Axes":
        """The axes of a parameter with n more axes in front, which stack."""
        moved = {r: tuple(axis + n for axis in self.of(r)) for r in ROLES}
        moved["stack"] = (*range(n), *moved["stack"])
        return dataclasses.replace(self, **moved)

    def unstacked(self) -> "Axes":
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


def of(where: Predicate, path: str, leaf: Any) -> Told:
    """What a predicate knows of a leaf's axes; plain functions know the convention."""
    asked: Callable[[str, Any], Told] = getattr(where, "axes", convention)
    return asked(path, leaf)


def strongest(one: Told, other: Told, path: str) -> Told:
    """The answer of the stronger source; unknown is the weakest.

    Raises:
        ValueError: If two sources of equal strength disagree.
    """
    if isinstance(one, str) or isinstance(other, str):
        return other if isinstance(one, str) and not isinstance(other, str) else one
    order = _STRENGTH.index(one.source) - _STRENGTH.index(other.source)
    if order == 0 and one != other:
        raise ValueError(
            f"`where` needs one role for each axis of {path!r}, got '{one}' and "
            f"'{other}', both {one.source}."
        )
    return one if order >= 0 else other


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
        ValueError: If the axes of such a leaf are unknown, or do not cover its shape;
            every such leaf is named, with its shape, the reason and the remedies.
    """
    told = [
        of(where, path, leaf) if need else None
        for (path, leaf), need in zip(named, needed, strict=True)
    ]
    lines = []
    for (path, leaf), axes in zip(named, told, strict=True):
        if isinstance(axes, Axes) and axes.rank != len(leaf.shape):
            axes = f"its axes were told as '{axes}'"
        if isinstance(axes, str):
            lines.append(f"{path}: shape {tuple(leaf.shape)}, {axes}")
    if lines:
        raise checks.listing(
            lines,
            f"`{fn}` needs to know the axes of these leaves {why}. Pass "
            "`where=where.traced(apply, params, *inputs)`, or say it by hand: "
            '`where.matching(regex, axes="stack inputs outputs")` has a word for each '
            "axis",
        )
    return told  # type: ignore[return-value]


# The convention.

_COLLECTIONS = re.compile(r"(^|/)(batch_stats|cache)/")
_NORMS = re.compile(r"norm|^(ln|bn|rms)(_?\w{0,2})$", re.I)
_OTHERS = re.compile(
    r"^(beta|gamma|mean|offset|var|lora_.*|cached_.*|(.*_)?bias.*|(.*_)?scale"
    r"|negative_slope|(cls|class|mask|register|sep)_tokens?|A_log)$"
)
_EMBEDDINGS = re.compile(r"embed|^(wte|wpe|tokens?|positions?)$", re.I)
_POSITIONS = re.compile(r"(^|_)pos(_|ition|$)|^wpe$", re.I)
_WEIGHT = re.compile(r"^weights?(_\w+)?$")


def _last_two(path: str) -> tuple[str, str]:
    *_, parent, name = ("", "", *path.split("/"))
    return parent, name


def _is_other(path: str, leaf: Any) -> bool:
    """Whether a leaf is a bias, a scale, a statistic or a LoRA factor by its name."""
    parent, name = _last_two(path)
    if _COLLECTIONS.search(path) or _OTHERS.match(name):
        return True
    # Lengths of weight norm, in Equinox and PyTorch: one for each output.
    if name in ("g", "weight_g") and leaf.shape[-1] == 1:
        return True
    # `b` is a bias beside `w` in a layer; {"a": ..., "b": ...} are two leaves.
    return name != "kernel" and bool(_NORMS.search(parent) or parent and name == "b")


def is_called_kernel(path: str) -> bool:
    """Whether a leaf has a name that only kernels have."""
    _, name = _last_two(path)
    return name in ("kernel", "w") or _WEIGHT.match(name) is not None


def is_kernel(path: str, leaf: Any) -> bool:
    """Whether a leaf is a kernel by its name, rank and dtype."""
    if not checks.shaped(leaf) or len(leaf.shape) < 2 or _is_other(path, leaf):
        return False
    named = checks.is_integer(leaf) and is_called_kernel(path)
    if not checks.is_inexact(leaf) and not named:
        return False
    return not is_embedding(path, leaf)


def is_embedding(path: str, leaf: Any) -> bool:
    """Whether a leaf is a table of embeddings by its name."""
    parent, name = _last_two(path)
    if not checks.is_inexact(leaf) or len(leaf.shape) < 2 or name == "kernel":
        return False
    if _EMBEDDINGS.search(name):
        return True
    # Equinox calls the table `weight`, as it calls kernels.
    table = len(leaf.shape) == 2 and _WEIGHT.match(name) is not None
    return table and _EMBEDDINGS.search(parent) is not None


def convention(path: str, leaf: Any) -> Told:
    """The axes by name and shape, where they leave no doubt, else why they do."""
    shape, (parent, name) = tuple(leaf.shape), _last_two(path)
    rank = len(shape)
    if rank < 2:
        return "it has fewer than 2 axes"
    if _is_other(path, leaf):
        return "by its name it is no kernel"
    if is_embedding(path, leaf):
        if _POSITIONS.search(name) or _POSITIONS.search(parent):
            return "tables of positions may be added as they are, or looked up"
        if rank == 2:
            return Axes(inputs=(0,), outputs=(1,), lookup=True, source="convention")
        return f"embeddings with {rank} axes may be stacked"
    if _WEIGHT.match(name):
        return "weights are (in, out) in one framework and (out, in) in another"
    if rank == 2:
        return Axes(inputs=(0,), outputs=(1,), source="convention")
    own = f"{parent}/{name}".lower()
    plain = "conv" in own and "transpose" not in own and "local" not in own
    if dims := re.search(r"([123])d", own):
        plain = plain and rank == int(dims[1]) + 2
    if plain and (rank == 3 or rank == 4 and shape[0] == shape[1]):
        window = tuple(range(rank - 2))
        return Axes((), window, (rank - 2,), (rank - 1,), source="convention")
    # Of a stack of layers of the same names the shapes would be (layers, in, out).
    if rank == 3 and parent in ("query", "key", "value"):
        if shape[0] == shape[1] * shape[2]:
            return Axes(inputs=(0,), outputs=(1, 2), source="convention")
    if rank == 3 and parent == "out" and shape[0] * shape[1] == shape[2]:
        return Axes(inputs=(0, 1), outputs=(2,), source="convention")
    return f"{rank} axes could stack layers, be windows, or be inputs or outputs"
