"""FedPM: clients learn masks of one random network, and send a bit a weight.

Isik, Pase et al., "Sparse Random Networks for Communication-Efficient Federated
Learning", ICLR 2023. arXiv:2209.15328. All clients have the same weights, which never
change: they draw them from one seed.

Algorithm (numbers match the comments in the code):
  1. the server begins with probability one half for each weight
  2. clients get the probabilities; the logits are the scores where training starts
  3. each client trains its scores on its own data, as `supermask` does
  4. it samples one mask with probabilities sigmoid(scores) and sends the bits
  5. the server has a Beta posterior for each weight: of n masks since the prior was
     last reset, of which s keep the weight, a = prior + s and b = prior + n - s. The
     prior is reset every so many rounds
  6. the new probability is the posterior's mode, (a - 1) / (a + b - 2)
  7. use the network with sampled masks, or with the rounded mask

Departures from the paper:
  * probabilities are clipped to [least, 1 - least], because scores of 0 and 1 are
    infinite; the authors' code counts a bit as 0.01 or 0.99 instead
  * the authors' code starts from normal scores; here they are 0
  * a message says of which round and of which network it is, and others are refused;
    so is one whose scores were nan
  * a round without messages leaves the probabilities as they are

Bits. A message has one bit a weight, and 96 bits beside. `entropy` tells what a code
could save. The authors send probabilities down as floats. As they follow from the
number of masks that keep a weight, log2(n + 1) bits a weight are enough: 4 for ten
clients.

The training loop is yours. Map over clients with `jax.vmap` or `jax.shard_map`, and
give the stack of their messages to `aggregate`; between devices bits travel.

    >>> import optax
    >>> from maskjax.recipes import fedpm
    >>> weights = {"w": jnp.array([[1.0], [-1.0], [2.0]])}
    >>> def loss(scores, x, y, key):
    ...     params = maskjax.apply(weights, supermask.soft_mask(scores, key=key))
    ...     return jnp.mean((x @ params["w"] - y) ** 2)
    >>> def client(state, x, y, key):
    ...     scores = fedpm.scores(state)
    ...     for k in jax.random.split(key, 4):
    ...         slope = jax.grad(loss)(scores, x, y, k)
    ...         scores = jax.tree.map(lambda s, g: s - 4 * g, scores, slope)
    ...     return fedpm.message(state, weights, scores, key=jax.random.fold_in(key, 4))
    >>> @jax.jit
    ... def round_of(state, x, y, key):
    ...     keys = jax.random.split(key, len(x))
    ...     messages = jax.vmap(client, (None, 0, 0, 0))(state, x, y, keys)
    ...     return fedpm.aggregate(state, messages)
    >>> x = jax.random.normal(jax.random.key(0), (10, 20, 3))  # ten clients
    >>> y, state = x @ jnp.array([[1.0], [0.0], [2.0]]), fedpm.init(weights)
    >>> for i in range(5):
    ...     state = round_of(state, x, y, jax.random.key(i))
    >>> fedpm.mask(state, key=None)["w"].ravel()
    Array([ True, False,  True], dtype=bool)
"""

from maskjax.recipes.fedpm._bits import entropy
from maskjax.recipes.fedpm._client import Message, message, scores
from maskjax.recipes.fedpm._server import aggregate
from maskjax.recipes.fedpm._state import FedPMState, init, mask

__all__ = [
    "FedPMState",
    "Message",
    "aggregate",
    "entropy",
    "init",
    "mask",
    "message",
    "scores",
]
