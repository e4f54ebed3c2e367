"""A loss as a function of the chosen leaves alone, and trees made of what it gives."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maskjax._core import checks, dtypes, trees
from maskjax._core.trees import Array, Params, Predicate, Scores


class Objective(NamedTuple):
    """What the criteria that need a gradient share.

    Attributes:
        chosen: The leaves to differentiate by.
        value: `(chosen, *data) -> scalar`; the other leaves are constants, integer
            arrays and whatever else a module holds among them.
        tree: `(one array for each chosen leaf) -> tree`, None for the other leaves.
    """

    chosen: list[Array]
    value: Callable[..., Array]
    tree: Callable[[Sequence[Array]], Scores]


def objective(
    loss: Callable[..., Array], params: Params, where: Predicate, *, fn: str
) -> Objective:
    """The loss by the leaves that `where` chooses."""
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


def flow(
    apply: Callable[..., Any],
    params: Params,
    shape: Sequence[int],
    where: Predicate,
    *,
    fn: str,
) -> Objective:
    """What comes out of the network of |params| in all, when ones go in."""

    def total(params: Params) -> Array:
        floating = filter(checks.is_floating, jax.tree.leaves(params))
        with jax.numpy_dtype_promotion("standard"):  # several dtypes are no mistake
            dtype = jnp.result_type(*(leaf.dtype for leaf in floating))
        out = jax.tree.leaves(apply(params, jnp.ones(shape, dtype)))
        sums = [jnp.sum(wide(x)) for x in out if checks.is_floating(x)]
        if not sums:
            raise TypeError(
                f"`{fn}` needs `apply` to return a floating array, got "
                f"{', '.join(map(checks.kind_of, out)) or 'nothing'}."
            )
        return jnp.sum(jnp.stack(sums))

    def positive(leaf: Any) -> Any:
        return jnp.abs(leaf) if checks.is_floating(leaf) else leaf

    return objective(total, jax.tree.map(positive, params), where, fn=fn)


def sensitivities(f: Objective, *data: Any) -> list[Array]:
    """Gradient times parameter."""
    gradients = jax.grad(f.value)(f.chosen, *data)
    return [wide(g) * wide(w) for g, w in zip(gradients, f.chosen, strict=True)]


def mean_squares(
    f: Objective, data: Sequence[Any], batch_size: int, *, fn: str
) -> list[Array]:
    """The mean over examples of the squared gradient of each."""
    checks.at_least(batch_size, 1, fn=fn, name="batch_size")
    data = jax.tree.map(jnp.asarray, data)
    shapes = {path: x.shape for path, x in trees.named_leaves(data)}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or not all(map(math.prod, lengths)) or () in lengths:
        raise checks.listing(
            [f"{path}: shape {shape}" for path, shape in shapes.items()] or ["none"],
            f"`{fn}` needs arrays of `data` whose leading axis is that of the same "
            "examples, at least one",
        )
    ((examples,),) = lengths
    batch_size = min(batch_size, examples)

    def summed(batch: Any) -> list[Array]:
        """[B, 1, ...] to the sum over the batch, a leaf of `chosen` at a time."""
        gradient = jax.grad(f.value)
        each = jax.vmap(lambda example: gradient(f.chosen, *example))(batch)
        return [jnp.sum(jnp.square(wide(g)), axis=0) for g in each]

    def add(total: list[Array], batch: Any) -> tuple[list[Array], None]:
        return [a + b for a, b in zip(total, summed(batch), strict=True)], None

    whole = examples // batch_size * batch_size
    batches = jax.tree.map(
        lambda x: x[:whole].reshape(-1, batch_size, 1, *x.shape[1:]), data
    )
    total = [jnp.zeros_like(wide(w)) for w in f.chosen]
    total, _ = lax.scan(add, total, batches)
    if whole < examples:
        total, _ = add(total, jax.tree.map(lambda x: x[whole:, None], data))
    return [square / examples for square in total]


def wide(array: Array) -> Array:
    """In float32 at least: products of small numbers vanish in narrower floats."""
    return array.astype(dtypes.at_least_float32(array.dtype))
