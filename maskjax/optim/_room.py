"""Whether a density leaves weights alive, and room for others to grow."""

from typing import Any

import jax
import numpy as np

from maskjax._core import checks
from maskjax._core.trees import Density, Scores
from maskjax.select._leaves import Leaves
from maskjax.select._quota import quota
from maskjax.structure import NofM


def check(
    params: Scores,
    shares: Density | Scores,
    peak: float | None,
    how: dict[str, Any],
    *,
    regrow: bool,
    fn: str,
) -> None:
    """Raise if a leaf begins without a weight, or weights have no place to grow.

    Args:
        params: The leaves that carry a mask, `None` for the others.
        shares: The density of each.
        peak: The highest rate, `None` if it is not known.
        how: `scope`, `structure` and `where`.
        regrow: Whether weights grow where some were dropped just now.
        fn: The public function that errors blame.
    """
    leaves = Leaves(params, *how.values(), fn=fn)
    found = leaves.shares(shares, name="density")
    rows = list(zip(leaves.names(), leaves.sizes, found, strict=True))
    each = {"output": " in each output", "layer": " in each layer"}
    each = each.get(how["scope"], "")
    checks.raise_all(
        (_none_alive(*row, each) for row in rows),
        f"`{fn}` needs `density` that leaves each leaf a weight (as many grow as are "
        "dropped, so none would ever grow there)",
    )
    if regrow:
        return
    for structure in leaves.structures:
        if isinstance(structure, NofM):
            raise ValueError(
                f"`{fn}` needs `regrow` with {structure}, because its groups may have "
                "no other place to grow in."
            )
    checks.raise_all(
        (_no_room(*row, peak) for row in rows),
        f"`{fn}` without `regrow` needs more free entries",
    )


def _none_alive(path: str, size: int, share: Density, each: str) -> str | None:
    """Whether a density above 0 is known to round to no weight in all of a leaf."""
    if isinstance(share, jax.Array) or not size:
        return None
    ones = np.ravel(share)
    if not np.any(ones) or any(quota(one, size) for one in ones):
        return None
    return f"{path}: {max(ones):.3g} of {size}{each}"


def _no_room(path: str, size: int, share: Density, peak: float | None) -> str | None:
    """Whether more weights are known to grow than there are free places."""
    if peak is None or isinstance(share, jax.Array):
        return None
    for one in np.ravel(share):
        alive = quota(one, size)
        grows, free = quota(peak, alive), size - alive
        if grows > free:
            return f"{path}: {grows} to grow, {free} of {size} free"
    return None
