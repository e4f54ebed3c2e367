"""The arguments of a selection, checked once and matched leaf by leaf."""

import functools
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maskjax import packing
from maskjax._core import axes, checks, layout, trees
from maskjax._core.axes import Axes
from maskjax._core.trees import Array, Density, Mask, Predicate, Scores
from maskjax.select import _plan
from maskjax.select._plan import Plan
from maskjax.structure import Groups, Structure

Scope = Literal["leaf", "global", "layer", "output"]
SCOPES = get_args(Scope)
# Hints for those who gave an array where a number is needed.
BY_SCOPE = 'For a number for each layer use scope="layer".'
BY_LAYER = "For a number for each layer pass a tree, with an array for each stack."


class Leaves:
    """The leaves of a tree that have scores, and what the caller gives for each.

    Attributes:
        scores: The leaves that are not `None`, without gradients.
        plans: For each of them, its layout and structure.
        joint: True for one search over all leaves, False for searches of each.
        apart: True if a leaf may take many searches.
        sizes: The number of decisions of each search; of leaves with many searches, of
            one of them.
    """

    def __init__(
        self,
        scores: Scores,
        scope: Scope,
        structure: Structure | Any,
        where: Predicate,
        *,
        fn: str,
    ):
        checks.floating_scores(scores, fn=fn)
        checks.one_of(scope, SCOPES, fn=fn, name="scope")
        checks.predicate(where, fn=fn)
        self.fn = fn
        self.tree = scores
        self.leaves, self.treedef = jax.tree.flatten(scores, is_leaf=trees.is_mask_leaf)
        self.scored = [i for i, x in enumerate(self.leaves) if x is not None]
        self.scores = [lax.stop_gradient(self.leaves[i]) for i in self.scored]
        self.joint = scope == "global"
        self.apart = scope in ("layer", "output")
        self.structures = self._structures(structure)
        self.axes = self._axes(scope, where)
        plans = [
            _plan.plan(tuple(x.shape), one, axes, scope)
            for x, one, axes in zip(
                self.scores, self.structures, self.axes, strict=True
            )
        ]
        several = len(set(self.structures)) > 1
        lines = [
            (f"{plan} ({one})" if several else plan) if isinstance(plan, str) else None
            for plan, one in zip(plans, self.structures, strict=True)
        ]
        what = "its structure" if several else self.structures[0]
        self._complain(lines, f"every leaf to fit {what}")
        self.plans: list[Plan] = plans  # type: ignore[assignment]
        sizes = [plan.decisions() for plan in self.plans]
        self.sizes = [sum(sizes)] if self.joint else sizes

    def _structures(self, structure: Any) -> list[Structure]:
        """The structure of each leaf with scores."""
        if not is_tree(structure):
            checks.structure(structure, fn=self.fn)
            return [structure] * len(self.scored)
        if any(isinstance(one, Groups) for one in jax.tree.leaves(structure)):
            raise ValueError(
                f"`{self.fn}` needs groups as its whole `structure`, got a tree of "
                "them. They know their own leaves."
            )
        found = self._matched(structure, name="structure")
        for path, one in zip(self.paths(), found, strict=True):
            checks.structure(one, fn=self.fn, name=f"structure[{path}]")
        return found

    def _axes(self, scope: Scope, where: Predicate) -> list[Axes | None]:
        """The roles of each leaf's axes, where something depends on them."""
        needed = [bool(_plan.roles_of(one)) for one in self.structures]
        if not any(needed) and not self.apart:
            return [None] * len(self.scored)
        why = f'for scope="{scope}"'
        if not self.apart:
            kinds = {type(one).__name__ for one in self.structures}
            why = f"for {', '.join(sorted(kinds))}"
        named = list(zip(self.paths(), self.scores, strict=True))
        if scope == "output":
            needed = [True] * len(needed)
        elif scope == "layer":  # a leaf that is no stack is one layer
            stacks = [layout.may_stack(where, *one) for one in named]
            needed = [a or b for a, b in zip(needed, stacks, strict=True)]
        return axes.resolved(where, named, needed, fn=self.fn, why=why)

    def paths(self) -> list[str]:
        """The paths of the leaves that have scores, for messages."""
        paths = trees.paths(self.tree, trees.is_mask_leaf)
        return [paths[i] for i in self.scored]

    def kinds(self) -> tuple[int, ...]:
        """A number for each leaf, the same for those of the same names in each layer.

        On many devices these are sharded alike, as `layers_0/query` is and
        `layers_1/query`, but `layers_0/out` may not be.
        """
        every = _kinds(self.treedef)
        return tuple(every[i] for i in self.scored)

    def names(self) -> list[str]:
        """What each search is called in a message."""
        return ["all leaves"] if self.joint else self.paths()

    def shares(self, share: Density | Scores, *, name: str) -> list[Density]:
        """The density, or rate, of each search."""
        if trees.is_single(share):
            hint = BY_LAYER if self.apart else checks.BY_VMAP
            checks.unit_interval(share, fn=self.fn, name=name, hint=hint)
            return [share] * len(self.sizes)
        if self.joint:
            raise ValueError(
                f'`{self.fn}` needs one `{name}` for scope="global", got a tree of '
                'them. Use scope="leaf", or scope="layer" for a number for each layer.'
            )
        shares = self._matched(share, name=name)
        none = ["None" if one is None else None for one in shares]
        self._complain(none, f"a `{name}` for every leaf with scores")
        labels = [f"{name}[{path}]" for path in self.paths()]
        stacks = [self._searches(i) for i in range(len(self.scored))]
        return list(map(self._share_of, self.plans, stacks, shares, labels))

    def _searches(self, leaf: int) -> tuple[int, ...]:
        """The lengths of the stack whose layers are searched apart."""
        roles = self.axes[leaf]
        if roles is None or not self.plans[leaf].rows:
            return ()
        return tuple(self.scores[leaf].shape[i] for i in roles.stack)

    def _share_of(
        self, plan: Plan, stack: tuple[int, ...], share: Any, label: str
    ) -> Density:
        """The share of each search, from one for all, or one for each layer."""
        hint = BY_SCOPE
        if self.apart:
            hint = "This leaf is no stack of layers."
        several = {"several": bool(stack), "hint": hint}
        checks.unit_interval(share, fn=self.fn, name=label, **several)
        if not np.ndim(share):
            return share
        if np.shape(share) != stack:
            raise ValueError(
                f"`{self.fn}` needs `{label}` as a number, or one for each layer of "
                f"shape {stack}, got an array of shape {np.shape(share)}."
            )
        ones = (1,) * (plan.rows - len(stack))
        module = np if isinstance(share, np.ndarray) else jnp
        share = share.reshape(*stack, *ones)
        return module.broadcast_to(share, plan.searches)  # type: ignore[return-value]

    def mask(self, mask: Mask | None, *, name: str) -> list[Array | None]:
        """The mask of each leaf, unpacked; all `None` without one."""
        if mask is None:
            return [None] * len(self.scored)
        names, stop = ("scores", name), trees.is_mask_leaf
        pairs = checks.masked(self.tree, mask, fn=self.fn, names=names, is_leaf=stop)
        masks = [pairs[i][1] for i in self.scored]
        none = ["None" if one is None else None for one in masks]
        self._complain(none, f"a leaf of `{name}` for every leaf with scores")
        return [packing.unpack_leaf(one) for one in masks]

    def guesses(self, guess: Scores | None) -> list[Array] | None:
        """The guess of each search, or `None` without any."""
        if guess is None:
            return None
        guesses = self._matched(guess, name="guess")
        shapes = [
            jax.eval_shape(plan.numbers, jax.ShapeDtypeStruct(plan.searches, "f4"))
            for plan in self.plans
        ]
        shapes = [shape.shape for shape in shapes]
        misfits = [
            checks.kind_of(one) if one is None or jnp.shape(one) != shape else None
            for one, shape in zip(guesses, shapes, strict=True)
        ]
        what = "a scalar" if not any(shapes) else "the cutoffs of the same scope"
        self._complain(misfits, f"{what} in `guess` for every leaf with scores")
        arrays = [
            plan.per_search(lax.stop_gradient(jnp.asarray(one)))
            for plan, one in zip(self.plans, guesses, strict=True)
        ]
        return arrays[: len(self.sizes)]

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


@functools.lru_cache(maxsize=256)
def _kinds(treedef: Any) -> tuple[int, ...]:
    """For each leaf, the first one whose path is the same but for digits."""
    whole = treedef.unflatten(range(treedef.num_leaves))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(whole)]
    names = [re.sub(r"\d+", "", jax.tree_util.keystr(path)) for path in paths]
    return tuple(map(names.index, names))


def is_tree(structure: Any) -> bool:
    """Whether something is a tree of structures, and not one, or a wrong one."""
    if isinstance(structure, type | str) or hasattr(structure, "complaint"):
        return False
    return not trees.is_single(structure)
