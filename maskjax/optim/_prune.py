"""Gradual pruning: a mask that shrinks while weights train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskjax import masking, select
from maskjax._core import blame, checks
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, Scores
from maskjax.optim._state import MaskState, held
from maskjax.optim._steps import (
    Schedule,
    Score,
    Transformation,
    allotted,
    at_step,
    bound,
    check_fractions,
    check_how,
    check_score,
    params_given,
    when,
)
from maskjax.optim._updates import zeroing
from maskjax.score import magnitude
from maskjax.select import Scope
from maskjax.select._choice import full
from maskjax.structure import Entries, Structure
from maskjax.where import kernels


def prune(
    density: Density | Scores | Schedule,
    *,
    score: Score = magnitude,
    every: int | Array = 1,
    scope: Scope = "leaf",
    structure: Structure | Any = Entries(),
    allocation: Callable[..., Scores] | None = None,
    where: Predicate = kernels,
) -> Transformation:
    """Prune gradually while training: by magnitude, or by any other score.

    In step n (the first is 1), whenever `every` divides n, the mask is cut down to
    `density(n)` by the scores of the parameters that `update` is given. Removed weights
    stay removed and are exactly zero after every step.

    Args:
        density: The fraction to keep, in [0, 1]: an optax schedule of the step (usually
            from 1 down to the final density), a number, or, except in scope "global", a
            tree of numbers like the parameters, in scope "layer" and "output" also of
            arrays of a number for each layer. A schedule may return a tree too, and
            must not rise.
        score: Called as `score(params, where=where)` with the arguments that it names.
            It may also name extra arguments of `update`, such as the `gradients` that
            `with_gradients` passes. One that needs a loss and data is given them first:
            `lambda params: score.snip(loss, params, *data)`.
        every: The number of steps between two cuts, at least 1.
        scope: "leaf" ranks each leaf on its own, "global" all leaves together, "layer"
            each index of a stack (where nothing is stacked: each leaf), "output" each
            output of each of them.
        structure: What is removed together. See `maskjax.structure`. Or a tree of
            structures like the scores. `structure.Groups` take units out of all leaves
            at once, biases and scales too: `where` need only choose what is scored, and
            a tree of densities is a dict by the names of groups.
        allocation: A function from `(params, density=..., where=...)` to a density for
            each leaf, such as `allocation.erk`; `None` gives all leaves the same.
        where: Which leaves carry a mask, and what their axes mean.

    Returns:
        A transformation, to be the last of a chain. Its `update` needs `params`.

    Raises:
        TypeError: If `every` is not a whole number, `density` not a number, `score` no
            function of parameters first, `structure`
            not a value such as `structure.Units()`, or `where` not a function.
        ValueError: If the density, or the schedule at any power of two, is outside
            [0, 1], or the schedule rises; if `every` is less than 1, `scope` unknown,
            `where` chooses nothing, a leaf does not fit the structure, or `update`
            lacks `params` or an argument that `score` names.

    Example:
        >>> optimizer = optax.chain(optax.sgd(0.1), optim.prune(0.5, every=2))
        >>> params = {"w": jnp.array([[1.0, 2.0]])}
        >>> state, update = optimizer.init(params), jax.jit(optimizer.update)
        >>> for _ in range(2):
        ...     updates, state = update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params["w"]
        Array([[0.  , 1.62]], dtype=float32)

    References:
        Zhu & Gupta, "To prune, or not to prune". arXiv:1710.01878, section 3.
    """
    fn = "maskjax.optim.prune"
    checks.at_least(every, 1, fn=fn, name="every", traceable=True)
    check_how(scope, structure, fn=fn)
    checks.predicate(where, fn=fn)
    check_score(score, fn=fn)
    check_fractions(density, scope, fn=fn, name="density", falling=True)

    def shrunk(scores: Scores, mask: Mask, params: Params, count: Array) -> Mask:
        share = allotted(at_step(density, count), allocation, params, where)
        how = {"scope": scope, "structure": structure, "where": where}
        with blame.instead_of("maskjax.select.shrink", fn):
            return select.shrink(scores, mask, density=share, **how)

    def init(params: Params) -> MaskState:
        worth = checks.chosen_leaves(params, where, fn=fn)
        count = jnp.zeros((), jnp.int32)
        mask = full(worth, scope, structure, where, fn=fn)
        # Raises if something does not fit, before anything is trained.
        jax.eval_shape(lambda s, m, p: shrunk(s, m, p, count), worth, mask, params)
        return MaskState(mask, count)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        params_given(params, fn=fn)
        alive = held(state, fn=fn)
        count = jnp.asarray(optax.safe_increment(state.count))
        scored = bound(score, {"where": where} | extra, fn=fn)

        def cut() -> Mask:
            # Not the parameters after the step: handing updates to a branch would keep
            # XLA from fusing the optimizer's arithmetic with what is done to them here.
            with blame.instead_of("maskjax.apply", fn):
                now = masking.apply(params, alive)
            return shrunk(scored(now), alive, now, count)

        mask = when(count % every == 0, cut, alive, fn=fn)
        return zeroing(updates, params, mask, fn=fn), MaskState(mask, count)

    return Transformation(init, update)
