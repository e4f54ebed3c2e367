"""Networks that are trained in phases: the roles of leaves, and what a task kept."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from maskjax import packing
from maskjax._core import checks, placement, trees
from maskjax._core.trees import Array, Mask, Params, Path, Predicate


def roles(
    params: Params,
    head: Predicate | None,
    where: Predicate,
    statistics: Predicate | None,
    *,
    fn: str,
) -> tuple[Params, Params]:
    """The weights that tasks divide among them, and the leaves that every task copies.

    Both are trees like `params`, with `None` for all other leaves.

    Args:
        params: The network.
        head: Chooses leaves that every task copies; `None` chooses none.
        where: Chooses the weights, among the leaves that `head` does not choose.
        statistics: Chooses more leaves that every task copies, among the rest.
        fn: The public function that was called.
    """
    weights = checks.chosen(params, where, fn=fn)
    heads = [False] * len(weights)
    if head is not None:
        heads = checks.chosen(params, head, fn=fn, name="head")
    if statistics is not None:
        checks.predicate(statistics, fn=fn, name="statistics")
    shared, own = [], []
    for (path, w), weight, mine in zip(
        trees.named_leaves(params), weights, heads, strict=True
    ):
        weight = weight and not mine
        mine = mine or (not weight and statistics is not None and statistics(path, w))
        shared.append(w if weight else None)
        own.append(w if mine else None)
    if all(leaf is None for leaf in shared):
        raise ValueError(f"`{fn}` needs weights that are not of the `head`, got none.")
    treedef = jax.tree.structure(params)
    return treedef.unflatten(shared), treedef.unflatten(own)


def require_own(own: Params, *, fn: str, hint: str = "") -> None:
    """Raise if no leaf is task-specific, because `fresh` would be ignored."""
    if not jax.tree.leaves(own):
        raise ValueError(
            f"`{fn}` needs `fresh` for a task's own leaves, of which there are none: "
            f"name its `head` at first{hint}."
        )


def in_phase(given: Any, *phases: type, fn: str, order: str) -> None:
    """Raise unless a state belongs to one of these phases; its type tells which."""
    if type(given) not in phases:
        names = " or ".join(f"`{each.__name__}`" for each in phases)
        raise TypeError(
            f"`{fn}` needs a {names}, got {type(given).__name__}. {order}, in this "
            "order."
        )


def empty_slots(leaf: Array, capacity: int) -> Array:
    """Zeros for the copies of a leaf that tasks will have, [C, ...], sharded as it."""
    spec = None, *placement.known_spec(leaf)
    blank = placement.zeros((capacity, *leaf.shape), leaf.dtype, leaf, spec=spec)
    return placement.follow(blank, leaf)


def whole(leaf: Array, trains: Any) -> Array:
    """A mask leaf with one decision for all entries of a parameter."""
    return jnp.full((1,) * leaf.ndim, trains)


def kept_by_leaf(mask: Mask) -> dict[Path, int] | None:
    """The number of entries that each leaf of a mask keeps; `None` while traced."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(mask)):
        return None
    counts = trees.named_leaves(packing.kept_by_leaf(mask))
    return {path: int(count) for path, count in counts}


def emptied(mask: Mask) -> list[Path]:
    """Paths of the leaves that have entries and keep none; empty while traced."""
    counts, leaves = kept_by_leaf(mask), trees.named_leaves(mask)
    return [path for path, m in leaves if counts and m.size and not counts[path]]
