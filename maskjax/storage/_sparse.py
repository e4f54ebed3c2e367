"""Parameters in files: the values that are kept, and which entries those are.

A leaf without a mask is one tensor, as it is. A leaf with a mask is two: the values
that are kept, one after another, and either the mask, one bit an entry, or, where
exactly n of every m are kept, the place of each kept value within its group.

Nothing is computed with values: they are moved as bits, so that every nan and the sign
of every zero stay.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from maskjax._core import checks
from maskjax._core.packed import PackedMask, layout
from maskjax.storage._header import Header, possible

# What safetensors calls each dtype. Dtypes that it does not know, or has come to know
# lately, are bytes, or pairs of floats for complex numbers: the header has the dtype.
_CODES = {
    "bool": "BOOL",
    **{f"int{8 * n}": f"I{8 * n}" for n in (1, 2, 4, 8)},
    **{f"uint{8 * n}": f"U{8 * n}" for n in (1, 2, 4, 8)},
    **{f"float{8 * n}": f"F{8 * n}" for n in (2, 4, 8)},
    "bfloat16": "BF16",
    "complex64": "F32",
    "complex128": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    **dict.fromkeys(("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz"), "U8"),
    **dict.fromkeys(("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), "U8"),
    **dict.fromkeys(("float4_e2m1fn", "int4", "uint4", "int2", "uint2"), "U8"),
}

Spec = tuple[str, tuple[int, ...], int]  # a tensor's code, shape and bytes


class Pattern(NamedTuple):
    """Exactly n of every m entries are kept, with the axes in an order."""

    n: int
    m: int
    order: tuple[int, ...]  # of the axes: groups are consecutive entries then

    @property
    def bits(self) -> int:
        """How many bits a place within a group takes."""
        return (self.m - 1).bit_length()


class Param(NamedTuple):
    """What a file says of one parameter."""

    dtype: str
    shape: tuple[int, ...]
    mask: tuple[int, ...] | None = None  # the mask's shape: axes may be 1
    kept: int | None = None  # how many values
    pattern: Pattern | None = None  # how the mask is stored, if not one bit an entry
    sha256: dict[str, str] | None = None  # of the bytes of each part

    @property
    def unit(self) -> np.dtype:
        """What one value is moved as."""
        size = jnp.dtype(self.dtype).itemsize
        return np.dtype("V16" if size == 16 else f"u{size}")

    @property
    def nbytes(self) -> int:
        """How many bytes the whole parameter takes in memory, with its packed mask."""
        own = math.prod(self.shape) * self.unit.itemsize
        mask = 0 if self.mask is None else 4 * math.prod(layout(self.mask).words)
        return own + mask

    def parts(self) -> dict[str, Spec]:
        """The tensors of a parameter in a file."""
        values = self.shape if self.mask is None else (self.kept or 0,)
        pair = (2,) if self.dtype.startswith("complex") else ()
        size = math.prod(values) * self.unit.itemsize
        found: dict[str, Spec] = {
            "values": (_CODES[self.dtype], (*values, *pair), size)
        }
        if self.pattern is not None:
            size = -(-(self.kept or 0) * self.pattern.bits // 8)
            found["index"] = ("U8", (size,), size)
        elif self.mask is not None:
            size = -(-math.prod(self.mask) // 8)
            found["mask"] = ("U8", (size,), size)
        return found

    def facts(self) -> dict[str, Any]:
        """What the header says, as JSON."""
        fields = self._asdict()
        if self.pattern is not None:
            fields["pattern"] = self.pattern._asdict()
        return fields


def is_known(dtype: Any) -> bool:
    """Whether a parameter may have a dtype."""
    return getattr(dtype, "name", None) in _CODES


def described(
    dtype: str, shape: tuple[int, ...], keep: np.ndarray, pattern: Pattern | None
) -> Param:
    """How a masked parameter is stored: by places in groups only if that is smaller."""
    count = int(np.count_nonzero(keep)) * _shared(shape, keep.shape)
    by_bits = Param(dtype, shape, keep.shape, count)
    if pattern is None or keep.shape != shape:
        return by_bits
    by_places = by_bits._replace(pattern=pattern)
    smaller = by_places.parts()["index"][2] < by_bits.parts()["mask"][2]
    return by_places if smaller else by_bits


def _shared(shape: tuple[int, ...], mask: tuple[int, ...]) -> int:
    """How many entries of a parameter share one of its mask."""
    return math.prod(n for n, own in zip(shape, mask, strict=True) if own == 1)


# Headers.


def tensors(header: Header) -> dict[str, Spec]:
    """The tensors of a file of parameters; none of others."""
    return {
        name_of(header, i, part): spec
        for i, param in enumerate(parsed(header))
        if param is not None
        for part, spec in param.parts().items()
    }


def shapes(header: Header) -> dict[str, tuple[int, ...] | None]:
    """The shape of each parameter by its path."""
    params = zip(header.leaves, parsed(header), strict=True)
    return {leaf.path: param and param.shape for leaf, param in params}


def name_of(header: Header, i: int, part: str) -> str:
    """The name of a tensor."""
    return header.tensor(i, "" if part == "values" else f".{part}")


def parsed(header: Header) -> list[Param | None]:
    """The parameters of a header; `None` is None. What makes no sense raises errors."""
    if header.params is None:
        return []
    if len(header.params) != len(header.leaves) or any(
        leaf.shape is not None or leaf.sha256 is not None for leaf in header.leaves
    ):
        raise ValueError(header)
    return [facts if facts is None else _parsed(facts) for facts in header.params]


def _parsed(facts: dict[str, Any]) -> Param:
    if set(facts) != set(Param._fields) or facts["dtype"] not in _CODES:
        raise ValueError(facts)
    param = Param(**facts)
    shape, mask, kept = tuple(param.shape), param.mask, param.kept
    if not possible(shape):
        raise ValueError(facts)
    param = param._replace(shape=shape)
    if mask is not None:
        param = param._replace(mask=(mask := tuple(mask)))
        if not possible(mask) or not checks.fits(mask, shape):
            raise ValueError(facts)
        if type(kept) is not int or not 0 <= kept <= math.prod(shape):
            raise ValueError(facts)
    elif kept is not None or param.pattern is not None:
        raise ValueError(facts)
    if param.pattern is not None:
        param = param._replace(pattern=_pattern(shape, mask, kept, facts["pattern"]))
    sums = param.sha256
    if set(sums or ()) != set(param.parts()):
        raise ValueError(facts)
    return param


def _pattern(shape: Any, mask: Any, kept: Any, facts: dict[str, Any]) -> Pattern:
    pattern = Pattern(**facts)
    n, m, order = pattern
    if (
        not all(type(number) is int for number in (n, m, *order))
        or not 0 <= n <= m
        or not possible((m,))
        or m < 1
        or sorted(order) != list(range(len(shape)))
        or mask != shape
        or math.prod(shape) % m
        or kept != math.prod(shape) // m * n
    ):
        raise ValueError(facts)
    return pattern._replace(order=tuple(order))


# There.


def encoded(
    param: Param, array: np.ndarray, keep: np.ndarray | None
) -> dict[str, np.ndarray]:
    """The bytes of each part of a parameter."""
    raw = np.asarray(array, order="C").view(param.unit)
    if keep is None:
        return {"values": _octets(raw, param)}
    pattern = param.pattern
    order = range(raw.ndim) if pattern is None else pattern.order
    kept = np.broadcast_to(keep, param.shape).transpose(order)
    found = {"values": _octets(raw.transpose(order)[kept], param)}
    if pattern is None:
        found["mask"] = np.packbits(keep.reshape(-1), bitorder="little")
        return found
    places = np.flatnonzero(kept)
    places %= pattern.m
    bits = np.empty((places.size, pattern.bits), bool)
    for j in range(pattern.bits):
        bits[:, j] = places >> j & 1
    found["index"] = np.packbits(bits.reshape(-1), bitorder="little")
    return found


def _octets(raw: np.ndarray, param: Param) -> np.ndarray:
    """Values as bytes, little-endian."""
    width = _width(param)
    numbers = raw.reshape(-1).view(f"u{width}")
    return numbers.astype(f"<u{width}", copy=False).view(np.uint8)


def _width(param: Param) -> int:
    """Bytes of what has an order of bytes: a complex value has two of these."""
    return param.unit.itemsize // (2 if param.dtype.startswith("complex") else 1)


# And back.


def decoded(
    param: Param, octets: dict[str, np.ndarray], out: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The parameter and its mask, from the bytes of its parts.

    Args:
        param: What the header says.
        octets: The bytes of each part.
        out: Zeros of the parameter's shape, of `unit`; None without a mask.

    Raises:
        ValueError: If they make no sense together.
    """
    width, dtype = _width(param), jnp.dtype(param.dtype)
    numbers = octets["values"].view(f"<u{width}").astype(f"u{width}", copy=False)
    values = numbers.view(param.unit)
    if param.dtype == "bool" and np.any(values > 1):
        raise ValueError("no boolean")
    if param.mask is None or out is None:
        return values.view(dtype).reshape(param.shape), None
    keep = _places(param, octets)
    if np.count_nonzero(keep) * _shared(param.shape, param.mask) != param.kept:
        raise ValueError("not as many")
    if param.kept:
        order = range(out.ndim) if param.pattern is None else param.pattern.order
        kept = np.broadcast_to(keep, param.shape).transpose(order)
        out.transpose(order)[kept] = values
    return out.view(dtype), keep


