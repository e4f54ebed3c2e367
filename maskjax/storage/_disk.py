"""Files of packed masks: written whole or not at all, and checked when read.

A file is a safetensors file with the words of every leaf, [members, W]. Its metadata
hold a version, a checksum, and what that is of: facts as JSON, and among them the
checksums of the words. In a folder, each file has the checksum of the one before it.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from maskjax._core import checks, trees
from maskjax._core.packed import WORD, PackedMask

StrPath = str | os.PathLike[str]

_FORMAT, _VERSION = "maskjax.mask", "1"
_WORDS = np.dtype("<u4")  # on disk and in checksums, whatever the machine's order
_CHUNK = 1 << 20  # words read together, and hashed while they are in cache


class StorageError(ValueError):
    """A file that can't be written, or is not what was saved; the message names it."""


class Leaf(NamedTuple):
    """What a file says of a leaf; without a mask there is the path only."""

    path: trees.Path
    shape: tuple[int, ...] | None = None
    sha256: str | None = None


class Header(NamedTuple):
    """All that a file says beside the bits."""

    kind: str  # "mask", "stack" or "bank"
    tree: Any  # see `layout`
    leaves: Sequence[Leaf]
    members: int
    metadata: dict[str, Any]
    capacity: int | None = None
    refused: int = 0
    first: int = 0  # in a folder: how many masks the files before it hold,
    previous: str | None = None  # and the checksum of the last of them

    @property
    def shapes(self) -> dict[int, tuple[int, ...]]:
        """The shapes of the leaves that carry a mask, by the leaves' numbers."""
        shapes = enumerate(leaf.shape for leaf in self.leaves)
        return {i: shape for i, shape in shapes if shape is not None}


def words_of(leaf: PackedMask) -> np.ndarray:
    """A leaf's words, as they are on disk."""
    return np.ascontiguousarray(np.atleast_2d(np.asarray(leaf.bits, _WORDS)))


def strays(words: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether there are bits that stand for no entry."""
    width = words.shape[1]
    past = np.arange(math.prod(shape), WORD * width)
    return bool(np.any(words[:, past % max(width, 1)] >> (past // max(width, 1)) & 1))


def checksum(data: Any) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def jsonable(metadata: Mapping[str, Any] | None, fn: str) -> dict[str, Any]:
    """Metadata that come back from JSON as they were."""

    def complaint(key: Any, value: Any) -> str | None:
        try:
            text = json.dumps({key: value}, allow_nan=False)
            same = bool(json.loads(text) == {key: value})
        except (TypeError, ValueError, RecursionError):
            same = False
        return None if same else f"{key!r}: {checks.kind_of(value)}"

    needs = f"`{fn}` needs `metadata` as a dict from strings to what JSON holds"
    if not isinstance(metadata, Mapping | None):
        raise TypeError(f"{needs}, got {checks.kind_of(metadata)}.")
    found = dict(metadata or {})
    checks.raise_all(itertools.starmap(complaint, found.items()), needs, TypeError)
    return found


def layout(node: Any, number: Iterator[int]) -> Any:
    """A tree's structure as JSON: a leaf is its number, a container names its kind.

    What is no dict, list or tuple is written as a dict of the components of its paths.
    """
    if trees.is_mask_leaf(node):
        return next(number)
    children, _ = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda x: x is not node
    )
    if children and not children[0][0]:
        return next(number)
    keys = [path[0] for path, _ in children]
    parts = [layout(child, number) for _, child in children]
    if type(node) in (list, tuple):
        return {type(node).__name__: parts}
    if keys == [jax.tree_util.GetAttrKey("value")] and isinstance(parts[0], int):
        return parts[0]  # what `trees.path_string` does with NNX's variables
    names = [getattr(key, "key", None) for key in keys]
    if {type(name) for name in names} not in ({str}, {int}):  # JAX sorts them
        names = [trees.path_string([key]) for key in keys]
    if len(set(names)) < len(names):
        names = list(range(len(names)))
    return {"dict": [list(pair) for pair in zip(names, parts, strict=True)]}


def built(tree: Any, leaf: Callable[[int], Any]) -> Any:
    """The tree of a layout."""
    if type(tree) is int:
        return leaf(tree)
    ((kind, parts),) = tree.items()
    if kind == "dict":
        return {key: built(part, leaf) for key, part in parts}
    return {"list": list, "tuple": tuple}[kind](built(part, leaf) for part in parts)


def write(
    target: pathlib.Path,
    header: Header,
    bits: dict[int, np.ndarray],
    commit: Callable[[pathlib.Path, pathlib.Path], None],
) -> None:
    """Write a file beside the target, make it last, and only then name it `target`."""
    facts = json.dumps(header._asdict(), separators=(",", ":"))
    # One entry, for safetensors writes several in an order that is not always the same.
    metadata = {_FORMAT: f"{_VERSION} {checksum(facts.encode())} {facts}"}
    tensors = {_name(header, i): words for i, words in bits.items()}
    beside = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with complaining(target, "can't be written"):
            beside.touch(exist_ok=False)
            mode = (target if target.exists() else beside).stat().st_mode
            safetensors.numpy.save_file(tensors, beside, metadata)
            # From version 0.8 it makes files that only their owner can read.
            beside.chmod(stat.S_IMODE(mode))
            with open(beside, "rb+") as file:
                os.fsync(file.fileno())
            commit(beside, target)
            sync(target.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def link(source: pathlib.Path, target: pathlib.Path) -> None:
    """Give a file its name, unless another process took that meanwhile."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.replace(source, target)


def sync(folder: pathlib.Path) -> None:
    """Make the names in a folder last, where that can be asked for.

    Not every system can, and a file that has its name by now is whole without it.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def complaining(path: StrPath, what: str) -> Iterator[None]:
    """Failures of the system and of safetensors are `StorageError`s."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{path} {what}: {reason}.") from error


