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

Modules that load optax, Flax or others (optim, layers, metrics, report, storage,
recipes, theory) are imported when they are first used.
"""

from typing import TYPE_CHECKING

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
from maskjax._core import lazy
from maskjax.masking import apply

if TYPE_CHECKING:
    from maskjax import layers, metrics, optim, recipes, report, storage, theory

__all__ = [
    "algebra",
    "allocation",
    "apply",
    "bank",
    "calibration",
    "compaction",
    "estimator",
    "initializer",
    "layers",
    "masking",
    "metrics",
    "optim",
    "packing",
    "recipes",
    "report",
    "score",
    "select",
    "stacking",
    "storage",
    "structure",
    "superposition",
    "theory",
    "where",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy.attributes(__name__, __all__)
