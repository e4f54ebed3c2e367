"""What is known of each position of each axis: that its whole slice is one constant.

A mask makes slices of parameters 0, and an operation whose operands are all known can
be evaluated, so that no list of operations that keep 0 at 0 is needed. A fact holds for
every step of the loops around it at once: its arrays have the shape of the steps, then
the length of the axis.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.core import Tracer

from maskjax.compaction._program import (
    Const,
    Dims,
    Equation,
    Program,
    Var,
    dims,
    stepped,
)


class Known(NamedTuple):
    """Along one axis: which positions are known, and as what, [*steps, n]."""

    where: np.ndarray
    value: np.ndarray

    def zeros(self) -> np.ndarray:
        """The positions that are known to be 0."""
        return self.where & (self.value == 0)


# One entry for each axis, `None` where nothing is known; a scalar has one for itself.
Fact = tuple[Known | None, ...]


class Facts(dict[Var, Fact]):
    """The facts of all values of a program.

    `follow` finds those of a program inside, from those of its inputs. Masks that are
    constants in the program are read only if so asked: what can leave is for the mask
    to say that is given.
    """

    def __init__(
        self,
        follow: Callable[["Program", "Facts"], list[Fact]],
        *,
        masks: bool = False,
    ) -> None:
        super().__init__()
        self._follow, self._masks = follow, masks
        self.now: Equation | None = None  # whose values are compared

    def follow(self, program: Program, ins: Sequence[Fact]) -> list[Fact]:
        """The facts of a program's outputs."""
        self.update(zip(program.ins, ins, strict=True))
        now = self.now
        outs = self._follow(program, self)
        self.now = now
        return outs

    def of(self, var: Var) -> Fact:
        """The fact of a value; those of constants are in the program's text."""
        if isinstance(var, Const) and var not in self:
            if not var.shape or self._masks and var.dtype == bool:
                self[var] = _constant(var)
        return self.get(var, (None,) * max(len(var.shape), 1))

    def spread(
        self, var: Var, axis: int, other: Var, to: int, n: int | None = None
    ) -> Known | None:
        """What is known along an axis, for the steps of an axis of another value.

        An axis of -1 is the value as a whole. The length is that of the other axis, or
        the one given.
        """
        known = self.whole(var) if axis < 0 else self.of(var)[axis]
        if known is None or self.now is None:
            return None
        prefix = other.prefix(to)
        if n is None:
            n = other.shape[to] if to >= 0 else 1
        dims = self.now.dims(var, other)[: known.where.ndim - 1]
        dims = [i if i is None or i < len(prefix) else None for i in dims]
        return _stepped(known, dims, prefix, n)

    def common(self, var: Var, axis: int) -> Known | None:
        """What is known along an axis in all rows of a stack, [*scope, n]."""
        known = self.of(var)[axis]
        return None if known is None else _shared(known, var)

    def whole(self, var: Var) -> Known | None:
        """What the whole value is known to be, [*scope, 1]."""
        fact = self.of(var)
        if not var.shape:
            return fact[0]
        for known in fact:
            if known is not None and known.where.size and known.where.all(-1).any():
                return _same(_shared(known, var))
        return None

    def zeros(self, var: Var, axis: int) -> np.ndarray | bool:
        """The positions of an axis that are known to be 0."""
        known = self.of(var)[axis]
        return False if known is None else known.zeros()


_MOST = 1 << 25  # a mask of more entries is not read


def _constant(var: Const) -> Fact:
    """The value of a number; the slices of a mask that are all True or all False."""
    none = (None,) * max(len(var.shape), 1)
    if isinstance(var.value, Tracer) or math.prod(var.shape) > _MOST:
        return none
    if not getattr(var.value, "is_fully_addressable", True):
        return none
    value = np.asarray(var.value)
    if value.dtype == object or not hasattr(var.dtype, "itemsize") or not value.size:
        return none
    if not var.shape:
        shape = (*var.scope, 1)
        return (Known(np.ones(shape, bool), np.broadcast_to(value, shape)),)
    fact: list[Known | None] = []
    for axis, n in enumerate(var.shape):
        prefix = var.prefix(axis)
        lead = len(prefix) - len(var.scope)
        others = tuple(i for i in range(lead, value.ndim) if i != axis)
        low, high = value.min(others), value.max(others)
        rows = (np.broadcast_to(x, (*prefix, n)) for x in (low == high, low))
        known = Known(*rows)
        fact.append(known if known.where.any() else None)
    return tuple(fact)


