"""What statistics there will be: their axes and bytes, found from shapes alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from maskjax._core import axes as _axes
from maskjax._core import checks, trees
from maskjax._core.axes import Axes, Told
from maskjax._core.stored import stored
from maskjax._core.trees import Params, Path, Predicate
from maskjax.calibration import _placing, _sound
from maskjax.calibration._statistics import Statistics, is_statistics

Found = list[tuple[Any, Statistics | None]]  # parameters and their statistics


@stored("maskjax.calibration.Memory")
class Memory(NamedTuple):
    """Bytes.

    Attributes:
        total: Of all statistics.
        kernels: Of those of each kernel by its path, the dearest first.
        per_device: Of what each device has, as `init` shards them.
    """

    total: int
    kernels: dict[Path, int]
    per_device: int


@dataclasses.dataclass(frozen=True)
class _Traced:
    """A predicate that also knows what tracing found about axes."""

    where: Predicate
    known: Mapping[Path, Told]

    def __call__(self, path: Path, leaf: Any) -> bool:
        return self.where(path, leaf)

    def __repr__(self) -> str:
        return repr(self.where)

    def axes(self, path: Path, leaf: Any) -> Told:
        """The answer of the stronger source."""
        return _axes.strongest(_axes.of(self.where, path, leaf), self.known[path])


def of(
    apply: Callable[..., Any],
    params: Params,
    inputs: Sequence[Any],
    where: Predicate,
    *,
    gram: bool,
    fn: str,
) -> list[Statistics | None]:
    """The statistics of each leaf, as shapes, or `None`."""
    from maskjax._core import walk

    checks.function(apply, "(params, *inputs) -> output", fn=fn, name="apply")
    picks = checks.chosen(params, where, fn=fn)
    named = trees.named_leaves(params)
    answers = walk.roles(apply, params, inputs, fn=fn, every_kernel=False)
    both = _Traced(where, {path: answer.told for path, answer in answers})
    axes = _axes.resolved(both, named, picks, fn=fn, why="to calibrate them")
    leaves, treedef = jax.tree.flatten(params)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if checks.shaped(leaf)}

    def sums(arrays: dict[int, Any], inputs: Sequence[Any]) -> dict[int, Any]:
        every = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        full = treedef.unflatten(every)
        return walk.statistics(apply, full, inputs, axes, gram=gram, fn=fn)

    shapes = jax.eval_shape(sums, arrays, tuple(inputs))
    return [
        None if own is None else _made(shapes[i], own, leaf.shape, gram=gram)
        for i, (leaf, own) in enumerate(zip(leaves, axes, strict=True))
    ]


def _made(
    sums: jax.ShapeDtypeStruct, axes: Axes, shape: Sequence[int], *, gram: bool
) -> Statistics:
    place = len(axes.stack)
    groups = sums.shape[place]
    lengths = sums.shape
    if groups == 1:
        lengths = (*lengths[:place], *lengths[place + 1 :])
    sums = jax.ShapeDtypeStruct(lengths, sums.dtype)
    return Statistics(sums, axes, tuple(shape), groups, gram)  # type: ignore[arg-type]


def bytes_of(planned: Sequence[Statistics | None], params: Params) -> Memory:
    """The bytes of statistics."""
    taken, own = {}, 0
    rows = zip(trees.paths(params), jax.tree.leaves(params), planned, strict=True)
    for path, leaf, stats in rows:
        if stats is not None:
            taken[path] = math.prod(stats.sums.shape) * stats.sums.dtype.itemsize
            own += taken[path] // _placing.shards(stats, leaf)
    order = sorted(taken, key=lambda path: -taken[path])
    return Memory(sum(taken.values()), {path: taken[path] for path in order}, own)


_SHOWN = 5  # kernels that an error lists


def check_limit(
    planned: Sequence[Statistics | None],
    params: Params,
    limit: int | None,
    *,
    fn: str,
) -> None:
    """Raise if statistics take too many bytes, and name the dearest kernels."""
    if limit is None:
        return
    checks.at_least(limit, 0, fn=fn, name="limit")
    total, kernels, _ = bytes_of(planned, params)
    if total > limit:
        lines = [f"{path}: {n:,} bytes" for path, n in kernels.items()]
        if len(lines) > _SHOWN:
            lines = [*lines[:_SHOWN], f"and {len(lines) - _SHOWN} more"]
        raise checks.listing(
            lines,
            f"`{fn}` needs {total:,} bytes for statistics, and `limit` is {limit:,} "
            "(leave the dearest to a `where` of their own, or pass `gram=False`)",
        )


def matched(params: Params, stats: Params, *, fn: str) -> Found:
    """Parameters with their statistics.

    Raises:
        TypeError: If a leaf of `stats` is neither `Statistics` nor `None`.
        ValueError: If it is that of another parameter, or there are none.
    """
    _sound.kernels(stats, fn=fn)
    sums = jax.tree.map(
        lambda own: None if own is None else own.sums, stats, is_leaf=is_statistics
    )
    checks.rows(params, sums, fn=fn, names=("params", "stats"))
    leaves, treedef = jax.tree.flatten(params)
    found = [*zip(leaves, treedef.flatten_up_to(stats), strict=True)]

    def strange(leaf: Any, own: Statistics | None) -> str | None:
        if own is None or getattr(leaf, "shape", None) == own.shape:
            return None
        return f"statistics of shape {own.shape}, {checks.kind_of(leaf)}"

    needs = f"`{fn}` needs `stats` of these parameters"
    checks.every(strange, found, params, needs)
    kinds = {own.gram for _, own in found if own is not None}
    if len(kinds) > 1:
        raise ValueError(
            f"`{fn}` needs all of `stats` with Gram matrices, or all without."
        )
    return found  # type: ignore[return-value]


def check_same(
    found: Found, sums: Mapping[int, Any], params: Params, *, fn: str
) -> None:
    """Raise unless a batch gives sums of the shapes that there are."""

    def differs(_: Any, own: Statistics | None, new: Any) -> str | None:
        if own is None:
            return None
        made = _made(new, own.axes, own.shape, gram=own.gram).sums.shape
        if made == own.sums.shape:
            return None
        return f"statistics {own.sums.shape}, in this batch {made}"

    rows = [(leaf, own, sums.get(i)) for i, (leaf, own) in enumerate(found)]
    checks.every(
        differs, rows, params, f"`{fn}` needs kernels to meet data as in `stats`"
    )
