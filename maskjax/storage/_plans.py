"""Plans of compaction in files: arrays as bits, the rest in the header."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskjax.compaction import Plan
from maskjax.compaction._folding import Fold, Folded
from maskjax.compaction._plan import Leaf as Kept
from maskjax.storage._header import (
    Header,
    Leaf,
    StorageError,
    checksum,
    jsonable,
    possible,
)

_ROWS, _NUMBERS = "what stays, what is masked", "numbers"
_KINDS = "biufcV"  # of NumPy; V are floats of 16 bits and less


def content(
    plan: Plan, metadata: Mapping[str, Any] | None, fn: str
) -> tuple[Header, dict[int, np.ndarray]]:
    """A plan's header, and the words [1, ...] of its arrays."""
    folded, numbers = plan.folded, []

    def number(array: Any) -> list[Any]:
        array = np.asarray(array)
        numbers.append(array)
        return [str(array.dtype), list(array.shape)]

    facts: dict[str, Any] = {
        "leaves": [[x.path, list(x.shape), x.lead] for x in plan.leaves],
        "report": list(plan.report),
        "ghosts": plan.ghosts,
        "members": plan.members,
        "folded": None,
    }
    if folded is not None:
        values = [None if v is None else number(v) for v in folded.values]
        folds = [[f.number, number(f.gone), number(f.term)] for f in folded.folds]
        facts["folded"] = [folded.kind, values, folds]
    rows = [
        np.asarray(row).reshape(-1)
        for x in plan.leaves
        for row in (*x.keep, *x.dead, x.nothing)
    ]
    every = np.concatenate([np.zeros(0, bool), *rows])
    octets = np.packbits(every, bitorder="little").tobytes()
    data = {_ROWS: (every.size, octets)}
    if numbers:
        octets = b"".join(map(_octets, numbers))
        data[_NUMBERS] = 8 * len(octets), octets
    bits = {i: _words(octets) for i, (_, octets) in enumerate(data.values())}
    leaves = [
        Leaf(name, (size,), checksum(bits[i]))
        for i, (name, (size, _)) in enumerate(data.items())
    ]
    tree = [["list", len(leaves)], *range(len(leaves))]
    header = Header("plan", tree, leaves, 1, jsonable(metadata, fn), plan=facts)
    return header, bits


def shapes(header: Header) -> dict[str, tuple[int, ...] | None]:
    """The whole shapes of the parameters of a plan."""
    assert header.plan is not None
    return {path: tuple(shape) for path, shape, *_ in header.plan["leaves"]}


def check(header: Header) -> None:
    """Raise some error if the facts about a plan make no sense, or fit no file."""
    facts: Any = header.plan
    paths = [path for path, *_ in facts["leaves"]]
    numbers = list(_numbers(facts["folded"]))
    bits = [sum(map(math.prod, _rows(facts)))]
    if numbers:
        octets = sum(math.prod(shape) * dtype.itemsize for dtype, shape in numbers)
        bits.append(8 * octets)
    if (
        set(facts) != {"leaves", "report", "ghosts", "members", "folded"}
        or not all(type(text) is str for text in (*paths, *facts["report"]))
        or len(set(paths)) < len(paths)
        or not all(
            possible(tuple(shape)) and type(lead) is int and 0 <= lead <= len(shape)
            for _, shape, lead in facts["leaves"]
        )
        or not all(type(n) is int and n > 0 for n in _stack(facts))
        or type(facts["ghosts"]) is not bool
        or not all(possible(shape) for _, shape in numbers)
        or [leaf.shape for leaf in header.leaves] != [(n,) for n in bits]
        or header.tree != [["list", len(bits)], *range(len(bits))]
        or header.members != 1
    ):
        raise ValueError(facts)
    if facts["folded"] is not None:
        _check_folded(facts["leaves"], *facts["folded"])


