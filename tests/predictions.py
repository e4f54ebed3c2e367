"""Predictions to judge, with ties and without, and how to compare what is found."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

M, B, C = 4, 37, 5  # members, samples, classes


def sixteenths(*lead, seed=0, least=1):
    """Probabilities [..., C] that are multiples of 1/16: exact, with many ties."""
    rng = np.random.default_rng(seed)
    rest = rng.multinomial(16 - C * least, np.full(C, 1 / C), size=lead) + least
    return rest / 16


def smooth(*lead, seed=0):
    """Probabilities [..., C] without ties."""
    z = 2 * np.random.default_rng(seed).normal(size=(*lead, C))
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def drawn_labels(*lead, seed=1):
    return np.random.default_rng(seed).integers(C, size=lead).astype(np.int32)


def close(found, wanted, **tolerance):
    """Numbers of float32, the same but for rounding."""
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, **({"rtol": 1e-5} | tolerance))


def raises(kind, pattern):
    """An error whose message matches, dots across lines."""
    return pytest.raises(kind, match=re.compile(pattern, re.DOTALL))
