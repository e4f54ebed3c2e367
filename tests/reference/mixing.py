"""Weighted sums and inner products of masks, in float64."""

import numpy as np


def mix(stack: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """sum_k coefficients[k] * m_k."""
    return np.einsum("k,k...->...", np.float64(coefficients), stack)


def dot(stack: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sum of m_k * values for each k; entries along a mask's axis of 1 share."""
    spread = np.broadcast_to(stack, (stack.shape[0], *values.shape))
    return np.einsum("ki,i->k", spread.reshape(len(stack), -1), values.ravel())
