"""The mask of the highest absolute scores, for recipes that learn scores."""

from typing import Any

import jax.numpy as jnp

from maskjax import estimator
from maskjax._core.trees import Density, Mask, Scores, SoftMask, map_mask
from maskjax.select._choice import choose
from maskjax.select._quota import Keep
from maskjax.structure import Entries


def highest(
    scores: Scores, fn: str, *, density: Density | Scores, **how: Any
) -> tuple[Mask, Scores]:
    """The mask of the highest |scores|, and where the selection cut.

    Args:
        scores: Tree of floating leaves, or `None`.
        fn: The public function that errors blame.
        density: The fraction to keep.
        **how: `scope`, `where`, and if there is one `guess`, as in `select.top_k`.
    """
    return choose(
        scores, Keep, density, **how, structure=Entries(), absolute=True, fn=fn
    )


def soft_highest(scores: Scores, fn: str, **how: Any) -> tuple[SoftMask, Scores]:
    """The same mask with the derivative of |scores|, and where the selection cut."""
    hard, cutoff = highest(scores, fn, **how)
    return estimator.straight_through(hard, map_mask(jnp.abs, scores)), cutoff
