"""Masks for parameter pytrees: score, select, apply.

    >>> import maskjax
    >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, -2.0]]), "bias": jnp.ones(2)}
    >>> scores = maskjax.score.magnitude(params)
    >>> mask = maskjax.select.top_k(scores, density=0.5)
    >>> maskjax.apply(params, mask)["kernel"]
    Array([[ 3.,  0.],
           [ 0., -2.]], dtype=float32)

A mask is a pytree of booleans, one for each parameter, that says what is kept: True
keeps, `None` leaves a parameter alone. Everything here is a pure function that can be
compiled, mapped, differentiated and sharded.
"""

from maskjax import (
    algebra,
    allocation,
    bank,
    estimator,
    initializer,
    masking,
    packing,
    score,
    select,
    stacking,
    structure,
    superposition,
    where,
)
from maskjax.masking import apply

__all__ = [
    "algebra",
    "allocation",
    "apply",
    "bank",
    "estimator",
    "initializer",
    "masking",
    "packing",
    "score",
    "select",
    "stacking",
    "structure",
    "superposition",
    "where",
]
