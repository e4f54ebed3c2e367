"""Winning SubNetworks: weights and masks learn together, and nothing is forgotten.

Kang et al., "Forget-free Continual Learning with Winning Subnetworks", ICML 2022;
extended in arXiv:2303.14962. Unlike in `packnet`, a new task need not use all weights
of the tasks before it, and no task is pruned and trained again.

Algorithm (numbers match the comments in the code):
  1. draw weights and scores once
  2. a task runs on the weights with the highest |scores|, a fraction `density` of each
     leaf; weights that earlier tasks use may be among them
  3. train weights and scores together: scores all move, straight through the mask;
     weights that an earlier task uses are frozen
  4. store the task's mask, one bit a weight; what it keeps is frozen from now on
  5. run task t under its own mask, with its own head
Scores of the next task start where those of the last one ended. Every task has its own
head and its own running statistics. Biases and normalization train with the first task
only, unless `head` chooses them.

How much is used: `algebra.density(wsn.union(state))` is the share of the weights that
any task uses, and `state.reused / state.counts` the share of each task's weights that
earlier tasks use too. The paper's capacity adds the masks, compressed.

Departures from the paper:
  * the masks keep exactly round(density * n) weights, ties going to the lower index
  * |scores| are ranked, as in the authors' code; the equations have the scores
  * frozen weights never change, bit for bit, even if an optimizer moves them
  * masks are stored with one bit a weight and task, without Huffman coding

The training loop is yours. It may donate what it is given. Heads of different widths:
keep them out of `params`, one for each task, and give `head=None`.

    >>> import optax
    >>> from maskjax.recipes import wsn
    >>> params = {"w": jnp.array([[1.0, -1.0, 0.5, 2.0]])}
    >>> def loss(both, target):
    ...     params, scores = both
    ...     soft = wsn.soft_mask(scores, density=0.5)
    ...     return jnp.sum((maskjax.apply(params, soft)["w"] - target) ** 2)
    >>> def train(training, target):  # any loop, with any optimizer
    ...     frozen = optim.mask_updates((training.mask, True))  # last in the chain
    ...     optimizer = optax.chain(optax.adamw(0.1), frozen)
    ...     both = training.params, training.scores
    ...     opt_state = optimizer.init(both)
    ...     for _ in range(3):
    ...         slopes = jax.grad(loss)(both, target)
    ...         updates, opt_state = optimizer.update(slopes, opt_state, both)
    ...         both = optax.apply_updates(both, updates)
    ...     return both
    >>> state = wsn.init(params, head=None, capacity=2, key=jax.random.key(0))
    >>> for target in (1.0, -1.0):
    ...     training = wsn.begin(state)
    ...     params, scores = train(training, target)
    ...     mask = wsn.mask(scores, density=0.5)
    ...     state = wsn.commit(training, params, scores, mask)
    >>> state.counts, bank.take(state.masks, 0)["w"].shape
    (Array([2, 2], dtype=int32), (1, 4))
"""

from maskjax.recipes.wsn._learning import Training, begin, commit
from maskjax.recipes.wsn._scores import mask, soft_mask
from maskjax.recipes.wsn._state import WSNState, init, params_of, union

__all__ = [
    "Training",
    "WSNState",
    "begin",
    "commit",
    "init",
    "mask",
    "params_of",
    "soft_mask",
    "union",
]