def _places(param: Param, octets: dict[str, np.ndarray]) -> np.ndarray:
    """Which entries are kept."""
    pattern, mask = param.pattern, param.mask
    assert mask is not None
    if pattern is None:
        return _bits(octets["mask"], math.prod(mask)).view(bool).reshape(mask)
    n, m, order = pattern
    keep, kept = np.zeros(math.prod(mask), bool), param.kept or 0
    if n:
        bits = _bits(octets["index"], kept * pattern.bits).reshape(kept, pattern.bits)
        places = np.zeros(kept, np.int64)
        for j in range(pattern.bits):
            places |= bits[:, j].astype(np.int64) << j
        rows = places.reshape(-1, n)
        if np.any(rows >= m) or np.any(rows[:, 1:] <= rows[:, :-1]):
            raise ValueError("no places")
        rows += m * np.arange(len(rows))[:, None]
        keep[places] = True
    laid = keep.reshape([mask[axis] for axis in order])
    return laid.transpose(np.argsort(order))


def _bits(octets: np.ndarray, count: int) -> np.ndarray:
    """The first bits of bytes, a byte each; the others have to be 0."""
    bits = np.unpackbits(octets, bitorder="little")
    if bits[count:].any():
        raise ValueError("more bits than entries")
    return bits[:count]


# Masks of one bit an entry, as in memory.


def packed(keep: np.ndarray) -> PackedMask:
    """A boolean array packed. NumPy, so that loading compiles nothing."""
    how = layout(keep.shape)
    octets = np.packbits(keep.reshape(how.view), axis=how.axis, bitorder="little")
    room = np.zeros((*np.delete(how.words, how.axis), 4 * how.words[how.axis]), "u1")
    octets = np.moveaxis(octets, how.axis, -1)
    room[..., : octets.shape[-1]] = octets
    words = np.moveaxis(room.view("<u4"), -1, how.axis)
    return PackedMask(np.asarray(words, np.uint32, order="C"), keep.shape)  # type: ignore[arg-type]


def booleans(words: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The words of one mask as a boolean array."""
    how = layout(shape)
    if not words.size:
        return np.zeros(shape, bool)
    last = np.moveaxis(words, how.axis, -1)
    octets = np.asarray(last, "<u4", order="C").view(np.uint8)
    size = how.view[how.axis]
    bits = np.unpackbits(octets, axis=-1, count=size, bitorder="little")
    return np.moveaxis(bits.view(bool), -1, how.axis).reshape(shape)
