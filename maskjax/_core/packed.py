"""A boolean array as bits: the value, without the arithmetic (see `packing`)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core.stored import stored

#: How many entries a word holds.
WORD = 32


@stored("maskjax.packing.PackedMask")
@dataclasses.dataclass(frozen=True)
class PackedMask:
    """One leaf of a mask, one bit an entry; a pytree with one array in it.

    With n entries and W = ceil(n / 32) words, bit j of word w is entry j * W + w of the
    flattened mask. A bit plane is then a run of consecutive entries, so that reading
    one is a shift and a select on whole vectors, on CPU, GPU and TPU lanes alike. Bits
    past n are 0.

    Attributes:
        bits: uint32, [W], or [K, W] for a stack of K masks.
        shape: The shape of one mask, without K.

    Example:
        >>> packed = packing.pack({"w": jnp.array([True, False, True])})["w"]
        >>> packed.bits, packed.shape
        (Array([5], dtype=uint32), (3,))
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

    @staticmethod
    def words(shape: tuple[int, ...]) -> int:
        """How many words a mask of this shape takes."""
        return -(-math.prod(shape) // WORD)
