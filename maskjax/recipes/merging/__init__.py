"""Merging: one network from several that were fine-tuned from one start.

Start from theta_0. Fine-tuning on task t gives theta_t; its task vector is
tau_t = theta_t - theta_0.

- Task arithmetic: theta_0 + scale * sum(tau_t). Ilharco et al., "Editing Models with
  Task Arithmetic", ICLR 2023, arXiv:2212.04089. With `mean` it is plain averaging.
- TIES: average only large entries whose signs agree. Yadav et al., "TIES-Merging:
  Resolving Interference When Merging Models", NeurIPS 2023, arXiv:2306.01708.
- DARE: drop random entries, enlarge the others. Yu et al., "Language Models are Super
  Mario", ICML 2024, arXiv:2311.03099.
- TALL-masks: a mask for each task tells which entries of the merged vector to use.
  Consensus: keep the entries that several of these masks keep. Wang et al., "Localizing
  Task Information for Improved Model Merging and Compression", ICML 2024,
  arXiv:2405.07813.

Algorithm (numbers match the comments in the code):
  1. `task_vectors`: tau_t for each task
  2. merge the vectors: `total` or `mean`, `ties`; before it `dare`, if you like
  3. `tall_masks`: task t keeps an entry where |tau_t| >= threshold * |tau - tau_t|
  4. `consensus`: an entry stays if at least two tasks keep it
  5. `network`: theta_0 + scale * tau, where a mask keeps, and theta_0 elsewhere

Networks are a stack: their leaves have a leading axis K. `stacking.stack(networks)`
makes one from a list. Heads of different widths stay out of the trees.

    >>> from maskjax.recipes import merging
    >>> start = {"w": jnp.zeros((32, 2))}
    >>> networks = {"w": jnp.ones((3, 32, 2)).at[0, 16:].set(0.0).at[1:, :16].set(0.0)}
    >>> vectors = merging.task_vectors(start, networks)
    >>> merged = merging.total(vectors)
    >>> masks = merging.tall_masks(vectors, merged, threshold=0.4)
    >>> tasks = bank.from_stack(masks)  # one bit for each weight and task
    >>> first = merging.network(start, merged, bank.take(tasks, 0))
    >>> bool((first["w"] == networks["w"][0]).all())
    True

Beside the start, one vector and the masks are what all K networks need: here 4 n bytes
of float32 and K n / 8 of bits, for n = 64 weights and K = 3. (The bank also holds
`counts`, 4 n more, which nothing here needs.)

    >>> sum(leaf.nbytes for leaf in jax.tree.leaves((merged, tasks.masks)))
    280

Choose the threshold of each task by validation; the paper tries 0.2 to 0.6. `loss` and
the data, with a leading axis K, are yours:

    >>> loss = lambda params, x: jnp.mean((x - params["w"]) ** 2)
    >>> data, tried = networks["w"], jnp.array([0.2, 0.3, 0.4, 0.5, 0.6])
    >>> def losses(threshold):
    ...     masks = merging.tall_masks(vectors, merged, threshold=threshold)
    ...     of_task = lambda own: loss(merging.network(start, merged, own[0]), own[1])
    ...     return stacking.map(of_task, (masks, data))
    >>> threshold = tried[jnp.argmin(jax.lax.map(losses, tried), axis=0)]  # [K]
    >>> masks = merging.tall_masks(vectors, merged, threshold=threshold)
    >>> threshold
    Array([0.2, 0.2, 0.2], dtype=float32)

Departures from the papers:
  * exactly round(density * n) entries survive TIES' trimming, ties going to the lower
    index; the authors' code cuts at a threshold
  * if the trimmed entries cancel to exactly 0, TIES gives 0, as its equations say; the
    authors' code takes the sign that most of the network has
  * `>=` in 3., as in the paper; the authors' code has `>`
"""

from maskjax.recipes.merging._dare import dare
from maskjax.recipes.merging._masks import consensus, tall_masks
from maskjax.recipes.merging._sums import mean, total
from maskjax.recipes.merging._ties import ties, ties_masks
from maskjax.recipes.merging._vectors import network, task_vectors

__all__ = [
    "consensus",
    "dare",
    "mean",
    "network",
    "tall_masks",
    "task_vectors",
    "ties",
    "ties_masks",
    "total",
]
