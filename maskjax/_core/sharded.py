"""Asks the compiler to shard one array as another.

JAX had `jax.experimental.shard_alike` for it until 0.12. This is the same operation of
the partitioner, by the parts of JAX that are meant for extensions.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.extend.mlir.dialects import sdy
from jax.interpreters import ad, batching, mlir

from maskjax._core.trees import Array

_numbers = itertools.count()  # of groups: one each
_sharded_as = Primitive("sharded_as")


def sharded_as(x: Array, like: Array) -> Array:
    """The array, to be sharded as another one of its shape, which is not read."""
    return _sharded_as.bind(x, like)


def _lowered(context: Any, x: Any, like: Any) -> list[Any]:
    # The older partitioner knows no groups. Without one it may gather, and is right.
    if getattr(jax.config, "jax_use_shardy_partitioner", True):
        number = next(_numbers)
        sdy.sharding_group(x, number)
        sdy.sharding_group(like, number)
    return [x]


def _moved(x: Array, axis: int | None, to: int, size: int) -> Array:
    """With the axis of a batch at a place, also if it had none."""
    if axis is None:
        shape = (*x.shape[:to], size, *x.shape[to:])
        return jnp.broadcast_to(jnp.expand_dims(x, to), shape)
    return jnp.moveaxis(x, axis, to)


def _batched(args: Any, axes: Any) -> tuple[Array, int]:
    x, like = args
    at = axes[0] if axes[0] is not None else axes[1]
    size = (x if axes[0] is not None else like).shape[at]
    x, like = (_moved(a, axis, at, size) for a, axis in zip(args, axes, strict=True))
    return sharded_as(x, like), at


_sharded_as.def_impl(lambda x, like: x)
_sharded_as.def_abstract_eval(lambda x, like: x)
mlir.register_lowering(_sharded_as, _lowered)
batching.primitive_batchers[_sharded_as] = _batched
ad.primitive_jvps[_sharded_as] = lambda primals, tangents: (
    sharded_as(*primals),
    tangents[0],
)
