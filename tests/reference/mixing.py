"""Weighted sums and inner products of masks, in float64."""

import numpy as np


def mix(stack: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_k weights[k] * m_k."""
    return np.einsum("k,k...->...", weights.astype(np.float64), stack)


def dot(stack: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum of m_k * values, for each k; an axis of 1 in a mask is shared."""
    spread = np.broadcast_to(stack, (stack.shape[0], *values.shape))
    return np.einsum("ki,i->k", spread.reshape(len(stack), -1), values.ravel())
