"""The arguments of a selection, checked once and matched leaf by leaf."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import packing
from maskjax._core import checks, dtypes, trees
from maskjax._core.trees import Array, Density, Mask, Scores
from maskjax.structure import Structure

Scope = Literal["leaf", "global"]


class Leaves:
    """The leaves of a tree that have scores, and what the caller gives for each.

    Attributes:
        scores: The leaves that are not `None`, without gradients.
        structure: What is decided together.
        joint: True for one search over all leaves, False for one per leaf.
        sizes: For each search, the number of its decisions.
    """

    def __init__(self, scores: Scores, structure: Structure, scope: Scope, *, fn: str):
        checks.floating_scores(scores, fn=fn)
        checks.one_of(scope, ("leaf", "global"), fn=fn, name="scope")
        checks.structure(structure, fn=fn)
        self.fn = fn
        self.tree = scores
        self.leaves, self.treedef = jax.tree.flatten(scores, is_leaf=trees.is_mask_leaf)
        self.scored = [i for i, x in enumerate(self.leaves) if x is not None]
        self.scores = [lax.stop_gradient(self.leaves[i]) for i in self.scored]
        self.structure = structure
        self.joint = scope == "global"
        complaints = [structure.complaint(x.shape) for x in self.scores]
        if any(complaints):
            checks.raise_all(
                (
                    f"{p}: {c}"
                    for p, c in zip(self.paths(), complaints, strict=True)
                    if c
                ),
                f"`{fn}` needs every leaf to fit {structure}",
            )
        pooled = [jax.eval_shape(structure.pool, x) for x in self.scores]
        sizes = [math.prod(x.shape) for x in pooled]
        self.sizes = [sum(sizes)] if self.joint else sizes
        if max(self.sizes) >= 2**31 - 1 and not dtypes.wide_integers():
            raise ValueError(
                f"`{fn}` needs 64-bit integers to count {max(self.sizes)} decisions. "
                "Set `jax_enable_x64`."
            )

    def paths(self) -> list[str]:
        """The paths of the leaves that have scores, for messages."""
        named, _ = trees.mask_leaves(self.tree)
        return [named[i][0] for i in self.scored]

    def names(self) -> list[str]:
        """What each search is called in a message."""
        return ["all leaves"] if self.joint else self.paths()

    def shares(self, share: Density | Scores, *, name: str) -> list[Density]:
        """The density, or rate, of each search."""
        if trees.is_single(share):
            checks.unit_interval(share, fn=self.fn, name=name)
            return [share] * len(self.sizes)
        if self.joint:
            raise ValueError(
                f'`{self.fn}` needs one `{name}` for scope="global", got a tree of '
                'them. Use scope="leaf".'
            )
        pairs = self._pairs(share, name=name)
        checks.raise_all(
            (f"{path}: None" for path, value in pairs if value is None),
            f"`{self.fn}` needs a `{name}` for every leaf with scores",
        )
        for path, value in pairs:
            checks.unit_interval(value, fn=self.fn, name=f"{name}[{path}]")
        return [value for _, value in pairs]

    def mask(self, mask: Mask | None, *, name: str) -> list[Array | None]:
        """The mask of each leaf, unpacked; all `None` without one."""
        if mask is None:
            return [None] * len(self.scored)
        checks.boolean(mask, fn=self.fn, name=name)
        checks.packed(mask, fn=self.fn, stacked=False)
        triples = checks.mask_of(
            packing.unpack(mask),
            self.tree,
            fn=self.fn,
            names=("scores", name),
            is_leaf=trees.is_mask_leaf,
        )
        checks.raise_all(
            (f"{triples[i][0]}: None" for i in self.scored if triples[i][2] is None),
            f"`{self.fn}` needs a leaf of `{name}` for every leaf with scores",
        )
        return [triples[i][2] for i in self.scored]

    def guesses(self, guess: Scores | None) -> list[Array] | None:
        """The guess of each search, or `None` without any."""
        if guess is None:
            return None
        pairs = self._pairs(guess, name="guess")
        checks.raise_all(
            (
                f"{path}: {checks.kind_of(one)}"
                for path, one in pairs
                if one is None or jnp.shape(one) != ()
            ),
            f"`{self.fn}` needs a scalar in `guess` for every leaf with scores",
        )
        guesses = [lax.stop_gradient(jnp.asarray(one)) for _, one in pairs]
        return guesses[: len(self.sizes)]

    def whole(self, values: list[Array]) -> Any:
        """A tree like the scores, from a value for each leaf that has scores."""
        found: list[Array | None] = [None] * len(self.leaves)
        for i, value in zip(self.scored, values, strict=True):
            found[i] = value
        return self.treedef.unflatten(found)

    def _pairs(self, other: Any, *, name: str) -> list[tuple[str, Any]]:
        names = ("scores", name)
        triples = checks.matched(
            self.tree, other, fn=self.fn, names=names, is_leaf=trees.is_mask_leaf
        )
        return [(triples[i][0], triples[i][2]) for i in self.scored]
