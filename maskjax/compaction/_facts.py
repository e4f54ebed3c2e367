"""What is known of each position of each axis: that its whole slice is one constant.

A mask makes slices of parameters 0, and an operation whose operands are all known can
be evaluated, so that no list of operations that keep 0 at 0 is needed. A fact holds for
every step of the loops around it at once: its arrays have the shape of the steps, then
the length of the axis.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_context

from maskjax.compaction._program import (
    Const,
    Dims,
    Equation,
    Program,
    Var,
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

    `follow` finds those of a program inside, from those of its inputs.
    """

    def __init__(self, follow: Callable[["Program", "Facts"], list[Fact]]) -> None:
        super().__init__()
        self._follow = follow
        self.now: Equation | None = None  # whose values are compared

    def follow(self, program: Program, ins: Sequence[Fact]) -> list[Fact]:
        """The facts of a program's outputs."""
        self.update(zip(program.ins, ins, strict=True))
        now = self.now
        outs = self._follow(program, self)
        self.now = now
        return outs

    def of(self, var: Var) -> Fact:
        """The fact of a value; that of a scalar constant is its value."""
        if isinstance(var, Const) and not var.shape and var not in self:
            return _scalar(var)
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


def _scalar(var: Const) -> Fact:
    value = np.asarray(var.value)
    if value.dtype == object or not hasattr(var.dtype, "itemsize"):
        return (None,)
    shape = (*var.scope, 1)
    return (Known(np.ones(shape, bool), np.broadcast_to(value, shape)),)


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


# Evaluation.

_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "stop_gradient": np.positive,
    "copy": np.positive,
    "square": np.square,
}


def elementwise(equation: Equation, facts: Facts) -> list[Fact]:
    """Each position at which all operands are known, or one makes the others moot."""
    out = equation.outs[0]
    if not any(k is not None for v in equation.ins for k in facts.of(v)):
        return [(None,) * max(len(o.shape), 1) for o in equation.outs]
    axes = range(len(out.shape)) if out.shape else (-1,)
    fact = []
    for axis in axes:
        operands = [
            facts.spread(v, axis if v.shape else -1, out, axis) for v in equation.ins
        ]
        fact.append(_evaluated(equation, operands))
    return [tuple(fact)] * len(equation.outs)


def _evaluated(equation: Equation, operands: Sequence[Known | None]) -> Known | None:
    known = None
    if all(o is not None for o in operands):
        where = np.logical_and.reduce([o.where for o in operands if o is not None])
        if where.any():
            columns = [o.value[where] for o in operands if o is not None]
            result = value_of(equation, columns)
            if result is not None:
                value = np.zeros(where.shape, equation.outs[0].dtype)
                value[where] = result
                known = Known(where, value)
    return either(known, _moot(equation, operands))


def _moot(equation: Equation, operands: Sequence[Known | None]) -> Known | None:
    """0 times anything, 0 over anything, False and anything, cases that are all equal.

    What is not known is taken to be finite.
    """
    name, dtype = equation.name, equation.outs[0].dtype
    if name in ("mul", "and"):
        rows = [o.zeros() for o in operands if o is not None]
        return zero(np.logical_or.reduce(rows), dtype) if rows else None
    if name == "div" and operands[0] is not None:
        over = operands[1]
        unknown = True if over is None else ~over.where
        return zero(operands[0].zeros() & unknown, dtype)
    if name == "select_n":
        which, *cases = operands
        known = None
        for case in cases:
            known = case if case is cases[0] else met(known, case)
        if which is None:
            return known
        for i, case in enumerate(cases):
            if case is not None:
                where = case.where & which.where & (which.value.astype(int) == i)
                known = either(known, Known(where, case.value))
        return known
    return None


_memo: dict[Any, Any] = {}


def value_of(equation: Equation, columns: Sequence[np.ndarray]) -> np.ndarray | None:
    """A primitive's value for columns of known numbers; None if it has none."""
    own = _NUMPY.get(equation.name)
    with np.errstate(all="ignore"):
        if own is not None:
            return own(*columns)
        kinds = {np.asarray(c).dtype.kind for c in columns}
        wide = np.complex128 if "c" in kinds else np.float64
        table = np.stack([np.asarray(c).astype(wide) for c in columns])
        rows, back = np.unique(table, axis=1, return_inverse=True)
        values = [_at(equation, rows[:, i], columns) for i in range(rows.shape[1])]
        if any(v is None for v in values):
            return None
        return np.asarray(values, equation.outs[0].dtype)[back.reshape(-1)]


def _at(equation: Equation, row: np.ndarray, columns: Sequence[np.ndarray]) -> Any:
    dtypes = tuple(str(c.dtype) for c in columns)
    params = {
        k: v
        for k, v in equation.params.items()
        if isinstance(v, (int, float, str, bool, np.dtype, type)) or v is None
    }
    key = (
        equation.name,
        tuple(sorted(map(str, params.items()))),
        dtypes,
        row.tobytes(),
    )
    if key not in _memo:
        try:
            # Outside of all traces, also of a `shard_map` that is not compiled.
            with eval_context(), jax.default_device(_cpu()):
                numbers = zip(row, columns, strict=True)
                operands = [jnp.asarray(_cast(x, c.dtype)) for x, c in numbers]
                _memo[key] = np.asarray(equation.bind(*operands)[0])
        except Exception:  # a primitive that takes no scalars is not known
            _memo[key] = None
    return _memo[key]


def _cast(x: Any, dtype: Any) -> np.ndarray:
    complex_ = np.issubdtype(dtype, np.complexfloating)
    return np.asarray(x if complex_ else np.real(x), dtype)


def _cpu() -> Any:
    """The host, if JAX may use it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


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
