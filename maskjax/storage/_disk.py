"""Files of packed masks: written whole or not at all, and checked when read.

A file is a safetensors file with the words of every leaf, [members, ...]. Its metadata
hold a format version, a checksum, and the header that the checksum is of. The header
holds the checksums of the words. In a folder, each header also holds the checksum of
the file before it.
"""

import contextlib
import hashlib
import math
import os
import pathlib
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from maskjax._core.packed import WORD, PackedMask, layout
from maskjax.storage._header import Header, StorageError, checksum, parsed, written

StrPath = str | os.PathLike[str]

_FORMAT, _VERSION = "maskjax.mask", "2"
_WORDS = np.dtype("<u4")  # on disk and in checksums, on machines of any byte order
_CHUNK = 1 << 20  # words that are read together, and hashed while they are in cache


# Words.


def words_of(leaf: PackedMask) -> np.ndarray:
    """A leaf's words, [members, ...], as they are on disk."""
    words = np.ascontiguousarray(np.asarray(leaf.bits, _WORDS))
    return words if leaf.lead else words[None]


def strays(words: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a bit past the end of the packed axis is set."""
    how = layout(shape)
    past = WORD * how.words[how.axis] - how.view[how.axis]
    if not past or not words.size:
        return False
    return bool(np.any(words.take(-1, 1 + how.axis) >> np.uint32(WORD - past)))


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros at an address that JAX takes over without a copy, on CPU."""
    size = math.prod(shape)
    room = np.zeros(size + 16, np.uint32)
    start = -room.ctypes.data % 64 // 4
    return room[start : start + size].reshape(shape)


# Writing.


def write(
    target: pathlib.Path,
    header: Header,
    bits: dict[int, np.ndarray],
    commit: Callable[[pathlib.Path, pathlib.Path], None],
) -> None:
    """Write a file under another name, sync it to disk, and only then name it."""
    facts = written(header)
    # One entry, because safetensors writes several in an order that can change.
    metadata = {_FORMAT: f"{_VERSION} {checksum(facts.encode())} {facts}"}
    tensors = {header.tensor(i): words for i, words in bits.items()}
    beside = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with complaining(target, "can't be written"):
            beside.touch(exist_ok=False)
            mode = (target if target.exists() else beside).stat().st_mode
            safetensors.numpy.save_file(tensors, beside, metadata)
            # Since version 0.8, safetensors makes files that only their owner can read.
            beside.chmod(stat.S_IMODE(mode))
            with open(beside, "rb+") as file:
                os.fsync(file.fileno())
            commit(beside, target)
            sync(target.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def link(source: pathlib.Path, target: pathlib.Path) -> None:
    """Name a file, or fail if another process has taken the name."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.replace(source, target)


def sync(folder: pathlib.Path) -> None:
    """Sync the names in a folder to disk.

    Not every system can. That is no failure, because the file is already whole.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def complaining(path: StrPath, what: str) -> Iterator[None]:
    """Turn failures of the system and of safetensors into `StorageError`s."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{path} {what}: {reason}.") from error


def checked(path: StrPath) -> str:
    """The path, if the system can be asked about it."""
    if "\0" in (text := os.fsdecode(path)) or not text:
        raise StorageError(f"{text!r} can't be the path of a file.")
    return text


# Reading.


class Replaced(Exception):
    """Another process replaced a file while it was read."""


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Any]:
    """A safetensors file."""
    with complaining(path, "is damaged, or no safetensors file"):
        try:
            file = safetensors.safe_open(path, "np")
        except OSError:  # safetensors says "no such file" of every failure to open
            with complaining(path, "can't be read"):
                open(path, "rb").close()
            raise
        with file:
            yield file


def part(number: int) -> str:
    """The name of a file in a folder."""
    return f"{number:05d}.safetensors"


def parts(path: StrPath) -> list[pathlib.Path]:
    """The files of a folder, in order."""
    with complaining(path, "can't be read"):
        names = {n for n in os.listdir(path) if re.fullmatch(r"\d{5,}\.safetensors", n)}
    expected = [part(i) for i in range(len(names))]
    if missing := [name for name in expected if name not in names]:
        raise StorageError(f"{path} lacks {', '.join(missing)}.")
    return [pathlib.Path(path, name) for name in expected]


def read_headers(path: StrPath) -> tuple[list[pathlib.Path], list[Header]]:
    """The files of a folder, or the one file, and their headers; all of it checked."""
    folder = os.path.isdir(checked(path))
    files = parts(path) if folder else [pathlib.Path(path)]
    if not files:
        raise StorageError(f"{path} is a folder without masks.")
    headers, total, before = [], 0, None
    for name in files:
        with opened(name) as file:
            header, digest = read_header(name, file)
        start = (header.kind, header.first, header.previous)
        if folder and start != ("bank", total, before):
            raise StorageError(
                f"{name} does not begin where the file before it ends: one of the two "
                "is of another bank, or was changed."
            )
        headers.append(header)
        total, before = total + header.members, digest
    return files, headers


def read_header(path: pathlib.Path, file: Any) -> tuple[Header, str]:
    """A file's header and its checksum, if the tensors are those of the header."""
    text = (file.metadata() or {}).get(_FORMAT)
    if text is None:
        raise StorageError(f"{path} is a safetensors file, but not one of maskjax.")
    version, saved, facts = [*text.split(" ", 2), "", ""][:3]
    if version != _VERSION and version.isdecimal():
        which = "a newer" if int(version) > int(_VERSION) else "an older"
        raise StorageError(
            f"{path} has format version {version}, and this maskjax reads {_VERSION}: "
            f"{which} one may read it."
        )
    digest = checksum(facts.encode())
    if version != _VERSION or digest != saved:
        raise StorageError(f"{path} is damaged: its header is not what was saved.")
    try:
        header = parsed(facts)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} has a header that makes no sense.") from error
    views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    found = {name: (v.get_dtype(), list(v.get_shape())) for name, v in views.items()}
    if found != {
        header.tensor(i): ("U32", [header.members, *layout(shape).words])
        for i, shape in header.shapes.items()
    }:
        raise StorageError(f"{path} is damaged: its tensors are not what was saved.")
    return header, digest


def read_words(
    path: pathlib.Path, file: Any, header: Header, i: int, out: np.ndarray
) -> None:
    """Read the words of a leaf, [members, ...], into an array."""
    view, leaf = file.get_slice(header.tensor(i)), header.leaves[i]
    digest = hashlib.sha256()
    step = max(1, _CHUNK // max(1, math.prod(out.shape[1:])))
    for start in range(0, len(out) if out.size else 0, step):
        stop = min(start + step, len(out))
        out[start:stop] = rows = view[start:stop]
        digest.update(np.ascontiguousarray(rows, _WORDS).data)
    if digest.hexdigest() != leaf.sha256:
        raise StorageError(f"{path} is damaged: {leaf.path} is not what was saved.")
