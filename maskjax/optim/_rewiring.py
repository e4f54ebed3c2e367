"""Dropping and growing at constant density, whatever growth goes by.

Part of `maskjax.optim`, whose `set_` and `rigl` it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskjax import algebra, masking, select
from maskjax._core import checks
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, Scores
from maskjax.optim._state import MaskState
from maskjax.optim._update import (
    Schedule,
    Score,
    Transformation,
    allotted,
    at_step,
    below,
    bound,
    check_fractions,
    check_growth,
    params_given,
    settled,
    when,
)
from maskjax.score import random as _random_scores
from maskjax.select._choice import Scope
from maskjax.structure import Structure


def rewiring(
    density: Density | Scores,
    rate: Density | Schedule,
    every: int | Array,
    score: Score,
    growth: Callable[[Params, dict[str, Any]], Callable[[Array], Scores]],
    scope: Scope,
    structure: Structure,
    allocation: Callable[..., Scores] | None,
    where: Predicate,
    key: Array,
    *,
    regrow: bool,
    fn: str,
) -> Transformation:
    """Drop by one score and grow by another, at constant density."""
    checks.typed_key(key, fn=fn)
    checks.at_least(every, 1, fn=fn, name="every", traceable=True)
    checks.one_of(scope, ("leaf", "global"), fn=fn, name="scope")
    check_fractions(density, fn=fn, name="density")
    peak = check_fractions(rate, fn=fn, name="rate")
    kind = jax.random.key_impl(key)

    def shares(params: Params) -> Density | Scores:
        return allotted(density, allocation, params, where)

    def init(params: Params) -> MaskState:
        worth = checks.chosen_leaves(params, where, fn=fn)
        if not regrow:
            check_growth(worth, shares(params), peak, scope, structure, fn=fn)
        scores = _random_scores(params, where=where, key=jax.random.fold_in(key, 0))
        mask = select.top_k(
            scores, density=shares(params), scope=scope, structure=structure
        )
        count = jnp.zeros((), jnp.int32)
        # A copy: the state may be donated, which must not take the user's key along.
        return MaskState(mask, count, jnp.copy(jax.random.key_data(key)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        params_given(params, fn=fn)
        count = jnp.asarray(optax.safe_increment(state.count))
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=kind), count)

        scored = bound(score, {"where": where} | extra, fn=fn)
        wanted = growth(params, extra)

        def change() -> tuple[Mask, Mask]:
            scores = scored(masking.apply(params, state.mask))
            how = {"scope": scope, "structure": structure}
            kept = select.drop(scores, state.mask, rate=at_step(rate, count), **how)
            worth = wanted(key)
            worth = worth if regrow else below(worth, state.mask)
            mask = select.grow(worth, kept, density=shares(params), **how)
            return mask, algebra.intersection(mask, state.mask)

        old = state.mask, state.mask
        mask, kept = when(count % every == 0, change, old)
        updates = settled(updates, params, kept, fn=fn)
        return updates, MaskState(mask, count, state.key)

    return Transformation(init, update)
