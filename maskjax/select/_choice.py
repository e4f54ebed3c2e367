"""Selection with its arguments checked: trees of scores and counts in, a mask out.

What varies from call to call (scores, densities, masks) is an operand of one compiled
search, so that nothing compiles because a number moved.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import packing
from maskjax._core import checks, dtypes, trees
from maskjax._core.trees import Array, Density, Mask, Scores
from maskjax.select import _search
from maskjax.select._count import tally
from maskjax.select._quota import Count, Keep, Leave, Quota, operand
from maskjax.structure import Entries, NofM, Structure, any_alive

Scope = Literal["leaf", "global"]


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
    """The highest scores, as many as a rule says, and where it cut.

    Args:
        scores: Tree of floating leaves, or `None`.
        rule: What `share` is a share of: what to keep, or what to remove.
        share: A number, a scalar array, or a tree of them.
        scope: "leaf" or "global".
        structure: What is decided together.
        fn: The public function to blame.
        name: What it calls `share`.
        mask_name: What it calls the mask that it is given.
        within: A mask outside which nothing is kept. Shares are of what it keeps.
        holding: A mask that is kept whatever its scores.
        of_all: Shares are of everything, also of what is not within.
        guess: Where the cuts are expected.
    """
    checks.floating_scores(scores, fn=fn)
    checks.one_of(scope, ("leaf", "global"), fn=fn, name="scope")
    checks.structure(structure, fn=fn)
    leaves = Leaves(scores, structure, scope, fn=fn)
    keeps = leaves.matched_mask(within, fn=fn, name=mask_name)
    held = leaves.matched_mask(holding, fn=fn, name=mask_name)
    shares = leaves.matched_shares(share, fn=fn, name=name)
    guesses = leaves.matched_guesses(guess, fn=fn)
    known = of_all or within is None
    quotas: list[Quota] = [
        operand(rule(one), size if known else None)
        for one, size in zip(shares, leaves.sizes, strict=True)
    ]
    if of_all:  # a traced share becomes a count here, before `within` is counted
        quotas = [Count(q.of(n)) for q, n in zip(quotas, leaves.sizes, strict=True)]
    return leaves.chosen(keeps, held, quotas, guesses)


def choose_count(scores: Scores, counts: list[Array], scope: Scope, *, fn: str) -> Mask:
    """The highest scores, so many in each search."""
    leaves = Leaves(scores, Entries(), scope, fn=fn)
    nothing = leaves.matched_mask(None, fn=fn, name="")
    return leaves.chosen(nothing, nothing, [Count(n) for n in counts], None)[0]


def everything(scores: Scores, structure: Structure, *, fn: str) -> Mask:
    """The mask that keeps everything, in the shape that a structure's masks have."""
    checks.floating_scores(scores, fn=fn)
    checks.structure(structure, fn=fn)
    Leaves(scores, structure, "leaf", fn=fn)

    def of_leaf(x: Array) -> Array:
        shape = jax.eval_shape(lambda x: structure.spread(structure.pool(x)), x).shape
        if shape == x.shape and isinstance(x, jax.Array):
            # Sharded as the leaf is, and in a `shard_map` varying as it does.
            return jnp.ones_like(x, dtype=bool)
        return jnp.ones(shape, bool)

    return trees.map_mask(of_leaf, scores)


