"""Positions whose slices are provably equal: one stands for all of them in a sum.

Where the mean is taken off a residual stream, every masked feature becomes minus the
mean: not 0, but the same in all of them. A sum of squares, as in a LayerNorm that
passes over its inputs twice, then needs one of them, weighed by their number. The
others leave. That one has no right gradient: for inference only.
"""

from typing import Any

import numpy as np

from maskjax.compaction._facts import Facts
from maskjax.compaction._program import ENTRIES, Equation, Program, Var


class Ghosts:
    """For each axis a number for every position: equal numbers, equal slices."""

    def __init__(self, program: Program, facts: Facts) -> None:
        self._facts = facts
        self._labels: dict[tuple[Var, int], np.ndarray | None] = {}
        self._follow(program)

    def _follow(self, program: Program) -> None:
        for equation in program.equations:
            for body in equation.bodies:
                if equation.name not in ("scan", "cond"):
                    pairs = zip(equation.ins, body.ins, strict=False)
                    for outside, inside in pairs:
                        for axis in range(len(inside.shape)):
                            self._labels[inside, axis] = self.of(outside, axis)
                self._follow(body)
            if equation.bodies and equation.name not in ("scan", "cond"):
                body = equation.bodies[0]
                for outside, inside in zip(equation.outs, body.outs, strict=True):
                    for axis in range(len(inside.shape)):
                        self._labels[outside, axis] = self.of(inside, axis)
                continue
            for out in equation.outs:
                for axis in range(len(out.shape)):
                    self._labels[out, axis] = _of_output(self, equation, out, axis)

    def of(self, var: Var, axis: int) -> np.ndarray | None:
        """The numbers of an axis, [*steps, n]; None if no slices are equal."""
        labels = self._labels.get((var, axis))
        known = self._facts.of(var)[axis]
        if known is None or not (known.where.sum(-1) > 1).any():
            return labels
        n = var.shape[axis]
        own = (
            np.broadcast_to(np.arange(n), known.where.shape)
            if labels is None
            else labels
        )
        _, back = np.unique(known.value, return_inverse=True)
        numbers = int(own.max(initial=0)) + 1 + back.reshape(known.where.shape)
        return _numbered(np.where(known.where, numbers, own))

    def one(self, var: Var, axis: int) -> bool:
        """Whether all positions of an axis are equal."""
        labels = self.of(var, axis)
        return labels is not None and bool((labels == labels[..., :1]).all())

    def first(self, var: Var, axis: int) -> np.ndarray | bool:
        """The positions that stand for all that equal them: the first of each."""
        labels = self.of(var, axis)
        if labels is None:
            return True
        rows = labels.reshape(-1, labels.shape[-1])
        found = np.zeros(rows.shape, bool)
        for row, where in zip(rows, found, strict=True):
            where[np.unique(row, return_index=True)[1]] = True
        return found.reshape(labels.shape)

    def weights(self, var: Var, axis: int, keep: np.ndarray) -> np.ndarray | None:
        """What each position that stays counts for, [*steps, k]; None if 1 each."""
        labels = self.of(var, axis)
        if labels is None:
            return None
        labels = np.broadcast_to(labels, keep.shape)
        first = np.broadcast_to(self.first(var, axis), keep.shape)
        found = []
        for row, kept, one in zip(
            *(x.reshape(-1, x.shape[-1]) for x in (labels, keep, first)), strict=True
        ):
            gone = np.bincount(row[~kept], minlength=row.max() + 1)
            found.append((1 + np.where(one, gone[row], 0))[kept])
        table = np.stack(found).reshape(*keep.shape[:-1], -1)
        return None if (table == 1).all() else table


def _numbered(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def _of_output(
    ghosts: Ghosts, equation: Equation, out: Var, axis: int
) -> np.ndarray | None:
    """The numbers of an output's axis, from the inputs' axes that it runs along."""
    name, params = equation.name, equation.params
    if name in ENTRIES:
        return _together(ghosts, equation, out, axis)
    x = equation.ins[0] if equation.ins else out
    source: int | None = None
    if name == "broadcast_in_dim":
        mapped = {to: i for i, to in enumerate(params["broadcast_dimensions"])}
        source = mapped.get(axis)
        if source is None or x.shape[source] != out.shape[axis]:
            return np.zeros((*out.prefix(axis), out.shape[axis]), int)
    elif name == "transpose":
        source = params["permutation"][axis]
    elif name in ("reduce_sum", "reduce_max", "reduce_min"):
        left = [i for i in range(len(x.shape)) if i not in params["axes"]]
        source = left[axis]
    elif name == "squeeze":
        left = [i for i in range(len(x.shape)) if i not in params["dimensions"]]
        source = left[axis]
    if source is None or not _stepwise(equation, x, out, axis):
        return None
    return ghosts.of(x, source)


def _stepwise(equation: Equation, x: Var, out: Var, axis: int) -> bool:
    """Whether the positions of an input's axis have the steps of an output's axis."""
    steps = [*range(len(out.prefix(axis)))]
    return len(x.scope) + x.lead == len(steps) and equation.dims(x, out) == steps


def _together(
    ghosts: Ghosts, equation: Equation, out: Var, axis: int
) -> np.ndarray | None:
    """Equal in all operands; what all positions share does not tell them apart."""
    rows: list[Any] = []
    for var in equation.ins:
        if len(var.shape) == len(out.shape) and var.shape[axis] == out.shape[axis]:
            labels = ghosts.of(var, axis)
            if labels is None or not _stepwise(equation, var, out, axis):
                return None
            rows.append(labels)
    if not rows:
        return np.zeros((*out.prefix(axis), out.shape[axis]), int)
    table = rows[0]
    for row in rows[1:]:
        table = _numbered(table * (int(row.max(initial=0)) + 1) + row)
    return table
