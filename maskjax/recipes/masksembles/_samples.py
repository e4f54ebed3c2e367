"""Which member each sample of a batch passes through in training."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from maskjax._core import checks
from maskjax._core.trees import Array
from maskjax.recipes.masksembles._masks import count

_FN = "maskjax.recipes.masksembles."


def in_chunks(batch: int, *, members: int) -> Array:
    """A member for each sample, in runs of consecutive samples: 3.

    Args:
        batch: B, at least 1, of samples in random order. All members get equally many
            samples, or one more.
        members: N.

    Returns:
        [B], int32, in [0, N), ascending.

    Raises:
        TypeError: If a count is not a whole Python number.
        ValueError: If a count is below 1.

    Example:
        >>> masksembles.in_chunks(5, members=2)
        Array([0, 0, 0, 1, 1], dtype=int32)
    """
    return jnp.asarray(_in_chunks(batch, members, fn=_FN + "in_chunks"))


def at_random(batch: int, *, members: int, key: Array) -> Array:
    """A random member for each sample, with equally many samples for each: 3.

    Args:
        batch: B, at least 1.
        members: N.
        key: A typed key. Use another one in each step, so that samples change members.

    Returns:
        [B], int32, in [0, N). Which members get one sample more is random, too.

    Raises:
        TypeError: If a count is not a whole Python number, or the key is not typed.
        ValueError: If a count is below 1.

    Example:
        >>> assigned = masksembles.at_random(6, members=3, key=jax.random.key(0))
        >>> jnp.bincount(assigned)
        Array([2, 2, 2], dtype=int32)
    """
    fn = _FN + "at_random"
    checks.typed_key(key, fn=fn)
    return _permuted(_in_chunks(batch, members, fn=fn), key, members=members)


@functools.partial(jax.jit, static_argnames="members")
def _permuted(chunks: ArrayLike, key: Array, *, members: int) -> Array:
    order, names = jax.random.split(key)
    chunks = jax.random.permutation(order, chunks)
    return jax.random.permutation(names, jnp.arange(members, dtype=jnp.int32))[chunks]


def _in_chunks(batch: int, members: int, *, fn: str) -> np.ndarray:
    for value, name in ((batch, "batch"), (members, "members")):
        count(value, fn=fn, name=name)
    return (np.arange(batch) * members // batch).astype(np.int32)
