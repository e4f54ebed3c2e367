"""What a file says about its masks, as text, and how it fits another tree."""

import collections
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from maskjax._core import checks, trees


class StorageError(ValueError):
    """A file can't be written, or is not what was saved; the message names it."""


class Leaf(NamedTuple):
    """A leaf of the saved tree. A leaf without a mask has a path only."""

    path: trees.Path
    shape: tuple[int, ...] | None = None
    sha256: str | None = None  # of its words


class Header(NamedTuple):
    """Everything in a file but the bits."""

    kind: str  # "mask", "stack" or "bank"
    tree: Any  # see `layout`
    leaves: Sequence[Leaf]
    members: int
    metadata: dict[str, Any]
    capacity: int | None = None
    overflowed: int = 0
    first: int = 0  # in a folder: how many masks the files before this one hold,
    previous: str | None = None  # and the checksum of the file before

    @property
    def shapes(self) -> dict[int, tuple[int, ...]]:
        """The shapes of the leaves that carry a mask, by the leaves' numbers."""
        shapes = enumerate(leaf.shape for leaf in self.leaves)
        return {i: shape for i, shape in shapes if shape is not None}

    def tensor(self, i: int) -> str:
        """The name of a leaf's tensor. Paths may repeat, so it begins with a number."""
        path = self.leaves[i].path.encode("utf-8", "backslashreplace").decode()
        return f"{i}:{path}"


def checksum(data: Any) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def written(header: Header) -> str:
    """The header as JSON."""
    return json.dumps(header._asdict(), separators=(",", ":"))


def parsed(facts: str) -> Header:
    """The header that was written. Anything that makes no sense raises some error."""
    fields = json.loads(facts)
    leaves = [
        Leaf(str(path), None if shape is None else tuple(shape), sha256)
        for path, shape, sha256 in fields.pop("leaves")
    ]
    header = Header(leaves=leaves, **fields)
    counts = [header.members, header.first, header.overflowed, header.capacity or 0]
    counts += itertools.chain(*header.shapes.values())
    numbers = jax.tree.leaves(built(header.tree, lambda i: i))
    if (
        any(type(count) is not int or count < 0 for count in counts)
        or sorted(numbers) != list(range(len(leaves)))
        or header.kind not in ("mask", "stack", "bank")
        or (header.kind == "mask" and header.members != 1)
        or (header.kind != "mask" and not header.shapes)
        or (header.capacity is not None and header.capacity < header.members)
        or not isinstance(header.metadata, dict)
    ):
        raise ValueError(facts)
    return header


def jsonable(metadata: Mapping[str, Any] | None, fn: str) -> dict[str, Any]:
    """The metadata, if JSON gives them back unchanged."""

    def complaint(key: Any, value: Any) -> str | None:
        try:
            text = json.dumps({key: value}, allow_nan=False)
            same = bool(json.loads(text) == {key: value})
        except (TypeError, ValueError, RecursionError):
            same = False
        return None if same else f"{key!r}: {checks.kind_of(value)}"

    needs = f"`{fn}` needs `metadata` as a dict from strings to what JSON holds"
    if not isinstance(metadata, Mapping | None):
        raise TypeError(f"{needs}, got {checks.kind_of(metadata)}.")
    found = dict(metadata or {})
    checks.raise_all(itertools.starmap(complaint, found.items()), needs, TypeError)
    return found


def layout(node: Any, number: Iterator[int]) -> Any:
    """A tree's structure as JSON: a leaf is its number, a container names its kind.

    Containers other than dicts, lists and tuples become dicts of their paths' parts.
    """
    if trees.is_mask_leaf(node):
        return next(number)
    children, _ = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node
    )
    if children and not children[0][0]:
        return next(number)
    keys = [path[0] for path, _ in children]
    parts = [layout(child, number) for _, child in children]
    if type(node) in (list, tuple):
        return {type(node).__name__: parts}
    if keys == [jax.tree_util.GetAttrKey("value")] and isinstance(parts[0], int):
        return parts[0]  # a variable of NNX, as in `trees.path_string`
    names = [getattr(key, "key", None) for key in keys]
    if {type(name) for name in names} not in ({str}, {int}):  # JAX sorts dict keys
        names = [trees.path_string([key]) for key in keys]
    if len(set(names)) < len(names):
        names = list(range(len(names)))
    return {"dict": [list(pair) for pair in zip(names, parts, strict=True)]}


def built(tree: Any, leaf: Callable[[int], Any]) -> Any:
    """The tree of a layout."""
    if type(tree) is int:
        return leaf(tree)
    ((kind, parts),) = tree.items()
    if kind == "dict":
        return {key: built(part, leaf) for key, part in parts}
    return {"list": list, "tuple": tuple}[kind](built(part, leaf) for part in parts)


def order(
    leaves: Sequence[Leaf],
    others: Sequence[tuple[trees.Path, Any]],
    fits: Callable[[Any, Any], bool],
    needs: str,
    name: str,
) -> list[int]:
    """For each leaf of another tree, the number of the saved leaf of the same path."""
    numbers = collections.defaultdict(collections.deque)
    for i, leaf in enumerate(leaves):
        numbers[leaf.path].append(i)
    order, complaints = [], []
    for path, shape in others:
        i = numbers[path].popleft() if numbers[path] else None
        order.append(i)
        if i is None:
            complaints.append(f"only in `{name}`: {path}")
        elif not fits(leaves[i].shape, shape):
            complaints.append(f"{path}: on disk {leaves[i].shape}, `{name}` {shape}")
    complaints += [f"only on disk: {p}" for p, rest in numbers.items() for _ in rest]
    checks.raise_all(complaints, needs, StorageError)
    return order
