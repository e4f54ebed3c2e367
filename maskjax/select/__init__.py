"""Scores in, mask out. True keeps.

- `top_k` keeps the highest scores, an exact fraction of them. Scores have signs: to
  keep the largest parameters of either sign, rank `score.magnitude(params)`.
- `threshold` keeps the scores that reach a number, `bernoulli` draws from
  probabilities, `random` and `random_like` draw masks with exact counts.
- `drop`, `shrink` and `grow` change a mask; `iterative_top_k` prunes in rounds.

>>> scores = {"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([[2.0, 5.0]])}
>>> select.top_k(scores, density=0.5, scope="global")
{'a': Array([[ True, False]], dtype=bool), 'b': Array([[False,  True]], dtype=bool)}
"""

from maskjax.select._leaves import Scope
from maskjax.select._random import bernoulli, random, random_like
from maskjax.select._rounds import drop, grow, iterative_top_k, shrink
from maskjax.select._top_k import threshold, top_k

__all__ = [
    "Scope",
    "bernoulli",
    "drop",
    "grow",
    "iterative_top_k",
    "random",
    "random_like",
    "shrink",
    "threshold",
    "top_k",
]
