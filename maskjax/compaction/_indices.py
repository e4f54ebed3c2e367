"""Which rows are looked up, where the program's text tells: permutations, repetitions.

Such a lookup moves positions, as a slice does. Rows that are not told, or a lookup that
leaves some out, keep the axis as it is: other inputs may ask for other rows.
"""

from collections.abc import Sequence

import numpy as np
from jax.core import Tracer

from maskjax.compaction._host import on_host
from maskjax.compaction._program import ENTRIES, Const, Equation, Program, Var

_MOST = 1 << 16  # more rows are not read
_LOOKUPS = "gather scatter scatter-add scatter_add scatter-mul scatter-min scatter-max"
_READ = ENTRIES | set(
    "broadcast_in_dim concatenate iota reshape rev slice squeeze transpose".split()
)
Value = np.ndarray | None


def follow(program: Program, ins: Sequence[Value] = ()) -> None:
    """Set `rows` of all lookups whose rows are constants."""
    reader = _Reader(program, ins or [None] * len(program.ins))
    for equation in program.equations:
        if equation.name in _LOOKUPS.split():
            axis = _axis(equation)
            found = None if axis is None else reader.value(equation.ins[1])
            if axis is not None and found is not None:
                rows, n = found.reshape(-1), equation.ins[0].shape[axis]
                if len(rows) >= n and np.array_equal(np.unique(rows), np.arange(n)):
                    equation.rows = rows
        inside = equation.ins[1:] if equation.name == "cond" else equation.ins
        known = [reader.value(var) if equation.bodies else None for var in inside]
        if equation.name == "scan":
            n = equation.params["num_consts"]
            known[n:] = [None] * (len(known) - n)
        for body in equation.bodies:
            more = [None] * (len(body.ins) - len(known))
            follow(body, [*known, *more])


def _axis(equation: Equation) -> int | None:
    """The one axis of which whole rows are looked up or put, by a list of them."""
    (x, rows, *_), numbers = equation.ins, equation.params["dimension_numbers"]
    gather = equation.name == "gather"
    gone = numbers.collapsed_slice_dims if gather else numbers.inserted_window_dims
    by = numbers.start_index_map if gather else numbers.scatter_dims_to_operand_dims
    if len(gone) != 1 or gone != by or numbers.operand_batching_dims:
        return None
    return gone[0] if len(rows.shape) == 2 and rows.shape[1] == 1 and x.shape else None


class _Reader:
    """The values of a program that depend on constants alone."""

    def __init__(self, program: Program, ins: Sequence[Value]) -> None:
        self._known: dict[Var, Value] = dict(zip(program.ins, ins, strict=True))
        self._made = {var: e for e in program.equations for var in e.outs}

    def value(self, var: Var) -> Value:
        """The value, or None."""
        if var not in self._known:
            self._known[var] = self._found(var)
        return self._known[var]

    def _found(self, var: Var) -> Value:
        numbers = var.dtype is not None and var.dtype.kind in "biu"
        if not numbers or np.prod(var.shape, dtype=int) > _MOST:
            return None
        if isinstance(var, Const):
            whole = getattr(var.value, "is_fully_addressable", True)
            told = whole and not isinstance(var.value, Tracer)
            return np.asarray(var.value, var.dtype) if told else None
        equation = self._made.get(var)
        if equation is None or equation.name not in _READ:
            return None
        operands = [self.value(x) for x in equation.ins]
        if any(x is None for x in operands):
            return None
        try:
            with on_host():
                return np.asarray(equation.bind(*operands)[0])
        except Exception:  # no CPU, or numbers that are spread over devices
            return None
