"""Deep ensembles: networks trained apart (Lakshminarayanan et al., NeurIPS 2017).

arXiv:1612.01474.

Algorithm (numbers match the comments in the code):
  1. draw M networks, 5 say, each from a key of its own
  2. train each on all data, in an order of its own (no bagging), on a proper scoring
     rule: cross-entropy, or for regression the negative log-likelihood of a normal
     distribution whose mean and variance the network outputs
  3. predict the mean of the members' probabilities, or the mixture of their normals

Departures from the paper:
  * the learning rate is yours; the 0.1 that the paper states for Adam is large
  * adversarial training, optional in the paper, is left to your loss: add the loss at
    `x + step * jnp.sign(jax.grad(loss_of_x)(x))`

    >>> from maskjax.recipes import deep_ensemble
    >>> draw = lambda key: {"w": jax.random.normal(key, (3, 2))}
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> params = deep_ensemble.init(draw, keys=keys)
    >>> net = lambda params, x: x @ params["w"]
    >>> outputs = stacking.map(net, params, jnp.ones((5, 3)))
    >>> mean, variance = deep_ensemble.gaussian(outputs)  # [4, 5, 1] each
    >>> mean, variance = deep_ensemble.mixture(mean, variance)
    >>> mean.shape
    (5, 1)
"""

from maskjax.recipes.deep_ensemble._members import init, order, train
from maskjax.recipes.deep_ensemble._normals import gaussian, gaussian_loss, mixture

__all__ = ["gaussian", "gaussian_loss", "init", "mixture", "order", "train"]
