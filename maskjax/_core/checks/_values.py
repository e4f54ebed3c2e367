"""Checks of single arguments: numbers, counters, slots, keys and words."""

import math
import numbers
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maskjax._core import dtypes, trees
from maskjax._core.checks._kinds import (
    is_floating,
    is_integer,
    is_number,
    is_readable,
    is_real,
    is_typed_key,
    kind_of,
    raise_all,
    shaped,
)


def floating(array: Any, *, fn: str, name: str) -> None:
    """One floating array."""
    if not is_floating(array):
        raise TypeError(
            f"`{fn}` needs `{name}` as a floating array, got {kind_of(array)}."
        )


def of_shape(array: Any, shape: tuple[int, ...], *, fn: str, name: str) -> None:
    """An array of a given shape."""
    if array.shape != shape:
        raise ValueError(f"`{fn}` needs `{name}` of shape {shape}, got {array.shape}.")


BY_VMAP = "Map over it with `jax.vmap`."


def unit_interval(
    value: Any,
    *,
    fn: str,
    name: str,
    several: bool = False,
    hint: str = BY_VMAP,
) -> None:
    """A real number in [0, 1]; traced ones are not looked at.

    JAX's arrays may be off by rounding.

    Args:
        value: A Python number or a scalar array.
        fn: The public function that errors blame.
        name: What that function calls the number.
        several: Whether an array of many numbers will do, of any shape.
        hint: What to do with such an array otherwise.
    """
    shape = np.shape(value) if isinstance(value, jax.Array | np.ndarray) else ()
    if shape and not several:
        raise ValueError(
            f"`{fn}` needs `{name}` as a scalar, got an array of shape {shape}. {hint}"
        )
    if isinstance(value, jax.Array) and is_real(value):
        if not is_readable(value):
            return
        value = np.asarray(value, np.float64)
        near = np.round(value)
        value = np.where(np.abs(value - near) <= 1e-6, near, value)
    array = isinstance(value, np.ndarray)
    for number in np.ravel(value).tolist() if array else [value]:
        if not is_number(number):
            also = ", or an array of them" if several else ""
            raise TypeError(
                f"`{fn}` needs `{name}` as a number in [0, 1]{also}, got "
                f"{kind_of(value)}."
            )
        if math.isnan(number) or not 0.0 <= float(number) <= 1.0:
            raise ValueError(f"`{fn}` needs `{name}` in [0, 1], got {number}.")


def not_negative(value: Any, *, fn: str, name: str) -> None:
    """A finite Python number of at least 0, or a scalar array, not looked at."""
    if isinstance(value, jax.Array) and not value.shape and is_real(value):
        return
    if isinstance(value, np.ndarray) and not value.shape:
        value = value.item()
    if not is_number(value):
        raise TypeError(f"`{fn}` needs `{name}` as a number, got {kind_of(value)}.")
    if not 0.0 <= float(value) < math.inf:
        raise ValueError(f"`{fn}` needs `{name}` finite and at least 0, got {value}.")


def at_least(
    value: Any, least: int, *, fn: str, name: str, traceable: bool = False
) -> None:
    """A whole number that is not too small. If `traceable`, also in a scalar array."""
    if traceable and is_integer(value) and not value.shape and not is_readable(value):
        return
    if traceable and isinstance(value, jax.Array) and is_integer(value):
        of_shape(value, (), fn=fn, name=name)
        value = int(np.asarray(value))
    if traceable and isinstance(value, np.ndarray) and not value.shape:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`{fn}` needs `{name}` as a whole number, got {kind_of(value)}."
        )
    if value < least:
        raise ValueError(f"`{fn}` needs `{name}` of at least {least}, got {value}.")


def one_of(value: Any, options: Sequence[str], *, fn: str, name: str) -> None:
    """One of a few words."""
    if value not in options:
        words = " or ".join(repr(option) for option in options)
        raise ValueError(f"`{fn}` needs `{name}` as {words}, got {value!r}.")


def known(value: Any) -> int | None:
    """A counter's value, or None if it is traced or has axes."""
    if isinstance(value, Tracer) or np.ndim(value):
        return None
    return int(value)


def counter(value: Any, most: int, *, fn: str, name: str) -> None:
    """An integer scalar; if its value is known, it lies in [0, most]."""
    if not jnp.issubdtype(value.dtype, jnp.integer) or value.ndim:
        raise TypeError(f"`{fn}` needs `{name}` as an integer, got {kind_of(value)}.")
    number = known(value)
    if number is not None and not 0 <= number <= most:
        raise ValueError(f"`{fn}` needs `{name}` in [0, {most}], got {number}.")


