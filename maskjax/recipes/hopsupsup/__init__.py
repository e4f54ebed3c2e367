"""HopSupSup: masks kept in a Hopfield network, whose size does not grow (NeurIPS 2020).

Wortsman et al., "Supermasks in Superposition", arXiv:2006.14769, section 3.5.

Algorithm (numbers match the comments below):
  1. Learn a mask for each task (`supsup.soft_mask`), on the scale, all ones, of a
     normalization without bias: what it removes is 0, also after a ReLU or a Swish.
  2. Store it, z = +-1 of d entries, in a matrix psi [d, d] for each layer.
  3. Given T batches of an unknown task, begin with scores at the mean of all z.
  4. With batch t descend by the scores, straight through the mask s = +-1, from
     (1 - t / T) * objective + strength * t / T * energy, energy = sum of -s' psi s / 2.
The paper's text stores by Hebb's rule; its code, by a rule like Storkey's, our default.
A psi takes 4 d^2 bytes and holds fewer than d masks, so a `bank` is always smaller.
A psi may be sharded by either axis; masks, of d entries, are gathered.

    >>> from maskjax.recipes import hopsupsup
    >>> mask = {"scale": jnp.array([True, False])}
    >>> memory = hopsupsup.store(hopsupsup.init(mask), mask)
    >>> memory.psi["scale"][0]
    Array([ 0. , -0.5], dtype=float32)
"""

from maskjax.recipes.hopsupsup._memory import Memory, energy, init, store
from maskjax.recipes.hopsupsup._search import Recovery, recover

__all__ = ["Memory", "Recovery", "energy", "init", "recover", "store"]
