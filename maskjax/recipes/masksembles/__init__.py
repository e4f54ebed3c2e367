"""Masksembles: one network under a few fixed masks (Durasov et al., CVPR 2021).

arXiv:2012.08334. Between a single network (scale 1), MC-dropout (many members) and an
ensemble (a scale so large that masks do not overlap).

Algorithm (numbers match the comments in the code):
  1. each of N masks of C features has m = C / (s (1 - (1 - 1 / s)^N)) ones, rounded
     down; two masks share m / s of them on average
  2. masks stand where dropout would, after hidden layers, and never change
  3. in training each sample passes through one mask; nothing is rescaled
  4. all members predict; their mean is the prediction, their spread its uncertainty

Departures from the paper:
  * the authors draw m of m * s places again and again until the masks cover exactly C
    of them, which may fail. Here how many masks have each feature is fixed in advance,
    close to what that draw gives. So the number of ones, the cover and the mean overlap
    are exact, the overlap to the nearest possible value (see `plan`); which masks have
    a feature is random
  * m is larger if N * m ones could not cover the features
  * masks are distinct as long as there are enough different ones

Masks apply to features, in `layers`; or to the input rows of kernels, `init`, as any
stack of masks does. All members have equally many ones, so `compaction.plan` with
`stack=True` makes them smaller networks of one shape.

    >>> from maskjax.recipes import masksembles
    >>> x, params = jnp.ones((2, 3)), {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 1))}
    >>> net = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> after, key = where.matching("b"), jax.random.key(0)
    >>> stack = masksembles.init(params, where=after, key=key)
    >>> stacking.predict(net, params, stack, x).ravel()
    Array([12., 12., 12., 12., 12., 12., 12., 12.], dtype=float32)
    >>> plan = compaction.plan(net, params, stack, x, stack=True)
    >>> small = compaction.shrink(params, plan)
    >>> small["a"].shape, stacking.map(compaction.narrow(net, plan), small, x).shape
    ((4, 3, 4), (4, 2, 1))
"""

from maskjax.recipes.masksembles._masks import Plan, masks, plan
from maskjax.recipes.masksembles._rows import init, rows
from maskjax.recipes.masksembles._samples import at_random, in_chunks

__all__ = [
    "Plan",
    "at_random",
    "in_chunks",
    "init",
    "masks",
    "plan",
    "rows",
]
