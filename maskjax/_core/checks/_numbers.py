"""Whether numbers of arrays are finite, or nan, as far as their values are known."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import dtypes, trees
from maskjax._core.checks._flat import flat
from maskjax._core.checks._kinds import is_floating, is_readable, raise_all


def finite(arrays: Mapping[str, Any], needs: str, what: str) -> None:
    """Raise if floating arrays hold inf or nan, as far as that is known.

    One pass over each array; all of them are begun before the first is waited for.

    Args:
        arrays: By their paths. They need not be on the same devices.
        needs: What was needed.
        what: What the numbers are, for the message.
    """
    good = read(arrays, _all_finite)
    wrong = {path: arrays[path] for path in good if not good[path]}
    infinite(wrong, needs, what)


def infinite(arrays: Mapping[str, Any], needs: str, what: str) -> None:
    """Raise for arrays that hold inf or nan, and count these; unless there is none."""
    bad = {path: np.sum(~np.isfinite(_wide(x))) for path, x in arrays.items()}
    lines = (
        f"{path}: {bad[path]:,} of {x.size:,} {what} are inf or nan"
        for path, x in arrays.items()
    )
    raise_all(lines, needs)


def no_nan(tree: Any, *, fn: str, name: str) -> None:
    """No leaf of a tree has nan, as far as values are known.

    Only for functions whose result would hide it or be useless.
    """
    _raise_nan(_refused(tree, _none_nan, fn=fn), fn=fn, name=name)


def probabilities(tree: Any, *, fn: str, name: str) -> None:
    """All leaves of a tree are in [0, 1] and none has nan, as far as values are known.

    Rounding may take them a bit further; logits go much further.
    """
    wrong = _refused(tree, _all_probable, fn=fn)
    _raise_nan(wrong, fn=fn, name=name)
    raise_all(
        (
            f"{path}: from {x.min():.3g} to {x.max():.3g}, with axes {x.shape}"
            for path, x in wrong.items()
        ),
        f"`{fn}` needs `{name}` in [0, 1] (`jax.nn.sigmoid` makes them of logits)",
    )


def _refused(
    tree: Any, good: Callable[[Any], jax.Array], *, fn: str
) -> dict[str, np.ndarray]:
    """The floating leaves that are known to fail a test, by path."""
    flat(tree, fn=fn)
    arrays = {
        path or "the root": leaf
        for path, leaf in trees.named_leaves(tree)
        if isinstance(leaf, jax.Array | np.ndarray | np.generic) and is_floating(leaf)
    }
    found = read(arrays, good)
    return {path: _wide(arrays[path]) for path in found if not found[path]}


def _raise_nan(wrong: Mapping[str, np.ndarray], *, fn: str, name: str) -> None:
    lines = [
        f"{path}: {np.isnan(x).sum():,} of {x.size:,} are nan"
        for path, x in wrong.items()
        if np.isnan(x).any()
    ]
    raise_all(
        lines,
        f"`{fn}` needs `{name}` without nan",
    )


def all_finite(x: Any) -> jax.Array:
    """Whether all numbers are finite, in a tenth of the time that it takes to count."""
    return jnp.all(jnp.isfinite(dtypes.reals(x)))


_all_finite = jax.jit(all_finite)
_none_nan = jax.jit(lambda x: ~jnp.any(jnp.isnan(x)))


@jax.jit
def _all_probable(x: jax.Array) -> jax.Array:
    """Whether numbers are probabilities, but for rounding; nan is none."""
    x = dtypes.reals(x)
    return jnp.all((x >= -1e-5) & (x <= 1 + 1e-5))


def _wide(x: Any) -> np.ndarray:
    # Formats of a few bits are none that NumPy knows.
    return np.asarray(x).astype(dtypes.at_least_float32(x.dtype))


def read(arrays: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """What a compiled function says of each array whose values are known, in NumPy."""
    with jax.ensure_compile_time_eval():  # under `jit` what is known stays known
        found = {path: function(x) for path, x in arrays.items() if is_readable(x)}
    return jax.device_get(found)
