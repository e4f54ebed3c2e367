"""The masks of many tasks, one bit an entry, in a fixed number of slots.

    >>> params = {"w": jnp.ones((2, 2))}
    >>> tasks = bank.empty(params, capacity=3)
    >>> bank.append(tasks, {"w": jnp.array([[True, False], [True, True]])}).learned
    Array(1, dtype=int32)

A bank is a pytree of fixed shapes, so it passes through `jit` and the carry of a scan,
and appending compiles once. Donate a large bank, and appending writes in place.

Masks and counts of `empty` are sharded as the parameters are. For thousands of tasks of
a small network shard `masks` by their first axis, the tasks, and replicate the rest:
questions to such a bank are answered where the masks are, and K numbers travel.
"""

from maskjax.bank._bank import (
    MaskBank,
    capacity,
    empty,
    from_stack,
    grow,
    is_used,
    mean,
)
from maskjax.bank._tasks import append, extend, put, take

__all__ = [
    "MaskBank",
    "append",
    "capacity",
    "empty",
    "extend",
    "from_stack",
    "grow",
    "is_used",
    "mean",
    "put",
    "take",
]
