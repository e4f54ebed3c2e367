"""Constants that leave: what they add to the next operation is stored with the plan.

A channel whose filters are masked, but not what BatchNorm adds to it, is a constant.
The next kernel turns it into a constant too: the sum of the constants times its rows.
For a convolution that is a kernel of one input, to be slid over ones, so that borders
come right at any size. Constants have no gradient here: for inference only.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskjax._core.trees import Array
from maskjax.compaction._cells import Cells
from maskjax.compaction._facts import Fact, Known, either
from maskjax.compaction._program import Equation, Program, Var
from maskjax.compaction._small import Small


@dataclasses.dataclass(frozen=True, eq=False)
class Folded:
    """All that a plan folds.

    Attributes:
        kind: Of the program that was planned; another can't be written with it.
        values: The numbers of each parameter that has one axis; the others' are `None`.
        folds: The operations with constant inputs.
    """

    kind: int
    values: tuple[np.ndarray | None, ...]
    folds: tuple["Fold", ...]

    def key(self) -> Any:
        """What makes two of them equal."""
        values = tuple(None if v is None else v.tobytes() for v in self.values)
        return self.kind, values, tuple(fold.key() for fold in self.folds)


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """One operation whose constant inputs leave.

    Attributes:
        number: Which equation of the program it is.
        gone: bool [n], the inputs that leave.
        term: What they add: [*free axes of the kernel], or a kernel of one input.
    """

    number: int
    gone: np.ndarray
    term: np.ndarray

    def key(self) -> Any:
        """What makes two of them equal."""
        return self.number, self.gone.tobytes(), self.term.tobytes()


class Folding:
    """Finds what can be folded in a program, or repeats what a plan folds."""

    def __init__(
        self,
        program: Program,
        params: Sequence[Var],
        told: Sequence[Fold] | None = None,
    ) -> None:
        self._program = program
        self._made = _made_of(program, params)
        numbers = {e: i for i, e in enumerate(program.equations)}
        self._numbers = numbers
        self._found: dict[Equation, Known] = {}
        self._told: dict[Equation, Fold] | None = None
        if told is not None:
            self._told = {program.equations[fold.number]: fold for fold in told}

    def spared(self, equation: Equation, constant: Known | None) -> Any:
        """The contracted positions that need not stay, since they are constants."""
        if self._told is not None:
            fold = self._told.get(equation)
            return False if fold is None else fold.gone
        axes = self._axes(equation)
        if constant is None or axes is None:
            return False
        self._found[equation] = constant
        return constant.where

    def data(self, equation: Equation) -> tuple[Var, int] | None:
        """The operand of a contraction whose constants can be folded, and its axis."""
        axes = self._axes(equation)
        return None if axes is None else (equation.ins[axes[0]], axes[1])

    def _axes(self, equation: Equation) -> tuple[int, int, int] | None:
        """(which operand is data, its contracted axis, the kernel's)."""
        x, y = equation.ins
        if equation not in self._numbers or (x in self._made) == (y in self._made):
            return None
        side = int(x in self._made)
        params = equation.params
        if equation.name == "dot_general":
            contracted, batch = params["dimension_numbers"]
            if len(contracted[0]) != 1 or batch[0]:
                return None
            return side, contracted[side][0], contracted[1 - side][0]
        if side or params["feature_group_count"] * params["batch_group_count"] > 1:
            return None
        numbers = params["dimension_numbers"]
        return 0, numbers.lhs_spec[1], numbers.rhs_spec[1]

    def folds(self, cells: Cells, params: Sequence[tuple[Var, Any]]) -> list[Fold]:
        """What is folded once it is known what stays, of parameters that are masked."""
        values = _values(self._program, params)
        found = []
        for equation, constant in self._found.items():
            axes = self._axes(equation)
            assert axes is not None
            side, axis, across = axes
            keep = cells.at(equation.ins[side], axis).keep
            gone = constant.where & ~keep.any(tuple(range(keep.ndim - 1)))
            if gone.any():
                kernel = values[equation.ins[1 - side]]
                numbers = jnp.asarray(np.where(gone, constant.value, 0), kernel.dtype)
                term = jnp.tensordot(numbers, jnp.moveaxis(kernel, across, 0), 1)
                if equation.name != "dot_general":
                    term = jnp.expand_dims(term, across)
                number = self._numbers[equation]
                found.append(Fold(number, gone, np.asarray(term)))
        return found

    def added(
        self, equation: Equation, arrays: Sequence[Any], out: Array, small: Small
    ) -> Array:
        """The output of an operation with what its folded inputs add."""
        fold = None if self._told is None else self._told.get(equation)
        axes = self._axes(equation)
        if fold is None or axes is None:
            return out
        side, _, across = axes
        kernel, term = equation.ins[1 - side], jnp.asarray(fold.term)
        dense = equation.name == "dot_general"
        for axis in range(len(kernel.shape)):
            if axis != across:
                lead = len(kernel.prefix(axis)) - len(kernel.scope)
                to = axis - int(dense and axis > across)
                term = small.taken(term, to, small.places(kernel, axis), lead)
        if not dense:
            numbers = equation.params["dimension_numbers"]
            shape = list(arrays[0].shape)
            shape[numbers.lhs_spec[0]] = shape[numbers.lhs_spec[1]] = 1
            ones = jnp.ones(shape, arrays[0].dtype)
            return out + equation.bind(ones, term.astype(arrays[1].dtype))[0]
        # The free axes of the kernel are the last of the output, or the first.
        more = range(term.ndim, out.ndim) if side else range(out.ndim - term.ndim)
        return out + jnp.expand_dims(term, tuple(more)).astype(out.dtype)


def _made_of(program: Program, params: Sequence[Var]) -> set[Var]:
    """Values that are made of parameters alone, outside of loops."""
    made = set(params)
    for equation in program.equations:
        if _follows(equation, made):
            made.update(equation.outs)
    return made


def _follows(equation: Equation, known: Any) -> bool:
    return (
        bool(equation.ins)
        and not equation.bodies
        and all(var in known for var in equation.ins)
    )


def _values(program: Program, params: Sequence[tuple[Var, Any]]) -> dict[Var, Any]:
    values = dict(params)
    for equation in program.equations:
        if _follows(equation, values):
            outs = equation.bind(*(values[var] for var in equation.ins))
            values.update(zip(equation.outs, outs, strict=True))
    return values


def valued(fact: Fact, var: Var, array: np.ndarray) -> Fact:
    """A fact, with the numbers of a parameter that has one axis, and stacks."""
    if not var.shape:
        return (either(fact[0], Known(np.ones(1, bool), array.reshape(1))),)
    if len(var.shape) != var.lead + 1:
        return fact
    known = Known(np.ones(array.shape, bool), array)
    return (*fact[:-1], either(fact[-1], known))


def kind(program: Program) -> int:
    """A number that two programs of the same operations share."""
    return zlib.crc32(" ".join(e.name for e in program.equations).encode())
