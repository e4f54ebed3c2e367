"""Files written whole or not at all, one process at a time.

A file is written under another name, synced to disk, and only then named. Whoever
writes holds the lock of a file beside it. The system frees the lock of a process that
ends, so the file of a lock that is free was left by a process that was killed, and so
were the files that were written under it: the next one to write removes them.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import random
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from maskjax.storage._disk import FORMAT, VERSION, StrPath, checked, complaining
from maskjax.storage._header import Header, StorageError, checksum, written
from maskjax.storage._sparse import Spec

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# How many seconds to wait for others to write.
_PATIENCE = 60.0
# What systems say that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EBADF)


class Taken(Exception):
    """Another process has taken the name of the new file."""


def replace(path: StrPath, filling: Callable[[BinaryIO], None]) -> None:
    """Write one file, in place of any that has the name."""
    target = pathlib.Path(os.path.realpath(checked(path)))
    with complaining(path, "can't be written"):
        taken = target.exists() and not target.is_file()
    if taken:
        raise StorageError(f"{path} is no file. A bank in a folder grows by `append`.")
    stem = stem_of(target.name)
    with alone(path, target.parent, stem):
        write(target, filling, os.replace, stem)


def write(
    target: pathlib.Path,
    filling: Callable[[BinaryIO], None],
    commit: Callable[[pathlib.Path, pathlib.Path], None],
    stem: str,
) -> None:
    """Write a file under another name, sync it to disk, and only then name it."""
    beside = target.with_name(f".{stem}.{secrets.token_hex(8)}.tmp")
    try:
        with complaining(target, "can't be written"):
            with open(beside, "xb") as file:
                if target.exists():
                    beside.chmod(stat.S_IMODE(target.stat().st_mode))
                filling(file)
                file.flush()
                os.fsync(file.fileno())
            commit(beside, target)
            sync(target.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def fill(file: BinaryIO, header: Header, bits: dict[int, np.ndarray]) -> None:
    """Write the bytes of a safetensors file of masks."""
    entries: dict[str, Any] = {}
    end = 0
    for i, words in sorted(bits.items()):
        start, end = end, end + words.nbytes
        entries[header.tensor(i)] = {
            "dtype": "U32",
            "shape": words.shape,
            "data_offsets": [start, end],
        }
    file.write(_heading(header, entries))
    for _, words in sorted(bits.items()):
        file.write(words.data)


def fill_in_turn(
    file: BinaryIO,
    header: Callable[[Mapping[str, str]], Header],
    tensors: Mapping[str, Spec],
    turns: Iterable[Callable[[], Mapping[str, np.ndarray]]],
) -> None:
    """Write the bytes of a safetensors file with few tensors in memory at a time.

    Args:
        file: The file.
        header: From the checksum of every tensor to the header.
        tensors: The code, shape and size of every tensor.
        turns: Functions, each of which returns the bytes of some tensors.
    """

    def width(item: tuple[str, Spec]) -> int:
        _, (_, shape, size) = item
        return size // max(1, math.prod(shape))

    entries, starts, end = {}, {}, 0
    # The widest first, so that all are aligned.
    for name, (code, shape, size) in sorted(tensors.items(), key=width, reverse=True):
        starts[name] = end
        place = [end, end := end + size]
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": place}
    sums = dict.fromkeys(tensors, "0" * 64)  # until they are known: as long as they are
    first = _heading(header(sums), entries)
    file.write(first)

    def turn(made: Callable[[], Mapping[str, np.ndarray]]) -> None:
        for name, octets in made().items():
            file.seek(len(first) + starts[name])
            file.write(octets.data)
            sums[name] = checksum(octets.data)

    for made in turns:
        turn(made)
    file.seek(0)
    file.write(_heading(header(sums), entries))


def _heading(header: Header, entries: dict[str, Any]) -> bytes:
    """What a file begins with."""
    facts = written(header)
    metadata = {FORMAT: f"{VERSION} {checksum(facts.encode())} {facts}"}
    whole = {"__metadata__": metadata, **entries}
    text = json.dumps(whole, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that what follows is aligned
    return len(text).to_bytes(8, "little") + text


def link(source: pathlib.Path, target: pathlib.Path) -> None:
    """Name a file, or fail if another process has taken the name."""
    try:
        os.link(source, target)
    except FileExistsError as error:
        raise Taken from error
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


def stem_of(name: str) -> str:
    """What the names of files beside a file begin with; short, as names have limits."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


@contextlib.contextmanager
def alone(path: StrPath, folder: pathlib.Path, stem: str) -> Iterator[None]:
    """Wait until nobody else writes files of a stem, and keep others out.

    Where the system has no locks, nothing happens.
    """
    lock = folder / f".{stem}.lock"
    with complaining(path, "can't be written"):
        held = _locked(path, lock)
    try:
        yield
    finally:
        if held is not None:
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(held)


def _locked(path: StrPath, lock: pathlib.Path) -> int | None:
    """The descriptor of a lock, or `None` where there are no locks."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return _lock(lock)
        except BlockingIOError:
            if time.monotonic() > until:
                raise StorageError(
                    f"{path} can't be written: {_holder(lock)} writes to it, and has "
                    f"not finished in {_PATIENCE:g} seconds."
                ) from None
            time.sleep(random.uniform(0, 0.01))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            with contextlib.suppress(OSError):
                lock.unlink()
            return None


def _lock(lock: pathlib.Path) -> int:
    """The descriptor of a lock; `BlockingIOError` if another holds it."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no locks")
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        held, left = os.open(lock, flags | os.O_CREAT | os.O_EXCL, 0o666), False
    except FileExistsError:
        with _or_wait():
            held, left = os.open(lock, flags), True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with _or_wait():
            named = os.stat(lock)
        if not os.path.samestat(named, os.fstat(held)):
            raise BlockingIOError  # another lock has the name by now
        if left:
            _tidy(lock)
        os.ftruncate(held, 0)
        os.write(held, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except BaseException:
        os.close(held)
        raise
    return held


@contextlib.contextmanager
def _or_wait() -> Iterator[None]:
    """A lock that is gone was another's a moment ago: that is as if it held it."""
    try:
        yield
    except FileNotFoundError as error:
        raise BlockingIOError from error


def _tidy(lock: pathlib.Path) -> None:
    """Remove what was written under a lock that nobody holds, and got no name."""
    for name in os.listdir(lock.parent):
        if name.startswith(f"{lock.stem}.") and name.endswith(".tmp"):
            with contextlib.suppress(OSError):
                os.unlink(lock.parent / name)


def _holder(lock: pathlib.Path) -> str:
    """Who holds a lock, in words."""
    with contextlib.suppress(OSError, ValueError):
        if (text := lock.read_text()).startswith("process "):
            return text[:200]
    return "another process"
