"""What loops over batches are given, and the weights of its rows."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskjax._core import checks, dtypes
from maskjax._core.trees import Array


def functions(apply: Any, weights: Any, progress: Any, *, fn: str) -> None:
    """Raise unless these can be called; the last two may be `None`."""
    checks.function(apply, "(params, *inputs) -> output", fn=fn, name="apply")
    of = "(*inputs) -> weights of rows"
    hint = "If each batch brings its own, make them an input."
    checks.function(weights, of, fn=fn, name="weights", hint=hint, optional=True)
    checks.function(progress, "(done) -> None", fn=fn, name="progress", optional=True)


def several(
    values: Any, *, fn: str, name: str, of: str, hint: str, arrays: bool = False
) -> None:
    """Raise unless something is many, and not one of them that is iterable too.

    Args:
        values: What should be many.
        fn: The public function that errors blame.
        name: What that function calls them.
        of: What they should be.
        hint: What to write.
        arrays: Whether they may be an array, along its first axis.
    """
    if checks.shaped(values):
        one = not (arrays and values.shape)
    else:
        one = isinstance(values, Mapping | str) or hasattr(values, "_fields")
    if one or not (hasattr(values, "__iter__") or hasattr(values, "__getitem__")):
        raise TypeError(
            f"`{fn}` needs `{name}` as {of}, got {checks.kind_of(values)}. {hint}"
        )


def extreme(weights: Any) -> Array:
    """A number that is finite and at least 0 if all weights are, and 0 if all are 0.

    It is the least of them if that is negative or nan, else the largest.
    """
    if weights is None:  # every row counts once
        return jnp.ones((), jnp.float32)
    x = dtypes.reals(jnp.asarray(weights))
    low, high = jnp.min(x, initial=0), jnp.max(x, initial=0)
    return jnp.where(low >= 0, high, low)


def wrong(extremes: Any) -> Any:
    """Where `extreme` tells that weights are negative or not finite."""
    return ~((extremes >= 0) & (extremes < np.inf))


WEIGHTS = "finite weights of at least 0 from `weights`"
