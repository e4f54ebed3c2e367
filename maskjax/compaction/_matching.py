"""Which leaves of a tree belong to which parameters: moments, averages, statistics.

A part of a tree with all paths of the parameters belongs to them, leaf by leaf. Any
other leaf belongs to the parameter whose path its own path ends with: new statistics,
and masks of some of the parameters. The first word of a parameter's path may be
missing, because `{"params": ...}` is often left out. Paths of numbers alone, as those
of tuples, say nothing at the end of another: there a part belongs to the parameters if
each of its leaves does.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from maskjax import packing
from maskjax._core import trees
from maskjax._core.packed import PackedMask

Shape = tuple[int, ...]
Leaves = Sequence[tuple[str, Any]]
Fits = Callable[[Any, int], bool]  # a leaf, the number of a parameter

# Collections of Flax: often only one of them is handed on, without its name.
_COLLECTIONS = ("params", "batch_stats")


def named(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """The leaves of any tree, with `None` and packed masks among them."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=trees.is_mask_leaf
    )
    return [(trees.path_string(path), leaf) for path, leaf in leaves], treedef


def owners(
    leaves: Leaves,
    paths: Sequence[str],
    shapes: Sequence[Shape],
    members: int | None = None,
) -> list[int | None]:
    """For each leaf the number of its parameter, or None.

    Args:
        leaves: Leaves with their paths.
        paths: The paths of the parameters.
        shapes: The shapes that their leaves have in this tree; an axis may be 1.
        members: How many there may be of each leaf, along a first axis of their own.
    """

    def fits(leaf: Any, parameter: int) -> bool:
        return _fits(leaf, shapes[parameter], members)

    found: list[int | None] = [None] * len(leaves)
    every = dict(enumerate(paths))
    if not paths:
        return found
    _whole(found, leaves, every, fits)
    if all(_numbers(path.split("/")) for path in paths):
        _within(found, leaves, paths, fits)
        return found
    ends = _Ends(paths)
    for i, (path, leaf) in enumerate(leaves):
        if found[i] is None and leaf is not None:
            fit = [p for p in ends.of(path.split("/")) if fits(leaf, p)]
            found[i] = fit[0] if len(fit) == 1 else None
    for name in _COLLECTIONS:
        start = f"{name}/"
        some = {
            i: p.removeprefix(start) for i, p in every.items() if p.startswith(start)
        }
        if some:
            _whole(found, leaves, some, fits)
    return found


def strays(
    leaves: Leaves, found: Sequence[int | None], paths: Sequence[str]
) -> dict[int, list[int]]:
    """Leaves without an owner that are named like parameters, and which these are.

    Numbers, and arrays of one entry, may be anything; they are left out.
    """
    ends = _Ends(paths)
    left: dict[int, list[int]] = {}
    for i, (path, leaf) in enumerate(leaves):
        if found[i] is None and leaf is not None and _size(leaf) > 1:
            left[i] = ends.inside(path.split("/"))
    if len(paths) > 1 and all(_numbers(path.split("/")) for path in paths):
        for start in _starts(leaves, paths):
            inside = _under(start, leaves)
            if sorted(inside.values()) == sorted(paths):
                for i, path in inside.items():
                    if i in left:
                        left[i] = [paths.index(path)]
    return {i: parameters for i, parameters in left.items() if parameters}


def shape_of(leaf: Any) -> Shape:
    """The shape of an array, a packed mask, or anything else: ()."""
    return tuple(getattr(leaf, "shape", ()))


