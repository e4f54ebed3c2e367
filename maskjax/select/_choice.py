"""From trees of scores to a mask: one compiled search for each tree and structure.

Scores, densities and masks are operands of the compiled program, so a new number never
compiles a new one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maskjax._core import checks, dtypes, placement
from maskjax._core.trees import Array, Density, Mask, Predicate, Scores
from maskjax.select import _search, _units
from maskjax.select._count import fold
from maskjax.select._keys import order_key
from maskjax.select._leaves import Leaves, Scope
from maskjax.select._plan import Plan
from maskjax.select._quota import Count, Keep, Leave, Quota, operand
from maskjax.structure import Entries, Groups, NofM, Structure, any_alive


def choose(
    scores: Scores,
    rule: type[Keep] | type[Leave],
    share: Density | Scores,
    scope: Scope,
    structure: Structure | Any,
    where: Predicate,
    *,
    fn: str,
    name: str = "density",
    mask_name: str = "mask",
    within: Mask | None = None,
    holding: Mask | None = None,
    of_all: bool = False,
    guess: Scores | None = None,
    absolute: bool = False,
) -> tuple[Mask, Scores]:
    """Keep the highest scores, and tell where each search cut.

    Args:
        scores: Tree of floating leaves, or `None`.
        rule: `Keep` if `share` is the fraction to keep, `Leave` if it is the fraction
            to remove.
        share: A number, a scalar array, or a tree of them.
        scope: What is ranked together.
        structure: What is decided together, or a tree of structures.
        where: What the axes mean.
        fn: The public function that errors blame.
        name: What that function calls `share`.
        mask_name: What that function calls its mask.
        within: A mask outside which nothing is kept.
        holding: A mask that the result contains; its scores do not matter.
        of_all: True if shares are fractions of all decisions, False if of those within.
        guess: The cutoffs of an earlier call.
        absolute: Whether absolute values are ranked, if the structure is `Entries()`.
            Unlike passing them, that takes no memory.
    """
    if isinstance(structure, Groups):
        checks.floating_scores(scores, fn=fn)
        checks.together(fn=fn, scores=scores, **{name: share, "guess": guess})
        _units.check_share(share, structure, fn=fn, name=name)
        how: dict[str, Any] = {"fn": fn, "name": name, "of_all": of_all, "guess": guess}

        def search(units: Any, alive: Any, held: Any, *how_far: Any) -> Any:
            scope, where = how_far
            given = {"within": alive, "holding": held}
            return choose(units, rule, share, scope, Entries(), where, **given, **how)

        given = {"within": within, "holding": holding}
        return _units.choose(
            scores, structure, search, scope, fn=fn, name=mask_name, **given
        )
    leaves = Leaves(scores, scope, structure, where, fn=fn)
    keeps = leaves.mask(within, name=mask_name)
    held = leaves.mask(holding, name=mask_name)
    shares = leaves.shares(share, name=name)
    guesses = leaves.guesses(guess)
    checks.together(fn=fn, scores=scores, **{name: share, "guess": guess})
    known = of_all or within is None
    with dtypes.counting(max(leaves.sizes)):
        quotas: list[Quota] = [
            operand(rule(one), size if known else None)
            for one, size in zip(shares, leaves.sizes, strict=True)
        ]
        if of_all:  # a traced share becomes a count here, before `within` is counted
            quotas = [Count(q.of(n)) for q, n in zip(quotas, leaves.sizes, strict=True)]
        return _masks(leaves, keeps, held, quotas, guesses, absolute=absolute)


def choose_counted(
    scores: Scores,
    counts: Callable[[Leaves], Sequence[int | Array]],
    scope: Scope,
    where: Predicate,
    *,
    fn: str,
    holding: Mask | None = None,
    within: Mask | None = None,
) -> Mask:
    """Keep the highest scores, a given number in each search.

    Args:
        scores: As in `choose`.
        counts: From the leaves to the number of each search. It is called where
            integers have the bits for it.
        scope: As in `choose`.
        where: As in `choose`.
        fn: As in `choose`.
        holding: As in `choose`.
        within: As in `choose`. A search that has fewer entries keeps all of them.
    """
    checks.together(fn=fn, scores=scores)
    leaves = Leaves(scores, scope, Entries(), where, fn=fn)
    with dtypes.counting(max(leaves.sizes)):
        quotas: list[Quota] = [
            Count(jnp.asarray(count, dtypes.counts(size)))
            for count, size in zip(counts(leaves), leaves.sizes, strict=True)
        ]
        held = leaves.mask(holding, name="")
        keeps = leaves.mask(within, name="")
        return _masks(leaves, keeps, held, quotas, None)[0]


def kept(mask: Mask, leaves: Leaves) -> list[Array]:
    """How many decisions of each search a mask keeps."""
    masks = leaves.mask(mask, name="mask")
    return _kept(masks, plans=tuple(leaves.plans), joint=leaves.joint)


@functools.partial(jax.jit, static_argnames=("plans", "joint"))
def _kept(
    masks: list[Array], *, plans: tuple[Plan, ...], joint: bool
) -> list[int | Array]:
    laid = [plan.laid(mask) for mask, plan in zip(masks, plans, strict=True)]
    return _counts(laid, plans, joint=joint)


def full(
    scores: Scores,
    scope: Scope,
    structure: Structure | Any,
    where: Predicate,
    *,
    fn: str,
) -> Mask:
    """A mask that keeps everything, with axes of 1 where a structure's masks have."""
    if isinstance(structure, Groups):
        return _units.all_kept(scores, structure, scope, fn=fn)
    leaves = Leaves(scores, scope, structure, where, fn=fn)

    def of_leaf(own: Any, x: Array, plan: Plan) -> Array:
        decided = lambda x: plan.spread(plan.pool(plan.laid(x)))  # noqa: E731
        one = jax.eval_shape(decided, x)
        if one.shape != x.shape:
            spec = placement.spec_of(one)
            mask = ~placement.zeros(one.shape, bool, x, spec=spec)
            follows = placement.left_to_compiler(own)
            return placement.follow(mask, decided(x)) if follows else mask
        # What has only a shape is nowhere: there is nothing to follow.
        only = isinstance(own, jax.ShapeDtypeStruct) and isinstance(x, jax.Array)
        return jnp.ones_like(x, dtype=bool) if only else placement.ones(x)

    own = (leaves.leaves[i] for i in leaves.scored)
    pairs = zip(own, leaves.scores, leaves.plans, strict=True)
    return leaves.whole([of_leaf(*pair) for pair in pairs])


