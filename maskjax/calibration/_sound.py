"""Whether statistics are some, and such as data give."""

import functools
import math
from collections.abc import Container
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import checks, trees
from maskjax._core.trees import Array, Params, Path
from maskjax.calibration._statistics import Statistics, is_statistics, squares


def kernels(stats: Params, *, fn: str) -> dict[Path, Statistics]:
    """The statistics in a tree by the paths of their kernels.

    Raises:
        TypeError: If a leaf is neither `Statistics` nor `None`.
        ValueError: If all are `None`.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(stats, is_leaf=is_statistics)
    named = [(trees.path_string(path), own) for path, own in leaves]
    checks.raise_all(
        (
            f"{path or 'the root'}: {checks.kind_of(own)}"
            for path, own in named
            if not is_statistics(own)
        ),
        f"`{fn}` needs every leaf of `stats` as `Statistics`, or None, as "
        "`calibration.collect` returns them",
        TypeError,
    )
    found = {path: own for path, own in named if own is not None}
    if not found:
        raise ValueError(
            f"`{fn}` needs `stats` of at least one kernel, as `calibration.collect` "
            "returns them, got none."
        )
    return found


def refuse(stats: Params, *, fn: str, chosen: Container[Path] | None = None) -> None:
    """Raise if statistics are none that data give, as far as their values are known.

    A kernel may have met no rows, as an expert that none is sent to: its sums are 0.

    Args:
        stats: Tree of `Statistics`, or `None`.
        fn: The public function that errors blame.
        chosen: The kernels whose sums are used; `None`: all.

    Raises:
        ValueError: If sums are inf or nan, squares negative, or all sums of all kernels
            0; the first two name the kernels. If sums are of other shapes.
    """
    own = kernels(stats, fn=fn)
    used = {path: own[path] for path in own if chosen is None or path in chosen}
    said = {path: each.complaint() for path, each in used.items()}
    checks.raise_all(
        (f"{path}: {problem}" for path, problem in said.items() if problem),
        f"`{fn}` needs sums of the shapes that `init` makes (those of several hosts, "
        "devices or members? Add them up, or map over them)",
    )
    found: dict[Path, Any] = {}
    for gram in (True, False):
        sums = {path: each.sums for path, each in own.items() if each.gram == gram}
        found |= checks.read(sums, functools.partial(_faults, gram=gram))
    wrong = [path for path in used if path in found and not found[path][0]]
    checks.infinite(
        {path: own[path].sums for path in wrong},
        f"`{fn}` needs finite statistics",
        "sums",
    )
    wrong = [path for path in used if path in found and found[path][1]]
    checks.raise_all(
        (f"{path}: {_negative(own[path])}" for path in wrong),
        f"`{fn}` needs sums of squares of at least 0",
    )
    some = any(math.prod(each.shape) for each in own.values())
    met = len(found) < len(own) or any(other for *_, other in found.values())
    if some and not met:
        raise ValueError(
            f"`{fn}` needs statistics of some data, but all sums are 0: no batch was "
            "added, all weights of rows are 0, or all inputs are."
        )


@functools.partial(jax.jit, static_argnames="gram")
def _faults(sums: Array, *, gram: bool) -> tuple[Array, Array, Array]:
    """Whether all sums are finite, a square is negative, and one is not 0."""
    own = squares(sums, gram=gram)
    return checks.all_finite(sums), jnp.any(own < 0), jnp.any(own != 0)


def _negative(stats: Statistics) -> str:
    own = np.asarray(squares(stats.sums, gram=stats.gram))
    return f"{np.sum(own < 0):,} of {own.size:,} are negative"
