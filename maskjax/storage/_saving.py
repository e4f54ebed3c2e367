"""From masks to files."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from maskjax import packing
from maskjax._core import checks, trees
from maskjax._core.trees import Mask
from maskjax.bank import MaskBank
from maskjax.compaction import Plan
from maskjax.storage import _disk, _plans, _writing
from maskjax.storage._disk import StrPath
from maskjax.storage._header import (
    Header,
    Leaf,
    StorageError,
    checksum,
    jsonable,
    layout,
    order,
)

# How often to start again, where there are no locks, because another was faster.
_TRIES = 1000


def save(
    path: StrPath,
    mask: Mask | MaskBank | Plan,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a mask, a stack, a bank or a plan to one file.

    If anything fails, a file that was there before is unchanged.

    Args:
        path: The file, `*.safetensors` by convention. One that exists is replaced.
        mask: A mask, packed or boolean, a packed stack, or a bank. (A boolean stack is
            saved as a mask with one more axis.) Unused slots of a bank take no space.
            Or a plan of `compaction`, to shrink and expand by in another process.
        metadata: A dict from strings to JSON values, to be saved too.

    Returns:
        None. The file is on disk when the function returns.

    Raises:
        TypeError: If `path` is no path, a leaf is no mask or is traced, the keys of a
            dict can't be sorted, or the metadata are not JSON.
        ValueError: If bits do not fit their shapes, or other processes hold a part of
            the mask. `multihost_utils.process_allgather` gathers it.
        StorageError: If the file can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/mask.safetensors"
        ...     storage.save(path, {"w": jnp.ones((2, 3), bool)}, metadata={"step": 7})
        ...     storage.info(path).metadata
        {'step': 7}
    """
    fn = "maskjax.storage.save"
    _disk.require_path(path, fn=fn)
    if isinstance(mask, Plan):
        header, bits = _plans.content(mask, metadata, fn)
    else:
        header, bits = _content(mask, metadata, fn)
    _writing.replace(path, lambda file: _writing.fill(file, header, bits))


def append(
    path: StrPath, mask: Mask | MaskBank, *, metadata: Mapping[str, Any] | None = None
) -> int:
    """Add masks to a bank in a folder, as one new file.

    If anything fails, the folder is unchanged. One process writes at a time, and others
    wait for it. What a process that was killed left half written is removed by the next
    call.

    Args:
        path: The folder. It is made if it does not exist.
        mask: One mask, packed or boolean, or a packed stack. The first call may get a
            bank, an empty one too; `load` then uses that bank's capacity.
        metadata: A dict from strings to JSON values. Later calls override earlier ones.

    Returns:
        The number of masks in the folder.

    Raises:
        TypeError: As `save`.
        ValueError: If bits do not fit their shapes, no leaf carries a mask, other
            processes hold a part of it, or `mask` is a bank and the folder already
            holds one.
        StorageError: If the mask does not fit those in the folder, the folder's last
            file can't be read, the new one can't be written, or another process (the
            message says which) writes for longer than a minute.

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
    _disk.require_path(path, fn=fn)
    header, bits = _content(mask, metadata, fn=fn)
    if not bits:
        raise ValueError(f"`{fn}` needs `mask` with at least one leaf, got none.")
    header = header._replace(kind="bank")
    folder = pathlib.Path(os.path.realpath(_disk.checked(path)))
    with _disk.complaining(path, "can't be written"):
        made = not folder.exists()
    try:
        if made:
            with _disk.complaining(path, "can't be written"):
                folder.mkdir(exist_ok=True)
                _writing.sync(folder.parent)
        with _writing.alone(path, folder, "append"):
            for _ in range(_TRIES):
                with contextlib.suppress(_writing.Taken):
                    return _appended(path, folder, mask, header, bits, fn)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    raise StorageError(f"{path} can't be written: others append to it all the time.")


def _appended(
    path: StrPath,
    folder: pathlib.Path,
    mask: Mask | MaskBank,
    header: Header,
    bits: dict[int, np.ndarray],
    fn: str,
) -> int:
    """Write the next file of a folder; the number of masks that are then in it."""
    parts = _disk.parts(folder)
    if parts:
        if isinstance(mask, MaskBank):
            raise ValueError(
                f"`{fn}` needs a mask or a stack, for {path} holds a bank already, "
                "got a bank."
            )
        header, bits = _after(parts[-1], header, bits, fn)
    target = folder / _disk.part(len(parts))
    filling = lambda file: _writing.fill(file, header, bits)  # noqa: E731
    _writing.write(target, filling, _writing.link, "append")
    return header.first + header.members


def _content(
    mask: Mask | MaskBank, metadata: Mapping[str, Any] | None, fn: str
) -> tuple[Header, dict[int, np.ndarray]]:
    """A mask's header, and the words [members, ...] of its leaves by their numbers."""
    masks = mask.masks if isinstance(mask, MaskBank) else mask
    checks.boolean(masks, fn=fn)
    require_here(mask, fn, "mask")
    leaves, _ = trees.mask_leaves(packing.pack(masks))
    packed = {i: leaf for i, (_, leaf) in enumerate(leaves) if leaf is not None}
    found = jsonable(metadata, fn)
    header = Header("mask", layout(masks, fn), [], 1, found)
    header = _counted(header, mask, fn)
    bits = {i: _disk.words_of(leaf)[: header.members] for i, leaf in packed.items()}
    checks.raise_all(
        (
            leaves[i][0]
            for i, leaf in packed.items()
            if _disk.strays(bits[i], leaf.shape)
        ),
        f"`{fn}` needs packed masks without bits past their entries",
    )
    described = [
        Leaf(path, tuple(map(int, leaf.shape)), checksum(bits[i]))
        if leaf is not None
        else Leaf(path)
        for i, (path, leaf) in enumerate(leaves)
    ]
    return header._replace(leaves=described), bits