def smoothed(
    scores: Scores,
    scope: Scope,
    structure: Structure | Any,
    where: Predicate,
    *,
    fn: str,
) -> Scores:
    """The score by which each entry was decided; gradients go through means."""
    if isinstance(structure, Groups):
        return _units.smoothed(scores, structure, fn=fn)
    leaves = Leaves(scores, scope, structure, where, fn=fn)

    def of_leaf(x: Array, plan: Plan) -> Array:
        if type(plan.structure) in (Entries, NofM):
            return x
        return plan.spread(plan.pool(plan.laid(x))).astype(x.dtype)

    own = (leaves.leaves[i] for i in leaves.scored)
    pairs = zip(own, leaves.plans, strict=True)
    return leaves.whole([of_leaf(*pair) for pair in pairs])


def _masks(
    leaves: Leaves,
    keeps: list[Array | None],
    held: list[Array | None],
    quotas: list[Quota],
    guesses: list[Array] | None,
    *,
    absolute: bool = False,
) -> tuple[Mask, Scores]:
    """The mask, and the tree of scores at which each search cut."""
    how = {"plans": tuple(leaves.plans), "joint": leaves.joint, "kinds": leaves.kinds()}
    how["absolute"] = absolute
    others = keeps, held, quotas, guesses
    scores = placement.vary_like(leaves.scores, leaves.scores, others)
    masks, cuts = _chosen(scores, *others, **how)
    return leaves.whole(masks), leaves.whole(cuts)


@functools.partial(jax.jit, static_argnames=("plans", "joint", "kinds", "absolute"))
def _chosen(
    scores: list[Array],
    keeps: list[Array | None],
    held: list[Array | None],
    quotas: list[Quota],
    guesses: list[Array] | None,
    *,
    plans: tuple[Plan, ...],
    joint: bool,
    kinds: tuple[int, ...],
    absolute: bool,
) -> tuple[list[Array], list[Array]]:
    """The search over decisions, spread over entries."""
    keeps, held = _like(keeps, scores), _like(held, scores)
    laid = [plan.laid(leaf) for leaf, plan in zip(scores, plans, strict=True)]
    alive = _laid(keeps, scores, plans)
    each = zip(laid, alive, plans, strict=True)
    pooled = [plan.pool(x, a) for x, a, plan in each]
    candidates = _decisions(alive, plans)
    holds = _decisions(_laid(held, scores, plans), plans)
    if any(isinstance(plan.structure, NofM) for plan in plans):
        quotas = _of_alive(quotas, pooled, candidates, plans, joint=joint)
        candidates = [
            _best_of_groups(*each)
            for each in zip(pooled, candidates, holds, plans, strict=True)
        ]
    how: dict[str, Any] = {"joint": joint, "absolute": absolute}
    how |= {"guess": guesses, "rows": [plan.rows for plan in plans]}
    flags, cuts = _search.top_k(pooled, candidates, holds, quotas, kinds, **how)
    masks = [plan.spread(flag) for flag, plan in zip(flags, plans, strict=True)]
    masks = [m if k is None else m & k for m, k in zip(masks, keeps, strict=True)]
    masks = [m if h is None else m | h for m, h in zip(masks, held, strict=True)]
    masks = list(map(_cut_back, masks, scores, plans))
    return masks, [plan.numbers(c) for c, plan in zip(cuts, plans, strict=True)]