def unpacked(leaf: PackedMask) -> Any:
    """A packed mask as booleans; the shape of them, if bits are shapes."""
    if isinstance(leaf.bits, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((*leaf.lead, *leaf.shape), bool)
    return packing.unpack(leaf)


def _size(leaf: Any) -> int:
    return int(getattr(leaf, "size", 1))


def _fits(leaf: Any, shape: Shape, members: int | None) -> bool:
    """Whether a leaf is shaped like a parameter; axes that share have length 1."""
    if leaf is None:
        return True
    own = shape_of(leaf)
    if members is not None and len(own) == len(shape) + 1 and own[0] == members:
        own = own[1:]
    return len(own) == len(shape) and all(
        n in (1, size) for n, size in zip(own, shape, strict=True)
    )


def _numbers(parts: Sequence[str]) -> bool:
    return all(part.isdigit() for part in parts if part)


def _whole(
    found: list[int | None],
    leaves: Leaves,
    paths: dict[int, str],
    fits: Fits,
) -> None:
    """Parts of a tree that have all of these parameters."""
    places = {path: i for i, (path, _) in enumerate(leaves)}
    first = next(iter(paths.values()))
    for path, _ in leaves:
        start = path[: len(path) - len(first)]
        if start + first != path or start and not start.endswith("/") and first:
            continue
        whole = {p: places.get(_joined(start, rest)) for p, rest in paths.items()}
        if all(
            i is not None and found[i] in (None, p) and fits(leaves[i][1], p)
            for p, i in whole.items()
        ):
            for parameter, i in whole.items():
                if i is not None:
                    found[i] = parameter


def _joined(start: str, path: str) -> str:
    return start + path if path else start.removesuffix("/")


def _within(
    found: list[int | None],
    leaves: Leaves,
    paths: Sequence[str],
    fits: Fits,
) -> None:
    """Parts of a tree whose leaves are parameters or single numbers."""
    numbers = {path: i for i, path in enumerate(paths)}
    for start in _starts(leaves, paths):
        inside = _under(start, leaves)
        fit = {
            i: path in numbers and fits(leaves[i][1], numbers[path])
            for i, path in inside.items()
        }
        if all(
            found[i] is None and (one or _size(leaves[i][1]) < 2)
            for i, one in fit.items()
        ):
            for i, path in inside.items():
                found[i] = numbers[path] if fit[i] else None


def _starts(leaves: Leaves, paths: Sequence[str]) -> Iterator[str]:
    """What comes before the path of a parameter in that of a leaf, shortest first."""
    ends = [("/" + path, len(path)) for path in paths if path]
    starts = {
        path[: len(path) - n]
        for path, _ in leaves
        for end, n in ends
        if ("/" + path).endswith(end)
    }
    yield from sorted(starts, key=lambda start: (len(start), start))


def _under(start: str, leaves: Leaves) -> dict[int, str]:
    return {
        i: path.removeprefix(start)
        for i, (path, _) in enumerate(leaves)
        if path.startswith(start)
    }


class _Ends:
    """Parameters by their paths, whole and without the first word."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._whole: dict[tuple[str, ...], list[int]] = {}
        self._short: dict[tuple[str, ...], list[int]] = collections.defaultdict(list)
        self._longest = 0
        for i, path in enumerate(paths):
            first, *rest = parts = tuple(path.split("/"))
            self._longest = max(self._longest, len(parts))
            if not _numbers(parts):
                self._whole[parts] = [i]
            if not first.isdigit() and len(rest) > 1 and not _numbers(rest):
                self._short[tuple(rest)].append(i)

    def _at(self, parts: Sequence[str]) -> list[int]:
        return self._whole.get(tuple(parts)) or self._short.get(tuple(parts), [])

    def of(self, parts: Sequence[str]) -> list[int]:
        """The parameters whose path is the longest end of another."""
        for k in range(max(len(parts) - self._longest, 0), len(parts)):
            if found := self._at(parts[k:]):
                return found
        return []

    def inside(self, parts: Sequence[str]) -> list[int]:
        """The parameters whose path is the longest part of another."""
        for n in range(min(self._longest, len(parts)), 0, -1):
            for k in range(len(parts) - n, -1, -1):
                if found := self._at(parts[k : k + n]):
                    return found
        return []


__all__ = ["PackedMask", "named", "owners", "shape_of", "strays", "unpacked"]
