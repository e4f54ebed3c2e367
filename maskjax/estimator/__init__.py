"""Gradients through a hard choice: the mask forward, the scores backward.

`top_k`, `threshold` and `bernoulli` are straight-through estimators: masks of exact 0s
and 1s with the gradient of something smooth. `hard_concrete` needs no such trick: its
gates lie between 0 and 1, many are exactly 0, and their gradient is their own. With
`lagrangian` a network learns how many of them it can do without.

>>> scores = {"w": jnp.array([3.0, 1.0])}
>>> kept = lambda s: (estimator.top_k(s, density=0.5)["w"] * jnp.array([5.0, 7.0]))
>>> kept(scores), jax.grad(lambda s: kept(s).sum())(scores)["w"]
(Array([5., 0.], dtype=float32), Array([5., 7.], dtype=float32))
"""

from maskjax.estimator._concrete import hard_concrete, hard_concrete_probabilities
from maskjax.estimator._lagrangian import lagrangian
from maskjax.estimator._straight import (
    bernoulli,
    straight_through,
    threshold,
    top_k,
)

__all__ = [
    "bernoulli",
    "hard_concrete",
    "hard_concrete_probabilities",
    "lagrangian",
    "straight_through",
    "threshold",
    "top_k",
]
