"""Which leaves of a tree belong to which parameters: moments, averages, statistics.

A part of a tree with all paths of the parameters belongs to them, leaf by leaf. Any
other leaf belongs to the parameter whose path its own path ends with: new statistics, and
masks of some of the parameters. The first word of a parameter's path may be missing,
because `{"params": ...}` is often left out.
"""

from collections.abc import Sequence
from typing import Any

import jax

from maskjax._core import trees
from maskjax._core.packed import PackedMask

Shape = tuple[int, ...]


def named(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """The leaves of any tree, with `None` and packed masks among them."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=trees.is_mask_leaf
    )
    return [(trees.path_string(path), leaf) for path, leaf in leaves], treedef


def owners(
    leaves: Sequence[tuple[str, Any]],
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
    places = {path: i for i, (path, _) in enumerate(leaves)}
    found: list[int | None] = [None] * len(leaves)
    for path, _ in leaves:
        start = path[: len(path) - len(paths[0])]
        if start + paths[0] != path or start and not start.endswith("/") and paths[0]:
            continue
        whole = [places.get(_joined(start, p)) for p in paths]
        if all(
            i is not None and _fits(leaves[i][1], shape, members)
            for i, shape in zip(whole, shapes, strict=True)
        ):
            for parameter, i in enumerate(whole):
                if i is not None:
                    found[i] = parameter
    ends = _ends(paths)
    for i, (path, leaf) in enumerate(leaves):
        if found[i] is None and leaf is not None:
            found[i] = _owner(path.split("/"), leaf, ends, shapes, members)
    return found


def _joined(start: str, path: str) -> str:
    return start + path if path else start.removesuffix("/")


def _fits(leaf: Any, shape: Shape, members: int | None) -> bool:
    """Whether a leaf is shaped like a parameter; axes that share a value have length 1."""
    if leaf is None:
        return True
    own = shape_of(leaf)
    if members is not None and len(own) == len(shape) + 1 and own[0] == members:
        own = own[1:]
    return len(own) == len(shape) and all(
        n in (1, size) for n, size in zip(own, shape, strict=True)
    )


def shape_of(leaf: Any) -> Shape:
    """The shape of an array, a packed mask, or anything else: ()."""
    return tuple(getattr(leaf, "shape", ()))


def _ends(paths: Sequence[str]) -> dict[tuple[str, ...], list[int]]:
    """Parameters by their paths, whole and without the first word."""
    ends: dict[tuple[str, ...], list[int]] = {}
    for i, path in enumerate(paths):
        parts = tuple(path.split("/"))
        for end in {parts, parts[1:]}:
            if not all(part.isdigit() for part in end):
                ends.setdefault(end, []).append(i)
    return ends


def _owner(
    parts: Sequence[str],
    leaf: Any,
    ends: dict[Any, list[int]],
    shapes: Sequence[Shape],
    members: int | None,
) -> int | None:
    for k in range(len(parts)):
        owned = ends.get(tuple(parts[k:]), ())
        fits = [i for i in owned if _fits(leaf, shapes[i], members)]
        if len(fits) == 1:
            return fits[0]
    return None


__all__ = ["PackedMask", "named", "owners", "shape_of"]
