"""What a value is, in code and in words, and errors that list every fault."""

import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


def raise_all(
    complaints: Iterable[str | None], needs: str, kind: type[Exception] = ValueError
) -> None:
    """Raise one error that lists every complaint, unless there is none."""
    lines = [line for line in complaints if line]
    if lines:
        raise listing(lines, needs, kind)


def listing(
    lines: Iterable[str], needs: str, kind: type[Exception] = ValueError
) -> Exception:
    """The error that says what was needed and lists what came."""
    return kind(needs + ", got:\n" + "\n".join(f"  {line}" for line in lines))


def kind_of(leaf: Any) -> str:
    """What a leaf is, for a message. Of what takes long to print, the type alone."""
    if shaped(leaf):
        return f"{leaf.dtype} array of shape {tuple(leaf.shape)}"
    name, said = type(leaf).__name__, repr(leaf)
    return f"{name} {said}" if len(said) <= _LONG and "\n" not in said else name


_LONG = 120


def shaped(leaf: Any) -> bool:
    """Whether a leaf is an array of any kind."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array of real floating numbers."""
    return shaped(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is an array of floating or complex numbers."""
    return shaped(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def is_integer(leaf: Any) -> bool:
    """Whether a leaf is an array of integers, of any width."""
    return shaped(leaf) and jnp.issubdtype(leaf.dtype, jnp.integer)


def is_number(value: Any) -> bool:
    """Whether something is a real Python number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_readable(x: Any) -> bool:
    """Whether the values of an array are known, and known here."""
    if isinstance(x, Tracer):
        return False
    return not isinstance(x, jax.Array) or (
        x.is_fully_addressable or x.is_fully_replicated
    )


def is_real(value: Any) -> bool:
    """Whether something is a real number, or an array of them; not of booleans."""
    return is_number(value) or is_floating(value) or is_integer(value)


def is_typed_key(value: Any) -> bool:
    """Whether something is an array of keys made by `jax.random.key`."""
    return isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    )


def fits(shape: tuple[int, ...], param: tuple[int, ...]) -> bool:
    """Whether every axis is the parameter's or 1."""
    return len(shape) == len(param) and all(
        a in (1, b) for a, b in zip(shape, param, strict=True)
    )


IN_HYPERPARAMETERS = (
    "`optax.inject_hyperparams` takes functions for schedules, except those that "
    '`static_args=("score", "where", "allocation")` names'
)


def none_of(named: list[tuple[str, Any]]) -> str:
    """What there was to choose from: leaves with their paths."""
    if [path for path, _ in named] != [""]:
        return f"none of: {', '.join(path for path, _ in named) or 'an empty tree'}"
    leaf = named[0][1]
    hint = "" if jnp.ndim(leaf) else f"; is that a count of steps? {IN_HYPERPARAMETERS}"
    return f"no leaf of {kind_of(leaf)}. Leaves have names in a tree{hint}"
