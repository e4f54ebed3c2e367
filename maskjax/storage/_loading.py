"""From files to masks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from maskjax._core import checks, placement, trees
from maskjax._core.packed import WORD, PackedMask, layout
from maskjax.bank import MaskBank
from maskjax.bank import capacity as capacity_of
from maskjax.storage import _disk, _plans, _sparse
from maskjax.storage._disk import StrPath
from maskjax.storage._header import Header, StorageError, built, order

# How often to start again because a file was replaced while it was read.
_TRIES = 100
# What a file may ask for beyond what it holds: so many bytes, or so many times its own.
_ROOM, _TIMES = 2**26, 64
# Words of a mask that are unpacked together, of 64 masks: 8 MB.
_BLOCK = 2**12


class Info(NamedTuple):
    """What a file or folder holds.

    Attributes:
        kind: "mask", "stack", "bank", "plan" or "params".
        shapes: For each leaf's path the shape of one mask, or `None` without a mask. Of
            a plan, and of parameters, the whole shapes of the parameters.
        members: The number of masks: 1, K, or the number of tasks learned; 1 of a plan,
            and of parameters.
        capacity: How many tasks the bank has room for when loaded. `None` for a mask or
            a stack.
        metadata: The metadata that were saved.
    """

    kind: str
    shapes: dict[trees.Path, tuple[int, ...] | None]
    members: int
    capacity: int | None
    metadata: dict[str, Any]


def load(path: StrPath, *, like: Any = None, capacity: int | None = None) -> Any:
    """The mask, stack, bank or plan of a file, or the bank of a folder.

    Args:
        path: The file or folder.
        like: A tree of the structure to return: parameters, a mask, or a bank. `None`:
            dicts, lists and tuples come back as they were; any other container comes
            back as a dict of its paths' parts. A packed mask, a packed stack or a bank
            also says on which devices; otherwise it is the default one.
        capacity: How many tasks the bank has room for. `None`: the capacity of the bank
            that was saved, or the number of tasks if that is larger. Room that takes
            over 64 MiB, and over 64 times the file, has to be named here (or `like` is
            a bank of that capacity): a small file can't ask for all memory.

    Returns:
        A packed mask, a packed stack, a `MaskBank`, or a `compaction.Plan`.

    Raises:
        TypeError: If `path` is no path, the capacity no whole number, or the keys of a
            dict in `like` can't be sorted.
        ValueError: If there are more masks than the capacity.
        StorageError: If the file can't be read, is damaged, has another format version,
            was not written by maskjax, does not fit `like`, asks for more memory than
            the caller named, or is no bank and a capacity is given, or a plan and
            `like` is.

    Example:
        >>> import tempfile
        >>> tasks = bank.from_stack({"w": jnp.ones((2, 3, 4), bool)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     storage.save(f"{folder}/bank.safetensors", tasks)
        ...     tasks = storage.load(f"{folder}/bank.safetensors", capacity=100)
        >>> tasks.learned, bank.capacity(tasks)
        (Array(2, dtype=int32), 100)
    """
    fn = "maskjax.storage.load"
    _disk.require_path(path, fn=fn)
    for _ in range(_TRIES):
        with contextlib.suppress(_disk.Replaced):
            return _load(path, like, capacity, fn=fn)
    raise StorageError(f"{path} is replaced again and again while it is read.")


def info(path: StrPath) -> Info:
    """What a file or folder holds, without reading the bits.

    Args:
        path: The file or folder.

    Returns:
        The kind, shapes, number, capacity and metadata. They are checked against their
        checksum; the bits are checked by `load`.

    Raises:
        TypeError: If `path` is no path.
        StorageError: If the file can't be read, is damaged, has another format version,
            or was not written by maskjax.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/mask.safetensors"
        ...     storage.save(path, {"w": jnp.ones((2, 3), bool), "b": None})
        ...     storage.info(path).shapes
        {'b': None, 'w': (2, 3)}
    """
    _disk.require_path(path, fn="maskjax.storage.info")
    _, headers = _disk.read_headers(path)
    header, total = headers[0], sum(one.members for one in headers)
    return Info(
        header.kind,
        _shapes(header),
        total,
        max(total, header.capacity or 0) if header.kind == "bank" else None,
        {key: value for one in headers for key, value in one.metadata.items()},
    )


def _shapes(header: Header) -> dict[trees.Path, tuple[int, ...] | None]:
    """What `Info.shapes` is."""
    if header.plan is not None:
        return dict(_plans.shapes(header))
    if header.params is not None:
        return _sparse.shapes(header)
    return {leaf.path: leaf.shape for leaf in header.leaves}


def _load(path: StrPath, like: Any, capacity: int | None, fn: str) -> Any:
    files, headers = _disk.read_headers(path)
    header, total = headers[0], sum(one.members for one in headers)
    if header.params is not None:
        raise StorageError(
            f"{path} holds parameters, and no mask, bank or plan; "
            "`maskjax.storage.load_params` reads it."
        )
    rows = _rows(path, header, total, capacity, fn)
    if header.plan is not None and like is not None:
        raise StorageError(f"{path} holds a plan, which needs no `like`.")
    rebuild = _rebuilder(path, header, like, fn)
    _require_room(path, header, total, rows, like, capacity)
    shapes = header.shapes
    try:
        bits: dict[int, Any] = {
            i: _disk.aligned((rows, *layout(s).words)) for i, s in shapes.items()
        }
    except (MemoryError, ValueError) as error:  # NumPy's words for more than there is
        raise StorageError(f"{path} needs more memory than there is.") from error
    start = 0
    for name, one in zip(files, headers, strict=True):
        with _disk.opened(name) as file:
            if _disk.read_header(name, file)[0] != one:
                raise _disk.Replaced
            for i, words in bits.items():
                part = words[start : start + one.members]
                _disk.read_words(name, file, one, i, part)
        start += one.members
    checks.raise_all(
        (
            header.leaves[i].path
            for i in bits
            if _disk.strays(bits[i][:total], shapes[i])
        ),
        f"`{fn}` needs masks without bits past their entries in {path}",
        StorageError,
    )
    if header.plan is not None:
        return _plans.loaded(path, header, bits)
    if header.kind == "mask":
        bits = {i: words[0] for i, words in bits.items()}
    masks = rebuild({i: PackedMask(bits[i], shapes[i]) for i in shapes})
    if header.kind == "bank":
        counts = rebuild({i: _counts(bits[i][:total], shapes[i]) for i in shapes})
        numbers: Any = (np.int32(total), np.int32(header.overflowed))
        masks = MaskBank(masks, counts, *numbers)
    return _placed(masks, like)


def _rows(
    path: StrPath, header: Header, total: int, capacity: int | None, fn: str
) -> int:
    """How many masks to make room for."""
    if header.kind == "bank":
        rows = max(total, header.capacity or 0) if capacity is None else capacity
        checks.at_least(rows, max(total, 1), fn=fn, name="capacity")
        return rows
    if capacity is not None:
        raise StorageError(
            f"{path} holds a {header.kind}, which has no capacity. `bank.from_stack` "
            "makes a bank of a stack."
        )
    return total


def _require_room(
    path: StrPath, header: Header, total: int, rows: int, like: Any, capacity: Any
) -> None:
    """Raise if a file asks for much more than it holds, and not the caller."""
    if header.kind != "bank":
        return
    one = sum(4 * math.prod(layout(shape).words) for shape in header.shapes.values())
    counts = sum(4 * math.prod(shape) for shape in header.shapes.values())
    most = (
        rows if isinstance(like, MaskBank) and capacity_of(like) >= rows else capacity
    )
    asked = {
        f"`capacity={rows}`": (rows - total) * one if most is None else 0,
        "`like`": counts if like is None and not total else 0,
    }
    size = sum(asked.values())
    if size > max(_ROOM, _TIMES * total * one):
        named = " and ".join(name for name, bytes_ in asked.items() if bytes_)
        raise StorageError(
            f"{path} asks for room for {rows} masks, {size / 2**20:,.0f} MiB more than "
            f"it holds. If that is right, pass {named}."
        )


def _rebuilder(
    path: StrPath, header: Header, like: Any, fn: str
) -> Callable[[dict[int, Any]], Any]:
    """A function from leaves by their numbers to the tree; other leaves are `None`."""
    if like is None:
        return lambda leaves: built(header.tree, leaves.get)
    like = like.masks if isinstance(like, MaskBank) else like
    checks.flat(like, fn=fn)
    found, treedef = trees.mask_leaves(like)
    numbers = order(
        header.leaves,
        [(name, None if leaf is None else np.shape(leaf)) for name, leaf in found],
        lambda mine, its: mine is None or (its is not None and checks.fits(mine, its)),
        f"`{fn}` needs `like` of the structure and shapes in {path}",
        "like",
    )
    return lambda leaves: treedef.unflatten([leaves.get(i) for i in numbers])


def _placed(loaded: Any, like: Any) -> Any:
    """What was loaded, put where `like` is, if that is of its kind and on devices."""
    if jax.tree.structure(loaded) != jax.tree.structure(like):
        return jax.device_put(loaded)

    def put(x: Any, other: Any) -> jax.Array:
        where = placement.known(other) if np.ndim(x) == np.ndim(other) else None
        if not isinstance(where, NamedSharding):
            return jax.device_put(x, where)
        # Every process reads the same file: no process has to hear from another.
        read = np.asarray(x).__getitem__
        return jax.make_array_from_callback(np.shape(x), where, read)

    return jax.tree.map(put, loaded, like)


def _counts(words: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """How many masks keep each entry. NumPy, so that loading compiles nothing."""
    how = layout(shape)
    if not words.size:
        return np.zeros(shape, np.int32)
    flat = words.reshape(len(words), -1)
    total = np.zeros((flat.shape[1], WORD), np.int32)
    for first in range(0, len(total), _BLOCK):
        block = total[first : first + _BLOCK]
        for start in range(0, len(flat), 64):  # sums of at most 64 fit into a byte
            some = flat[start : start + 64, first : first + _BLOCK]
            octets = some.astype("<u4")[..., None].view(np.uint8)
            bits = np.unpackbits(octets, axis=-1, bitorder="little")
            block += bits.sum(0, dtype=np.uint8)
    padded = list(how.view)
    padded[how.axis] = WORD * how.words[how.axis]
    total = np.moveaxis(total.reshape(*how.words, WORD), -1, how.axis + 1)
    ends = [slice(size) for size in how.view]
    return total.reshape(padded)[tuple(ends)].reshape(shape)
