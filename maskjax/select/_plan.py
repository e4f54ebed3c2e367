"""How a leaf is laid out for its search, and which structure it has there.

A structure that names roles sees a leaf as [stack, window, inputs, outputs], the axes
of each role merged row-major. With scope "layer" or "output" the axes that count
searches come first, each as it is: each of their indices is a search of its own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from maskjax._core import placement
from maskjax._core.axes import ROLES, Axes
from maskjax._core.trees import Array
from maskjax.structure import Block, Entries, NofM, Structure, Units

# Where a role is in a leaf that is laid out by roles.
_PLACE = {role: i - len(ROLES) for i, role in enumerate(ROLES)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The layout of one leaf, and its structure with numbers for roles.

    Attributes:
        structure: For what is laid out, without the axes of rows.
        shape: Of the leaf.
        parts: For each axis of the layout, the axes of the leaf that it merges.
        rows: How many of the first of them count searches.
    """

    structure: Structure
    shape: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]
    rows: int = 0

    @property
    def moved(self) -> bool:
        """Whether the layout is another than the leaf's own."""
        return self.parts != tuple((i,) for i in range(len(self.shape)))

    @property
    def searches(self) -> tuple[int, ...]:
        """The lengths of the axes that count searches; none if the leaf takes one."""
        return self._laid[: self.rows]

    @property
    def _laid(self) -> tuple[int, ...]:
        """The shape of the layout."""
        return tuple(math.prod(self._lengths(part)) for part in self.parts)

    def laid(self, x: Array) -> Array:
        """An array of the leaf's shape, laid out."""
        if not self.moved:
            return x
        x = x.transpose([i for part in self.parts for i in part])
        return placement.merge(x, *map(len, self.parts))

    def back(self, x: Array) -> Array:
        """From the layout, where axes may have length 1, to the leaf's own axes."""
        if not self.moved:
            return x
        shapes = []
        for length, part in zip(x.shape, self.parts, strict=True):
            own = self._lengths(part)
            shapes.append(own if length == math.prod(own) else [1] * len(own))
        order = [axis for part in self.parts for axis in part]
        places = sorted(range(len(order)), key=order.__getitem__)
        return placement.split(x, *shapes).transpose(places)

    def each(self, function: Callable[..., Array]) -> Callable[..., Array]:
        """A function of one search's part of the leaf, for all of the layout."""
        for _ in range(self.rows):
            function = jax.vmap(function)
        return function

    def pool(self, x: Array, alive: Array | None = None) -> Array:
        """One score for each decision, from what is laid out."""
        return self.each(self.structure.pool)(*(a for a in (x, alive) if a is not None))

    def spread(self, decisions: Array) -> Array:
        """The mask of decisions, on the leaf's own axes."""
        return self.back(self.each(self.structure.spread)(decisions))

    def numbers(self, per_search: Array) -> Array:
        """A number for each search, with the leaf's rank: 1 along all other axes."""
        if not self.rows:
            return per_search
        ones = [1] * (len(self.parts) - self.rows)
        return self.back(per_search.reshape(*per_search.shape, *ones))

    def per_search(self, numbers: Array) -> Array:
        """The inverse of `numbers`."""
        if not self.rows:
            return numbers
        moved = numbers.transpose([i for part in self.parts for i in part])
        return moved.reshape(self.searches)

    def decisions(self) -> int:
        """How many decisions each search makes."""
        shape = self._laid[self.rows :]
        if type(self.structure) in (Entries, NofM):
            return math.prod(shape)
        one = jax.ShapeDtypeStruct(shape, "float32")
        return math.prod(jax.eval_shape(self.structure.pool, one).shape)

    def _lengths(self, part: Sequence[int]) -> list[int]:
        return [self.shape[axis] for axis in part]


def roles_of(structure: Structure) -> tuple[str, ...]:
    """The roles that a structure names."""
    named: tuple[Any, ...] = ()
    if isinstance(structure, Block):
        named = structure.axes
    elif isinstance(structure, NofM | Units):
        named = (structure.axis,)
    return tuple(role for role in named if isinstance(role, str))


