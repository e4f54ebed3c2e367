"""The arguments of a selection, checked once and matched leaf by leaf."""

import math
from collections.abc import Sequence
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
        self._complain(complaints, f"every leaf to fit {structure}")
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
        paths = trees.paths(self.tree, trees.is_mask_leaf)
        return [paths[i] for i in self.scored]

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
        shares = self._matched(share, name=name)
        none = ["None" if one is None else None for one in shares]
        self._complain(none, f"a `{name}` for every leaf with scores")
        for path, one in zip(self.paths(), shares, strict=True):
            checks.unit_interval(one, fn=self.fn, name=f"{name}[{path}]")
        return shares

    def mask(self, mask: Mask | None, *, name: str) -> list[Array | None]:
        """The mask of each leaf, unpacked; all `None` without one."""
        if mask is None:
            return [None] * len(self.scored)
        checks.boolean(mask, fn=self.fn, name=name)
        checks.packed(mask, fn=self.fn, stacked=False)
        pairs = checks.shaped_like(
            self.tree,
            packing.unpack(mask),
            fn=self.fn,
            names=("scores", name),
            is_leaf=trees.is_mask_leaf,
        )
        masks = [pairs[i][1] for i in self.scored]
        none = ["None" if one is None else None for one in masks]
        self._complain(none, f"a leaf of `{name}` for every leaf with scores")
        return masks

    def guesses(self, guess: Scores | None) -> list[Array] | None:
        """The guess of each search, or `None` without any."""
        if guess is None:
            return None
        guesses = self._matched(guess, name="guess")
        no_scalar = [
            checks.kind_of(one) if one is None or jnp.shape(one) else None
            for one in guesses
        ]
        self._complain(no_scalar, "a scalar in `guess` for every leaf with scores")
        return [lax.stop_gradient(jnp.asarray(g)) for g in guesses[: len(self.sizes)]]

    def whole(self, values: list[Array]) -> Any:
        """A tree like the scores, from a value for each leaf that has scores."""
        found: list[Array | None] = [None] * len(self.leaves)
        for i, value in zip(self.scored, values, strict=True):
            found[i] = value
        return self.treedef.unflatten(found)

    def _matched(self, other: Any, *, name: str) -> list[Any]:
        """The leaves of another tree, for each leaf that has scores."""
        rows = checks.rows(
            self.tree,
            other,
            fn=self.fn,
            names=("scores", name),
            is_leaf=trees.is_mask_leaf,
        )
        return [rows[i][1] for i in self.scored]

    def _complain(self, complaints: Sequence[str | None], needs: str) -> None:
        """Raise one error for all leaves with scores that have a complaint."""
        if any(complaints):
            lines = zip(self.paths(), complaints, strict=True)
            found = (f"{path}: {line}" for path, line in lines if line)
            checks.raise_all(found, f"`{self.fn}` needs {needs}")
