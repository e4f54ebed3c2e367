"""Selection: scores in, mask out. True keeps.

>>> scores = {"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([[2.0, 5.0]])}
>>> select.top_k(scores, density=0.5, scope="global")
{'a': Array([[ True, False]], dtype=bool), 'b': Array([[False,  True]], dtype=bool)}
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from maskjax import _checks, _search, _tree, packing
from maskjax._count import tally
from maskjax._quota import quota
from maskjax._tree import Array, Density, Mask, Params, Predicate, Scores
from maskjax.score import random as _random_scores
from maskjax.structure import Entries, NofM, Structure, any_alive
from maskjax.where import kernels

__all__ = ["bernoulli", "random", "threshold", "top_k", "top_k_and_cutoff"]

Scope = Literal["leaf", "global"]


def top_k(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    structure: Structure = Entries(),
    within: Mask | None = None,
    near: Scores | None = None,
) -> Mask:
    """The highest scores: exactly `round(density * n)` of n, halves rounded up.

    Ties go to the lowest index (of the leaf, flattened; in "global" scope earlier
    leaves come first), as in a stable descending sort. -0.0 equals 0.0. A nan is below
    -inf: it is never kept ahead of a number. The k-th score is found by counting, not
    by sorting, in about eight passes over the data and 17 at most (33 for float64);
    the only thing that is communicated between devices is counts.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone. Higher
            means more worth keeping.
        density: The fraction to keep, in [0, 1]. A number; or a scalar array, which may
            be traced and is clipped; or, with scope "leaf", a tree of them like
            `scores`. A number counts as the decimal that it is written as.
        scope: "leaf" ranks each leaf on its own, "global" all of them together.
        structure: What is decided together, and so is counted: entries, blocks, units,
            or entries within an N:M pattern, see `maskjax.structure`.
        within: A mask. Only what it keeps is counted and can be kept: n is its count,
            of decisions of which it keeps at least one entry.
        near: Where the last kept score is expected: the second result of an earlier
            `top_k_and_cutoff`. It changes the time taken, never the result.

    Returns:
        A mask shaped like `scores`, with axes of 1 where a structure shares decisions.

    Raises:
        TypeError: If a leaf of `scores` is not floating, or density is not a number.
        ValueError: If density is outside [0, 1] or nan, the scope unknown, a leaf does
            not fit the structure, or `within`, `near` or a tree of densities does not
            fit the scores. All offending leaves are named.

    Example:
        >>> select.top_k({"w": jnp.array([1.0, 1.0, 1.0, 2.0])}, density=0.5)
        {'w': Array([ True, False, False,  True], dtype=bool)}
    """
    mask, _ = _top_k(
        scores, density, scope, structure, within, near, fn="maskjax.select.top_k"
    )
    return mask


def top_k_and_cutoff(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    structure: Structure = Entries(),
    within: Mask | None = None,
    near: Scores | None = None,
) -> tuple[Mask, Scores]:
    """`top_k`, and the scores at which it cut, a good guess for the next time.

    In a training loop scores move little from step to step. Handing the cutoffs of one
    step to the next as `near` saves about half of the passes.

    Args:
        scores: As in `top_k`.
        density: As in `top_k`.
        scope: As in `top_k`.
        structure: As in `top_k`.
        within: As in `top_k`.
        near: As in `top_k`.

    Returns:
        The mask of `top_k`, True keeps; and a tree like `scores` of one scalar for each
        leaf, float32 where entries are pooled. No decision that was kept scores below
        it, none that was removed above.

    Raises:
        TypeError: As in `top_k`.
        ValueError: As in `top_k`.

    Example:
        >>> scores = {"w": jnp.array([1.0, 7.0, 5.0])}
        >>> mask, cutoff = select.top_k_and_cutoff(scores, density=0.5)
        >>> bool(cutoff["w"] <= 5.0) and bool(cutoff["w"] > 1.0)
        True
        >>> select.top_k(scores, density=0.5, near=cutoff)
        {'w': Array([False,  True,  True], dtype=bool)}
    """
    fn = "maskjax.select.top_k_and_cutoff"
    return _top_k(scores, density, scope, structure, within, near, fn=fn)


def threshold(scores: Scores, *, at: ArrayLike) -> Mask:
    """The entries whose score reaches a threshold.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone.
        at: Entries with `score >= at` are kept; a nan never is. May be traced.

    Returns:
        A mask shaped like `scores`: True keeps.

    Raises:
        TypeError: If a leaf is not floating.

    Example:
        >>> select.threshold({"w": jnp.array([3.0, 1.0, 2.0])}, at=2.0)
        {'w': Array([ True, False,  True], dtype=bool)}

    References:
        Mallya et al., "Piggyback", ECCV 2018. arXiv:1801.06519, section 3.
    """
    _checks.floating_scores(scores, fn="maskjax.select.threshold")
    return _tree.map_mask(lambda s: s >= jnp.asarray(at).astype(s.dtype), scores)


def bernoulli(probabilities: Scores, *, key: Array) -> Mask:
    """Each entry kept with its own probability, independently.

    Args:
        probabilities: Tree of floating leaves in [0, 1], `None` where a parameter is
            left alone. 0 never keeps, 1 always.
        key: A typed key; every leaf gets its own.

    Returns:
        A mask shaped like `probabilities`: True keeps.

    Raises:
        TypeError: If a leaf is not floating, or the key is not a typed key.

    Example:
        >>> p = {"w": jnp.array([0.0, 1.0, 1.0])}
        >>> select.bernoulli(p, key=jax.random.key(0))
        {'w': Array([False,  True,  True], dtype=bool)}
    """
    fn = "maskjax.select.bernoulli"
    _checks.typed_key(key, fn=fn)
    _checks.floating_scores(probabilities, fn=fn, name="probabilities")
    leaves, treedef = _tree.mask_leaves(probabilities)
    return treedef.unflatten(
        [
            None
            if p is None
            else jax.random.uniform(jax.random.fold_in(key, i), p.shape)
            < p.astype(jnp.float32)
            for i, (_, p) in enumerate(leaves)
        ]
    )


def random(
    params: Params,
    *,
    density: Density | Scores,
    scope: Scope = "leaf",
    where: Predicate = kernels,
    key: Array,
) -> Mask:
    """A uniformly random mask with an exact count.

    Args:
        params: Tree of arrays.
        density: The fraction to keep, as in `top_k`.
        scope: "leaf" keeps that fraction of each leaf, "global" of all together.
        where: Which leaves carry a mask.
        key: A typed key; every leaf gets its own.

    Returns:
        A mask: True keeps, `None` where `where` does not choose.

    Raises:
        TypeError: If a chosen leaf is not floating, or the key is not a typed key.
        ValueError: If density or scope is as `top_k` refuses it, or `where` chooses
            nothing.

    Example:
        >>> params = {"w": jnp.ones((4, 5))}
        >>> mask = select.random(params, density=0.25, key=jax.random.key(0))
        >>> int(mask["w"].sum())
        5
    """
    fn = "maskjax.select.random"
    _checks.typed_key(key, fn=fn)
    _checks.chosen(params, where, fn=fn)
    scores = _random_scores(params, where=where, key=key)
    mask, _ = _top_k(scores, density, scope, Entries(), None, None, fn=fn)
    return mask


def _top_k(
    scores: Scores,
    density: Density | Scores,
    scope: Scope,
    structure: Structure,
    within: Mask | None,
    near: Scores | None,
    *,
    fn: str,
) -> tuple[Mask, Scores]:
    _checks.floating_scores(scores, fn=fn)
    _checks.one_of(scope, ("leaf", "global"), fn=fn, name="scope")
    named, treedef = _tree.mask_leaves(scores)
    scored = [i for i, (_, leaf) in enumerate(named) if leaf is not None]
    leaves = [lax.stop_gradient(named[i][1]) for i in scored]
    _check_structure([(named[i][0], named[i][1]) for i in scored], structure, fn=fn)
    densities = _per_leaf_density(density, scores, scored, scope, fn=fn)
    keeps = _kept_within(within, scores, scored, fn=fn)
    guesses = _guesses(near, scores, scored, fn=fn)

    alive = [
        None if keep is None else jnp.broadcast_to(keep, leaf.shape)
        for keep, leaf in zip(keeps, leaves, strict=True)
    ]
    pooled = [structure.pool(s, a) for s, a in zip(leaves, alive, strict=True)]
    candidates = [None if a is None else any_alive(structure, a) for a in alive]
    joint = scope == "global"
    quotas = _quotas(densities, joint=joint)
    if isinstance(structure, NofM):
        quotas = _at_most(quotas, pooled, candidates, joint=joint)
        candidates = [
            _best_of_groups(s, a, structure)
            for s, a in zip(pooled, candidates, strict=True)
        ]
    _check_countable(pooled, joint=joint, fn=fn)
    if guesses is not None and joint:
        guesses = guesses[:1]
    flags, cutoffs = _search.top_k(
        pooled, candidates, quotas, joint=joint, near=guesses
    )

    mask: list[Array | None] = [None] * len(named)
    cutoff: list[Array | None] = [None] * len(named)
    for i, flag, keep, at in zip(scored, flags, keeps, cutoffs, strict=True):
        spread = structure.spread(flag)
        mask[i] = spread if keep is None else spread & keep
        cutoff[i] = at
    return treedef.unflatten(mask), treedef.unflatten(cutoff)


Quotas = Callable[[list[int | Array]], list[int | Array]]


def _quotas(densities: list[Density], *, joint: bool) -> Quotas:
    if joint:
        return lambda counts: [quota(densities[0], n) for n in counts]
    return lambda counts: [quota(d, n) for d, n in zip(densities, counts, strict=True)]


def _at_most(
    quotas: Quotas,
    pooled: list[Array],
    alive: list[Array | None],
    *,
    joint: bool,
) -> Quotas:
    """Quotas of everything alive, capped by how many candidates there are."""
    counts = [
        s.size if a is None else tally([a, a], jnp.dtype("int32"))[0]
        for s, a in zip(pooled, alive, strict=True)
    ]
    wanted = quotas([sum(counts)] if joint else counts)
    return lambda candidates: [
        jnp.minimum(w, c) for w, c in zip(wanted, candidates, strict=True)
    ]


def _best_of_groups(scores: Array, alive: Array | None, structure: NofM) -> Array:
    """The n best of each m: fewer than n others are better, or equal and earlier."""
    keys = structure.group(_search.order_key(scores, alive))
    mine, other = keys[..., :, None], keys[..., None, :]
    place = jnp.arange(structure.m)
    earlier = jnp.broadcast_to(
        place[None, :] < place[:, None], other.shape[:-2] + (structure.m,) * 2
    )
    ahead = (other > mine) | ((other == mine) & earlier)
    rank = jnp.sum(ahead, axis=-1, dtype=jnp.int32)
    best = structure.ungroup(rank < structure.n)
    return best if alive is None else best & alive


def _per_leaf_density(
    density: Density | Scores,
    scores: Scores,
    scored: list[int],
    scope: Scope,
    *,
    fn: str,
) -> list[Density]:
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(density)):
        _checks.unit_interval(density, fn=fn, name="density")
        return [density] * len(scored)
    if scope == "global":
        raise ValueError(
            f'`{fn}` needs one `density` for scope="global", got a tree of them. Use '
            'scope="leaf".'
        )
    pairs = _checks.matched(
        scores,
        density,
        fn=fn,
        names=("scores", "density"),
        is_leaf=_tree.is_mask_leaf,
    )
    _checks.raise_all(
        (f"{pairs[i][0]}: None" for i in scored if pairs[i][2] is None),
        f"`{fn}` needs a `density` for every leaf with scores",
    )
    for i in scored:
        path, _, value = pairs[i]
        _checks.unit_interval(value, fn=fn, name=f"density[{path}]")
    return [pairs[i][2] for i in scored]


def _kept_within(
    within: Mask | None, scores: Scores, scored: list[int], *, fn: str
) -> list[Array | None]:
    if within is None:
        return [None] * len(scored)
    _checks.boolean(within, fn=fn, name="within")
    _checks.packed(within, fn=fn, stacked=False)
    pairs = _checks.mask_of(
        packing.unpack(within),
        scores,
        fn=fn,
        names=("scores", "within"),
        is_leaf=_tree.is_mask_leaf,
    )
    _checks.raise_all(
        (f"{pairs[i][0]}: None" for i in scored if pairs[i][2] is None),
        f"`{fn}` needs a leaf of `within` for every leaf with scores",
    )
    return [pairs[i][2] for i in scored]


def _guesses(
    near: Scores | None, scores: Scores, scored: list[int], *, fn: str
) -> list[Array] | None:
    if near is None:
        return None
    pairs = _checks.matched(
        scores, near, fn=fn, names=("scores", "near"), is_leaf=_tree.is_mask_leaf
    )
    _checks.raise_all(
        (
            f"{pairs[i][0]}: {_checks.kind_of(pairs[i][2])}"
            for i in scored
            if pairs[i][2] is None or jnp.shape(pairs[i][2]) != ()
        ),
        f"`{fn}` needs a scalar in `near` for every leaf with scores",
    )
    return [lax.stop_gradient(jnp.asarray(pairs[i][2])) for i in scored]


def _check_structure(
    named: list[tuple[str, Array]], structure: Structure, *, fn: str
) -> None:
    problems = [(path, structure.complaint(leaf.shape)) for path, leaf in named]
    _checks.raise_all(
        (f"{path}: {problem}" for path, problem in problems if problem),
        f"`{fn}` needs every leaf to fit {structure}",
    )


def _check_countable(pooled: list[Array], *, joint: bool, fn: str) -> None:
    sizes = [s.size for s in pooled]
    largest = sum(sizes) if joint else max(sizes)
    if largest >= 2**31 - 1 and not _checks.wide_integers():
        raise ValueError(
            f"`{fn}` needs 64-bit integers to count {largest} decisions. Set "
            "`jax_enable_x64`."
        )
