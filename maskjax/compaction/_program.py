"""A traced function as a list of equations: calls inlined, dead code left out.

A `Var` belongs to one place of one program, so what is found out about it is kept in
dictionaries. Its `scope` has the length of every loop around it: inside a `scan` of 12
steps, what is known of a value is known for each step. The members of a stack of masks
are steps of the outermost one. Its `lead` says how many of its own first axes count
steps of a loop elsewhere, as those of stacked parameters do; the positions that its
other axes keep may differ along these.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from maskjax._core import placement


class Var:
    """A value of a program."""

    __slots__ = ("dtype", "kind", "lead", "scope", "shape")

    def __init__(self, aval: Any, scope: tuple[int, ...]) -> None:
        self.shape: tuple[int, ...] = tuple(getattr(aval, "shape", ()))
        self.dtype: Any = getattr(aval, "dtype", None)
        self.kind = aval
        self.scope = scope
        self.lead = 0

    def prefix(self, axis: int) -> tuple[int, ...]:
        """Along what the positions of an axis may differ: its steps.

        Loops around, then first axes that stack. An axis of -1 is the value as a whole.
        """
        return self.scope if axis < self.lead else self.scope + self.shape[: self.lead]

    def step(self, axis: int) -> int | None:
        """The step that an axis counts, or that the innermost loop does, for -1."""
        n = len(self.scope)
        return n + axis if axis < self.lead else None


def bare_axis(n: int, x: Var) -> Var:
    """An axis that no value has: a flat one between two shapes, or a factor of one."""
    return Var(jax.ShapeDtypeStruct((n,), x.dtype), x.scope)


class Const(Var):
    """A constant: a number in the program's text, or an array that it closes over."""

    __slots__ = ("value",)

    def __init__(self, value: Any, aval: Any, scope: tuple[int, ...]) -> None:
        super().__init__(aval, scope)
        self.value = value


@dataclasses.dataclass(eq=False)
class Equation:
    """Outputs of a primitive, of what, and where in the user's program.

    `bodies` are the programs inside: the step of a loop, the branches of a conditional,
    a function with its derivative. `context` is JAX's: the mesh of the place, which
    `jax.sharding.auto_axes` changes, and where it is computed.

    Attributes:
        along: For two of its values the pairs of axes that run along each other, entry
            by entry; -1 is the loop around. Only where their steps are the same ones,
            positions can be compared step by step.
        rows: The rows that are looked up or put, if they are constants.
    """

    primitive: Any
    params: dict[str, Any]
    ins: list[Var]
    outs: list[Var]
    place: str
    bodies: tuple["Program", ...] = ()
    effects: bool = False
    context: Any = None
    along: dict[tuple[Var, Var], set[tuple[int, int]]] = dataclasses.field(
        default_factory=dict
    )
    rows: np.ndarray | None = None

    def dims(self, one: Var, other: Var) -> "Dims":
        """Which steps of another value those of one are."""
        return dims(one, other, self.along.get((one, other), ()))

    @property
    def name(self) -> str:
        return self.primitive.name

    def inside(self) -> Any:
        """A manager of the context."""
        if self.context is None:
            return contextlib.nullcontext()
        return self.context.manager

    def fitted(self, shape: tuple[int, ...]) -> "Equation":
        """The same, with the shardings that it asks for fitted to a small output."""
        changes = {
            name: placement.fitted(value, shape)
            for name, value in self.params.items()
            if isinstance(value, NamedSharding)
        }
        if not changes:
            return self
        return dataclasses.replace(self, params={**self.params, **changes})

    def bind(self, *arrays: Any, **changes: Any) -> list[Any]:
        """The primitive itself, of other arrays."""
        params = self.primitive.get_bind_params({**self.params, **changes})
        out = self.primitive.bind(*arrays, **params)
        return list(out) if self.primitive.multiple_results else [out]


# For each step of one value, the number of the same step of another, or None.
Dims = list[int | None]


def dims(one: Var, other: Var, along: Iterable[tuple[int, int]]) -> Dims:
    """Which steps of another value those of one are, from axes that correspond."""
    if not one.scope and not one.lead:
        return []
    loops = min(len(one.scope), len(other.scope))
    found: Dims = [i if i < loops else None for i in range(len(one.scope) + one.lead)]
    for i, j in along:
        step = one.step(i)
        if step is not None:
            found[step] = other.step(j)
    return found


def stepped(
    table: np.ndarray, dims: Sequence[int], prefix: tuple[int, ...]
) -> np.ndarray:
    """A table [*own, n] for steps [*prefix, n], among which its own are `dims`."""
    order = np.argsort(dims).tolist()
    shape = [1] * len(prefix)
    for i in order:
        shape[dims[i]] = table.shape[i]
    n = table.shape[-1]
    table = table.transpose(*order, table.ndim - 1).reshape(*shape, n)
    return np.broadcast_to(table, (*prefix, n))


@dataclasses.dataclass(eq=False)
class Program:
    """Equations in order, from inputs to outputs."""

    ins: list[Var]
    outs: list[Var]
    equations: list[Equation]


# What is computed for each entry on its own.
ENTRIES = frozenset(
    """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy copy_p
cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag
integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not
or polygamma population_count pow real reduce_precision
regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta eq_to
le_to lt_to
""".split()
)