def require_here(tree: Any, fn: str, name: str) -> None:
    """Raise if a tree is traced, or if other processes hold a part of it.

    That is before anything waits for them.
    """
    what = {"mask": "masks", "params": "parameters"}[name]
    checks.raise_all(
        (
            f"{path}: {checks.kind_of(leaf)}"
            for path, leaf in trees.named_leaves(tree)
            if isinstance(leaf, Tracer)
        ),
        f"`{fn}` needs {what} with values, and can't be in `jit`",
        TypeError,
    )

    def elsewhere(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        )

    checks.raise_all(
        (
            f"{path}: {checks.kind_of(leaf)}, {leaf.sharding}"
            for path, leaf in trees.named_leaves(tree)
            if elsewhere(leaf)
        ),
        f"`{fn}` needs {what} that this process holds as a whole. Let every process "
        f"call `jax.experimental.multihost_utils.process_allgather({name}, tiled=True)`"
        ", and one of them save what it returns. Other processes hold parts",
    )


def _counted(header: Header, mask: Mask | MaskBank, fn: str) -> Header:
    """The header with the kind and number of masks, if all leaves agree on it."""
    masks = mask.masks if isinstance(mask, MaskBank) else mask
    packed = [
        (path, leaf)
        for path, leaf in trees.mask_leaves(masks)[0]
        if isinstance(leaf, packing.PackedMask)
    ]
    if isinstance(mask, MaskBank) or any(leaf.lead for _, leaf in packed):
        checks.packed_stack(masks, fn=fn)
        header = header._replace(kind="stack", members=checks.members(masks, fn=fn))
    checks.packed(masks, fn=fn, stacked=None)
    checks.raise_all(
        (f"{p}: {checks.kind_of(m.bits)}" for p, m in packed if len(m.lead) > 1),
        f"`{fn}` needs the bits of one mask or of one stack",
    )
    if isinstance(mask, MaskBank):
        learned, overflowed = (int(count) for count in mask[2:])
        checks.at_least(learned, 0, fn=fn, name="mask.learned")
        checks.at_least(header.members, learned, fn=fn, name="mask.capacity")
        header = header._replace(
            kind="bank",
            members=learned,
            capacity=header.members,
            overflowed=overflowed,
        )
    return header


def _after(
    last: pathlib.Path, header: Header, bits: dict[int, np.ndarray], fn: str
) -> tuple[Header, dict[int, np.ndarray]]:
    """Header and words of the file that follows the last one of a folder."""
    with _disk.opened(last) as file:
        before, digest = _disk.read_header(last, file)
    numbers = order(
        before.leaves,
        [(leaf.path, leaf.shape) for leaf in header.leaves],
        lambda old, new: old == new,
        f"`{fn}` needs `mask` of the shapes in {last.parent}",
        "mask",
    )
    leaves = dict(zip(numbers, header.leaves, strict=True))
    header = header._replace(
        tree=before.tree,
        leaves=[leaves[i] for i in range(len(leaves))],
        first=before.first + before.members,
        previous=digest,
    )
    return header, {numbers[i]: words for i, words in bits.items()}
