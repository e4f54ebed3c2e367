"""Rows of an array, read and written wherever their shards are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskjax._core import placement
from maskjax._core.trees import Array


def read(x: Array, row: Array) -> Array:
    """One row of [C, ...], or several; rows are clipped to [0, C).

    If rows are on many devices, those that are read travel to all of them.
    """
    members, *rest = placement.spec_of(x)
    if members is None and not placement.names_of(placement.spec_of(row)):
        return jnp.take(x, row, axis=0, mode="clip")
    # On an Explicit mesh no row of a sharded axis can be sliced.
    mesh = placement.sharding(x).mesh
    if members is None:  # which rows to read is sharded
        like = row if mesh.empty else x
        if set(placement.names_of(placement.spec_of(row))) & set(
            placement.names_of(rest)
        ):
            row = placement.whole(row)
        spec = PartitionSpec(*placement.spec_of(row), *rest)
        where = NamedSharding(placement.sharding(like).mesh, spec)
        return x.at[row].get(mode="clip", out_sharding=where)
    where = NamedSharding(mesh, PartitionSpec(None, *rest))
    found = x.at[jnp.ravel(row)].get(mode="clip", out_sharding=where)
    return found.reshape(*jnp.shape(row), *x.shape[1:])


def taken(
    x: Array, places: Array | np.ndarray, axis: int, *, fill: bool = False
) -> Array:
    """The entries of an axis at these places, sharded as the array is where that fits.

    Nothing travels along other axes than this one.

    Args:
        x: The array.
        places: [k], or [*stack, k] with places for each index of the first axes of `x`.
        axis: The axis.
        fill: Whether places past the end give 0, or there are none.
    """
    *lead, k = places.shape
    shape = (*lead, *x.shape[len(lead) : axis], k, *x.shape[axis + 1 :])
    where = placement.known(x)
    if not isinstance(where, NamedSharding) or not placement.names_of(where.spec):
        return _taken(x, places, axis=axis, fill=fill)
    where = placement.fitted(where, shape)
    return _taker(where, axis, fill=fill)(x, places)


def _taken(x: Array, places: Array | np.ndarray, *, axis: int, fill: bool) -> Array:
    places = jnp.asarray(places)
    mode = "fill" if fill else "clip"
    zero = False if x.dtype == bool else 0
    if places.ndim == 1:
        return jnp.take(x, places, axis=axis, mode=mode, fill_value=zero)
    others = [i for i in range(places.ndim - 1, x.ndim) if i != axis]
    places = jnp.expand_dims(places, others)
    return jnp.take_along_axis(x, places, axis=axis, mode=mode, fill_value=zero)


@functools.lru_cache(maxsize=256)
def _taker(where: NamedSharding, axis: int, *, fill: bool) -> Any:
    taken = functools.partial(_taken, axis=axis, fill=fill)
    if AxisType.Explicit in where.mesh.axis_types:  # `vmap` of out_shardings fails
        return jax.jit(jax.sharding.auto_axes(taken, out_sharding=where))
    return jax.jit(taken, out_shardings=where)


def written(x: Array, new: Array, row: Array) -> Array:
    """[C, ...] with one row replaced, where it is."""
    members, *words = placement.spec_of(x)
    new = placement.place(new, words, like=x)
    if members is None:
        return lax.dynamic_update_index_in_dim(x, new, row, 0)
    chosen = placement.lead(_numbers(x) == row, x)
    return jnp.where(chosen, new[None], x)


def whole(new: Array, x: Array) -> Array:
    """Rows [K, ...], every one of them where the rest of [C, ...] is."""
    return placement.place(new, (None, *placement.spec_of(x)[1:]), like=x)


def inserted(x: Array, new: Array, start: Array) -> Array:
    """[C, ...] with [K, ...] from a row on; what does not fit in is dropped."""
    new = whole(new, x)
    if placement.spec_of(x)[0] is None:
        rows = start + jnp.arange(new.shape[0], dtype=jnp.int32)
        return x.at[rows].set(new, mode="drop")
    place = _numbers(x) - start
    moved = new.at[place].get(mode="clip", out_sharding=placement.sharding(x))
    fits = placement.lead((place >= 0) & (place < new.shape[0]), x)
    return jnp.where(fits, moved, x)


@functools.partial(jax.jit, static_argnames="precision")
def mixed(x: Array, coefficients: Array, precision: Any = None) -> Array:
    """The weighted sum of rows of [C, ...] in the dtype of the coefficients, [C]."""
    x = x.astype(coefficients.dtype)
    if not placement.explicit(x):
        return jnp.tensordot(coefficients, x, 1, precision=precision)
    members, *rest = placement.spec_of(x)
    coefficients = placement.place(coefficients, (members,), like=x)
    where = NamedSharding(placement.sharding(x).mesh, PartitionSpec(*rest))
    return jnp.tensordot(coefficients, x, 1, precision=precision, out_sharding=where)


def times(matrix: Array, vector: Array) -> Array:
    """A matrix times a vector, in full precision and whole on every device."""
    if not placement.explicit(matrix):
        return jnp.matmul(matrix, vector, precision="highest")
    row, column = placement.spec_of(matrix)
    vector = placement.place(vector, (column,), like=matrix)
    where = NamedSharding(placement.sharding(matrix).mesh, PartitionSpec(row))
    product = jnp.matmul(matrix, vector, precision="highest", out_sharding=where)
    return placement.gathered(product, 0)


def _numbers(x: Array) -> Array:
    return jnp.arange(x.shape[0], dtype=jnp.int32)
