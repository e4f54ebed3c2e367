"""Supermasks in Superposition when nobody says where a task ends (NeurIPS 2020).

Wortsman et al., arXiv:2006.14769, section 3.4, scenario NNs: no task ids in training
nor in tests. With task ids in training use `supsup`.

Algorithm (numbers match the comments below):
  1. Every few batches run the network under the mean of the k masks so far. See how the
     objective on the current batch falls towards each: nu = softmax(-gradient).
  2. If k max(nu) < 1 + epsilon, no mask is much better than the others: a new task.
  3. Otherwise go on with the scores of the task of the largest nu.
  4. Train the current scores as in `supsup`.
Departures:
  * the first decisions are among `least` masks, untrained ones too, as in the reference
    code: a single mask, nu = 1, would never see a second batch
  * an untrained mask counts in nu but is never chosen; the reference code trains on
    with it if its nu is the largest
  * "mean_masks" centers the masks, or it would keep every weight

    >>> from maskjax.recipes import supsup_stream
    >>> weights, x = {"w": jnp.array([[3.0, -3.0], [-3.0, 3.0]])}, jnp.eye(2)[:1]
    >>> entropy = lambda params, x: superposition.logit_entropy(x @ params["w"])
    >>> def loss(scores, x):
    ...     return entropy(maskjax.apply(weights, supsup_stream.soft_mask(scores)), x)
    >>> state = supsup_stream.init(weights, capacity=8, key=jax.random.key(0))
    >>> state = supsup_stream.allocate(entropy, weights, state, x)
    >>> slopes = jax.grad(loss)(state.scores, x)  # your loop, with any optimizer
    >>> scores = jax.tree.map(jnp.subtract, state.scores, slopes)
    >>> supsup_stream.masks(state._replace(scores=scores)).learned
    Array(1, dtype=int32)
"""

from maskjax.recipes.supsup_stream._decision import allocate
from maskjax.recipes.supsup_stream._state import StreamState, init, masks, soft_mask

__all__ = ["StreamState", "allocate", "init", "masks", "soft_mask"]
