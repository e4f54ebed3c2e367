"""A scalar as a function of the chosen leaves alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maskjax._core import checks, dtypes
from maskjax._core.trees import Array, Params, Predicate, Scores


class Objective(NamedTuple):
    """What to differentiate, and how to put the result back into a tree.

    Attributes:
        chosen: The leaves to differentiate by.
        value: `(chosen, *data) -> scalar`. The other leaves are constants; they may be
            integers, or no arrays at all.
        tree: `(one array for each chosen leaf) -> tree`, `None` for the other leaves.
    """

    chosen: list[Array]
    value: Callable[..., Array]
    tree: Callable[[Sequence[Array]], Scores]


def objective(
    loss: Callable[..., Array], params: Params, where: Predicate, *, fn: str
) -> Objective:
    """The loss as a function of the leaves that `where` chooses."""
    picks = checks.chosen(params, where, fn=fn)
    leaves, treedef = jax.tree.flatten(params)

    def merged(chosen: Sequence[Array], others: Sequence[Any]) -> Any:
        rest = iter(chosen)
        pairs = zip(others, picks, strict=True)
        return treedef.unflatten([next(rest) if p else other for other, p in pairs])

    def value(chosen: Sequence[Array], *data: Any) -> Array:
        out = loss(merged(chosen, leaves), *data)
        if not (checks.is_floating(out) and out.shape == ()):
            raise TypeError(
                f"`{fn}` needs `loss` to return a floating scalar, got "
                f"{checks.kind_of(out)}."
            )
        return out

    chosen = [jnp.asarray(leaf) for leaf, p in zip(leaves, picks, strict=True) if p]
    return Objective(chosen, value, lambda out: merged(out, [None] * len(leaves)))


def total(output: Any, *, fn: str) -> Array:
    """The sum of all floating arrays that a network returns."""
    out = jax.tree.leaves(output)
    sums = [jnp.sum(wide(x)) for x in out if checks.is_floating(x)]
    if not sums:
        raise TypeError(
            f"`{fn}` needs `apply` to return a floating array, got "
            f"{', '.join(map(checks.kind_of, out)) or 'nothing'}."
        )
    return jnp.sum(jnp.stack(sums))


def sensitivities(f: Objective, *data: Any) -> list[Array]:
    """Gradient times parameter, for each chosen leaf."""
    gradients = jax.grad(f.value)(f.chosen, *data)
    return [wide(g) * wide(w) for g, w in zip(gradients, f.chosen, strict=True)]


def wide(array: Array) -> Array:
    """In float32 or wider, because products of small numbers vanish in float16."""
    return array.astype(dtypes.at_least_float32(array.dtype))
