"""On which devices statistics are."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maskjax._core import placement
from maskjax._core.placement import Names
from maskjax._core.trees import Array
from maskjax.calibration._statistics import Statistics


def zeros(stats: Statistics, leaf: Any) -> Array:
    """Zeros for planned statistics, on the devices of their kernel."""
    sums, where = stats.sums, _where(leaf)
    if where is None:
        return jnp.zeros(sums.shape, sums.dtype)
    spec = _spec(stats, leaf)
    if isinstance(leaf, jax.Array):
        return placement.zeros(sums.shape, sums.dtype, leaf, spec=spec)
    where = NamedSharding(where.mesh, PartitionSpec(*spec))
    return jnp.zeros(sums.shape, sums.dtype, device=where)


def shards(stats: Statistics, leaf: Any) -> int:
    """Into how many parts the statistics of a kernel are cut, as far as is known."""
    where: Any = _where(leaf)
    if not isinstance(where, NamedSharding):
        return 1
    names = placement.names_of(_spec(stats, leaf))
    return math.prod(where.mesh.shape[name] for name in names)


def _where(leaf: Any) -> Any:
    """How a kernel is sharded, or is to be sharded; `None` if that is not known."""
    if isinstance(leaf, jax.Array):
        return placement.known(leaf)
    where = getattr(leaf, "sharding", None)
    named = isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh)
    return where if named else None


def _spec(stats: Statistics, leaf: Any) -> tuple[Names, ...]:
    """The mesh axes of the kernel's stack, and of the first of its input axes.

    Those of the inputs if no other of them is sharded: then each device has an unbroken
    part of the rows.
    """
    where = _where(leaf)
    own = tuple(where.spec) if isinstance(where, NamedSharding) else ()
    own = (*own, *[None] * (len(stats.shape) - len(own)))
    stack = [own[axis] for axis in stats.axes.stack]
    rest: list[Names] = [None] * (len(stats.sums.shape) - len(stack))
    first, *others = (own[axis] for axis in stats.inputs)
    if stats.gram and stats.groups == 1 and not any(others):
        rest[0] = first
    return (*stack, *rest)