def _same(known: Known | None) -> Known | None:
    """One constant, where all positions are known to be the same."""
    if known is None:
        return None
    first = known.value[..., :1]
    same = known.where & _equal(known.value, first)
    where = np.asarray(same.all(-1, keepdims=True))
    return Known(where, first) if where.any() else None


def _equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return (a == b) | ((a != a) & (b != b))


def _shared(known: Known, var: Var) -> Known | None:
    k = len(var.scope)
    dims: Dims = [i if i < k else None for i in range(known.where.ndim - 1)]
    return _stepped(known, dims, var.scope, known.where.shape[-1])


def _stepped(known: Known, dims: Dims, prefix: tuple[int, ...], n: int) -> Known | None:
    """A fact for other steps, among which its own are `dims`.

    Of steps that the others don't have, what all of them have in common.
    """
    where, value = known
    lost = [i for i, dim in enumerate(dims) if dim is None]
    if lost:
        k = where.ndim - 1
        order = [i for i in range(k) if i not in lost] + [*lost, k]
        shape = [where.shape[i] for i in order[: k - len(lost)]]
        rows, values = (
            x.transpose(order).reshape(*shape, -1, x.shape[-1]) for x in known
        )
        value = values[..., 0, :]
        where = np.asarray((rows & _equal(values, value[..., None, :])).all(-2))
    own = [dim for dim in dims if dim is not None]
    if where.shape[-1] not in (1, n):
        return None
    where, value = (
        np.broadcast_to(stepped(x, own, prefix), (*prefix, n)) for x in (where, value)
    )
    return Known(where, value) if where.any() else None


def met(ones: Known | None, others: Known | None) -> Known | None:
    """What holds of both."""
    if ones is None or others is None:
        return None
    where = ones.where & others.where & _equal(ones.value, others.value)
    return Known(where, ones.value) if where.any() else None


def either(ones: Known | None, others: Known | None) -> Known | None:
    """What holds of one or the other."""
    if ones is None or others is None:
        return others if ones is None else ones
    where = ones.where | others.where
    return Known(where, np.where(ones.where, ones.value, others.value))


def zero(where: np.ndarray, dtype: Any) -> Known | None:
    """Positions that are 0."""
    return Known(where, np.zeros(where.shape, dtype)) if np.any(where) else None


def zeros_of(fact: Fact, parameter: Var, var: Var) -> Fact:
    """What is 0 in a value that belongs to a parameter, as the parameter is.

    Axes of 1, as in masks, say nothing.
    """
    if not var.shape:
        return (fact[0] and zero(fact[0].zeros(), var.dtype),)
    sizes = [*zip(parameter.shape, var.shape, strict=True)]
    along = [(i, i) for i, (whole, n) in enumerate(sizes) if whole == n]
    steps, found = dims(parameter, var, along), []
    for axis, known in enumerate(fact):
        if known is not None and (axis, axis) in along:
            prefix = var.prefix(axis)
            own = [
                i if i is None or i < len(prefix) else None
                for i in steps[: known.where.ndim - 1]
            ]
            rows = zero(known.zeros(), var.dtype)
            known = rows and _stepped(rows, own, prefix, var.shape[axis])
            found.append(known)
        else:
            found.append(None)
    return tuple(found)


def masked(mask: np.ndarray | None, var: Var) -> Fact:
    """The slices of a parameter that its mask makes 0."""
    if mask is None:
        return (None,) * max(len(var.shape), 1)
    if not var.shape:
        where = np.broadcast_to(~mask.reshape(mask.shape + (1,)), (*var.scope, 1))
        return (zero(where, var.dtype),)
    k, lead = len(var.scope), var.lead
    fact: list[Known | None] = []
    for axis in range(len(var.shape)):
        steps = k + (lead if axis >= lead else 0)
        others = tuple(i for i in range(steps, mask.ndim) if i != axis + k)
        alive = mask.any(axis=others)
        shape = (*var.prefix(axis), var.shape[axis])
        fact.append(zero(~np.broadcast_to(alive, shape), var.dtype))
    return tuple(fact)
