"""The factor and the inverse of a matrix, under `vmap` too.

Many at a time need care on a CPU. There jaxlib gives the matrices of one call to the
threads that run programs, and waits for them. Where programs of as many devices wait at
once, no thread is left, and they wait for ever.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from maskjax._core.trees import Array
from maskjax.recipes.sparsegpt import _cholesky

_PANEL = 64  # columns that are factored together

Matrix = Callable[[Array], Array]


def _alone(library: Matrix, own: Matrix) -> Matrix:
    """The library's function; of many matrices on a CPU, our own."""
    function = jax.custom_batching.custom_vmap(library)

    def of_many(size: int, batched: list[bool], a: Array) -> tuple[Array, bool]:
        del size, batched  # the only argument is
        ways = {"cpu": jax.vmap(own), "default": jax.vmap(library)}
        return lax.platform_dependent(a, **ways), True

    function.def_vmap(of_many)
    return function


def by_panels(a: Array) -> Array:
    """The lower factor of a matrix, of products and sums alone."""
    d = len(a)
    size = min(_PANEL, d)
    extra = -d % size
    # Ones on the rest of the diagonal: they have no influence on what is before.
    rest = jnp.concatenate([jnp.zeros(d, a.dtype), jnp.ones(extra, a.dtype)])
    padded = jnp.pad(a, ((0, extra), (0, extra))) + jnp.diag(rest)
    rows = jnp.arange(d + extra, dtype=jnp.int32)

    def panel(start: Array, lower: Array) -> Array:
        """The next columns, all of their products with those before taken off."""
        before = lax.dynamic_slice_in_dim(lower, start, size, axis=0)
        columns = lax.dynamic_slice_in_dim(padded, start, size, axis=1)
        columns -= jnp.matmul(lower, before.T, precision="highest")

        def column(j: Array, columns: Array) -> Array:
            own = lax.dynamic_index_in_dim(columns, j, axis=1, keepdims=False)
            pivot = lax.dynamic_index_in_dim(own, start + j, keepdims=False)
            own = jnp.where(rows >= start + j, own / jnp.sqrt(pivot), 0)
            met = lax.dynamic_slice_in_dim(own, start, size)
            later = jnp.arange(size, dtype=jnp.int32) > j
            columns -= own[:, None] * jnp.where(later, met, 0)[None]
            return lax.dynamic_update_index_in_dim(columns, own, j, axis=1)

        columns = lax.fori_loop(0, size, column, columns)
        return lax.dynamic_update_slice_in_dim(lower, columns, start, axis=1)

    step = lambda i, lower: panel(i * size, lower)  # noqa: E731
    lower = lax.fori_loop(0, (d + extra) // size, step, jnp.zeros_like(padded))
    return lower[:d, :d]


def _inverse(strict: Array) -> Array:
    how = {"left_side": True, "lower": True, "unit_diagonal": True}
    return lax.linalg.triangular_solve(strict, _one(strict), **how)


def by_rows(strict: Array) -> Array:
    """The inverse of one plus a strictly lower triangular matrix, row by row."""

    def step(j: Array, found: Array) -> Array:
        row = lax.dynamic_slice_in_dim(strict, j, 1)
        return found.at[j].add(-jnp.matmul(row, found, precision="highest")[0])

    return lax.fori_loop(0, len(strict), step, _one(strict))


def _one(like: Array) -> Array:
    """The identity, which in a `vmap` is sharded as a matrix is."""
    return jnp.eye(*like.shape, dtype=like.dtype) + 0 * like


# From a symmetric matrix to its lower factor; nan if there is none.
cholesky = _alone(_cholesky.cholesky, by_panels)
# From a strictly lower triangular matrix L to the inverse of 1 + L.
inverse = _alone(_inverse, by_rows)
