"""Sparse training at constant density: weights are dropped, and others grow.

`rigl` and `set_` are one engine with two answers to where weights grow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskjax import algebra, masking, select
from maskjax._core import blame, checks, trees
from maskjax._core.trees import Array, Density, Mask, Params, Predicate, Scores
from maskjax.optim import _fan_in, _room
from maskjax.optim._state import MaskState, MaskWarning, fitted, held
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
from maskjax.optim._updates import paused, zeroing
from maskjax.score import magnitude
from maskjax.score import random as random_scores
from maskjax.select import Scope
from maskjax.structure import Entries, Groups, Structure
from maskjax.where import kernels

# From parameters and extra arguments of `update`, which it checks, to a function from a
# key to the scores to grow by.
Growth = Callable[[Params, dict[str, Any]], Callable[[Array], Scores]]


def rigl(
    density: Density | Scores,
    *,
    rate: Density | Schedule,
    every: int | Array,
    score: Score = magnitude,
    scope: Scope = "leaf",
    structure: Structure | Any = Entries(),
    allocation: Callable[..., Scores] | None = None,
    min_salient: Density | Scores | Schedule | None = None,
    regrow: bool = True,
    also_step: bool = False,
    where: Predicate = kernels,
    key: Array,
) -> Transformation:
    """Train sparse from the start; drop small weights, grow where gradients are large.

    In step n (the first is 1), whenever `every` divides n, the `rate(n)` lowest-scored
    of the weights that are alive are dropped, and the same number grows where the dense
    gradient is largest. Grown weights start at zero. A weight that is dropped and grows
    back at once keeps its value, as in the authors' code. In such a step no parameter
    moves otherwise, as in the paper, while moments see its gradient. The number alive
    never changes. The parameters given to `init` may be dense;
    `maskjax.apply(params, mask_of(state))` makes them sparse from the first step on.

    A gradient that is nan ranks below all others. Where all are nan, weights grow in
    the order of their index, and nothing tells: `optax.apply_if_finite` around
    `with_gradients` skips such steps, masks too, and counts them.

    With `min_salient` it is SRigL: all outputs of a layer that are active have the same
    number of inputs, and the others have none. What would stay or grow in RigL is
    salient: the largest weights of a layer, and the largest gradients where weights are
    removed. An output with too few salient inputs is ablated, and the others share its
    weights. So the number alive may be below that of the first mask, by less than one
    weight for each active output. An output comes back if enough of its inputs are
    salient. `maskjax.compaction` takes ablated outputs out of the network, which makes
    it faster; that the others have equally many inputs does not.

    Args:
        density: The fraction of weights that is alive from first to last, in [0, 1]: a
            number, or, except in scope "global", a tree of numbers like the parameters.
            In scope "layer" and "output" its leaves may also be arrays of a number for
            each layer. Counts are rounded, halves up. If a density above 0 rounds a
            whole leaf to no weight, that is an error, because none would ever grow
            there. In scope "output" it has to give each output half an input or more.
        rate: The fraction of what is alive that is dropped each time: as `density`, or
            an optax schedule of the step. The paper's is
            `optax.cosine_decay_schedule(0.3, 3 / 4 * steps)`.
        every: The number of steps between two changes, at least 1. The paper's is 100.
        score: What ranks the weights that may be dropped; the lowest are. Called as
            `score(params, where=where)` with the arguments that it names. It may also
            name extra arguments of `update`, such as `gradients`.
        scope: "leaf" ranks each leaf on its own, "global" all leaves together, "layer"
            each index of a stack (where nothing is stacked: each leaf), "output" each
            output of each of them.
        structure: What is dropped, and grows, together. See `maskjax.structure`. Or a
            tree of structures like the scores.
        allocation: A function from `(params, density=..., where=...)` to a density for
            each leaf; `None` gives all leaves the same. The paper's is
            `allocation.erk`.
        min_salient: The number of salient inputs that keeps an output active, as a
            fraction of the inputs that `density` gives it: as `rate`. 0 ablates
            nothing, any other number at least outputs without a salient input. The
            authors use 0.3 for ResNet-50. It needs scope "output". So that no class is
            ablated, give the last layer 0 in a tree, or leave it out by `where`.
            `None`: RigL, whose outputs drop and grow each on its own in scope "output".
        regrow: Whether a weight that is dropped may grow back at once, as in the paper.
        also_step: Whether parameters also take the optimizer's step where the mask
            changes. The paper's rewires instead of taking it.
        where: Which leaves carry a mask, and what their axes mean.
        key: A typed key for the first mask, which is random.

    Returns:
        A transformation, to be the last of a chain inside `with_gradients`: its
        `update` needs `params`, and `gradients` as an extra argument.

    Raises:
        TypeError: If `every` is not a whole number, a density or rate not a number,
            `structure` not a value such as `structure.Units()`, `where` not a function,
            or the key not a typed key.
        ValueError: If a density or rate (a schedule at any power of two) is outside
            [0, 1]; if `density`, unless JAX's, rounds a leaf to no weight; if `every`
            is less than 1, `scope` unknown, `where` chooses nothing, or a leaf does not
            fit the structure; without `regrow`, if more weights must
            grow than are free, or the structure is N:M; or if `update` lacks `params`
            or `gradients`.

    Example:
        >>> rewire = optim.rigl(0.5, rate=0.5, every=1, key=jax.random.key(0))
        >>> optimizer = optim.with_gradients(optax.chain(optax.sgd(0.0), rewire))
        >>> params = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
        >>> state = optimizer.init(params)
        >>> optim.mask_of(state)["w"]
        Array([[False,  True, False,  True]], dtype=bool)
        >>> gradients = {"w": jnp.array([[9.0, 1.0, 1.0, 1.0]])}
        >>> updates, state = jax.jit(optimizer.update)(gradients, state, params)
        >>> optim.mask_of(state)["w"], optax.apply_updates(params, updates)["w"]
        (Array([[ True, False, False,  True]], dtype=bool),
         Array([[0., 0., 0., 4.]], dtype=float32))

    References:
        Evci et al., "Rigging the Lottery", ICML 2020. arXiv:1911.11134, section 3.
        Lasby et al., "Dynamic Sparse Training with Structured Sparsity", ICLR 2024.
        arXiv:2305.02299, for `min_salient`; details that descriptions of it leave open
        are those of the authors' code.
    """
    fn = "maskjax.optim.rigl"

    def steepest(params: Params, extra: dict[str, Any]) -> Callable[[Array], Scores]:
        if extra.get("gradients") is None:
            raise ValueError(
                f"`{fn}` needs `gradients`, to grow where they are large. Wrap the "
                "optimizer in `optim.with_gradients`, and that in wrappers such as "
                "`optax.MultiSteps`, or pass `gradients=` to `update`."
            )
        gradients = fitted(params, extra["gradients"])
        names = ("params", "gradients")
        checks.same_shapes(params, gradients, fn=fn, names=names, is_leaf=None)
        return lambda _: magnitude(gradients, where=where)

    return _rewiring(
        steepest, density, rate=rate, every=every, score=score, scope=scope,
        structure=structure, allocation=allocation, regrow=regrow, still=not also_step,
        where=where, least=min_salient, key=key, fn=fn,
    )  # fmt: skip


def set_(
    density: Density | Scores,
    *,
    rate: Density | Schedule,
    every: int | Array,
    score: Score = magnitude,
    scope: Scope = "leaf",
    structure: Structure | Any = Entries(),
    allocation: Callable[..., Scores] | None = None,
    regrow: bool = True,
    where: Predicate = kernels,
    key: Array,
) -> Transformation:
    """Train sparse from the start; drop the smallest weights and grow others at random.

    Like `rigl`, but without gradients: the weights that grow are drawn, and in a step
    that changes the mask the others move as in every step, as in the authors' code.

    Args:
        density: The fraction of weights that is alive from first to last, in [0, 1], as
            in `rigl`.
        rate: The fraction of what is alive that is dropped each time: as `density`, or
            an optax schedule of the step.
        every: The number of steps between two changes, at least 1.
        score: What ranks the weights that may be dropped, as in `rigl`.
        scope: "leaf" ranks each leaf on its own, "global" all leaves together, "layer"
            each index of a stack (where nothing is stacked: each leaf), "output" each
            output of each of them.
        structure: What is dropped, and grows, together. See `maskjax.structure`. Or a
            tree of structures like the scores.
        allocation: A function from `(params, density=..., where=...)` to a density for
            each leaf; `None` gives all leaves the same.
        regrow: Whether a weight that is dropped may grow back at once.
        where: Which leaves carry a mask, and what their axes mean.
        key: A typed key for the first mask and for what grows.

    Returns:
        A transformation, to be the last of a chain inside `with_gradients`, which
        restarts moments where the mask changes. Its `update` needs `params`.

    Raises:
        TypeError: As in `rigl`.
        ValueError: As in `rigl`, except that `update` needs no `gradients`.

    Warns:
        MaskWarning: Outside of `with_gradients`, as weights would grow with the moments
            of those removed there before. Only an optimizer without moments does not
            need it.

    Example:
        >>> rewire = optim.set_(0.5, rate=0.5, every=10, key=jax.random.key(0))
        >>> optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), rewire)
        >>> state = optim.with_gradients(optimizer).init({"w": jnp.ones((2, 4))})
        >>> int(optim.mask_of(state)["w"].sum())
        4

    References:
        Mocanu et al., "Scalable training of artificial neural networks with adaptive
        sparse connectivity inspired by network science", 2018. arXiv:1707.04780.
    """
    fn = "maskjax.optim.set_"

    def chance(params: Params, extra: dict[str, Any]) -> Callable[[Array], Scores]:
        if "gradients" not in extra:
            warnings.warn(
                f"`{fn}` is not inside `optim.with_gradients`: weights grow with the "
                "moments that the optimizer had for those removed there before.",
                MaskWarning,
                stacklevel=2,
            )
        return lambda key: random_scores(params, where=where, key=key)

    return _rewiring(
        chance, density, rate=rate, every=every, score=score, scope=scope,
        structure=structure, allocation=allocation, regrow=regrow, still=False,
        where=where, key=key, fn=fn,
    )  # fmt: skip


def _rewiring(
    growth: Growth,
    density: Density | Scores,
    *,
    rate: Density | Schedule,
    every: int | Array,
    score: Score,
    scope: Scope,
    structure: Structure | Any,
    allocation: Callable[..., Scores] | None,
    regrow: bool,
    still: bool,
    where: Predicate,
    least: Density | Scores | Schedule | None = None,
    key: Array,
    fn: str,
) -> Transformation:
    """Drop by one score and grow by another, at constant density."""
    checks.typed_key(key, fn=fn)
    checks.at_least(every, 1, fn=fn, name="every", traceable=True)
    if isinstance(structure, Groups):
        raise ValueError(
            f"`{fn}` takes no groups as its `structure`: a unit that grows back is "
            "zero on all sides and gets no gradient. `maskjax.optim.prune` takes them."
        )
    check_how(scope, structure, fn=fn)
    checks.predicate(where, fn=fn)
    check_score(score, fn=fn)
    check_fractions(density, scope, fn=fn, name="density")
    peak = check_fractions(rate, scope, fn=fn, name="rate")
    if least is not None:
        _check_fan_in({"scope": scope, "structure": structure, "regrow": regrow}, fn)
        check_fractions(least, scope, fn=fn, name="min_salient")
    kind = jax.random.key_impl(key)
    how = {"scope": scope, "structure": structure, "where": where}

    def shares(params: Params) -> Density | Scores:
        return allotted(density, allocation, params, where)

    def init(params: Params) -> MaskState:
        worth = checks.chosen_leaves(params, where, fn=fn)
        given = shares(params)
        _room.check(worth, given, peak, how, regrow=regrow, fn=fn)
        scores = random_scores(params, where=where, key=jax.random.fold_in(key, 0))
        with blame.instead_of("maskjax.select.top_k", fn):
            mask = select.top_k(scores, density=given, **how)
        count = jnp.zeros((), jnp.int32)
        # A copy, because a loop that donates the state would delete the user's key.
        return MaskState(mask, count, jnp.copy(jax.random.key_data(key)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        params_given(params, fn=fn)
        alive = held(state, fn=fn)
        count = jnp.asarray(optax.safe_increment(state.count))
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=kind), count)
        scored = bound(score, {"where": where} | extra, fn=fn)
        wanted = growth(params, extra)

        def change() -> tuple[Mask, Mask]:
            with blame.instead_of("maskjax.apply", fn):
                now = masking.apply(params, alive)
            scores = scored(now)
            worth = wanted(key) if regrow else _below(wanted(key), alive)
            much = {"rate": at_step(rate, count), "density": shares(params)}
            if least is not None:
                much |= {"least": at_step(least, count), "where": where}
                mask = _fan_in.rewired(scores, worth, alive, **much, fn=fn)
            else:
                mask = _exchanged(scores, worth, alive, **much, how=how, fn=fn)
            return mask, algebra.intersection(mask, alive)

        due = count % every == 0
        mask, kept = when(due, change, (alive, alive), fn=fn)
        updates = paused(updates, due) if still else updates
        updates = zeroing(updates, params, kept, fn=fn)
        return updates, MaskState(mask, count, state.key)

    return Transformation(init, update)


def _exchanged(
    scores: Scores,
    worth: Scores,
    alive: Mask,
    *,
    rate: Density | Scores,
    density: Density | Scores,
    how: dict[str, Any],
    fn: str,
) -> Mask:
    """The mask after the lowest scores were dropped and the most worth has grown."""
    with blame.instead_of("maskjax.select.drop", fn):
        kept = select.drop(scores, alive, rate=rate, **how)
    with blame.instead_of("maskjax.select.grow", fn):
        return select.grow(worth, kept, density=density, **how)


def _check_fan_in(given: dict[str, Any], fn: str) -> None:
    """Raise unless options allow the same number of inputs for all outputs."""
    needed = {"scope": "output", "structure": Entries(), "regrow": True}
    checks.raise_all(
        (
            f"{name}={needed[name]!r}, got {value!r}"
            for name, value in given.items()
            if type(value) is not type(needed[name]) or value != needed[name]
        ),
        f"`{fn}` with `min_salient` needs",
    )


def _below(scores: Scores, mask: Mask) -> Scores:
    """Scores with those of a mask below all others, nan included."""

    def of_leaf(s: Array, m: Array) -> Array:
        others = jnp.where(jnp.isnan(s), jnp.finfo(s.dtype).min, s)
        return jnp.where(m, jnp.array(-jnp.inf, s.dtype), others)

    return trees.map_mask(of_leaf, scores, mask)
