"""Lottery tickets taken apart: criteria, signs and zeros (Zhou et al., NeurIPS 2019).

Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask. arXiv:1905.01067.

Algorithm (numbers match the comments below):
  1. train; score each weight by its initial and final value, by one of many criteria
  2. keep the highest scores of each leaf: `select.drop`
  3. mask-1 action: set the values that kept weights start again from
  4. mask-0 action: set the constants that removed weights are held at
  5. train what is kept of `maskjax.apply(params, mask, fill=start)`; go to 1
Initial weights under the mask of step 2, never trained, are a supermask.

On several devices, leaves that are permuted or ranked twice are gathered.

Departures from the paper:
  * counts are exact; the reference code's are approximate for criteria that rank twice
  * mask-1 actions do not change removed weights; the reference code permutes them too

    >>> from maskjax.recipes import deconstructing
    >>> initial = {"w": jnp.array([[0.5, -1.0, 2.0, 0.25]])}
    >>> final = {"w": jnp.array([[0.75, 3.0, -1.0, 0.5]])}  # after training
    >>> alive, key = masking.everything(initial), jax.random.key(0)
    >>> table = deconstructing.scores(initial, final, alive, key=key)
    >>> mask = select.drop(table["large_final_same_sign"], alive, rate=0.5)
    >>> deconstructing.restart(initial, final, mask, key=key)
    {'w': Array([[0.5 , 0.  , 0.  , 0.25]], dtype=float32)}
"""

from maskjax.recipes.deconstructing._actions import restart
from maskjax.recipes.deconstructing._criteria import scores

__all__ = ["restart", "scores"]
