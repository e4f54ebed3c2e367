"""Units in the same words for both libraries.

An end is the axis of a layer: `block0_0/conv1 out`, its output units, or
`block0_0/conv2 in`, its inputs. What was removed is told by end, in bits.
"""

import zlib
from collections.abc import Mapping

import numpy as np

Removed = dict[str, np.ndarray]  # for each end, which of its units are gone: [n] bool


def weights(layer: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A leaf in Flax's shape, drawn from its name, so that both sides have the same."""
    rng = np.random.default_rng(zlib.crc32(f"{layer}/{name}".encode()))
    drawn = rng.standard_normal(shape)
    if name == "kernel":
        return (drawn / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
    if name in ("scale", "var"):  # none below zero
        return (1 + 0.5 * np.tanh(drawn)).astype(np.float32)
    return (drawn * (0.5 if name == "embedding" else 0.2)).astype(np.float32)


def kept(layer: str, name: str, shape: tuple[int, ...], removed: Removed) -> np.ndarray:
    """The mask of a leaf in Flax's shape: False where one of its units is gone."""
    mask = np.ones(shape, bool)
    ends = {"out": -1, "in": -2} if name == "kernel" else {"out": -1}
    for end, axis in ends.items():
        gone = removed.get(f"{layer} {end}")
        if gone is not None and len(gone) == shape[axis]:
            # A depthwise kernel has one input for each output: its axis is 1.
            mask &= ~gone.reshape(-1, *[1] * (-1 - axis))
    return mask


def written(removed: Removed) -> dict[str, str]:
    """What was removed as JSON: the number of units, and their bits in hex."""
    return {
        end: f"{len(gone)}:{np.packbits(gone).tobytes().hex()}"
        for end, gone in removed.items()
    }


def read(text: Mapping[str, str]) -> Removed:
    """The inverse of `written`."""
    removed = {}
    for end, each in text.items():
        count, _, bits = each.partition(":")
        packed = np.frombuffer(bytes.fromhex(bits), np.uint8)
        removed[end] = np.unpackbits(packed, count=int(count)).astype(bool)
    return removed
