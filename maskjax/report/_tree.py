"""A table of a deep network: parts with their sums, and repeated layers as one."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from maskjax.report import _text
from maskjax.report._counts import Entry, density

_WIDTH, _LABEL = 80, 30  # of a line, and of a path that is one line, in characters
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)


class Node(NamedTuple):
    """A parameter, or a part of the network that has some.

    Attributes:
        name: One part of a path, such as `kernel`, or of several: `[0..11]`.
        children: What it consists of; a parameter of nothing.
        parts: The numbers of its entries, for each of the layers that are shown as one.
        times: How many of them its own name stands for.
    """

    name: str
    children: tuple["Node", ...]
    parts: tuple[tuple[int, ...], ...]
    times: int = 1


def text(
    entries: Sequence[Entry], *, depth: int | None, fold: bool, flops: bool
) -> str:
    """A table with a row for each part, indented, and sums below."""
    root = _grown("", [(e.path.split("/"), i) for i, e in enumerate(entries)])
    if fold:
        root = _folded(root, entries)
    rows = [
        row for child in root.children for row in _rows(child, entries, depth=depth)
    ]
    masked = _masked(entries)
    every = [e if e.kept is not None else e._replace(kept=e.size) for e in entries]
    rows.append(("all masked", "", *_cells(masked), "-"))
    rows.append(("all parameters", "", *_cells(every), "-"))
    titles = ["parameter", "shape", "kept", "total", "density", "flops kept", "flops"]
    titles += ["layers"]
    needed = dict.fromkeys(titles, True) | {"flops kept": flops, "flops": flops}
    needed["layers"] = any(row[-1] != "-" for row in rows)
    drawn = _text.columns(titles, rows, [*needed.values()])
    if len(drawn.splitlines()[0]) > _WIDTH:
        needed["shape"] = False
        drawn = _text.columns(titles, rows, [*needed.values()])
    return drawn + _nonzero(masked)


def _grown(name: str, paths: list[tuple[list[str], int]]) -> Node:
    """The tree of some paths, in their order."""
    # A path may end where others go on: a key of a dict may have a slash in it.
    found: dict[tuple[str, int | None], list[tuple[list[str], int]]] = {}
    for (first, *rest), i in paths:
        found.setdefault((first, None if rest else i), []).append((rest, i))
    children = _sorted(
        [
            _grown(first, below) if i is None else Node(first, (), ((i,),))
            for (first, i), below in found.items()
        ]
    )
    part = tuple(i for child in children for i in child.parts[0])
    return Node(name, tuple(children), (part,))


def _sorted(nodes: Sequence[Node]) -> list[Node]:
    """Nodes that differ only in a number in its order; as text, 10 is before 2."""
    order = {key: i for i, key in enumerate(dict.fromkeys(map(_stem, nodes)))}
    return sorted(nodes, key=lambda node: _place(node, order))


def in_order(paths: Sequence[str]) -> list[int]:
    """The places of some paths in the order of their tree."""
    root = _grown("", [(path.split("/"), i) for i, path in enumerate(paths)])
    return list(root.parts[0])


def _folded(node: Node, entries: Sequence[Entry]) -> Node:
    """The tree with one node for all children that differ only in a number."""
    alike: dict[Any, list[Node]] = {}
    for i, child in enumerate(node.children):
        numbered = _NUMBERED.fullmatch(child.name)
        key: Any = i
        if numbered:
            before, _, after = numbered.groups()
            key = (before, after, _signature(child, entries))
        alike.setdefault(key, []).append(child)
    joined = [_joined(nodes, _name(nodes), len(nodes)) for nodes in alike.values()]
    return node._replace(children=tuple(_folded(one, entries) for one in joined))


def _stem(node: Node) -> str:
    """A name without its number."""
    numbered = _NUMBERED.fullmatch(node.name)
    return "{}#{}".format(*numbered.group(1, 3)) if numbered else node.name


def _place(node: Node, order: dict[str, int]) -> tuple[int, int]:
    numbered = _NUMBERED.fullmatch(node.name)
    return order[_stem(node)], int(numbered.group(2)) if numbered else 0


def _signature(node: Node, entries: Sequence[Entry]) -> Any:
    """What is equal for parts of the same parameters, masked or not."""
    if node.children:
        return tuple((c.name, _signature(c, entries)) for c in node.children)
    entry = entries[node.parts[0][0]]
    return entry.shape, entry.kept is None


def _joined(nodes: Sequence[Node], name: str, times: int) -> Node:
    """Parts of the same parameters as one."""
    children = (
        _joined(same, same[0].name, 1)
        for same in zip(*(node.children for node in nodes), strict=True)
    )
    parts = tuple(part for node in nodes for part in node.parts)
    return Node(name, tuple(children), parts, times)


def _name(nodes: Sequence[Node]) -> str:
    """`block_[0..2,5]_conv` for `block_0_conv` and the like."""
    if len(nodes) == 1:
        return nodes[0].name
    parts = [_NUMBERED.fullmatch(node.name) for node in nodes]
    found = sorted((m.group(2) for m in parts if m), key=lambda n: (int(n), n))
    runs: list[list[str]] = []
    for number in found:
        if runs and int(number) == int(runs[-1][-1]) + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    named = (run[0] if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
    (before, after) = parts[0].group(1, 3) if parts[0] else ("", "")
    return f"{before}[{','.join(named)}]{after}"


def _rows(
    node: Node,
    entries: Sequence[Entry],
    *,
    depth: int | None,
    above: str = "",
    indent: int = 0,
    level: int = 1,
) -> Iterator[tuple[str, ...]]:
    """The row of a part, and those of what it consists of.

    A part of a single one, or of nothing but parameters, has no row of its own: its
    name is before theirs.
    """
    label, ends = above + node.name, not node.children or level == depth
    simple = len(node.children) == 1 or all(map(_is_line, node.children))
    long = max(map(_length, node.children), default=0) + len(label) + 1
    if ends or not simple or 2 * indent + long > _LABEL:
        yield from _own_rows(node, entries, "  " * indent + label)
        label, indent = "", indent + 1
    else:
        label += "/"
    for child in () if ends else node.children:
        below = {"above": label, "indent": indent, "level": level + 1}
        yield from _rows(child, entries, depth=depth, **below)


def _own_rows(
    node: Node, entries: Sequence[Entry], label: str
) -> Iterator[tuple[str, ...]]:
    """One row, or those of the layers of one parameter."""
    mine = [entries[i] for part in node.parts for i in part]
    if node.children:
        shape = f"{node.times} x" if node.times > 1 else ""
        yield label, shape, *_cells(mine), _span(node, entries)
    elif mine[0].layers is None:
        yield label, mine[0].shape, *_cells(mine), _span(node, entries)
    else:
        for one in mine[0].layers:
            index = one.path.removeprefix(mine[0].path)
            yield label + index, one.shape, *_cells([one]), "-"


def _is_line(node: Node) -> bool:
    """Whether a part is a single parameter."""
    return not node.children or len(node.children) == 1 and _is_line(node.children[0])


def _length(node: Node) -> int:
    """How long a name is with those of the single parts below it."""
    below = _length(node.children[0]) + 1 if len(node.children) == 1 else 0
    return len(node.name) + below


def _masked(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.kept is not None]


def _cells(entries: Sequence[Entry]) -> list[str]:
    """Sums over the parameters with a mask, or over all if none has one."""
    masked = _masked(entries)
    summed = masked or entries
    size = sum(entry.size for entry in summed)
    kept = sum(entry.kept or 0 for entry in masked) if masked else None
    known = [entry for entry in summed if entry.flops is not None]
    work = sum(entry.flops or 0 for entry in known) if known else None
    done = sum(e.flops_kept or 0 for e in known) if known and masked else None
    part = "-" if kept is None else f"{density(kept, size):.4f}"
    whole = list(map(_text.whole, (kept, size, done, work)))
    return [*whole[:2], part, *whole[2:]]


def _span(node: Node, entries: Sequence[Entry]) -> str:
    """The lowest and the highest density of the layers that a row stands for."""
    found: list[float] = []
    for part in node.parts:
        mine = _masked([entries[i] for i in part])
        kept = [entry.kept or 0 for entry in mine]
        if len(mine) == 1 and mine[0].densities is not None:
            found += mine[0].densities
        elif any(entry.size for entry in mine):
            found.append(density(sum(kept), sum(entry.size for entry in mine)))
    low, high = min(found, default=0.0), max(found, default=0.0)
    return f"{low:.2f}-{high:.2f}" if low < high else "-"


def _nonzero(masked: Sequence[Entry]) -> str:
    """A line that says so if what is not zero is not as much as what is kept."""
    known = [entry for entry in masked if entry.nonzero is not None]
    nonzero = sum(entry.nonzero or 0 for entry in known)
    kept = sum(entry.kept or 0 for entry in known)
    if nonzero == kept:
        return ""
    return (
        f"\nThe mask keeps {kept:,} entries, and {nonzero:,} of its parameters are not "
        "zero.\n`tree=False` tells which."
    )
