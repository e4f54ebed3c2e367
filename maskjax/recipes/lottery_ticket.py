"""Lottery tickets: train, remove the smallest, rewind (Frankle & Carbin, ICLR 2019).

The Lottery Ticket Hypothesis, arXiv:1803.03635; late rewinding, arXiv:1903.01611.

Algorithm (numbers match the comments below):
  1. train the first steps, or none, with everything kept: the rewind point
  2. from there train to the end, under the mask
  3. remove the smallest weights, a fraction `rate` of those alive in each leaf
  4. rewind every parameter, biases and statistics too; back to 2 with the new mask

Controls: `retrain` fresh parameters under the same masks, or the first ones under
`random_masks` or under those of one shot, which is a search from trained parameters
with a `train` that returns them as they are.

Departures from the paper:
  * exactly round(rate * alive) weights go, of equal ones the last; reference codes cut
    at a threshold and remove one more, or all that are equal

    >>> from maskjax.recipes import lottery_ticket
    >>> params, key = {"w": jnp.array([[3.0, -1.0, 2.0]])}, jax.random.key(0)
    >>> train = lambda params, mask, *, key: ({"w": params["w"] - 2}, None)
    >>> trace = lottery_ticket.search(train, params, rounds=2, rate=1 / 3, key=key)
    >>> maskjax.apply(trace.rewound, stacking.take(trace.masks, -1))  # a ticket
    {'w': Array([[ 0., -1.,  0.]], dtype=float32)}
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import algebra, masking, packing, score, select, stacking
from maskjax._core import checks, trees
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, Scores
from maskjax.select._choice import full
from maskjax.structure import Entries, Structure
from maskjax.where import kernels

__all__ = ["Trace", "random_masks", "retrain", "search"]

_Train = Callable[..., tuple[Params, Any]]
_Mode = Literal["layerwise", "global", "even"]


class Trace(NamedTuple):
    """What a search saw; a pytree. R rounds of pruning are R + 1 of training.

    Attributes:
        masks: A stack [R + 1, ...], each within the one before; the first keeps all.
        initial: The parameters that the search was given.
        rewound: The rewind point.
        final: Parameters [R + 1, ...] after each training, exactly 0 off its mask.
        metrics: What each training reported, [R + 1, ...].
    """

    masks: Mask
    initial: Params
    rewound: Params
    final: Params
    metrics: Any


def search(
    train: _Train,
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
    """Iterative magnitude pruning: one `lax.scan`, to be compiled and mapped by you.

    Args:
        train: `(params, mask, *, key) -> (params, metrics)`, pure, from the rewind
            point to the end. It gets masked parameters and has to keep them so, by the
            mask inside its loss, say; those it returns are masked once more.
        params: The initial ones, any tree of arrays.
        rounds: R, how often weights are removed, at least 1.
        rate: As in `select.drop`. The paper: 0.2, and 0.1 for the output layer.
        scope: "leaf" (the paper's small networks) or "global" (its deep ones).
        structure: What is removed together.
        where: Which leaves are pruned. All leaves are rewound.
        warm_up: `(params, *, key) -> params`, the first steps. `None` makes none.
        reset_each_round: False trains on from pruned weights; `retrain` resets them.
        key: Handed as it is to `warm_up` and to every `train`: data in one order, of
            which `warm_up` takes the first steps and `train` the others.

    Returns:
        The trace. Of n_l weights in leaf l about n_l (1 - rate_l)^r are in mask r.

    Raises:
        TypeError: If `train` returns no pair, or as in `select.drop`.
        ValueError: If `rounds` is below 1, a training changes the structure, a shape or
            a dtype, or as in `select.drop`.

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

    def prune(params: Params, mask: Mask) -> Mask:
        scores = score.magnitude(params, where=where)
        return select.drop(scores, mask, rate=rate, scope=scope, structure=structure)

    mask = full(score.magnitude(params, where=where), structure, fn=fn)
    jax.eval_shape(prune, params, mask)  # complains before anything is trained
    rewound = params
    if warm_up is not None:
        rewound = _alike(warm_up(params, key=key), params, "warm_up", fn)  # 1.

    def turn(carry: tuple[Mask, Params], _: None) -> tuple[Any, Any]:
        mask, start = carry
        final, metrics = _trained(train, start, mask, key=key, fn=fn)  # 2.
        start = rewound if reset_each_round else final  # 4.
        return (prune(final, mask), start), (mask, final, metrics)  # 3.

    _, (masks, final, metrics) = lax.scan(turn, (mask, rewound), length=rounds + 1)
    return Trace(masks, params, rewound, final, metrics)


def retrain(
    train: _Train, params: Params, masks: Mask, *, batch_size: int = 1, key: Array
) -> tuple[Params, Any]:
    """Each mask of a stack, trained from the same parameters.

    Args:
        train: As in `search`.
        params: Where all begin. From `trace.rewound` it repeats a search.
        masks: A stack of K masks.
        batch_size: How many are trained side by side.
        key: Handed to every `train`.

    Returns:
        Parameters [K, ...], exactly 0 off their masks, and metrics [K, ...].

    Raises:
        TypeError: As in `search`, or if a leaf is no mask.
        ValueError: As in `search`, or if the masks do not fit the parameters.

    Example:
        >>> train = lambda params, mask, *, key: (params, algebra.count(mask))
        >>> masks, key = {"w": jnp.array([[[True]], [[False]]])}, jax.random.key(0)
        >>> lottery_ticket.retrain(train, {"w": jnp.ones((1, 1))}, masks, key=key)[1]
        Array([1, 0], dtype=int32)
    """
    fn = "maskjax.recipes.lottery_ticket.retrain"
    checks.typed_key(key, fn=fn)
    checks.boolean(masks, fn=fn, name="masks")
    checks.at_least(batch_size, 1, fn=fn, name="batch_size")
    checks.members(masks, fn=fn)
    one = functools.partial(_trained, train, params, key=key, fn=fn)
    return stacking.map(one, masks, batch_size=batch_size)


def random_masks(masks: Mask, *, mode: _Mode, key: Array) -> Mask:
    """Random masks with as many entries as those of a stack.

    Args:
        masks: A stack of K masks.
        mode: "layerwise", as many in each leaf; "global", in all; or "even": in all, at
            one density for every leaf, which rounds.
        key: A typed key; every mask gets its own.

    Returns:
        A stack like `masks`: True keeps.

    Raises:
        TypeError: If a leaf is no mask, or the key not typed.
        ValueError: If the mode is unknown, or there is no mask.

    Example:
        >>> masks, key = {"w": jnp.array([[True, False, True]])}, jax.random.key(0)
        >>> int(lottery_ticket.random_masks(masks, mode="even", key=key)["w"].sum())
        2
    """
    fn = "maskjax.recipes.lottery_ticket.random_masks"
    checks.typed_key(key, fn=fn)
    checks.one_of(mode, ("layerwise", "global", "even"), fn=fn, name="mode")
    keys = jax.random.split(key, checks.members(masks, fn=fn))

    def one(mask: Mask, key: Array) -> Mask:
        if mode != "even":
            scope = "leaf" if mode == "layerwise" else "global"
            return select.random_like(mask, scope=scope, key=key)
        blank = trees.map_mask(lambda m: jnp.zeros(m.shape), mask)
        share = algebra.density(mask)
        return select.random(blank, density=share, where=lambda *_: True, key=key)

    return lax.map(lambda each: one(*each), (packing.unpack(masks), keys))


def _trained(train: _Train, start: Params, mask: Mask, key: Array, fn: str) -> Any:
    start = masking.apply(start, mask)
    result = train(start, mask, key=key)
    if not (isinstance(result, tuple) and len(result) == 2):
        got = type(result).__name__
        raise TypeError(f"`{fn}` needs `train` to return (params, metrics), got {got}.")
    return masking.apply(_alike(result[0], start, "train", fn), mask), result[1]


def _alike(result: Params, params: Params, name: str, fn: str) -> Params:
    """What a user's training returned, if it is of the parameters' kind."""
    pairs = checks.matched(params, result, fn=fn, names=("params", name))
    kinds = [(path, *map(checks.kind_of, pair)) for path, *pair in pairs]
    wrong = (f"{path}: {new}, given {old}" for path, old, new in kinds if new != old)
    checks.raise_all(wrong, f"`{fn}` needs `{name}` to keep every shape and dtype")
    return result
