"""What a file says about its masks, as text, and how it fits another tree."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from maskjax._core import checks, trees

# What a header can say at most. JAX and NumPy can do no more, and what says more was
# made to do harm.
MOST = 2**31 - 1  # tasks: they are counted with an int32
_RANK, _SIZE = 64, 2**60  # axes and entries of an array
_NESTED = 1000  # containers in a mask: Python's stack is no deeper
_METADATA = 100  # containers in the metadata


class StorageError(ValueError):
    """A file can't be written, or is not what was saved; the message names it."""


class Leaf(NamedTuple):
    """A leaf of the saved tree. A leaf without a mask has a path only."""

    path: trees.Path
    shape: tuple[int, ...] | None = None
    sha256: str | None = None  # of its words


class Header(NamedTuple):
    """Everything in a file but the bits."""

    kind: str  # "mask", "stack", "bank", "plan" or "params"
    tree: list[Any]  # see `layout`
    leaves: Sequence[Leaf]
    members: int
    metadata: dict[str, Any]
    capacity: int | None = None
    overflowed: int = 0
    first: int = 0  # in a folder: how many masks the files before this one hold,
    previous: str | None = None  # and the checksum of the file before
    plan: dict[str, Any] | None = None  # see `_plans`; of a plan only
    params: list[Any] | None = None  # see `_sparse`; of parameters only

    @property
    def shapes(self) -> dict[int, tuple[int, ...]]:
        """The shapes of the leaves that carry a mask, by the leaves' numbers."""
        shapes = enumerate(leaf.shape for leaf in self.leaves)
        return {i: shape for i, shape in shapes if shape is not None}

    def tensor(self, i: int, part: str = "") -> str:
        """The name of a leaf's tensor. Paths may repeat, so it begins with a number."""
        path = self.leaves[i].path.encode("utf-8", "backslashreplace").decode()
        return f"{i}{part}:{path}"


def checksum(data: Any) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def written(header: Header) -> str:
    """The header as JSON."""
    fields = header._asdict()
    for own in ("plan", "params"):
        if fields[own] is None:
            del fields[own]
    return json.dumps(fields, separators=(",", ":"))


def loads(text: str | bytes) -> Any:
    """JSON. Whether it is read does not depend on how deep the caller is in the stack.

    Raises:
        RecursionError: If the caller is too deep in the stack, whatever the text.
        ValueError: If this is no JSON, or nested deeper than anything we write.
    """
    try:
        return json.loads(text)
    except RecursionError:
        text = text if isinstance(text, str) else text.decode()
        marks = re.finditer(r'"(?:[^"\\]|\\.?)*(?:"|\Z)|[][{}]', text, re.DOTALL)
        steps = ({"[": 1, "{": 1, "]": -1, "}": -1}.get(m[0], 0) for m in marks)
        if max(itertools.accumulate(steps), default=0) <= _METADATA + 10:
            raise
        raise ValueError("nested too deep") from None


def parsed(facts: str) -> Header:
    """The header that was written. Anything that makes no sense raises some error."""
    fields = loads(facts)
    leaves = [
        Leaf(str(path), None if shape is None else tuple(shape), sha256)
        for path, shape, sha256 in fields.pop("leaves")
    ]
    header = Header(leaves=leaves, **fields)
    counts = [header.members, header.first, header.overflowed, header.capacity or 0]
    built(header.tree, lambda i: None)
    numbers = [node for node in header.tree if type(node) is int]
    if (
        not all(type(count) is int and 0 <= count <= MOST for count in counts)
        or not all(map(possible, header.shapes.values()))
        or sorted(numbers) != list(range(len(leaves)))
        or header.kind not in ("mask", "stack", "bank", "plan", "params")
        or (header.kind in ("mask", "plan", "params") and header.members != 1)
        or (header.kind not in ("mask", "params") and not header.shapes)
        or not (header.members or (header.kind == "bank" and header.capacity))
        or (header.capacity is not None and header.capacity < header.members)
        or not isinstance(header.metadata, dict)
        or (header.kind == "plan") != (header.plan is not None)
        or (header.kind == "params") != (header.params is not None)
    ):
        raise ValueError(facts)
    return header


def possible(shape: tuple[Any, ...]) -> bool:
    """Whether an array can have a shape."""
    if len(shape) > _RANK or not all(type(n) is int and n >= 0 for n in shape):
        return False
    return math.prod(max(n, 1) for n in shape) < _SIZE


