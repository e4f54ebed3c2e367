"""Optax transformations that keep a mask while weights train, and move it.

They go last in a chain, where they see what would be added to the parameters. What
they settle holds to the bit, as long as parameters are finite, under any optimizer,
momentum and weight decay included.

>>> import optax
>>> from maskjax import optim
>>> params = {"w": jnp.array([[4.0, 3.0], [2.0, 1.0]])}
>>> schedule = optax.linear_schedule(1.0, 0.25, 4)  # the density after each step
>>> optimizer = optax.chain(optax.adamw(0.1), optim.prune(schedule))
>>> state = optimizer.init(params)
>>> for _ in range(4):
...     updates, state = optimizer.update(params, state, params)
...     params = optax.apply_updates(params, updates)
>>> optim.mask_of(state)
{'w': Array([[ True, False],
       [False, False]], dtype=bool)}
>>> params["w"][1]
Array([0., 0.], dtype=float32)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskjax import masking, select
from maskjax._core import checks
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, Scores
from maskjax.optim._rewiring import rewiring
from maskjax.optim._state import MaskState, fitted, mask_of, reset_moments, rewired
from maskjax.optim._update import (
    Schedule,
    Score,
    Transformation,
    allotted,
    at_step,
    bound,
    check_fractions,
    frozen,
    holding,
    params_given,
    settled,
    when,
)
from maskjax.score import magnitude
from maskjax.score import random as _random_scores
from maskjax.select._choice import Scope, everything
from maskjax.structure import Entries, Structure
from maskjax.where import kernels

__all__ = [
    "MaskState",
    "keep_sparse",
    "mask_of",
    "mask_updates",
    "prune",
    "reset_moments",
    "rewired",
    "rigl",
    "set_",
]


def mask_updates(mask: Mask | Callable[[Params], Mask]) -> Transformation:
    """Freeze what a mask removes: entries with False do not move, to the bit.

    Their updates become -0.0, the one number that changes nothing when it is added,
    whatever the transformations before it made of them.

    Args:
        mask: A mask, boolean or packed: True trains, False freezes; a `None` leaf
            trains. Or a function from parameters to one, called by `init`.

    Returns:
        A transformation, to be the last of a chain.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If the mask does not fit the parameters or the updates.

    Example:
        >>> mask = {"w": jnp.array([[True, False]])}
        >>> optimizer = optax.chain(optax.adamw(0.1), optim.mask_updates(mask))
        >>> params = {"w": jnp.array([[1.0, 1.0]])}
        >>> optimizer.update(params, optimizer.init(params), params)[0]
        {'w': Array([[-0.10000934, -0.        ]], dtype=float32)}
    """
    fn = "maskjax.optim.mask_updates"

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
        del params
        return frozen(updates, state.mask, fn=fn), state

    return Transformation(holding(mask, fn=fn), update)


def keep_sparse(mask: Mask | Callable[[Params], Mask]) -> Transformation:
    """Keep parameters sparse: parameters plus updates are exactly masked.

    The gradient is left as it is, so that the optimizers before it see the dense one.

    Args:
        mask: A mask, boolean or packed: True keeps; a `None` leaf is left alone. Or a
            function from parameters to one, called by `init`: for pruning in one shot.

    Returns:
        A transformation, to be the last of a chain. Its `update` needs `params`, which
        have to be finite to come out as zero.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If the mask does not fit the parameters or the updates, or if
            `update` is not given `params`.

    Example:
        >>> mask = {"w": jnp.array([[True, False]])}
        >>> optimizer = optax.chain(optax.sgd(0.5), optim.keep_sparse(mask))
        >>> params = {"w": jnp.array([[1.0, 1.0]])}
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> optax.apply_updates(params, updates)
        {'w': Array([[0.5, 0. ]], dtype=float32)}
    """
    fn = "maskjax.optim.keep_sparse"

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
        params_given(params, fn=fn)
        return settled(updates, params, state.mask, fn=fn), state

    return Transformation(holding(mask, fn=fn), update)


def prune(
    density: Density | Scores | Schedule,
    *,
    score: Score = magnitude,
    every: int | Array = 1,
    scope: Scope = "leaf",
    structure: Structure = Entries(),
    allocation: Callable[..., Scores] | None = None,
    where: Predicate = kernels,
) -> Transformation:
    """Prune gradually while training: by magnitude, or by any other score.

    In step n (the first is 1), whenever `every` divides n, the mask is cut down to
    `density(n)` by the scores of the parameters that `update` is given. What is removed
    stays removed, and is exactly zero after every step; a density that rises again
    changes nothing.

    Args:
        density: The fraction to keep: an optax schedule of the number of steps, a
            number, or a tree of numbers like the parameters, which a schedule may give
            too. Schedules from 1 to the final density are usual.
        score: Called as `score(params, where=where)`, with those arguments that it
            names; it may name extra arguments of `update` too, such as `gradients` in
            an optimizer that is `rewired`.
        every: How many steps lie between two cuts, at least 1.
        scope: As in `select.top_k`.
        structure: As in `select.top_k`.
        allocation: From `(params, density=..., where=...)` to a density for each leaf,
            as `allocation.erk`; `None` gives every leaf the same.
        where: Which leaves carry a mask.

    Returns:
        A transformation, to be the last of a chain. Its `update` needs `params`.

    Raises:
        TypeError: If `every` is not a whole number, or the density not a number.
        ValueError: If the density, or the schedule at any power of two, is outside
            [0, 1]; if `every` is less than 1, `where` chooses nothing, a leaf does not
            fit the structure, or `update` lacks `params` or what `score` names.

    Example:
        >>> optimizer = optax.chain(optax.sgd(0.1), optim.prune(0.5, every=2))
        >>> params = {"w": jnp.array([[1.0, 2.0]])}
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params["w"]
        Array([[0.  , 1.62]], dtype=float32)

    References:
        Zhu & Gupta, "To prune, or not to prune". arXiv:1710.01878, section 3.
    """
    fn = "maskjax.optim.prune"
    checks.at_least(every, 1, fn=fn, name="every", traceable=True)
    checks.one_of(scope, ("leaf", "global"), fn=fn, name="scope")
    check_fractions(density, fn=fn, name="density")

    def shrunk(scores: Scores, mask: Mask, params: Params, count: Array) -> Mask:
        share = allotted(at_step(density, count), allocation, params, where)
        how = {"density": share, "scope": scope, "structure": structure}
        return select.shrink(scores, mask, **how)

    def init(params: Params) -> MaskState:
        worth = checks.chosen_leaves(params, where, fn=fn)
        count = jnp.zeros((), jnp.int32)
        mask = everything(worth, structure, fn=fn)
        # Complains about what does not fit before anything is trained.
        jax.eval_shape(lambda s, m, p: shrunk(s, m, p, count), worth, mask, params)
        return MaskState(mask, count)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        params_given(params, fn=fn)
        count = jnp.asarray(optax.safe_increment(state.count))
        scored = bound(score, {"where": where} | extra, fn=fn)

        def cut() -> Mask:
            # Not the parameters after the step: handing updates to a branch would keep
            # XLA from fusing the optimizer's arithmetic with what is done to them here.
            now = masking.apply(params, state.mask)
            return shrunk(scored(now), state.mask, now, count)

        mask = when(count % every == 0, cut, state.mask)
        return settled(updates, params, mask, fn=fn), MaskState(mask, count)

    return Transformation(init, update)


def set_(
    density: Density | Scores,
    *,
    rate: Density | Schedule,
    every: int | Array,
    score: Score = magnitude,
    scope: Scope = "leaf",
    structure: Structure = Entries(),
    allocation: Callable[..., Scores] | None = None,
    regrow: bool = True,
    where: Predicate = kernels,
    key: Array,
) -> Transformation:
    """Train sparse from the start; drop the smallest weights and grow others at random.

    Args:
        density: The fraction of weights that is alive from first to last; a number, or
            a tree of numbers like the parameters.
        rate: The fraction of what is alive that is dropped each time: a number, or an
            optax schedule of the number of steps taken.
        every: As in `rigl`.
        score: As in `rigl`.
        scope: As in `rigl`.
        structure: As in `rigl`.
        allocation: As in `rigl`.
        regrow: As in `rigl`.
        where: As in `rigl`.
        key: A typed key for the first mask and for what grows.

    Returns:
        A transformation, to be the last of a chain. Its `update` needs `params`.

    Raises:
        TypeError: As in `rigl`.
        ValueError: As in `rigl`.

    Example:
        >>> rewire = optim.set_(0.5, rate=0.5, every=10, key=jax.random.key(0))
        >>> optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), rewire)
        >>> state = optim.rewired(optimizer).init({"w": jnp.ones((2, 4))})
        >>> int(optim.mask_of(state)["w"].sum())
        4

    References:
        Mocanu et al., "Scalable training of artificial neural networks with adaptive
        sparse connectivity inspired by network science", 2018. arXiv:1707.04780.
    """
    fn = "maskjax.optim.set_"

    def chance(params: Params, extra: dict[str, Any]) -> Callable[[Array], Scores]:
        del extra
        return lambda key: _random_scores(params, where=where, key=key)

    return rewiring(
        density, rate, every, score, chance, scope, structure, allocation, where, key,
        regrow=regrow, fn=fn,
    )  # fmt: skip


def rigl(
    density: Density | Scores,
    *,
    rate: Density | Schedule,
    every: int | Array,
    score: Score = magnitude,
    scope: Scope = "leaf",
    structure: Structure = Entries(),
    allocation: Callable[..., Scores] | None = None,
    regrow: bool = True,
    where: Predicate = kernels,
    key: Array,
) -> Transformation:
    """Train sparse from the start; drop small weights, grow where gradients are large.

    In step n (the first is 1), whenever `every` divides n, the `rate(n)` lowest-scored
    of what is alive are dropped, and as many grow where the dense gradient is largest:
    new ones start at zero, and what grows back at once was never away, as in the
    authors' code. The number alive never changes. The parameters given to `init` may be
    dense; `maskjax.apply(params, mask_of(state))` makes them sparse from the first step
    on.

    Args:
        density: The fraction of weights that is alive from first to last; a number, or
            a tree of numbers like the parameters.
        rate: The fraction of what is alive that is dropped each time: a number, or an
            optax schedule of the number of steps taken. The paper:
            `optax.cosine_decay_schedule(0.3, 3 / 4 * steps)`.
        every: How many steps lie between two changes, at least 1. The paper: 100.
        score: What is dropped first has the lowest; as in `prune`.
        scope: As in `select.top_k`.
        structure: As in `select.top_k`.
        allocation: As in `prune`. The paper: `allocation.erk`.
        regrow: Whether what is dropped may grow again at once, as in the paper.
        where: Which leaves carry a mask.
        key: A typed key for the first mask, which is random.

    Returns:
        A transformation, to be the last of a chain in an optimizer that is `rewired`:
        its `update` needs `params`, and `gradients` as an extra argument.

    Raises:
        TypeError: If `every` is not a whole number, a density or rate not a number, or
            the key not a typed key.
        ValueError: If density or rate (a schedule at any power of two) is outside
            [0, 1], `every` less than 1, `where` chooses nothing, a leaf does not fit
            the structure; if without `regrow` more is to grow than is free, or the
            structure is N:M; or if `update` lacks `params` or `gradients`.

    Example:
        >>> rewire = optim.rigl(0.5, rate=0.5, every=1, key=jax.random.key(0))
        >>> optimizer = optim.rewired(optax.chain(optax.sgd(0.0), rewire))
        >>> params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
        >>> state = optimizer.init(params)
        >>> optim.mask_of(state)["w"]
        Array([[False,  True, False,  True]], dtype=bool)
        >>> gradients = {"w": jnp.array([[9.0, 1.0, 1.0, 1.0]])}
        >>> updates, state = optimizer.update(gradients, state, params)
        >>> optim.mask_of(state)["w"], optax.apply_updates(params, updates)["w"]
        (Array([[ True, False, False,  True]], dtype=bool),
         Array([[0., 0., 0., 4.]], dtype=float32))

    References:
        Evci et al., "Rigging the Lottery", ICML 2020. arXiv:1911.11134, section 3.
    """
    fn = "maskjax.optim.rigl"

    def steepest(params: Params, extra: dict[str, Any]) -> Callable[[Array], Scores]:
        if extra.get("gradients") is None:
            raise ValueError(
                f"`{fn}` needs `gradients`, to grow where they are large. Wrap the "
                "optimizer in `optim.rewired`, or pass `gradients=` to `update`."
            )
        gradients = fitted(params, extra["gradients"])
        names = ("params", "gradients")
        checks.same_shapes(params, gradients, fn=fn, names=names, is_leaf=None)
        return lambda _: magnitude(gradients, where=where)

    return rewiring(
        density, rate, every, score, steepest, scope, structure, allocation, where, key,
        regrow=regrow, fn=fn,
    )  # fmt: skip