def _cut_back(mask: Array, scores: Array, plan: Plan) -> Array:
    """A mask sharded as its scores, also where a structure straddles their shards."""
    if isinstance(plan.structure, Entries):
        return mask
    spec = placement.spec_for(mask.shape, scores)
    return placement.follow(placement.cut_as(mask, spec, like=scores), scores)


def _like(masks: list[Array | None], scores: list[Array]) -> list[Array | None]:
    """Masks sharded like the scores, as far as types say how these are."""
    return [
        None
        if m is None
        else placement.place(m, placement.spec_for(m.shape, x), like=x)
        for m, x in zip(masks, scores, strict=True)
    ]


def _laid(
    masks: list[Array | None], scores: list[Array], plans: Sequence[Plan]
) -> list[Array | None]:
    """Masks like the scores, with their axes as the plans have them."""
    return [
        None if m is None else plan.laid(jnp.broadcast_to(m, x.shape))
        for m, x, plan in zip(masks, scores, plans, strict=True)
    ]


def _decisions(masks: list[Array | None], plans: Sequence[Plan]) -> list[Array | None]:
    """For each decision, whether any of its entries is in the mask."""
    return [
        None
        if m is None
        else plan.each(functools.partial(any_alive, plan.structure))(m)
        for m, plan in zip(masks, plans, strict=True)
    ]


def _of_alive(
    quotas: list[Quota],
    pooled: list[Array],
    alive: list[Array | None],
    plans: Sequence[Plan],
    *,
    joint: bool,
) -> list[Quota]:
    """Counts that are fractions of all that is alive, not of a pattern's candidates."""
    candidates = [
        math.prod(s.shape[plan.rows :]) if a is None else a
        for s, a, plan in zip(pooled, alive, plans, strict=True)
    ]
    counts = _counts(candidates, plans, joint=joint)
    return [Count(q.of(n)) for q, n in zip(quotas, counts, strict=True)]


def _counts(
    alive: Sequence[Array | int], plans: Sequence[Plan], *, joint: bool
) -> list[int | Array]:
    """How many candidates each search has, from flags, or from numbers where known."""
    counts: list[int | Array] = []
    for a, plan in zip(alive, plans, strict=True):
        if isinstance(a, int):
            counts.append(a)
            continue
        most = dtypes.counts(math.prod(a.shape[plan.rows :]))
        counts += fold([a], lambda a: [a], ["sum"], plan.rows, dtype=most)
    if joint:
        most = dtypes.counts(sum(a if isinstance(a, int) else a.size for a in alive))
        every = jnp.stack([jnp.asarray(n, most) for n in counts])
        counts = [jnp.sum(every, dtype=most)]
    return counts


def _best_of_groups(
    scores: Array, alive: Array | None, held: Array | None, plan: Plan
) -> Array | None:
    """The n best of each group of m, and all that are held.

    An entry is one of them if fewer than n others are better, or equal and earlier.
    """
    structure = plan.structure
    if not isinstance(structure, NofM):
        return alive
    keys = plan.each(structure.group)(order_key(scores, alive, held))
    mine, other = keys[..., :, None], keys[..., None, :]
    place = jnp.arange(structure.m)
    earlier = jnp.broadcast_to(
        place[None, :] < place[:, None], other.shape[:-2] + (structure.m,) * 2
    )
    ahead = (other > mine) | ((other == mine) & earlier)
    rank = jnp.sum(ahead, axis=-1, dtype=jnp.int32)
    best = plan.each(structure.ungroup)(rank < structure.n)
    best = best if alive is None else best & alive
    return best if held is None else best | held
