"""Lottery tickets: train, remove the smallest, rewind (Frankle & Carbin, ICLR 2019).

The Lottery Ticket Hypothesis, arXiv:1803.03635; late rewinding, arXiv:1903.01611.

Algorithm (numbers match the comments below):
  1. train some first steps, or none, with all weights: this is the rewind point
  2. train from the rewind point to the end, under the mask
  3. remove the smallest weights: a fraction `rate` of those alive in each leaf
  4. rewind all parameters, biases and statistics too; go to 2 with the new mask

Controls: `retrain` new parameters under the same masks, or the initial ones under
`random_masks` or one-shot masks (from a search that starts with trained parameters and
a `train` that returns them unchanged).

Departures from the paper:
  * exactly round(rate * alive) weights go, of equal ones the last; reference codes cut
    at a threshold, which removes one more, or all equal ones

    >>> from maskjax.recipes import lottery_ticket
    >>> params, key = {"w": jnp.array([[3.0, -1.0, 2.0]])}, jax.random.key(0)
    >>> train = lambda params, mask, *, key: ({"w": params["w"] - 2}, None)
    >>> trace = lottery_ticket.search(train, params, rounds=2, rate=1 / 3, key=key)
    >>> maskjax.apply(trace.rewound, stacking.take(trace.masks, -1))  # a ticket
    {'w': Array([[ 0., -1.,  0.]], dtype=float32)}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import score, select
from maskjax._core import blame, checks
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, Scores
from maskjax.recipes.lottery_ticket._controls import (
    Train,
    random_masks,
    retrain,
    trained,
)
from maskjax.select._choice import full
from maskjax.structure import Entries, Structure
from maskjax.where import kernels

__all__ = ["Trace", "random_masks", "retrain", "search"]


@stored("maskjax.recipes.lottery_ticket.Trace")
class Trace(NamedTuple):
    """The result of a search; a pytree. R rounds of pruning take R + 1 trainings.

    Attributes:
        masks: A stack [R + 1, ...]; the first keeps all, each contains the next.
        initial: The parameters that the search began with.
        rewound: The rewind point.
        final: Parameters [R + 1, ...] after each training, exactly 0 where removed.
        metrics: The metrics of each training, [R + 1, ...].
    """

    masks: Mask
    initial: Params
    rewound: Params
    final: Params
    metrics: Any


def search(
    train: Train,
    params: Params,
    *,
    rounds: int,
    rate: Density | Scores,
    scope: select.Scope = "leaf",
    structure: Structure = Entries(),
    where: Predicate = kernels,
    warm_up: Callable[..., Params] | None = None,
    reset_each_round: bool = True,
    key: Array,
) -> Trace:
    """Iterative magnitude pruning: one `lax.scan`, for your `jit` and `vmap`.

    Args:
        train: `(params, mask, *, key) -> (params, metrics)`, pure; trains from the
            rewind point to the end. It gets masked parameters and must keep them so
            (mask them in its loss); the result is masked again.
        params: The initial parameters, any tree of arrays.
        rounds: R, the number of pruning rounds, at least 1.
        rate: The fraction of the alive weights that a round removes: a number, or, but
            with scope "global", a tree of them like `params`, `None` where no pruning.
            The paper: 0.2, and 0.1 for the output layer.
        scope: "leaf" ranks each leaf alone (the paper's small networks), "layer" each
            index of a stack, "global" all leaves together (its deep ones).
        structure: What is removed together.
        where: Which leaves are pruned, and what axes mean. All leaves are rewound.
        warm_up: `(params, *, key) -> params`, trains the first steps. `None`: no steps.
        reset_each_round: False goes on from the pruned weights instead of rewinding
            them; `retrain` rewinds at the end.
        key: Passed unchanged to `warm_up` and every `train`, so that data have one
            order: `warm_up` takes the first batches, `train` the others.

    Returns:
        The trace, in arrays of its own. Mask r keeps about n (1 - rate)^r of the n
        weights of a leaf.

    Raises:
        TypeError: If `train` returns no pair, the key is not typed, `rounds` or a rate
            is not a number, or a pruned leaf is not floating.
        ValueError: If an argument is out of its range, `where` chooses nothing, a leaf
            does not fit the structure, or a training changes a shape or a dtype.

    Example:
        >>> train = lambda params, mask, *, key: (params, algebra.count(mask))
        >>> how = {"rounds": 3, "rate": 0.5, "key": jax.random.key(0)}
        >>> lottery_ticket.search(train, {"w": jnp.ones((2, 4))}, **how).metrics
        Array([8, 4, 2, 1], dtype=int32)
    """
    fn = "maskjax.recipes.lottery_ticket.search"
    checks.typed_key(key, fn=fn)
    checks.at_least(rounds, 1, fn=fn, name="rounds")
    params = jax.tree.map(jnp.asarray, params)
    how = {"scope": scope, "structure": structure, "where": where}

    def prune(params: Params, mask: Mask) -> Mask:
        scores = score.magnitude(params, where=where)
        with blame.instead_of("maskjax.select.drop", fn):
            return select.drop(scores, mask, rate=rate, **how)

    mask = full(score.magnitude(params, where=where), *how.values(), fn=fn)
    jax.eval_shape(prune, params, mask)  # refuses bad arguments before any training
    rewound = params
    if warm_up is not None:
        rewound = warm_up(params, key=key)  # 1.
        checks.alike(params, rewound, fn=fn, name="warm_up(...)")

    def turn(carry: tuple[Mask, Params], _: None) -> tuple[Any, Any]:
        mask, start = carry
        final, metrics = trained(train, start, mask, key=key, fn=fn)  # 2.
        start = rewound if reset_each_round else final  # 4.
        return (prune(final, mask), start), (mask, final, metrics)  # 3.

    _, (masks, final, metrics) = lax.scan(turn, (mask, rewound), length=rounds + 1)
    # Copies: a loop may donate what it trains, and the trace holds no array twice.
    params, rewound = jax.tree.map(jnp.copy, (params, rewound))
    return Trace(masks, params, rewound, final, metrics)
