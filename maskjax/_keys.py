"""Keys of members, which must not be used twice."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from maskjax import _checks


def own(keys: Any, *, fn: str) -> None:
    """Typed keys [M], and no two the same, as far as that is known."""
    if not _checks.is_typed_key(keys):
        raise TypeError(
            f"`{fn}` needs `keys` as typed keys, one for each member, from "
            f"`jax.random.split(key, members)`, got {_checks.kind_of(keys)}."
        )
    if keys.ndim != 1 or not keys.size:
        raise ValueError(
            f"`{fn}` needs `keys` of shape (members,), got shape {keys.shape}."
        )
    if isinstance(keys, Tracer):
        return
    with jax.ensure_compile_time_eval():  # inside of a `jit` too
        data = np.asarray(jax.random.key_data(keys))
    _, first, which = np.unique(data, axis=0, return_index=True, return_inverse=True)
    _checks.raise_all(
        (
            f"members {first[k]} and {i} have one key"
            for i, k in enumerate(which.ravel())
            if first[k] != i
        ),
        f"`{fn}` needs a key of its own for each member",
    )
