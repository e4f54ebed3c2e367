"""Slots that tasks fill one by one: is there room, and which slot is a task's."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from maskjax._core import checks
from maskjax._core.trees import Array


def require_room(
    learned: Array, capacity: int, wanted: int, *, fn: str, hint: str = ""
) -> None:
    """Raise if it is known that there is no room for `wanted` tasks more."""
    require_single(learned, fn=fn)
    used = checks.known(learned)
    if used is not None and used + wanted > capacity:
        raise ValueError(
            f"`{fn}` needs room for {wanted} more, but {used} of {capacity} are "
            f"learned.{hint}"
        )


def require_single(learned: Array, *, fn: str) -> None:
    """Raise if a counter has axes: then the state is a stack, not a single one."""
    if learned.ndim:
        raise ValueError(
            f"`{fn}` needs a single state, got a stack of {learned.shape}. Map over it "
            "with `jax.vmap`."
        )


def in_range(index: ArrayLike, size: int, *, fn: str, name: str) -> None:
    """Raise if known indices are outside [-size, size)."""
    if isinstance(index, Tracer):
        return
    known = np.asarray(index)
    wrong = known[(known < -size) | (known >= size)]
    if wrong.size:
        raise ValueError(f"`{fn}` needs `{name}` in [-{size}, {size}), got {wrong[0]}.")


def find(
    task: ArrayLike, learned: Array, capacity: int, *, fn: str
) -> tuple[Array, Array]:
    """A task's slot, and whether it is learned.

    Negative tasks count from the last learned. Raises if the task is known not to be
    learned.
    """
    require_single(learned, fn=fn)
    dtype = getattr(task, "dtype", None) or np.asarray(task).dtype
    if not jnp.issubdtype(dtype, jnp.integer) or np.ndim(task):
        raise TypeError(
            f"`{fn}` needs `task` as one integer, got {checks.kind_of(task)}."
        )
    which, used = checks.known(task), checks.known(learned)
    if which is not None and used is not None and not -used <= which < used:
        raise ValueError(
            f"`{fn}` needs a learned task, got {which}, and {used} of {capacity} are "
            "learned."
        )
    index = jnp.asarray(task)
    if index.dtype.itemsize < 4:
        index = index.astype(jnp.int32)
    end = learned.astype(index.dtype)
    index = jnp.where(index < 0, index + end, index)
    return index, (index >= 0) & (index < end)