def _check_folded(leaves: Any, kind: Any, values: Any, folds: Any) -> None:
    if (
        type(kind) is not int
        or len(values) != len(leaves)
        or any(
            value is not None and value[1] != shape
            for value, (_, shape, *_) in zip(values, leaves, strict=True)
        )
        or not all(type(number) is int and number >= 0 for number, _, _ in folds)
        or not all(gone[0] == "bool" and len(gone[1]) == 1 for _, gone, _ in folds)
    ):
        raise ValueError(folds)


def loaded(path: Any, header: Header, bits: Mapping[int, np.ndarray]) -> Plan:
    """The plan of a header that was checked, and of its words [1, ...]."""
    facts: Any = header.plan
    octets = [words[0].astype("<u4").tobytes() for words in bits.values()]
    every = np.unpackbits(np.frombuffer(octets[0], np.uint8), bitorder="little")
    given, rows = every.astype(bool), []
    for shape in _rows(facts):
        row, given = np.split(given, [math.prod(shape)])
        rows.append(row.reshape(shape))
    left, leaves = iter(rows), []
    for name, shape, lead in facts["leaves"]:
        keep, dead = (tuple(itertools.islice(left, len(shape))) for _ in range(2))
        nothing = next(left)
        counts = [row.sum(-1) for row in keep]
        if any((n != n.reshape(-1)[:1]).any() for n in counts) or any(
            size and not n.all() for size, n in zip(shape, counts, strict=True)
        ):
            raise StorageError(f"{path} holds a plan that makes no sense for {name}.")
        leaves.append(Kept(name, tuple(shape), lead, keep, dead, nothing))
    arrays = iter(_read(octets[-1], _numbers(facts["folded"])))
    folded = None
    if facts["folded"] is not None:
        kind, values, folds = facts["folded"]
        folded = Folded(
            kind,
            tuple(None if value is None else next(arrays) for value in values),
            tuple(Fold(number, next(arrays), next(arrays)) for number, _, _ in folds),
        )
    report, members = tuple(facts["report"]), facts["members"]
    return Plan(tuple(leaves), report, folded, facts["ghosts"], members)


def _stack(facts: Any) -> tuple[int, ...]:
    return () if facts["members"] is None else (facts["members"],)


def _rows(facts: Any) -> Iterator[tuple[int, ...]]:
    """The shapes of what stays, of what is masked, and of whether all of it is."""
    stack = _stack(facts)
    for _, shape, lead in facts["leaves"]:
        axes = range(len(shape))
        for axis in (*axes, *axes):
            yield (*stack, *(shape[:lead] if axis >= lead else ()), shape[axis])
        yield stack


def _numbers(folded: Any) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The types and shapes of the numbers of what is folded."""
    if folded is not None:
        _, values, folds = folded
        rows = [value for value in values if value is not None]
        for dtype, shape in (*rows, *(row for _, *two in folds for row in two)):
            yield _dtype(dtype), tuple(shape)


def _dtype(name: Any) -> Any:
    dtype = jnp.dtype(name) if type(name) is str else None
    if dtype is None or dtype.kind not in _KINDS or dtype.name != name:
        raise ValueError(name)
    return dtype


def _octets(array: np.ndarray) -> bytes:
    swapped = array.dtype.newbyteorder("<") if array.dtype.kind != "V" else array.dtype
    return array.astype(swapped).tobytes()


def _read(octets: bytes, numbers: Any) -> Iterator[np.ndarray]:
    start = 0
    for dtype, shape in numbers:
        size = math.prod(shape) * dtype.itemsize
        own = dtype.newbyteorder("<") if dtype.kind != "V" else dtype
        yield (
            np.frombuffer(octets[start : start + size], own)
            .reshape(shape)
            .astype(dtype)
        )
        start += size


def _words(octets: bytes) -> np.ndarray:
    return np.frombuffer(octets + b"\0" * (-len(octets) % 4), "<u4")[None]
