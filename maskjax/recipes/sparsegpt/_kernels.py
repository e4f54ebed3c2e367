"""The kernels of a network, each with what is known of its inputs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from maskjax._core import checks, trees
from maskjax._core.axes import Axes
from maskjax._core.trees import Array, Params
from maskjax.calibration import Statistics, _sound


class Kernel(NamedTuple):
    """A kernel, where it is in the tree, and the statistics of its inputs."""

    place: int
    path: str
    w: Array
    stats: Statistics


def of(
    params: Params, stats: Any, picks: Sequence[bool] | None, *, fn: str
) -> list[Kernel]:
    """The kernels that are chosen; all that have statistics if nothing is.

    Raises:
        TypeError: If one is not floating, or has something else for statistics.
        ValueError: If there is none, the trees do not fit, one has no Gram matrix, or,
            as far as they are known, one such as no data give, or weights are inf or
            nan.
    """
    _sound.kernels(stats, fn=fn)
    pairs = checks.rows(params, stats, fn=fn, names=("params", "stats"))
    if picks is None:
        picks = [found is not None for _, found in pairs]
    rows = [(*pair, pick) for pair, pick in zip(pairs, picks, strict=True)]
    needs = f"`{fn}` needs every kernel that it prunes"
    checks.every(_misfit, rows, params, f"{needs} to have a Gram matrix of its inputs")
    checks.every(_not_floating, rows, params, f"{needs} to be floating", TypeError)
    sums = [found.sums if pick else None for _, found, pick in rows]
    sums = jax.tree.structure(params).unflatten(sums)
    checks.rows(params, sums, fn=fn, names=("params", "stats"))
    kernels = [
        Kernel(i, path, w, found)
        for i, (path, (w, found, pick)) in enumerate(
            zip(trees.paths(params), rows, strict=True)
        )
        if pick
    ]
    weights = {kernel.path: kernel.w for kernel in kernels}
    _sound.refuse(stats, fn=fn, chosen=weights)
    needs = f"`{fn}` needs finite weights (one that is not spoils its output)"
    checks.finite(weights, needs, "weights")
    return kernels


class Told(NamedTuple):
    """A predicate that knows kernels by their paths, and their axes."""

    known: dict[str, Axes]

    def __call__(self, path: str, leaf: Any) -> bool:
        return path in self.known

    def axes(self, path: str, leaf: Any) -> Axes:
        """The axes of a kernel."""
        return self.known[path]


def _misfit(w: Any, found: Any, pick: bool) -> str | None:  # noqa: FBT001
    if not pick:
        return None
    if found is None:
        return "no statistics"
    if tuple(found.shape) != tuple(w.shape):
        return f"statistics of {tuple(found.shape)}, parameter {tuple(w.shape)}"
    return None if found.gram else "norms alone (`gram=False`)"


def _not_floating(w: Any, found: Any, pick: bool) -> str | None:  # noqa: FBT001
    return checks.kind_of(w) if pick and not checks.is_floating(w) else None
