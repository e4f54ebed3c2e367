"""Masks on disk, one bit an entry: whole or not there, and checked when read.

    >>> import tempfile
    >>> mask = {"w": jnp.array([[True, False], [False, True]]), "b": None}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     storage.save(f"{folder}/mask.safetensors", mask)
    ...     packing.unpack(storage.load(f"{folder}/mask.safetensors"))
    {'b': None, 'w': Array([[ True, False],
           [False,  True]], dtype=bool)}

A bank that grows while it trains is a folder of such files: `append` adds one, and
writes none again. Reading executes nothing that is in a file.
"""

import collections
import contextlib
import itertools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maskjax import packing
from maskjax._core import checks, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Mask
from maskjax.bank import MaskBank
from maskjax.storage import _disk
from maskjax.storage._disk import Header, Leaf, StorageError, StrPath

__all__ = ["Info", "StorageError", "append", "info", "load", "save"]


class Info(NamedTuple):
    """What a file or folder says of its masks.

    Attributes:
        kind: "mask", "stack" or "bank".
        shapes: For each leaf's path the shape of one mask; `None` where there is none.
        members: How many masks: 1, K, or how many tasks are learned.
        capacity: How many tasks the bank has room for when loaded; else `None`.
        metadata: What was saved with them.
    """

    kind: str
    shapes: dict[trees.Path, tuple[int, ...] | None]
    members: int
    capacity: int | None
    metadata: dict[str, Any]


# How often a file is begun anew that others replace meanwhile.
_TRIES = 100


