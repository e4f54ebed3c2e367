"""Values that nothing can be made of: nan, and where numbers must be finite, inf."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import dtypes, trees
from maskjax._core.checks._flat import flat
from maskjax._core.checks._kinds import is_floating, is_readable, raise_all


def no_nan(tree: Any, *, fn: str, name: str, finite: bool = False) -> None:
    """No leaf has nan, or, if `finite`, inf; as far as values are known.

    Only for functions whose result would hide it or be useless. Known values may come
    in while tracing.
    """
    leaves, _ = flat(tree, fn=fn)
    with jax.ensure_compile_time_eval():
        counts = jax.device_get([_counted(leaf, finite=finite) for leaf in leaves])
    if any(counts):
        word = "not finite" if finite else "nan"
        raise_all(
            (
                f"{path}: {count:,} of {leaf.size:,} are {word}".removeprefix(": ")
                for (path, leaf), count in zip(
                    trees.named_leaves(tree), counts, strict=True
                )
                if count
            ),
            f"`{fn}` needs finite `{name}`"
            if finite
            else f"`{fn}` needs `{name}` without nan",
        )


def _counted(leaf: Any, *, finite: bool) -> Any:
    """How many numbers of an array are wrong; 0 if that is not known."""
    array = isinstance(leaf, jax.Array | np.ndarray | np.generic)
    if not array or not is_floating(leaf) or not is_readable(leaf):
        return 0
    with dtypes.counting(leaf.size):
        return _count(leaf, finite=finite)


@functools.partial(jax.jit, static_argnames="finite")
def _count(x: jax.Array, *, finite: bool) -> jax.Array:
    wrong = ~jnp.isfinite(x) if finite else jnp.isnan(x)
    return jnp.sum(wrong, dtype=dtypes.counts(x.size))