class Leaves:
    """The leaves of a tree that have scores, and what goes with each."""

    def __init__(self, scores: Scores, structure: Structure, scope: Scope, *, fn: str):
        self.tree = scores
        self.named, self.treedef = trees.mask_leaves(scores)
        self.scored = [i for i, (_, x) in enumerate(self.named) if x is not None]
        self.scores = [lax.stop_gradient(self.named[i][1]) for i in self.scored]
        self.structure = structure
        self.joint = scope == "global"
        problems = [
            (self.named[i][0], structure.complaint(self.named[i][1].shape))
            for i in self.scored
        ]
        checks.raise_all(
            (f"{path}: {problem}" for path, problem in problems if problem),
            f"`{fn}` needs every leaf to fit {structure}",
        )
        pooled = [jax.eval_shape(structure.pool, x) for x in self.scores]
        sizes = [math.prod(x.shape) for x in pooled]
        #: How many decisions each search takes, and what it is called.
        self.sizes = [sum(sizes)] if self.joint else sizes
        paths = [self.named[i][0] for i in self.scored]
        self.names = ["all leaves"] if self.joint else paths
        if max(self.sizes) >= 2**31 - 1 and not dtypes.wide_integers():
            raise ValueError(
                f"`{fn}` needs 64-bit integers to count {max(self.sizes)} decisions. "
                "Set `jax_enable_x64`."
            )

    def matched_shares(
        self, share: Density | Scores, *, fn: str, name: str
    ) -> list[Density]:
        """One for each search."""
        if trees.is_single(share):
            checks.unit_interval(share, fn=fn, name=name)
            return [share] * len(self.sizes)
        if self.joint:
            raise ValueError(
                f'`{fn}` needs one `{name}` for scope="global", got a tree of them. '
                'Use scope="leaf".'
            )
        pairs = self._pairs(share, fn=fn, name=name)
        checks.raise_all(
            (f"{path}: None" for path, value in pairs if value is None),
            f"`{fn}` needs a `{name}` for every leaf with scores",
        )
        for path, value in pairs:
            checks.unit_interval(value, fn=fn, name=f"{name}[{path}]")
        return [value for _, value in pairs]

    def matched_mask(
        self, mask: Mask | None, *, fn: str, name: str
    ) -> list[Array | None]:
        """What is kept of each leaf, or `None` where nothing says."""
        if mask is None:
            return [None] * len(self.scored)
        checks.boolean(mask, fn=fn, name=name)
        checks.packed(mask, fn=fn, stacked=False)
        names = ("scores", name)
        mask = packing.unpack(mask)
        triples = checks.mask_of(
            mask, self.tree, fn=fn, names=names, is_leaf=trees.is_mask_leaf
        )
        checks.raise_all(
            (f"{triples[i][0]}: None" for i in self.scored if triples[i][2] is None),
            f"`{fn}` needs a leaf of `{name}` for every leaf with scores",
        )
        return [triples[i][2] for i in self.scored]

    def matched_guesses(self, guess: Scores | None, *, fn: str) -> list[Array] | None:
        """Where each search may begin."""
        if guess is None:
            return None
        pairs = self._pairs(guess, fn=fn, name="guess")
        checks.raise_all(
            (
                f"{path}: {checks.kind_of(guess)}"
                for path, guess in pairs
                if guess is None or jnp.shape(guess) != ()
            ),
            f"`{fn}` needs a scalar in `guess` for every leaf with scores",
        )
        guesses = [lax.stop_gradient(jnp.asarray(guess)) for _, guess in pairs]
        return guesses[: len(self.sizes)]

    def _pairs(self, other: Any, *, fn: str, name: str) -> list[tuple[str, Any]]:
        triples = checks.matched(
            self.tree, other, fn=fn, names=("scores", name), is_leaf=trees.is_mask_leaf
        )
        return [(triples[i][0], triples[i][2]) for i in self.scored]

    def chosen(
        self,
        keeps: list[Array | None],
        held: list[Array | None],
        quotas: list[Quota],
        guesses: list[Array] | None,
    ) -> tuple[Mask, Scores]:
        """The mask, and the tree of scores where it cut."""
        masks, cuts = _chosen(
            self.scores,
            keeps,
            held,
            quotas,
            guesses,
            structure=self.structure,
            joint=self.joint,
        )
        return self._whole(masks), self._whole(cuts)

    def _whole(self, values: list[Array]) -> Any:
        found: list[Array | None] = [None] * len(self.named)
        for i, value in zip(self.scored, values, strict=True):
            found[i] = value
        return self.treedef.unflatten(found)


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
    masks = [
        mask if keep is None else mask & keep
        for mask, keep in zip(masks, keeps, strict=True)
    ]
    masks = [
        mask if hold is None else mask | hold
        for mask, hold in zip(masks, held, strict=True)
    ]
    return masks, cuts


def _lifted(scores: Array, hold: Array) -> Array:
    """What is held above everything else, infinite scores included."""
    most = jnp.finfo(scores.dtype).max
    return jnp.where(hold, jnp.array(jnp.inf, scores.dtype), jnp.minimum(scores, most))


def _of_alive(
    quotas: list[Quota],
    pooled: list[Array],
    alive: list[Array | None],
    *,
    joint: bool,
) -> list[Quota]:
    """Counts of everything alive, which is more than the candidates of a pattern."""
    counts = [
        s.size if a is None else tally([a, a], jnp.dtype("int32"))[0]
        for s, a in zip(pooled, alive, strict=True)
    ]
    counts = [sum(counts)] if joint else counts
    return [Count(q.of(n)) for q, n in zip(quotas, counts, strict=True)]


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