class Replaced(Exception):
    """Another process put a new file in the place of one that is being read."""


def checked(path: StrPath) -> str:
    """A path that the system can be asked about."""
    if "\0" in (text := os.fsdecode(path)) or not text:
        raise StorageError(f"{text!r} can't be the path of a file.")
    return text


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Any]:
    """A safetensors file."""
    with complaining(path, "is damaged, or no safetensors file"):
        try:
            file = safetensors.safe_open(path, "np")
        except OSError:  # whatever the reason, it says that there is no such file
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
    """The files of a bank, or the one file, and what they say; all of it checked."""
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
    """A file's header and its checksum; the tensors are those that it speaks of."""
    text = (file.metadata() or {}).get(_FORMAT)
    if text is None:
        raise StorageError(f"{path} is a safetensors file, but not one of maskjax.")
    version, saved, facts = [*text.split(" ", 2), "", ""][:3]
    if version != _VERSION and version.isdecimal():
        raise StorageError(
            f"{path} has format version {version}, and this maskjax reads {_VERSION}: "
            "a newer one may read it."
        )
    digest = checksum(facts.encode())
    if version != _VERSION or digest != saved:
        raise StorageError(f"{path} is damaged: its header is not what was saved.")
    try:
        header = _parsed(facts)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} has a header that makes no sense.") from error
    views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    found = {name: (v.get_dtype(), list(v.get_shape())) for name, v in views.items()}
    if found != {
        _name(header, i): ("U32", [header.members, PackedMask.words(shape)])
        for i, shape in header.shapes.items()
    }:
        raise StorageError(f"{path} is damaged: its tensors are not what was saved.")
    return header, digest


def aligned(rows: int, width: int) -> np.ndarray:
    """Zeros that begin where JAX takes them over without a copy, on CPU."""
    room = np.zeros(rows * width + 16, np.uint32)
    start = -room.ctypes.data % 64 // 4
    return room[start : start + rows * width].reshape(rows, width)


def read_words(
    path: pathlib.Path, file: Any, header: Header, i: int, out: np.ndarray
) -> None:
    """Read the words of a leaf, [members, W], to where they belong."""
    view, leaf = file.get_slice(_name(header, i)), header.leaves[i]
    digest = hashlib.sha256()
    step = max(1, _CHUNK // max(1, out.shape[1]))
    for start in range(0, len(out) if out.size else 0, step):
        stop = min(start + step, len(out))
        out[start:stop] = rows = view[start:stop]
        digest.update(np.ascontiguousarray(rows, _WORDS).data)
    if digest.hexdigest() != leaf.sha256:
        raise StorageError(f"{path} is damaged: {leaf.path} is not what was saved.")


def _name(header: Header, i: int) -> str:
    """A tensor's name; paths alone may repeat, or hold what UTF-8 can't."""
    path = header.leaves[i].path.encode("utf-8", "backslashreplace").decode()
    return f"{i}:{path}"


def _parsed(facts: str) -> Header:
    fields = json.loads(facts)
    leaves = [
        Leaf(str(path), None if shape is None else tuple(shape), sha256)
        for path, shape, sha256 in fields.pop("leaves")
    ]
    header = Header(leaves=leaves, **fields)
    counts = [header.members, header.first, header.refused, header.capacity or 0]
    counts += itertools.chain(*header.shapes.values())
    numbers = jax.tree.leaves(built(header.tree, lambda i: i))
    if (
        any(type(count) is not int or count < 0 for count in counts)
        or sorted(numbers) != list(range(len(leaves)))
        or header.kind not in ("mask", "stack", "bank")
        or (header.kind == "mask" and header.members != 1)
        or (header.kind != "mask" and not header.shapes)
        or (header.capacity is not None and header.capacity < header.members)
        or not isinstance(header.metadata, dict)
    ):
        raise ValueError(facts)
    return header


def tally(words: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """How many masks keep each entry; as `packing.tally_leaf`, but compiles nothing.

    The masks' bits are added as binary digits are, two numbers at a time, for the 32
    entries of a word at once.
    """
    shifts = np.arange(WORD, dtype=np.uint32)[:, None]
    total = np.zeros((WORD, words.shape[1]), np.int32)
    for start in range(0, len(words), 128):
        digits = [words[start : start + 128]]
        while len(digits[0]) > 1:
            if len(digits[0]) % 2:
                digits = [np.pad(digit, ((0, 1), (0, 0))) for digit in digits]
            half = len(digits[0]) // 2
            sums, carry = [], np.zeros_like(digits[0][:half])
            for digit in digits:
                a, b = digit[:half], digit[half:]
                either = a ^ b
                sums.append(either ^ carry)
                carry = a & b | either & carry
            digits = [*sums, carry]
        for place, digit in enumerate(digits):
            total += (digit[0] >> shifts & 1).astype(np.int32) << place
    return total.ravel()[: math.prod(shape)].reshape(shape)
