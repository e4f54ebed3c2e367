"""Whether a density leaves weights alive, and room for others to grow."""

from typing import Any

import jax
import numpy as np

from maskjax._core import checks
from maskjax._core.trees import Density, Scores
from maskjax.select._leaves import Leaves
from maskjax.select._quota import quota
from maskjax.structure import NofM


def check_alive(
    params: Scores, shares: Density | Scores, how: dict[str, Any], *, fn: str
) -> None:
    """Raise if a density above 0 is known to round to no weight in all of a leaf.

    As many grow as are dropped, so that the leaf would stay at zero for good.
    """
    leaves = Leaves(params, *how.values(), fn=fn)
    each = {"output": " in each output", "layer": " in each layer"}

    def complaint(path: str, size: int, share: Density) -> str | None:
        if isinstance(share, jax.Array) or not size:
            return None
        ones = np.ravel(share)
        if not np.any(ones) or any(quota(one, size) for one in ones):
            return None
        return f"{path}: {max(ones):.3g} of {size}{each.get(how['scope'], '')}"

    checks.raise_all(
        map(
            complaint,
            leaves.names(),
            leaves.sizes,
            leaves.shares(shares, name="density"),
        ),
        f"`{fn}` needs `density` that leaves each leaf a weight (as many grow as are "
        "dropped, so none would ever grow there)",
    )


def check_growth(
    params: Scores,
    shares: Density | Scores,
    peak: float | None,
    how: dict[str, Any],
    *,
    fn: str,
) -> None:
    """Raise unless there is room to grow outside of what was alive."""
    leaves = Leaves(params, *how.values(), fn=fn)
    for structure in leaves.structures:
        if isinstance(structure, NofM):
            raise ValueError(
                f"`{fn}` needs `regrow` with {structure}, because its groups may have "
                "no other place to grow in."
            )
    found = leaves.shares(shares, name="density")

    def complaint(path: str, size: int, share: Density) -> str | None:
        if peak is None or isinstance(share, jax.Array):
            return None
        for one in np.ravel(share):
            alive = quota(one, size)
            grows, free = quota(peak, alive), size - alive
            if grows > free:
                return f"{path}: {grows} to grow, {free} of {size} free"
        return None

    checks.raise_all(
        map(complaint, leaves.names(), leaves.sizes, found),
        f"`{fn}` without `regrow` needs more free entries",
    )
