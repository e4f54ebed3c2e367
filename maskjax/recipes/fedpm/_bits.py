"""What a code could save of one bit a weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from maskjax._core import checks, dtypes
from maskjax._core.trees import Array, Scores
from maskjax.recipes.fedpm._state import FN


def entropy(probabilities: Scores) -> Array:
    """The mean entropy of a bit that is 1 with these probabilities, in bits.

    No code for masks with these probabilities sends fewer bits a weight on average.
    Some probabilities that are of interest:

    - `sigmoid(scores)` of a client: the least that its message costs, whatever the
      server knows
    - `algebra.density(message.mask)`: what a code costs that knows only how many bits
      are 1, beside log2(n) bits for that number. The authors' code reports this.
    - `state.probabilities`: how far the server has decided

    Args:
        probabilities: Tree of floating leaves in [0, 1], or one such array; `None`
            leaves count as nothing.

    Returns:
        A float32 scalar in [0, 1], bits a weight; 1 if all probabilities are one half.

    Raises:
        TypeError: If a leaf is not floating.
        ValueError: If there is no leaf, or one is outside [0, 1] or has nan (unless
            traced: then the result is nan).

    Example:
        >>> print(fedpm.entropy({"w": jnp.array([0.5, 1.0])}))
        0.5
    """
    checks.floating_scores(probabilities, fn=FN + "entropy", name="probabilities")
    checks.together(fn=FN + "entropy", probabilities=probabilities)
    checks.probabilities(probabilities, fn=FN + "entropy", name="probabilities")
    return _entropy(probabilities)


@jax.jit
def _entropy(probabilities: Scores) -> Array:
    leaves = jax.tree.leaves(probabilities)
    total = max(1, sum(p.size for p in leaves))

    def bits(p: Array) -> Array:
        p = p.astype(dtypes.at_least_float32(p.dtype))
        nats = -(xlogy(p, p) + xlogy(1 - p, 1 - p))
        return (jnp.sum(nats) / (total * jnp.log(2.0))).astype(jnp.float32)

    return jnp.sum(jnp.stack([bits(p) for p in leaves]))
