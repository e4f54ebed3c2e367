"""Operations on each entry, evaluated where their operands are known."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskjax.compaction._facts import Fact, Facts, Known, either, met, zero
from maskjax.compaction._host import on_host
from maskjax.compaction._program import Equation

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
            with on_host():
                numbers = zip(row, columns, strict=True)
                operands = [jnp.asarray(_cast(x, c.dtype)) for x, c in numbers]
                _memo[key] = np.asarray(equation.bind(*operands)[0])
        except Exception:  # a primitive that takes no scalars is not known
            return None
    return _memo[key]


def _cast(x: Any, dtype: Any) -> np.ndarray:
    complex_ = np.issubdtype(dtype, np.complexfloating)
    return np.asarray(x if complex_ else np.real(x), dtype)