def jsonable(metadata: Mapping[str, Any] | None, fn: str) -> dict[str, Any]:
    """The metadata, if JSON gives them back unchanged."""

    def complaint(key: Any, value: Any) -> str | None:
        if _nested(value) > _METADATA:
            return f"{key!r}: nested more than {_METADATA} deep"
        try:
            text = json.dumps({key: value}, allow_nan=False)
            same = bool(json.loads(text) == {key: value})
        except (TypeError, ValueError):
            same = False
        return None if same else f"{key!r}: {checks.kind_of(value)}"

    needs = f"`{fn}` needs `metadata` as a dict from strings to what JSON holds"
    if not isinstance(metadata, Mapping | None):
        raise TypeError(f"{needs}, got {checks.kind_of(metadata)}.")
    found = dict(metadata or {})
    checks.raise_all(itertools.starmap(complaint, found.items()), needs, TypeError)
    return found


def _nested(value: Any) -> int:
    """How deep containers are nested, up to one more than metadata may be."""
    level, depth = [value], 0
    while depth <= _METADATA:
        level = [v for v in level if isinstance(v, dict | list | tuple)]
        if not level:
            break
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        # What contains itself several times is looked at once.
        level = list({id(w): w for w in itertools.chain(*inner)}.values())
        depth += 1
    return depth


def layout(tree: Any, fn: str, name: str = "mask") -> list[Any]:
    """A tree's structure as JSON that is not nested: its nodes, parents first.

    A leaf is its number. A list or tuple names its kind and length, a dict its keys.
    Any other container becomes a dict of its paths' parts.
    """
    number, nodes, left = itertools.count(), [], [(tree, 0)]
    while left:
        node, depth = left.pop()
        children = _children(node)
        keys = [key for key, _ in children or ()]
        if children and keys == [jax.tree_util.GetAttrKey("value")]:
            node = children[0][1]
            if _children(node) is None:
                children = None  # a variable of NNX, as in `trees.path_string`
        if children is None:
            nodes.append(next(number))
            continue
        if depth == _NESTED:
            raise ValueError(
                f"`{fn}` needs `{name}` with at most {_NESTED:,} containers one in "
                "another, got more."
            )
        if type(node) in (list, tuple):
            nodes.append([type(node).__name__, len(children)])
        else:
            nodes.append(["dict", _names(keys)])
        left += [(child, depth + 1) for _, child in reversed(children)]
    return nodes


def _children(node: Any) -> list[tuple[Any, Any]] | None:
    """The keys and values of a container, or `None` for a leaf."""
    if trees.is_mask_leaf(node):
        return None
    children, _ = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node
    )
    if children and not children[0][0]:
        return None
    return [(path[0], child) for path, child in children]


def _names(keys: list[Any]) -> list[Any]:
    """The keys of a dict that stands for a container: all strings, or all integers."""
    names = [getattr(key, "key", None) for key in keys]
    if {type(name) for name in names} not in ({str}, {int}):  # JAX sorts dict keys
        names = [trees.path_string([key]) for key in keys]
    return list(range(len(names))) if len(set(names)) < len(names) else names


def built(nodes: list[Any], leaf: Callable[[int], Any]) -> Any:
    """The tree of a layout. A layout that makes no sense raises some error."""
    done: list[tuple[Any, int]] = []  # subtrees and their depths, the first one last
    for node in reversed(nodes):
        if type(node) is int:
            done.append((leaf(node), 0))
            continue
        make, size = _maker(*node)
        if not 0 <= size <= len(done):
            raise ValueError(node)
        parts = [done.pop() for _ in range(size)]
        depth = 1 + max((depth for _, depth in parts), default=0)
        if depth > _NESTED:
            raise ValueError(node)
        done.append((make([part for part, _ in parts]), depth))
    ((tree, _),) = done
    return tree


def _maker(kind: str, what: Any) -> tuple[Callable[[list[Any]], Any], int]:
    """How a container is made of its children, and how many it has."""
    if kind in ("list", "tuple") and type(what) is int:
        return {"list": list, "tuple": tuple}[kind], what
    kinds = {type(key) for key in what}  # JAX sorts the keys of a dict
    if kind != "dict" or kinds not in (set(), {str}, {int}) or len({*what}) < len(what):
        raise ValueError(kind)
    return lambda values: dict(zip(what, values, strict=True)), len(what)


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