def row_weights(weights: Any, *, fn: str) -> jax.Array:
    """The weights of rows as an array; values that are known are checked.

    Others become nan where they are negative or not finite, and so do sums with them.
    """
    if not shaped(weights):
        weights = np.asarray(weights)
    if not is_real(weights) and weights.dtype != bool:
        raise TypeError(
            f"`{fn}` needs `weights` as real numbers, got {kind_of(weights)}."
        )
    if is_readable(weights):
        values = np.asarray(weights).astype(float)
        bad = values[~(np.isfinite(values) & (values >= 0))]
        if bad.size:
            raise ValueError(
                f"`{fn}` needs `weights` finite and at least 0, got {bad[0]}."
            )
        return dtypes.as_array(weights)
    if weights.dtype == bool:
        return weights
    weights = dtypes.reals(weights)
    return jnp.where((weights >= 0) & (weights < jnp.inf), weights, jnp.nan)


def typed_key(key: Any, *, fn: str) -> None:
    """One key made by `jax.random.key`."""
    if not is_typed_key(key):
        raise TypeError(
            f"`{fn}` needs `key` as a typed key, from `jax.random.key(seed)`, got "
            f"{kind_of(key)}."
        )
    if key.shape:
        raise ValueError(
            f"`{fn}` needs `key` as a single key, got keys of shape {key.shape}. Map "
            "over them with `jax.vmap`."
        )


def own_keys(keys: Any, *, fn: str) -> None:
    """Typed keys of shape (members,); if their values are known, all different."""
    if not is_typed_key(keys):
        raise TypeError(
            f"`{fn}` needs `keys` as typed keys, one for each member, from "
            f"`jax.random.split(key, members)`, got {kind_of(keys)}."
        )
    if keys.ndim != 1 or not keys.size:
        raise ValueError(
            f"`{fn}` needs `keys` of shape (members,), got shape {keys.shape}."
        )
    if isinstance(keys, Tracer):
        return
    with jax.ensure_compile_time_eval():  # known keys may come in while tracing
        data = np.asarray(jax.random.key_data(keys))
    _, first, which = np.unique(data, axis=0, return_index=True, return_inverse=True)
    raise_all(
        (
            f"members {first[k]} and {i} have one key"
            for i, k in enumerate(which.ravel())
            if first[k] != i
        ),
        f"`{fn}` needs a key of its own for each member",
    )


def function(
    value: Any, of: str, *, fn: str, name: str, hint: str = "", optional: bool = False
) -> None:
    """Something that can be called; if `optional`, or None.

    Args:
        value: What should be a function.
        of: What it takes and returns, for the message.
        fn: The public function that errors blame.
        name: What that function calls it.
        hint: What to write.
        optional: Whether None will do.
    """
    if not (callable(value) or optional and value is None):
        said = f"`{fn}` needs `{name}` as a function `{of}`, got {kind_of(value)}."
        raise TypeError(f"{said} {hint}".strip())


def predicate(where: Any, *, fn: str, name: str = "where") -> None:
    """A function that chooses leaves, and not a name of theirs."""
    hint = "Write `where.kernels`, for example."
    if isinstance(where, str):
        hint = f"Write `where.matching({where!r})`."
    function(where, "(path, leaf) -> bool", fn=fn, name=name, hint=hint)


def structure(value: Any, *, fn: str, name: str = "structure") -> None:
    """A value of `maskjax.structure`, and neither its class nor a name for it."""
    parts = ("complaint", "pool", "spread")
    if not isinstance(value, type) and all(hasattr(value, part) for part in parts):
        return
    written = {"Block": "Block((4, 4))", "NofM": "NofM(2, 4)"}
    instead = "structure.Units()`, `structure.Block((4, 4))` or `structure.NofM(2, 4)"
    got = kind_of(value)
    if isinstance(value, type):
        got = f"the class `{value.__name__}`"
        own = "structure." if value.__module__.startswith("maskjax.structure") else ""
        instead = own + written.get(value.__name__, f"{value.__name__}()")
    elif pattern := re.fullmatch(r"(\d+):(\d+)", str(value)):
        instead = f"structure.NofM({pattern[1]}, {pattern[2]})"
    raise TypeError(
        f"`{fn}` needs `{name}` as a value of `maskjax.structure`, got {got}. Write "
        f"`{instead}`."
    )


def samples(members: Any, inputs: Any, *, fn: str) -> int:
    """The number of samples, which every input must have."""
    if not (is_integer(members) and members.ndim == 1):
        raise TypeError(
            f"`{fn}` needs `members` as integers of shape (B,), got {kind_of(members)}."
        )
    size = members.shape[0]
    if not size:
        raise ValueError(f"`{fn}` needs at least one sample, got none.")
    raise_all(
        (
            f"{path}: {kind_of(leaf)}"
            for path, leaf in trees.named_leaves(inputs)
            if np.shape(leaf)[:1] != (size,)
        ),
        f"`{fn}` needs every input with a leading axis of {size}, one for each member",
    )
    return size


def flags(values: Any, size: int, *, fn: str, name: str) -> None:
    """A boolean array of one flag for each of so many."""
    if not shaped(values) or values.dtype != bool:
        raise TypeError(f"`{fn}` needs `{name}` as booleans, got {kind_of(values)}.")
    of_shape(values, (size,), fn=fn, name=name)
