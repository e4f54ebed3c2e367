"""From trees of scores to a mask: one compiled search for each tree and structure.

Scores, densities and masks are operands of the compiled program, so a new number never
compiles a new one.
"""

import functools

import jax
import jax.numpy as jnp

from maskjax._core import trees
from maskjax._core.trees import Array, Density, Mask, Scores
from maskjax.select import _search
from maskjax.select._count import tally
from maskjax.select._keys import order_key
from maskjax.select._leaves import Leaves, Scope
from maskjax.select._quota import Count, Keep, Leave, Quota, operand
from maskjax.structure import Entries, NofM, Structure, any_alive


def choose(
    scores: Scores,
    rule: type[Keep] | type[Leave],
    share: Density | Scores,
    scope: Scope,
    structure: Structure,
    *,
    fn: str,
    name: str = "density",
    mask_name: str = "mask",
    within: Mask | None = None,
    holding: Mask | None = None,
    of_all: bool = False,
    guess: Scores | None = None,
) -> tuple[Mask, Scores]:
    """Keep the highest scores, and tell where each search cut.

    Args:
        scores: Tree of floating leaves, or `None`.
        rule: `Keep` if `share` is the fraction to keep, `Leave` if it is the fraction
            to remove.
        share: A number, a scalar array, or a tree of them.
        scope: "leaf" or "global".
        structure: What is decided together.
        fn: The public function that errors blame.
        name: What that function calls `share`.
        mask_name: What that function calls its mask.
        within: A mask outside which nothing is kept.
        holding: A mask that the result contains; its scores do not matter.
        of_all: True if shares are fractions of all decisions, False if of those within.
        guess: The cutoffs of an earlier call.
    """
    leaves = Leaves(scores, structure, scope, fn=fn)
    keeps = leaves.mask(within, name=mask_name)
    held = leaves.mask(holding, name=mask_name)
    shares = leaves.shares(share, name=name)
    guesses = leaves.guesses(guess)
    known = of_all or within is None
    quotas: list[Quota] = [
        operand(rule(one), size if known else None)
        for one, size in zip(shares, leaves.sizes, strict=True)
    ]
    if of_all:  # a traced share becomes a count here, before `within` is counted
        quotas = [Count(q.of(n)) for q, n in zip(quotas, leaves.sizes, strict=True)]
    return _masks(leaves, keeps, held, quotas, guesses)


def choose_count(scores: Scores, counts: list[Array], scope: Scope, *, fn: str) -> Mask:
    """Keep the highest scores, a given number in each search."""
    leaves = Leaves(scores, Entries(), scope, fn=fn)
    nothing = leaves.mask(None, name="")
    return _masks(leaves, nothing, nothing, [Count(n) for n in counts], None)[0]


def full(scores: Scores, structure: Structure, *, fn: str) -> Mask:
    """A mask that keeps everything, with axes of 1 where a structure's masks have."""
    Leaves(scores, structure, "leaf", fn=fn)

    def of_leaf(x: Array) -> Array:
        shape = jax.eval_shape(lambda x: structure.spread(structure.pool(x)), x).shape
        if shape == x.shape and isinstance(x, jax.Array):
            # Sharded as the leaf is, and in a `shard_map` varying as it does.
            return jnp.ones_like(x, dtype=bool)
        return jnp.ones(shape, bool)

    return trees.map_mask(of_leaf, scores)


def _masks(
    leaves: Leaves,
    keeps: list[Array | None],
    held: list[Array | None],
    quotas: list[Quota],
    guesses: list[Array] | None,
) -> tuple[Mask, Scores]:
    """The mask, and the tree of scores at which each search cut."""
    how = {"structure": leaves.structure, "joint": leaves.joint}
    masks, cuts = _chosen(leaves.scores, keeps, held, quotas, guesses, **how)
    return leaves.whole(masks), leaves.whole(cuts)


@functools.partial(jax.jit, static_argnames=("structure", "joint"))
def _chosen(
    scores: list[Array],
    keeps: list[Array | None],
    held: list[Array | None],
    quotas: list[Quota],
    guesses: list[Array] | None,
    *,
    structure: Structure,
    joint: bool,
) -> tuple[list[Array], list[Array]]:
    """The search over decisions, spread over entries."""
    alive = [
        None if keep is None else jnp.broadcast_to(keep, leaf.shape)
        for keep, leaf in zip(keeps, scores, strict=True)
    ]
    scores = [
        leaf if hold is None else _lifted(leaf, hold)
        for hold, leaf in zip(held, scores, strict=True)
    ]
    pooled = [structure.pool(s, a) for s, a in zip(scores, alive, strict=True)]
    candidates = [None if a is None else any_alive(structure, a) for a in alive]
    if isinstance(structure, NofM):
        quotas = _of_alive(quotas, pooled, candidates, joint=joint)
        candidates = [
            _best_of_groups(s, a, structure)
            for s, a in zip(pooled, candidates, strict=True)
        ]
    flags, cuts = _search.top_k(pooled, candidates, quotas, joint=joint, guess=guesses)
    masks = [structure.spread(flag) for flag in flags]
    masks = [m if k is None else m & k for m, k in zip(masks, keeps, strict=True)]
    masks = [m if h is None else m | h for m, h in zip(masks, held, strict=True)]
    return masks, cuts


def _lifted(scores: Array, hold: Array) -> Array:
    """Scores with those that are held above all others, infinite ones included."""
    most = jnp.finfo(scores.dtype).max
    return jnp.where(hold, jnp.array(jnp.inf, scores.dtype), jnp.minimum(scores, most))


def _of_alive(
    quotas: list[Quota],
    pooled: list[Array],
    alive: list[Array | None],
    *,
    joint: bool,
) -> list[Quota]:
    """Counts that are fractions of all that is alive, not of a pattern's candidates."""
    counts = [
        s.size if a is None else tally([a[None]] * 2, jnp.dtype("int32"))[0][0]
        for s, a in zip(pooled, alive, strict=True)
    ]
    counts = [sum(counts)] if joint else counts
    return [Count(q.of(n)) for q, n in zip(quotas, counts, strict=True)]


def _best_of_groups(scores: Array, alive: Array | None, structure: NofM) -> Array:
    """The n best of each group of m.

    An entry is one of them if fewer than n others are better, or equal and earlier.
    """
    keys = structure.group(order_key(scores, alive))
    mine, other = keys[..., :, None], keys[..., None, :]
    place = jnp.arange(structure.m)
    earlier = jnp.broadcast_to(
        place[None, :] < place[:, None], other.shape[:-2] + (structure.m,) * 2
    )
    ahead = (other > mine) | ((other == mine) & earlier)
    rank = jnp.sum(ahead, axis=-1, dtype=jnp.int32)
    best = structure.ungroup(rank < structure.n)
    return best if alive is None else best & alive
