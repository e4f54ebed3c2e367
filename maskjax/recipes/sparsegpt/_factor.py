"""The Gram matrix of a kernel's inputs as what the sweep over its inputs needs."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from maskjax._core.trees import Array
from maskjax.recipes.sparsegpt._linear import cholesky

# What follows a damping of 0 that does not do, and how often it is raised tenfold.
_LEAST, _TRIES = 1e-6, 12


class Factor(NamedTuple):
    """Of H = R R^T, R upper triangular: a factor of H, and so of its inverse.

    The paper's U, the upper factor of H^-1 = U^T U, is the inverse of R. There each
    input j adds -e_j U_jk to the weight of each later input k, with the error e_j =
    (its weight when its turn comes - what is left of it) / U_jj. With change_i = (its
    first weight - what is left of it), what input j has got before its turn is also the
    sum over earlier inputs i of change_i R_ij / R_jj. So no inverse is needed.

    Attributes:
        sizes: [d], R_jj = 1 / U_jj: how much the output changes with an input's weight
            once all later weights make up for it. 0 for inputs that never fire.
        feedback: [d, d], strictly lower triangular: R_ij / R_jj at [j, i].
        damping: What was added to the diagonal, as a multiple of its mean; infinite if
            nothing made a factor. Then H counts as the identity.
    """

    sizes: Array
    feedback: Array
    damping: Array


def factored(gram: Array, damping: Array) -> Factor:
    """The factor of a Gram matrix [d, d] with a damped diagonal: 1.

    Until the factor is finite, the damping is raised tenfold.
    """
    diagonal = jnp.diagonal(gram)
    live = diagonal > 0
    mean = jnp.sum(jnp.where(live, diagonal, 0)) / jnp.maximum(jnp.sum(live), 1).astype(
        gram.dtype
    )
    one = jnp.eye(*gram.shape, dtype=gram.dtype)
    scaled = gram / jnp.where(mean > 0, mean, 1) + jnp.where(live[None], 0, one)
    # H = R R^T from the last input to the first is Cholesky's L L^T of H turned around.
    turned = scaled[::-1, ::-1]

    def attempt(state: tuple[Array, ...]) -> tuple[Array, ...]:
        tries, used, *_ = state
        used = jnp.where(tries == 0, used, jnp.maximum(10 * used, _LEAST))
        lower = cholesky(turned + used * one)
        return tries + 1, used, lower, jnp.all(jnp.isfinite(lower))

    # A loop's state has one type, so it begins on the devices where the matrix is.
    zero = 0 * jnp.sum(live, dtype=jnp.int32)
    start = zero, damping.astype(gram.dtype) + zero.astype(gram.dtype), turned, zero > 0
    _, used, lower, fine = lax.while_loop(
        lambda state: ~state[3] & (state[0] < _TRIES), attempt, start
    )
    upper = lower[::-1, ::-1]
    sizes = jnp.diagonal(upper)
    feedback = jnp.tril((upper / sizes[None, :]).T, -1)
    return Factor(
        jnp.where(fine, jnp.where(live, sizes, 0), 1),
        jnp.where(fine, feedback, 0),
        jnp.where(fine, used, jnp.inf),
    )
