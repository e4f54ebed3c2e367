"""PAC-Net: learn a target from few samples and keep the source (ICML 2022).

Myung et al., "PAC-Net: A Model Pruning Approach to Inductive Transfer Learning",
arXiv:2206.05703.

Algorithm (numbers match the comments in the code):
  1. prune: of a network trained on the source keep the round(density * n) largest
     weights; set the others to 0
  2. allocate: train the kept weights on the source again, near where they started:
     lam * |w - w_source|^2 is part of the loss
  3. calibrate: train the other weights on the target, from 0; the kept ones are used,
     and frozen
  4. the target runs on all weights, the source on the kept ones

Descriptions of the paper leave these choices open; the default comes first:
  * one ranking for all layers, or one for each layer (`scope`)
  * calibrated weights start at 0, or where the source had them (`start`)
  * the penalty is part of the loss in 2, or in 3 too: the loss is yours
  * both tasks share the last layer, or each has its own (`head`)
  * biases and normalization are frozen in 3, or each task has its own (`head`)
Frozen entries never change, bit for bit, even if an optimizer moves them. Each task has
its own running statistics. Counts are exact: of equal weights the first are kept.

The training loop is yours. It may donate the parameters that it is given.

    >>> from maskjax.recipes import pacnet
    >>> source = {"w": jnp.array([[3.0, -1.0]]), "b": jnp.array([0.5])}
    >>> pruned = pacnet.prune(source, density=0.5)  # train .params, where .mask is True
    >>> allocated = pacnet.allocate(pruned, pruned.params)  # then on the target
    >>> trained = {"w": jnp.array([[9.0, 2.0]]), "b": jnp.array([9.0])}
    >>> state = pacnet.calibrate(allocated, trained)
    >>> pacnet.source(state)["w"], pacnet.target(state)["w"]
    (Array([[3., 0.]], dtype=float32), Array([[3., 2.]], dtype=float32))
"""

from maskjax.recipes.pacnet._penalty import l2_sp
from maskjax.recipes.pacnet._pruned import Pruned, prune
from maskjax.recipes.pacnet._transfer import (
    Allocated,
    Calibrated,
    allocate,
    calibrate,
    source,
    target,
)

__all__ = [
    "Allocated",
    "Calibrated",
    "Pruned",
    "allocate",
    "calibrate",
    "l2_sp",
    "prune",
    "source",
    "target",
]