def save(
    path: StrPath, mask: Mask | MaskBank, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a mask, a stack or a bank to one file.

    The file is then whole or, whatever goes wrong, as it was.

    Args:
        path: The file, `*.safetensors` by custom; one that exists is replaced.
        mask: A mask, packed or boolean; a packed stack (a boolean one is saved as a
            mask with one more axis); or a bank, whose unused slots take no space.
        metadata: What else to remember: a dict from strings to what JSON holds.

    Returns:
        Nothing; the file is on disk by then.

    Raises:
        TypeError: If a leaf is no mask or is traced, or the metadata are not JSON.
        ValueError: If bits do not fit their shapes.
        StorageError: If the file can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/mask.safetensors"
        ...     storage.save(path, {"w": jnp.ones((2, 3), bool)}, metadata={"step": 7})
        ...     storage.info(path).metadata
        {'step': 7}
    """
    header, bits = _content(mask, metadata, fn="maskjax.storage.save")
    target = pathlib.Path(os.path.realpath(_disk.checked(path)))
    with _disk.complaining(path, "can't be written"):
        taken = target.exists() and not target.is_file()
    if taken:
        raise StorageError(f"{path} is no file. A bank in a folder grows by `append`.")
    _disk.write(target, header, bits, commit=os.replace)


def append(
    path: StrPath, mask: Mask | MaskBank, *, metadata: Mapping[str, Any] | None = None
) -> int:
    """Add masks to a bank in a folder, and write nothing again that is there.

    The folder then holds one more file or, whatever goes wrong, is as it was.

    Args:
        path: The folder; it is made if there is none.
        mask: One mask, packed or boolean, or a packed stack. A bank, an empty one too,
            can begin a folder, and `load` then gives it that bank's capacity.
        metadata: As for `save`; what is appended later wins.

    Returns:
        How many masks the folder holds now.

    Raises:
        TypeError: If a leaf is no mask or is traced, or the metadata are not JSON.
        ValueError: If bits do not fit their shapes, no leaf carries a mask, or it is a
            bank and the folder has one.
        StorageError: If the mask does not fit those in the folder, the last of them
            can't be read, or the new file can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for keep in (True, False):
        ...         storage.append(folder, {"w": jnp.full((2, 3), keep)})
        ...     storage.load(folder).learned
        1
        2
        Array(2, dtype=int32)
    """
    fn = "maskjax.storage.append"
    header, bits = _content(mask, metadata, fn=fn)
    if not bits:
        raise ValueError(f"`{fn}` needs `mask` with at least one leaf, got none.")
    header = header._replace(kind="bank")
    folder = pathlib.Path(os.path.realpath(_disk.checked(path)))
    with _disk.complaining(path, "can't be written"):
        made = not folder.exists()
    try:
        with _disk.complaining(path, "can't be written"):
            if made:
                folder.mkdir()
                _disk.sync(folder.parent)
        parts = _disk.parts(folder)
        if parts:
            if isinstance(mask, MaskBank):
                raise ValueError(
                    f"`{fn}` needs a mask or a stack, for {path} holds a bank already, "
                    "got a bank."
                )
            header, bits = _after(parts[-1], header, bits, fn)
        _disk.write(folder / _disk.part(len(parts)), header, bits, commit=_disk.link)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    return header.first + header.members


def load(path: StrPath, *, like: Any = None, capacity: int | None = None) -> Any:
    """The mask, stack or bank of a file, or the bank of a folder.

    Args:
        path: The file or folder.
        like: A tree of the structure to return: the parameters that the masks are for,
            or a mask or bank of theirs. `None`: dicts, lists and tuples come back as
            they were, anything else as a dict of the components of its paths.
        capacity: How many tasks a bank is to have room for. `None`: as many as the bank
            that was saved, or as there are if that is more.

    Returns:
        A packed mask, a packed stack, or a `MaskBank`.

    Raises:
        TypeError: If the capacity is no whole number.
        ValueError: If there are more masks than the capacity.
        StorageError: If it can't be read, is damaged, of a newer format or not of
            maskjax, does not fit `like`, or is no bank and a capacity is given.

    Example:
        >>> import tempfile
        >>> tasks = bank.from_stack({"w": jnp.ones((2, 3, 4), bool)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     storage.save(f"{folder}/bank.safetensors", tasks)
        ...     tasks = storage.load(f"{folder}/bank.safetensors", capacity=100)
        >>> tasks.learned, bank.capacity(tasks)
        (Array(2, dtype=int32), 100)
    """
    for _ in range(_TRIES):
        with contextlib.suppress(_disk.Replaced):
            return _load(path, like, capacity, fn="maskjax.storage.load")
    raise StorageError(f"{path} is replaced again and again while it is read.")


def _load(path: StrPath, like: Any, capacity: int | None, fn: str) -> Any:
    files, headers = _disk.read_headers(path)
    header, total = headers[0], sum(one.members for one in headers)
    rows = total
    if header.kind == "bank":
        rows = max(total, header.capacity or 0) if capacity is None else capacity
        checks.at_least(rows, max(total, 1), fn=fn, name="capacity")
    elif capacity is not None:
        raise StorageError(
            f"{path} holds a {header.kind}, which has no capacity. `bank.from_stack` "
            "makes a bank of a stack."
        )
    rebuild = _rebuilder(path, header, like, fn)
    shapes = header.shapes
    bits = {
        i: _disk.aligned(rows, PackedMask.words(shape)) for i, shape in shapes.items()
    }
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
        (header.leaves[i].path for i in bits if _disk.strays(bits[i], shapes[i])),
        f"`{fn}` needs masks without bits past their entries in {path}",
        StorageError,
    )
    if header.kind == "mask":
        bits = {i: words[0] for i, words in bits.items()}
    masks = rebuild({i: PackedMask(jax.device_put(bits[i]), shapes[i]) for i in shapes})
    if header.kind != "bank":
        return masks
    counts = {
        i: jax.device_put(_disk.tally(bits[i][:total], shapes[i])) for i in shapes
    }
    return MaskBank(masks, rebuild(counts), jnp.int32(total), jnp.int32(header.refused))


def info(path: StrPath) -> Info:
    """What a file or folder says of its masks, without reading the bits.

    Args:
        path: The file or folder.

    Returns:
        The kind, shapes, number, capacity and metadata, checked; whether the bits are
        what was saved is for `load` to find.

    Raises:
        StorageError: If it can't be read, is damaged, of a newer format or not of
            maskjax.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/mask.safetensors"
        ...     storage.save(path, {"w": jnp.ones((2, 3), bool), "b": None})
        ...     storage.info(path).shapes
        {'b': None, 'w': (2, 3)}
    """
    _, headers = _disk.read_headers(path)
    header, total = headers[0], sum(one.members for one in headers)
    return Info(
        header.kind,
        {leaf.path: leaf.shape for leaf in header.leaves},
        total,
        max(total, header.capacity or 0) if header.kind == "bank" else None,
        {key: value for one in headers for key, value in one.metadata.items()},
    )


def _content(
    mask: Mask | MaskBank, metadata: Mapping[str, Any] | None, fn: str
) -> tuple[Header, dict[int, np.ndarray]]:
    """A mask's header, and the words [members, W] of its leaves by their numbers."""
    masks = mask.masks if isinstance(mask, MaskBank) else mask
    checks.boolean(masks, fn=fn)
    checks.raise_all(
        (
            f"{path}: {checks.kind_of(leaf)}"
            for path, leaf in trees.named_leaves(mask)
            if isinstance(leaf, Tracer)
        ),
        f"`{fn}` needs masks with values, and can't be in `jit`",
        TypeError,
    )
    leaves, _ = trees.mask_leaves(packing.pack(masks))
    packed = [(path, leaf) for path, leaf in leaves if leaf is not None]
    tree, found = _disk.layout(masks, itertools.count()), _disk.jsonable(metadata, fn)
    header = Header("mask", tree, [], 1, found)
    if isinstance(mask, MaskBank) or any(leaf.bits.ndim > 1 for _, leaf in packed):
        checks.packed_stack(masks, fn=fn)
        header = header._replace(kind="stack", members=checks.members(masks, fn=fn))
    checks.packed(masks, fn=fn, stacked=None)
    checks.raise_all(
        (f"{p}: {checks.kind_of(m.bits)}" for p, m in packed if m.bits.ndim > 2),
        f"`{fn}` needs the bits of one mask or of one stack",
    )
    if isinstance(mask, MaskBank):
        checks.at_least(int(mask.learned), 0, fn=fn, name="mask.learned")
        checks.at_least(header.members, int(mask.learned), fn=fn, name="mask.capacity")
        header = header._replace(
            kind="bank",
            members=int(mask.learned),
            capacity=header.members,
            refused=int(mask.overflowed),
        )
    bits = {
        i: _disk.words_of(leaf)[: header.members]
        for i, (_, leaf) in enumerate(leaves)
        if leaf is not None
    }
    checks.raise_all(
        (leaves[i][0] for i in bits if _disk.strays(bits[i], leaves[i][1].shape)),
        f"`{fn}` needs packed masks without bits past their entries",
    )
    described = [
        Leaf(path, tuple(map(int, leaf.shape)), _disk.checksum(bits[i]))
        if leaf is not None
        else Leaf(path)
        for i, (path, leaf) in enumerate(leaves)
    ]
    return header._replace(leaves=described), bits


def _after(
    last: pathlib.Path, header: Header, bits: dict[int, np.ndarray], fn: str
) -> tuple[Header, dict[int, np.ndarray]]:
    """Header and words of a file that goes on where a folder's last one ends."""
    with _disk.opened(last) as file:
        before, digest = _disk.read_header(last, file)
    order = _order(
        before.leaves,
        [(leaf.path, leaf.shape) for leaf in header.leaves],
        lambda old, new: old == new,
        f"`{fn}` needs `mask` of the shapes in {last.parent}",
        "mask",
    )
    leaves = dict(zip(order, header.leaves, strict=True))
    header = header._replace(
        tree=before.tree,
        leaves=[leaves[i] for i in range(len(leaves))],
        first=before.first + before.members,
        previous=digest,
    )
    return header, {order[i]: words for i, words in bits.items()}


def _rebuilder(
    path: StrPath, header: Header, like: Any, fn: str
) -> Callable[[dict[int, Any]], Any]:
    """What makes the tree of leaves by their numbers; the others are `None`."""
    if like is None:
        return lambda leaves: _disk.built(header.tree, leaves.get)
    like = like.masks if isinstance(like, MaskBank) else like
    found, treedef = trees.mask_leaves(like)
    order = _order(
        header.leaves,
        [(name, None if leaf is None else np.shape(leaf)) for name, leaf in found],
        lambda mine, its: mine is None or (its is not None and checks.fits(mine, its)),
        f"`{fn}` needs `like` of the structure and shapes in {path}",
        "like",
    )
    return lambda leaves: treedef.unflatten([leaves.get(i) for i in order])


def _order(
    leaves: Sequence[Leaf],
    others: Sequence[tuple[trees.Path, Any]],
    fits: Callable[[Any, Any], bool],
    needs: str,
    name: str,
) -> list[int]:
    """Which of a file's leaves each of another tree's is, by path."""
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
