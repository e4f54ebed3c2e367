"""The mask of a task that is being learned."""

from __future__ import annotations

from maskjax import select
from maskjax._core.trees import Density, Mask, Predicate, Scores, SoftMask
from maskjax.recipes._highest import highest, soft_highest
from maskjax.where import kernels

_FN = "maskjax.recipes.wsn."


def soft_mask(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: select.Scope = "leaf",
    where: Predicate = kernels,
    guess: Scores | None = None,
    return_cutoff: bool = False,
) -> SoftMask | tuple[SoftMask, Scores]:
    """The mask of the highest |scores|, for the loss: its gradient reaches the scores.

    In a loop, return the cutoffs as the loss's aux and pass them to the next step as
    `guess`: the selection then takes about half of the time, with the same mask.

    Args:
        scores: The task's scores: `training.scores`, and then as you train them.
        density: The fraction of the weights that the task uses, in [0, 1]: a number, a
            scalar array, or, except with scope "global", a tree of them like `scores`.
            The paper uses 0.03 to 0.5.
        scope: "leaf" ranks each leaf on its own, as the paper does its layers, which
            is "layer" where they are stacked; "global" ranks all leaves together. More
            in `select.top_k`.
        where: What the axes mean, for "layer" and "output"; `scores` says which weights
            have a mask.
        guess: The cutoffs of an earlier call. They never change the mask.
        return_cutoff: Whether to return the cutoffs as well.

    Returns:
        A soft mask of exact 0s and 1s in the scores' dtypes, for `maskjax.apply`, with
        the derivative of |scores|. With `return_cutoff` also a tree of one scalar for
        each leaf: the |score| at which the selection cut.

    Raises:
        TypeError: If a leaf of `scores` is not floating, or density is not a number.
        ValueError: If density is outside [0, 1], the scope is unknown, or `guess` or a
            tree of densities does not fit `scores`.

    Example:
        >>> wsn.soft_mask({"w": jnp.array([-3.0, 1.0, 2.0])}, density=0.34)
        {'w': Array([1., 0., 0.], dtype=float32)}

    References:
        Kang et al., ICML 2022, sections 3.1 and 3.2.
    """
    how = {"density": density, "scope": scope, "where": where, "guess": guess}
    soft, cutoff = soft_highest(scores, _FN + "soft_mask", **how)  # 2.
    return (soft, cutoff) if return_cutoff else soft


def mask(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: select.Scope = "leaf",
    where: Predicate = kernels,
) -> Mask:
    """The mask of the highest |scores|, for `commit` once they are trained.

    Args:
        scores: The task's scores after training.
        density: The fraction to keep, exactly as for `soft_mask`.
        scope: What is ranked together, as for `soft_mask`.
        where: What the axes mean, for "layer" and "output".

    Returns:
        A mask of exactly round(density * n) weights: True keeps.

    Raises:
        TypeError: If a leaf of `scores` is not floating, or density is not a number.
        ValueError: If density is outside [0, 1], the scope is unknown, or a tree of
            densities does not fit `scores`.

    Example:
        >>> wsn.mask({"w": jnp.array([-3.0, 1.0, 2.0])}, density=0.34)
        {'w': Array([ True, False, False], dtype=bool)}
    """
    how = {"density": density, "scope": scope, "where": where}
    return highest(scores, _FN + "mask", **how)[0]
