"""Many masks as one tree: every leaf has a leading axis K of tasks, members or seeds.

>>> a, b = {"w": jnp.array([True, False])}, {"w": jnp.array([True, True])}
>>> stack = stacking.stack([a, b])
>>> stacking.size(stack), stacking.take(stack, 1)
(2, {'w': Array([ True,  True], dtype=bool)})
"""

from maskjax.stacking._members import map, predict, predict_each
from maskjax.stacking._stacks import counts, mix, size, stack, take, unstack

__all__ = [
    "counts",
    "map",
    "mix",
    "predict",
    "predict_each",
    "size",
    "stack",
    "take",
    "unstack",
]
