"""Files of masks or parameters, and how they are read: never mapped, and checked.

A file is a safetensors file with the words of every leaf, [members, ...], or with what
`_sparse` makes of parameters. Its metadata hold a format version, a checksum, and the
header that the checksum is of. The header holds the checksums of the tensors. In a
folder, each header also holds the checksum of the file before it.

A file is read and not mapped, for to read a map of a file that has been cut ends the
process. Nothing is taken for true that a header says before it fits the file's size.
"""

import contextlib
import hashlib
import io
import math
import os
import pathlib
import re
import stat
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from maskjax._core import checks
from maskjax._core.packed import WORD, PackedMask, layout
from maskjax.storage import _plans, _sparse
from maskjax.storage._header import MOST, Header, StorageError, checksum, loads, parsed

StrPath = str | os.PathLike[str]

FORMAT, VERSION = "maskjax.mask", "3"
_WORDS = np.dtype("<u4")  # on disk and in checksums, on machines of any byte order
_CHUNK = 1 << 22  # bytes that are read together, and hashed while they are in cache


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


def aligned(shape: tuple[int, ...], dtype: Any = np.uint32) -> np.ndarray:
    """Zeros at an address that JAX takes over without a copy, on CPU."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


@contextlib.contextmanager
def complaining(path: StrPath, what: str) -> Iterator[None]:
    """Turn failures of the system into `StorageError`s."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} {what}: {error.strerror or error}.") from error


def require_path(path: Any, *, fn: str) -> None:
    """Raise unless something is a path, or a string of one."""
    given = isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str)
    if not given:
        raise TypeError(
            f"`{fn}` needs `path` as a string or a `pathlib.Path`, got "
            f"{checks.kind_of(path)}."
        )


def checked(path: StrPath) -> str:
    """The path, if the system can be asked about it."""
    if "\0" in (text := os.fsdecode(path)) or not text:
        raise StorageError(f"{text!r} can't be the path of a file.")
    return text


# Reading.


class Replaced(Exception):
    """Another process replaced a file while it was read."""


class Tensor(NamedTuple):
    """What a safetensors file says of an array."""

    dtype: str
    shape: list[int]
    start: int  # in the file
    stop: int


class File(NamedTuple):
    """A safetensors file that is open."""

    file: io.FileIO
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[File]:
    """A safetensors file; its tensors fill it to the last byte."""
    with _regular(path) as file:
        try:
            with complaining(path, "can't be read"):
                found = _contents(file, os.fstat(file.fileno()).st_size)
        except StorageError:
            raise
        except (AttributeError, EOFError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{path} is damaged, or no safetensors file.") from error
        yield found


def _regular(path: pathlib.Path) -> io.FileIO:
    """Open a file, but no pipe and no device: those can wait for ever, or act."""
    with complaining(path, "can't be read"):
        if stat.S_ISREG(os.stat(path).st_mode):
            return io.FileIO(path, opener=_without_waiting)
    raise StorageError(f"{path} can't be read: it is no regular file.")


def _without_waiting(path: str, flags: int) -> int:
    """Open a file. If it is now a pipe, that does not wait for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _contents(file: io.FileIO, size: int) -> File:
    """What a safetensors file says. Anything that makes no sense raises some error."""
    begin = 8 + int.from_bytes(_read(file, 8), "little")
    if begin > size:
        raise ValueError(begin)
    entries = loads(_read(file, begin - 8).decode())
    metadata = entries.pop("__metadata__", {})
    tensors = {}
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        shape = [*entry["shape"]]
        if {type(number) for number in (start, stop, *shape)} != {int}:
            raise TypeError(entry)
        tensors[name] = Tensor(entry["dtype"], shape, begin + start, begin + stop)
    end = begin
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor[2:]):
        if tensor.start != end or tensor.stop < end:
            raise ValueError(tensor)
        end = tensor.stop
    if end != size or not isinstance(metadata, dict):
        raise ValueError(end)
    return File(file, metadata, tensors)


def _read(file: io.FileIO, size: int) -> bytearray:
    """The next bytes of a file; it is at least so long."""
    data = bytearray(size)
    read_into(file, memoryview(data))
    return data


def read_into(file: io.FileIO, data: memoryview) -> None:
    """Read the next bytes of a file; `EOFError` if it ends before."""
    while data:
        count = file.readinto(data)
        if not count:
            raise EOFError
        data = data[count:]


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
        tree = (header.tree, [leaf[:2] for leaf in header.leaves])
        if folder and start != ("bank", total, before):
            raise StorageError(
                f"{name} does not begin where the file before it ends: one of the two "
                "is of another bank, or was changed."
            )
        if headers and tree != (headers[0].tree, [x[:2] for x in headers[0].leaves]):
            raise StorageError(f"{name} holds masks of other shapes than {files[0]}.")
        if total + header.members > MOST:
            raise StorageError(f"{path} holds more masks than can be counted.")
        headers.append(header)
        total, before = total + header.members, digest
    return files, headers


def read_header(path: pathlib.Path, file: File) -> tuple[Header, str]:
    """A file's header and its checksum, if the tensors are those of the header."""
    text = file.metadata.get(FORMAT)
    if not isinstance(text, str):
        raise StorageError(f"{path} is a safetensors file, but not one of maskjax.")
    version, saved, facts = [*text.split(" ", 2), "", ""][:3]
    if version != VERSION and version.isdecimal():
        which = "a newer" if int(version) > int(VERSION) else "an older"
        raise StorageError(
            f"{path} has format version {version}, and this maskjax reads {VERSION}: "
            f"{which} one may read it."
        )
    digest = checksum(facts.encode())
    if version != VERSION or digest != saved:
        raise StorageError(f"{path} is damaged: its header is not what was saved.")
    try:
        header = parsed(facts)
        if header.plan is not None:
            _plans.check(header)
        expected = _sparse.tensors(header)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path} has a header that makes no sense.") from error
    for i, shape in header.shapes.items():
        words = (header.members, *layout(shape).words)
        expected[header.tensor(i)] = ("U32", words, 4 * math.prod(words))
    found = {
        name: (tensor.dtype, tuple(tensor.shape), tensor.stop - tensor.start)
        for name, tensor in file.tensors.items()
    }
    if found != expected:
        raise StorageError(f"{path} is damaged: its tensors are not what was saved.")
    return header, digest


def read_words(
    path: pathlib.Path, file: File, header: Header, i: int, out: np.ndarray
) -> None:
    """Read the words of a leaf, [members, ...], into an array."""
    leaf = header.leaves[i]
    octets = out.reshape(-1).view(np.uint8)
    if read_octets(path, file, header.tensor(i), octets) != leaf.sha256:
        raise StorageError(f"{path} is damaged: {leaf.path} is not what was saved.")
    if sys.byteorder == "big":
        out.byteswap(inplace=True)


def read_octets(path: StrPath, file: File, name: str, out: np.ndarray) -> str:
    """Read the bytes of a tensor into an array; their checksum."""
    digest = hashlib.sha256()
    file.file.seek(file.tensors[name].start)
    for start in range(0, out.size, _CHUNK):
        chunk = out[start : start + _CHUNK].data
        try:
            with complaining(path, "can't be read"):
                read_into(file.file, chunk)
        except EOFError:
            raise StorageError(f"{path} was cut while it was read.") from None
        digest.update(chunk)
    return digest.hexdigest()
