"""PackNet: one network, task after task, and nothing is forgotten (CVPR 2018).

Mallya & Lazebnik, "PackNet: Adding Multiple Tasks to a Single Network by Iterative
Pruning", arXiv:1711.05769.

Algorithm (numbers match the comments in the code):
  1. a new task trains every free weight; it uses the weights of earlier tasks, which
     are frozen
  2. of the weights that the task trained, free the `rate` smallest of each leaf: set
     them to 0
  3. train the remaining ones again, for a shorter time; now the task owns them
  4. run task t on the weights of tasks 0 to t, with its own head
Step 2 is optional for the last task. Every task has its own head and its own running
statistics. Biases and normalization train with the first task only, unless `head`
chooses them.

Departures from the paper:
  * exactly round(rate * n) of n weights are freed; among equal ones, the last. The
    authors' code cuts at a threshold and frees all weights that are equal to it
  * frozen weights never change, bit for bit, even if an optimizer moves them
  * in the paper all tasks use the first task's running statistics: `statistics=None`

The training loop is yours. It may donate the parameters that it is given. Heads of
different widths: keep them out of `params`, one for each task, and give `head=None`.

    >>> from maskjax.recipes import packnet
    >>> params = {"w": jnp.array([[3.0, -1.0]]), "head": jnp.zeros((2, 1))}
    >>> state = packnet.init(params, head=where.matching("head"), capacity=2)
    >>> training = packnet.begin(state)  # train .params, where .mask is True
    >>> pruned = packnet.prune(training, training.params, rate=0.5)  # train again
    >>> state = packnet.commit(pruned, pruned.params)
    >>> packnet.begin(state).mask["w"], packnet.params_of(state, 0)["w"]
    (Array([[False,  True]], dtype=bool), Array([[3., 0.]], dtype=float32))
"""

from maskjax.recipes.packnet._allotment import allotment
from maskjax.recipes.packnet._learning import Pruned, Training, begin, commit, prune
from maskjax.recipes.packnet._state import PackNetState, init, mask, params_of

__all__ = [
    "PackNetState",
    "Pruned",
    "Training",
    "allotment",
    "begin",
    "commit",
    "init",
    "mask",
    "params_of",
    "prune",
]
