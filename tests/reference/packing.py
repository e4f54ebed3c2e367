"""Bits, one entry at a time: bit j of word w is entry j * W + w."""

import numpy as np


def pack(mask: np.ndarray) -> np.ndarray:
    """A flattened boolean array as words of 32 bits."""
    flat = np.asarray(mask).ravel()
    words = (flat.size + 31) // 32
    bits = [0] * words
    for position, kept in enumerate(flat):
        if kept:
            bits[position % words] |= 1 << (position // words)
    return np.array(bits, np.uint32)
