"""Lines of both libraries as tables, beside each other."""

from collections.abc import Iterable, Sequence
from typing import Any

Line = dict[str, Any]
CLOSE = 1e-5


def markdown(lines: Iterable[Line]) -> str:
    """Three tables: networks, groups, small networks."""
    by_case: dict[str, list[Line]] = {}
    for line in lines:
        by_case.setdefault(line["case"], []).append(line)
    pairs = [pair for pair in by_case.values() if len(pair) == 2]
    parts = [
        _table(
            ("network", "", "parameters", "multiply-adds", "as masked", "forward"),
            (row for p in pairs if "parameters" in p[0] for row in _network(p)),
        ),
        _table(
            ("groups", "Torch-Pruning", "maskjax", "alike", "finer", "missing"),
            (_groups(p) for p in pairs if "groups" in p[0]),
        ),
        _table(
            ("small network", "Torch-Pruning", "maskjax"),
            (
                (p[0]["case"], *(line["outcome"] for line in p))
                for p in pairs
                if "outcome" in p[0]
            ),
        ),
    ]
    return "\n\n".join(filter(None, parts))


def compared(theirs: list[list[str]], ours: list[list[str]]) -> tuple[int, int, int]:
    """How many of their groups are ours too, are several of ours, or are not there."""
    mine = [frozenset(group) for group in ours]
    counts = {"alike": 0, "finer": 0, "missing": 0}
    for group in map(frozenset, theirs):
        inside = [each for each in mine if each <= group]
        whole = frozenset().union(*inside) == group
        finer = whole and any(each < group for each in inside)
        counts["finer" if finer else "alike" if whole else "missing"] += 1
    return counts["alike"], counts["finer"], counts["missing"]


def _network(pair: Sequence[Line]) -> Iterable[tuple[str, ...]]:
    for line in pair:
        error = line["error"]
        exact = error if isinstance(error, str) else f"off by {error:.0%}"
        if not isinstance(error, str) and error < CLOSE:
            exact = "equal"
        seconds = list(line.get("median_s", {}).values())
        ends = [seconds[0], seconds[-1]] if seconds else []
        yield (
            line["case"],
            line["contestant"],
            _from_to([f"{n / 1e6:.3f} M" for n in line["parameters"]]),
            _from_to([f"{n / 1e6:.0f} M" for n in line["multiply_adds"]]),
            exact,
            _from_to([f"{1e3 * s:.1f} ms" for s in ends]),
        )


def _groups(pair: Sequence[Line]) -> tuple[str, ...]:
    theirs, ours = (line["groups"] for line in pair)
    counts = len(theirs), len(ours), *compared(theirs, ours)
    return pair[0]["case"].split(":")[0], *map(str, counts)


def _from_to(both: Sequence[str]) -> str:
    return " -> ".join(both)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    if not (rows := list(rows)):
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
