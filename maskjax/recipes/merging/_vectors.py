"""From networks to task vectors, and back."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from maskjax import masking
from maskjax._core import blame, checks, dtypes, placement
from maskjax._core.trees import Array, Mask, Params, Predicate, map_mask
from maskjax.where import floating

_FN = "maskjax.recipes.merging."


def task_vectors(
    start: Params, networks: Params, *, where: Predicate = floating
) -> Params:
    """What each fine-tuned network changed: networks minus start.

    All floating leaves are merged unless `where` says otherwise: biases, normalization
    and embeddings too. Leave running statistics out (`where.floating &
    ~where.statistics`) and compute them anew for the merged network: a sum of vectors
    can make a variance negative.

    Args:
        start: Tree of arrays: the network before fine-tuning.
        networks: A tree like `start` whose leaves have a leading axis K, one index for
            each fine-tuned network. Leaves that `where` does not choose are ignored,
            and may be `None`.
        where: Which leaves are merged.

    Returns:
        A stack of K task vectors, in the dtypes of `start`; `None` where `where` does
        not choose. A difference is exact where the parameter did not change by more
        than a factor of 2, and rounded elsewhere.

    Raises:
        TypeError: If a chosen leaf is not floating.
        ValueError: If `where` chooses nothing, or `networks` is not a stack of trees
            like `start`; the message lists every bad leaf.

    Example:
        >>> start = {"w": jnp.array([1.0, 2.0]), "steps": jnp.array(7)}
        >>> networks = {"w": jnp.array([[1.5, 2.0], [1.0, 1.0]]), "steps": None}
        >>> merging.task_vectors(start, networks)
        {'steps': None, 'w': Array([[ 0.5,  0. ],
               [ 0. , -1. ]], dtype=float32)}

    References:
        Ilharco et al., arXiv:2212.04089, section 2.
    """
    fn = _FN + "task_vectors"
    chosen = checks.chosen_leaves(start, where, fn=fn)
    _require_stack(start, networks, chosen, fn=fn)
    return map_mask(_difference, chosen, networks)  # 1.


def network(
    start: Params, vector: Params, mask: Mask | None = None, *, scale: ArrayLike = 1.0
) -> Params:
    """The network that a merged vector gives: start + scale * vector.

    With a mask, entries that it removes are those of `start`, bit for bit.

    Args:
        start: Tree of arrays: the network before fine-tuning.
        vector: One vector: a tree like `start`, or `None` at leaves that were not
            merged.
        mask: A mask of the parameters, packed or not, such as one of `tall_masks` or
            `consensus`: True moves. `None`, for the tree or for a leaf, moves all
            entries. To run many masks, use `stacking.map`.
        scale: A number or a scalar array, which may be traced and negative. Task
            arithmetic and TIES choose it by validation.

    Returns:
        A tree like `start`, of the same dtypes. Leaves without a vector are passed
        through uncopied.

    Raises:
        TypeError: If a leaf with a vector is not floating, `scale` is not a number, or
            the mask is not a mask.
        ValueError: If `scale` is inf or nan (unless it is JAX's), or the vector or the
            mask does not fit `start`; the message lists every bad leaf.

    Example:
        >>> start, vector = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([0.5, -1.0])}
        >>> merging.network(start, vector, {"w": jnp.array([True, False])})
        {'w': Array([1.5, 2. ], dtype=float32)}
    """
    fn = _FN + "network"
    factor = _scalar(scale, fn=fn)
    found = checks.rows(start, vector, fn=fn, names=("start", "vector"))

    def not_floating(own: Any, tau: Any) -> str | None:
        return None if tau is None or checks.is_floating(own) else checks.kind_of(own)

    def misfit(own: Any, tau: Any) -> str | None:
        if tau is None or checks.is_floating(tau) and tau.shape == own.shape:
            return None
        return f"{checks.kind_of(tau)}, start {checks.kind_of(own)}"

    needs = f"`{fn}` needs every leaf of `start` with a vector to be a floating array"
    checks.every(not_floating, found, start, needs, TypeError)
    needs = (
        f"`{fn}` needs `vector` of the shapes of `start` (`total` and `mean` make one "
        "of a stack)"
    )
    checks.every(misfit, found, start, needs)
    checks.beside(start, fn=fn, name="start", scale=scale)
    moved = [w if tau is None else _moved(w, tau, factor) for w, tau in found]  # 5.
    params = jax.tree.structure(start).unflatten(moved)
    if mask is None:
        return params
    with blame.instead_of("maskjax.apply", fn):
        return masking.apply(params, mask, start)


def _scalar(scale: Any, *, fn: str) -> Array:
    if not checks.is_real(scale):
        raise TypeError(
            f"`{fn}` needs `scale` as a number, got {checks.kind_of(scale)}."
        )
    if checks.is_number(scale) and not math.isfinite(scale):
        raise ValueError(f"`{fn}` needs a finite `scale`, got {scale}.")
    factor = jnp.asarray(scale)
    checks.of_shape(factor, (), fn=fn, name="scale")
    return factor


def _require_stack(start: Params, networks: Params, chosen: Params, *, fn: str) -> None:
    """Raise unless the chosen leaves of networks are those of the start, K of each."""
    alike = jax.tree.structure(start)
    if isinstance(networks, list | tuple) and networks:
        if all(jax.tree.structure(one) == alike for one in networks):
            raise ValueError(
                f"`{fn}` needs `networks` as a stack, got a {type(networks).__name__} "
                f"of {len(networks)}. `stacking.stack(networks)` makes one."
            )
    found = checks.rows(start, networks, fn=fn, names=("start", "networks"))
    own = alike.flatten_up_to(chosen)  # None where not chosen
    pairs = [(one, stack) for one, (_, stack) in zip(own, found, strict=True)]

    def misfit(one: Any, stack: Any) -> str | None:
        if one is None or checks.shaped(stack) and _is_stack(one, stack):
            return None
        return f"{checks.kind_of(stack)}, start {checks.kind_of(one)}"

    needs = f"`{fn}` needs `networks` like `start`, with a leading axis K on every leaf"
    if all(one is None or np.shape(stack) == one.shape for one, stack in pairs):
        needs += " (one network? `stacking.stack([network])` is a stack of one)"
    checks.every(misfit, pairs, start, needs)
    stacks = map_mask(lambda _, stack: stack, chosen, networks)
    checks.members(stacks, fn=fn, name="networks")


def _is_stack(one: Any, stack: Any) -> bool:
    shape = (*stack.shape[:1], *one.shape)
    return stack.shape == shape != one.shape and stack.dtype == one.dtype


@jax.jit
def _difference(own: Array, stack: Array) -> Array:
    wide = dtypes.at_least_float32(own.dtype)
    base = placement.alike(own.astype(wide)[None], stack)
    return (stack.astype(wide) - base).astype(own.dtype)


@jax.jit
def _moved(own: Array, vector: Array, factor: Array) -> Array:
    wide = dtypes.at_least_float32(own.dtype)
    step = factor.astype(wide) * vector.astype(wide)
    return (own.astype(wide) + step).astype(own.dtype)
