"""Masks for parameter pytrees: score, select, apply.

    >>> import maskjax
    >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, -2.0]]), "bias": jnp.ones(2)}
    >>> scores = maskjax.score.magnitude(params)            # higher is kept
    >>> mask = maskjax.select.top_k(scores, density=0.5)    # True keeps
    >>> maskjax.apply(params, mask)["kernel"]               # the rest is exactly 0
    Array([[ 3.,  0.],
           [ 0., -2.]], dtype=float32)

A mask is a pytree like your parameters. Its leaves are booleans (True keeps) or None
(the parameter is left alone). All functions are pure: use them with jit, vmap, grad
and sharding, on any pytree of arrays (dicts, Flax, Equinox). Where to look:

    score, select, structure, allocation    make a mask
    apply, masking, algebra                 use masks, combine and count them
    estimator, initializer                  learn a mask over random weights
    optim                                   prune while you train, with optax
    stacking, packing, bank, superposition  many masks; one bit an entry; many tasks
    recipes, theory                         one paper, one module
    calibration                             what kernels meet, batch by batch
    layers, metrics, report, storage        mask features, judge, show, save

Import optim, layers, metrics, report, storage, recipes and theory by name, as in
`from maskjax import optim`: they load optax, Flax or others.
"""

from maskjax import (
    algebra,
    allocation,
    bank,
    calibration,
    compaction,
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
    "calibration",
    "compaction",
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
