"""Asks the compiler to shard one array as another.

JAX 0.12 has no function for it any more (`jax.experimental.shard_alike`). This is the
same operation of the partitioner, by the parts of JAX that are meant for extensions.
"""

import itertools
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.extend.mlir.dialects import sdy
from jax.interpreters import ad, batching, mlir

from maskjax._core.trees import Array

_numbers = itertools.count()  # of groups: one each
_alike = Primitive("alike")


def alike(x: Array, like: Array) -> Array:
    """The array, to be sharded as another one of its shape, which is not read."""
    return _alike.bind(x, like)


def _lowered(context: Any, x: Any, like: Any) -> list[Any]:
    # The older partitioner knows no groups. Without one it may gather, and is right.
    if jax.config.jax_use_shardy_partitioner:
        number = next(_numbers)
        sdy.sharding_group(x, number)
        sdy.sharding_group(like, number)
    return [x]


def _moved(x: Array, axis: int | None, to: int, size: int) -> Array:
    """With the axis of a batch at a place, also if it had none."""
    if axis is None:
        return jax.numpy.broadcast_to(
            jax.numpy.expand_dims(x, to), (*x.shape[:to], size, *x.shape[to:])
        )
    return jax.numpy.moveaxis(x, axis, to)


def _batched(args: Any, axes: Any) -> tuple[Array, int]:
    x, like = args
    at = axes[0] if axes[0] is not None else axes[1]
    size = (x if axes[0] is not None else like).shape[at]
    x, like = (_moved(a, axis, at, size) for a, axis in zip(args, axes, strict=True))
    return alike(x, like), at


_alike.def_impl(lambda x, like: x)
_alike.def_abstract_eval(lambda x, like: x)
mlir.register_lowering(_alike, _lowered)
batching.primitive_batchers[_alike] = _batched
ad.primitive_jvps[_alike] = lambda primals, tangents: (alike(*primals), tangents[0])
