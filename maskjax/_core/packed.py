"""A boolean array as bits: the value, without the arithmetic (see `packing`)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core.stored import stored

#: How many entries a word holds.
WORD = 32


class Layout(NamedTuple):
    """How the entries of an array lie in words; it follows from the array's shape.

    Attributes:
        view: The array's shape, or (n,) if it is packed as one run.
        axis: The axis of `view` that is packed.
        words: `view` with that axis divided by 32: the shape of the words.
    """

    view: tuple[int, ...]
    axis: int
    words: tuple[int, ...]


@functools.cache
def layout(shape: tuple[int, ...]) -> Layout:
    """The axis that needs the fewest words, or one run where that saves over 1/9."""
    run = math.prod(shape)
    most = -(-run // WORD)
    if run:
        words = [run // n * -(-n // WORD) for n in shape]
        axes = sorted(range(len(shape)), key=lambda a: (words[a], -shape[a]))
        if axes and 8 * words[axes[0]] <= 9 * most:
            axis = axes[0]
            cut = (*shape[:axis], -(-shape[axis] // WORD), *shape[axis + 1 :])
            return Layout(shape, axis, cut)
    return Layout((run,), 0, (most,))


@stored("maskjax.packing.PackedMask")
@dataclasses.dataclass(frozen=True)
class PackedMask:
    """One leaf of a mask, one bit an entry; a pytree with one array in it.

    One axis of the mask is packed: the one that needs the fewest words, the longest of
    those, the first of those. Bit j of word w along it is entry 32 w + j. All other
    axes are as in the mask, so that bits are sharded as the mask is: packing is local
    where each device has a multiple of 32 entries along the packed axis. If one run
    through all entries needs less than 8/9 of the words, the mask is packed as that run
    instead; then all of it is (n,). Bits past the end of the axis are 0.

    Attributes:
        bits: uint32, the mask's shape with one axis divided by 32, or [n / 32] for a
            run, rounded up. A stack of K masks has one more, leading axis of K.
        shape: The shape of one mask, without K.

    Example:
        >>> packed = packing.pack({"w": jnp.array([True, False, True])})["w"]
        >>> packed.bits, packed.shape
        (Array([5], dtype=uint32), (3,))
        >>> packing.pack(jnp.ones((3, 128, 16), bool)).bits.shape
        (3, 4, 16)
    """

    bits: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def dtype(self) -> np.dtype:
        """What an entry is."""
        return jnp.dtype("bool")

    @property
    def size(self) -> int:
        """How many entries one mask has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes the bits take."""
        return self.bits.size * self.bits.dtype.itemsize

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes in front of one mask's: (), or (K,) for a stack."""
        return self.bits.shape[: max(0, self.bits.ndim - len(self.words(self.shape)))]

    @staticmethod
    def words(shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the words of a mask of this shape."""
        return layout(tuple(shape)).words