@functools.lru_cache(maxsize=4096)
def plan(
    shape: tuple[int, ...], structure: Structure, axes: Axes | None, scope: str
) -> Plan | str:
    """The plan of a leaf, or why it does not fit.

    Args:
        shape: The leaf's.
        structure: Its structure; a user's own is asked whether it fits.
        axes: The roles of its axes. They may be `None` if nothing depends on them.
        scope: As in `select.top_k`.
    """
    apart: tuple[int, ...] = ()
    if axes is not None and scope in ("layer", "output"):
        apart = axes.stack + (axes.outputs if scope == "output" else ())
    if axes and scope == "output" and apart and len(apart) == len(shape):
        return f"shape {shape} is '{axes}', and scope=\"output\" ranks each alone"
    own = tuple((i,) for i in range(len(shape)) if i not in apart)
    roles = roles_of(structure)
    if roles:
        assert axes is not None
        for role in roles:
            if not set(axes.of(role)) - set(apart):
                return _lacking(shape, axes, role, scope)
        own = tuple(
            tuple(i for i in axes.of(role) if i not in apart)
            for role in ROLES[1 if apart else 0 :]
        )
        structure = _numbered(structure, apart=bool(apart))
    elif apart:
        numbered = isinstance(structure, Block | NofM | Units)
        if numbered and (problem := structure.complaint(shape)):
            return problem
        found = _without(structure, apart, len(shape))
        if isinstance(found, str):
            return f"shape {shape} {found}"
        structure = found
    each = tuple((i,) for i in apart)
    made = Plan(structure, shape, each + own, len(apart))
    lengths = tuple(math.prod(shape[i] for i in part) for part in own)
    problem = structure.complaint(lengths)
    if problem and roles and axes is not None:
        for role, length in zip(ROLES[::-1], lengths[::-1], strict=False):
            axis = f"axis {_PLACE[role]} of length {length} is"
            problem = problem.replace(axis, f"{length} {role} are")
        problem = f"shape {shape} is '{axes}': {problem}"
    return problem or made


def _lacking(shape: tuple[int, ...], axes: Axes, role: str, scope: str) -> str:
    if axes.of(role):
        return f"shape {shape} is '{axes}', and scope=\"{scope}\" ranks each alone"
    return f"shape {shape} is '{axes}', without {role}"


def _numbered(structure: Any, *, apart: bool) -> Structure:
    """A structure for a leaf that is laid out by roles."""
    if isinstance(structure, Block):
        first, second = (_PLACE[role] for role in roles_of(structure))
        return dataclasses.replace(structure, axes=(first, second))
    place = _PLACE[roles_of(structure)[0]]
    if isinstance(structure, Units) and not apart:  # each layer has its own
        return dataclasses.replace(structure, axis=tuple({_PLACE["stack"], place}))
    return dataclasses.replace(structure, axis=place)


def _without(structure: Any, apart: Sequence[int], rank: int) -> Structure | str:
    """A structure with numbers, for a leaf without the axes that count searches."""

    def number(axis: int) -> int:
        axis %= rank
        if axis in apart:
            raise LookupError(axis)
        return axis - sum(i < axis for i in apart)

    try:
        if isinstance(structure, Block):
            axes = tuple(number(axis) for axis in structure.axes)  # type: ignore[arg-type]
            return dataclasses.replace(structure, axes=axes)  # type: ignore[arg-type]
        if isinstance(structure, NofM):
            return dataclasses.replace(structure, axis=number(structure.axis))  # type: ignore[arg-type]
        if isinstance(structure, Units):
            given = structure.axis
            given = given if isinstance(given, tuple) else (given,)
            axes = tuple(number(axis) for axis in given)  # type: ignore[arg-type]
            return dataclasses.replace(structure, axis=axes)
    except LookupError as error:
        return f"has a search for each index of axis {error}"
    return structure
