"""MC-dropout: dropout stays on for predictions (Gal & Ghahramani, ICML 2016).

arXiv:1506.02142. One key is one mask on the units of a network; the network under many
masks is an ensemble.

Algorithm (numbers match the comments in the code):
  1. keep each unit with probability 1 - rate and divide it by that (inverted dropout,
     so that predictions need no other scale)
  2. train with a weight decay; the precision tau of the noise follows from it
  3. predict under T masks: the mean, and the variance over the T plus 1 / tau
  4. the likelihood of a target is that of the mixture of T normal distributions

Departure from the paper: the weight decay is that of the paper's weights, as in the
authors' code. The paper does not divide by 1 - rate, so its weights are 1 / (1 - rate)
times ours.

Masks apply to features (the masks of `layers`), or to the input rows of kernels, leaves
[..., C, 1]. In the paper dropout precedes every kernel, the first one too.

    >>> from maskjax.recipes import mc_dropout
    >>> net = lambda masks, x: (x * masks["hidden"]) @ jnp.ones((8, 1))
    >>> units = {"hidden": jax.ShapeDtypeStruct((8,), jnp.float32)}
    >>> x, keys = jnp.ones((1, 8)), jax.random.split(jax.random.key(0), 4)
    >>> outputs = stacking.map(net, mc_dropout.masks(units, rate=0.5, keys=keys), x)
    >>> outputs.ravel()  # of 8 units, twice those that are kept
    Array([...], dtype=float32)
    >>> mean, variance = mc_dropout.moments(outputs, precision=10.0)

`masks` holds all T masks. For thousands of members, or a mask for each example, draw
each mask where it is used: only `batch_size` of them exist at a time.

    >>> member = lambda key, x: net(mc_dropout.mask(units, rate=0.5, key=key), x)
    >>> stacking.map(member, keys, x, batch_size=1).shape
    (4, 1, 1)
"""

from maskjax.recipes.mc_dropout._masks import mask, masks
from maskjax.recipes.mc_dropout._regression import (
    log_likelihood,
    moments,
    precision,
    weight_decay,
)

__all__ = [
    "log_likelihood",
    "mask",
    "masks",
    "moments",
    "precision",
    "weight_decay",
]
