"""SparseGPT: prune a trained network in one pass (Frantar & Alistarh, ICML 2023).

"SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot",
arXiv:2301.00774. Nothing is trained. The weights that stay are changed such that they
make up for those that go, as far as a few batches of data tell.

Algorithm, for each kernel by itself (numbers match the comments in the code):
  1. H is the Gram matrix of its inputs, with `damping` times the mean of the diagonal
     added to the diagonal; U is the upper Cholesky factor of the inverse of H
  2. take the inputs in blocks; in each remove the weights w of input j with the least
     (w / U_jj)^2. With `NofM(n, m)` each output keeps n of every m inputs
  3. go through the inputs of the block. A weight that is removed changes the output,
     and all later weights of that output get a share of the change to undo
`prune` does all of it. `repair` does 1 and 3 for a mask by any other rule. A mask by
Wanda is one line: `select.top_k(score.wanda(params, norms), density=0.5,
scope="output")`.

Departures from the paper:
  * U is not computed: a Cholesky factor of H is enough, at a quarter of the operations
  * counts are exact. The blocks share what a kernel keeps in proportion to their inputs
    that fire (the authors cut each block at a threshold)
  * weights of inputs that never fire go first. If some have to stay they keep their
    values (the authors set them to 0, whether they count as kept or not)
  * the mean of the diagonal is that of inputs that fire
  * if H has no finite Cholesky factor, `damping` is raised tenfold until it has

The pass goes from the first input to the last and never back, so a single output, and
a kernel of few inputs, may get worse on the calibration data than by its mask alone; a
kernel of many hardly does. Kernels
that are sharded by outputs are pruned where they are, with a copy of H on each device;
those that are sharded by inputs move to outputs first.

    >>> from maskjax import calibration
    >>> from maskjax.recipes import sparsegpt
    >>> apply = lambda params, x: jnp.tanh(x @ params["up"]) @ params["down"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"up": jax.random.normal(keys[0], (8, 16))}
    >>> params["down"] = jax.random.normal(keys[1], (16, 4))
    >>> x = jax.random.normal(keys[2], (100, 8))
    >>> stats = calibration.init(apply, params, x)
    >>> stats = calibration.update(apply, stats, params, x)
    >>> pruned = sparsegpt.prune(params, stats, density=0.5)
    >>> print(algebra.density(pruned.mask))
    0.5
    >>> alone = maskjax.apply(params, pruned.mask)
    >>> far = lambda p: float(jnp.mean((apply(p, x) - apply(params, x)) ** 2))
    >>> far(pruned.params) < far(alone)
    True
    >>> two_of_four = sparsegpt.prune(params, stats, structure=structure.NofM(2, 4))
    >>> two_of_four.mask["down"].reshape(4, 4, 4).sum(axis=1).ravel()
    Array([2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2], dtype=int32)
"""

from maskjax.recipes.sparsegpt._prune import prune
from maskjax.recipes.sparsegpt._repair import repair
from maskjax.recipes.sparsegpt._result import Pruned

__all__ = ["Pruned", "prune", "repair"]
