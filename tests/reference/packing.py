"""Bits, one entry at a time: bit j of word w of an axis is entry 32 w + j of it."""

import math

import numpy as np


def packed_axis(shape: tuple[int, ...]) -> int | None:
    """The axis that is packed, or `None` if all entries are packed as one run."""
    entries, run = math.prod(shape), math.ceil(math.prod(shape) / 32)
    if not entries:
        return None
    words = {a: entries // n * math.ceil(n / 32) for a, n in enumerate(shape)}
    fewest = [a for a in words if words[a] == min(words.values())]
    longest = [a for a in fewest if shape[a] == max(shape[b] for b in fewest)]
    return longest[0] if longest and run >= words[longest[0]] * 8 / 9 else None


def pack(mask: np.ndarray) -> np.ndarray:
    """A boolean array as words of 32 bits."""
    mask = np.asarray(mask)
    axis = packed_axis(mask.shape)
    view, axis = (mask.ravel(), 0) if axis is None else (mask, axis)
    shape = list(view.shape)
    shape[axis] = math.ceil(shape[axis] / 32)
    bits = np.zeros(shape, np.uint32)
    for place in np.argwhere(view):
        word = list(place)
        word[axis], j = divmod(int(place[axis]), 32)
        bits[tuple(word)] |= np.uint32(1 << j)
    return bits


def unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo `pack`: the bit of each entry is looked up."""
    if not math.prod(shape):
        return np.zeros(shape, bool)
    axis, entry = packed_axis(shape), np.indices(shape)
    if axis is None:
        axis, entry = 0, np.arange(math.prod(shape)).reshape(1, *shape)
    word = [place // 32 if a == axis else place for a, place in enumerate(entry)]
    return bits[tuple(word)] >> (entry[axis] % 32).astype(np.uint32) & 1 != 0
