"""Groups as a structure: scores of units from many leaves, and masks of them all."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import checks, trees
from maskjax._core.trees import Array, Mask, Params, Path, Scores
from maskjax.structure import _units
from maskjax.structure._members import Group, Member

By = Literal["mean", "sum", "norm"]
_FN = "maskjax.structure."


@dataclasses.dataclass(frozen=True, repr=False)
class Groups:
    """Units that run through many leaves, and leave them together.

    A channel is one, with its bias, its scale, and the inputs of the layers that read
    it. `compaction.groups` finds them in a network. `select`, `optim.prune` and recipes
    take them as any structure: a unit has one score, pooled from all of its entries
    that have some, and leaves every member leaf at once, also those without scores.
    Densities count units. An entry may lie in units of several groups; it stays as long
    as all of them do.

    A mask has a leaf for every member leaf, biases too. Score what should count, and
    leave the rest `None`: a `None` in the scores does not protect a leaf. Leaves that
    no group reaches are kept whole.

    Scopes: "leaf" and "layer" rank each group on its own, each layer of a stack apart.
    "global" ranks the units of all groups together. There a stack of L layers has
    `size` slots: the best unit of each layer is in the first, and so on. Each slot has
    the mean of its units' scores and counts as one, so that all layers keep equally
    many. "output" has no meaning here.

    On many devices leaves stay where they are; vectors of units travel.

    Attributes:
        groups: The groups; each name is used once.
        fixed: Lines for the reader: what can't be removed, and why.
        by: How scores are pooled, over all entries of all members: by "mean", "sum" or
            "norm" (the root of the sum of squares). Means compare groups of any size,
            but not leaves of different scales: for scope "global", divide magnitudes by
            the mean of their leaf. A sum is what the loss changes by, for scores that
            approximate that. An entry that lies on two axes of its unit counts twice.
        least: The number of units that every group, and every layer of a stack, keeps
            at any density, or all if it has fewer: the best ones.

    Raises:
        ValueError: If two groups have one name, two members of one leaf differ in its
            shape, `by` is another word, or `least` is below 0.

    Example:
        >>> hidden = structure.Group(
        ...     "hidden",
        ...     (),
        ...     3,
        ...     (
        ...         structure.Member("in", 1, [0, 1, 2], shape=(1, 3)),
        ...         structure.Member("bias", 0, [0, 1, 2], shape=(3,)),
        ...         structure.Member("out", 0, [0, 1, 2], shape=(3, 1)),
        ...     ),
        ... )
        >>> groups = structure.Groups((hidden,))
        >>> print(groups)
        hidden: 3 units in in[1], bias[0], out[0]
        >>> params = {
        ...     "in": jnp.array([[1.0, 2.0, 3.0]]),
        ...     "bias": jnp.zeros(3),
        ...     "out": jnp.array([[4.0], [0.0], [1.0]]),
        ... }
        >>> scores = score.magnitude(params, where=where.matching("in|out"))
        >>> mask = select.top_k(scores, density=2 / 3, structure=groups)
        >>> mask["bias"], mask["in"]
        (Array([ True, False,  True], dtype=bool), Array([[ True, False,  True]], ...))
        >>> import dataclasses
        >>> by_norm = dataclasses.replace(groups, by="norm")
        >>> by_norm.pool(scores)["hidden"]
        Array([4.1231055, 2.       , 3.1622777], dtype=float32)

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023.
        arXiv:2301.12900.
    """

    groups: tuple[Group, ...]
    fixed: tuple[str, ...] = ()
    by: By = "mean"
    least: int = 1

    def __post_init__(self) -> None:
        fn = f"{_FN}Groups"
        object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "fixed", tuple(self.fixed))
        checks.one_of(self.by, get_args(By), fn=fn, name="by")
        checks.at_least(self.least, 0, fn=fn, name="least")
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            raise ValueError(
                f"`{fn}` needs a name for each group, got {sorted(twice)[0]} twice."
            )
        shapes: dict[Path, set[tuple[int, ...]]] = {}
        for member in self._members:
            shapes.setdefault(member.path, set()).add(member.shape)
        checks.raise_all(
            (
                f"{path}: {', '.join(map(str, sorted(found)))}"
                for path, found in shapes.items()
                if len(found) > 1
            ),
            f"`{fn}` needs one shape for each leaf",
        )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all groups, in order."""
        return tuple(group.name for group in self.groups)

    @functools.cached_property
    def shapes(self) -> dict[Path, tuple[int, ...]]:
        """The shape of each member leaf, by path."""
        return {member.path: member.shape for member in self._members}

    @property
    def _members(self) -> Iterator[Member]:
        return (member for group in self.groups for member in group.members)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.groups, self.fixed, self.by, self.least))

    def __hash__(self) -> int:
        return self._hash

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __getitem__(self, name: str) -> Group:
        return self.groups[self.names.index(name)]

    def __str__(self) -> str:
        return "\n".join((*map(str, self.groups), *self.fixed))

    def __repr__(self) -> str:
        return f"<maskjax.structure.Groups: {len(self)} groups>"

    def of(self, tree: Params, *, under: Path = "") -> Groups:
        """The groups as far as they lie in a tree: for a part of the parameters.

        Args:
            tree: Parameters, or anything with their structure. Members of other leaves
                are left out, and so are groups without members.
            under: Where the tree is in the whole for which the groups were found:
                "params" if these are Flax variables and `tree` their parameters.

        Returns:
            Groups with the tree's own paths.

        Raises:
            ValueError: If no member lies in the tree.

        Example:
            >>> scale = structure.Member("params/scale", 0, [0, 1], shape=(2,))
            >>> mean = structure.Member("batch_stats/mean", 0, [0, 1], shape=(2,))
            >>> group = structure.Group("channels", (), 2, (scale, mean))
            >>> groups = structure.Groups((group,))
            >>> print(groups.of({"scale": jnp.ones(2)}, under="params"))
            channels: 2 units in scale[0]
        """
        paths = set(trees.paths(tree, trees.is_mask_leaf))
        lead = f"{under}/" if under else ""
        found = []
        for group in self.groups:
            members = [
                dataclasses.replace(member, path=member.path.removeprefix(lead))
                for member in group.members
                if member.path.startswith(lead)
                and member.path.removeprefix(lead) in paths
            ]
            if members:
                found.append(dataclasses.replace(group, members=tuple(members)))
        if not found:
            raise ValueError(
                f"`{_FN}Groups.of` needs a tree with leaves of the groups, such as "
                f"{', '.join(list(self.shapes)[:3])}, got {', '.join(sorted(paths))}"
                f"{f' under {under}' if under else ''}."
            )
        return dataclasses.replace(self, groups=tuple(found))

    def pool(
        self, scores: Scores, by: By | None = None, *, alive: Mask | None = None
    ) -> dict[str, Array]:
        """One score for each unit, from all of its entries that have scores.

        Args:
            scores: Tree of floating leaves, or `None`.
            by: "mean", "sum" or "norm"; `None` for that of the groups.
            alive: A mask of boolean leaves, or `None` where all entries count.

        Returns:
            For each group by name [*stack, size], in float32 at least.

        Raises:
            TypeError: If a leaf of `scores` is not floating.
            ValueError: If a leaf has not the shape that the groups know, or is missing,
                or a unit has no scores at all.

        Example:
            >>> rows = structure.Member("w", 0, [0, 1], shape=(2, 2))
            >>> group = structure.Group("rows", (), 2, (rows,))
            >>> groups = structure.Groups((group,))
            >>> groups.pool({"w": jnp.array([[1.0, 2.0], [3.0, 5.0]])})
            {'rows': Array([1.5, 4. ], dtype=float32)}
        """
        fn = f"{_FN}Groups.pool"
        by = self.by if by is None else by
        checks.one_of(by, get_args(By), fn=fn, name="by")
        checks.floating_scores(scores, fn=fn)
        leaves = self.leaves_of(scores, fn=fn, name="scores")
        flags = {}
        if alive is not None:
            flags = self.leaves_of(alive, fn=fn, name="alive", shared=True)
            flags = {path: leaf for path, leaf in flags.items() if path in leaves}
        return _units.pooled(leaves, flags, groups=self.groups, by=by, fn=fn)

    def kept(self, mask: Mask) -> dict[str, Array]:
        """Which units a mask keeps: those that have an entry left.

        Args:
            mask: A mask of boolean leaves, `None` where nothing is known.

        Returns:
            For each group by name [*stack, size], booleans.

        Raises:
            ValueError: If a leaf does not have the shape that the groups know, or is
                missing.

        Example:
            >>> rows = structure.Member("w", 0, [0, 1], shape=(2, 2))
            >>> group = structure.Group("rows", (), 2, (rows,))
            >>> groups = structure.Groups((group,))
            >>> groups.kept({"w": jnp.array([[False, False], [False, True]])})
            {'rows': Array([False,  True], dtype=bool)}
        """
        fn = f"{_FN}Groups.kept"
        leaves = self.leaves_of(mask, fn=fn, name="mask", shared=True)
        return _units.kept(leaves, groups=self.groups)

    def spread(self, decisions: dict[str, Array], like: Scores | Params) -> Mask:
        """The mask of decisions about units.

        Args:
            decisions: For each group by name [*stack, size], booleans.
            like: The scores or the parameters.

        Returns:
            A mask. On member leaves True where all units of an entry are kept; axes
            along which no units lie have length 1. Other leaves are kept, with axes of
            1, or `None` where `like` is.

        Raises:
            ValueError: If `decisions` does not fit the groups, or a leaf of `like` does
                not have the shape that the groups know.

        Example:
            >>> rows = structure.Member("w", 0, [0, 1], shape=(2, 3))
            >>> group = structure.Group("rows", (), 2, (rows,))
            >>> groups = structure.Groups((group,))
            >>> groups.spread({"rows": jnp.array([True, False])}, {"w": None})
            {'w': Array([[ True],
                   [False]], dtype=bool)}
        """
        fn = f"{_FN}Groups.spread"
        if set(decisions) != set(self.names):
            odd = sorted(set(decisions) ^ set(self.names))
            raise ValueError(
                f"`{fn}` needs decisions for each group, got {', '.join(odd)} in one "
                "but not in the other."
            )
        checks.raise_all(
            (
                f"{group.name}: {checks.kind_of(decisions[group.name])}, group "
                f"{group.shape}"
                for group in self.groups
                if jnp.shape(decisions[group.name]) != group.shape
            ),
            f"`{fn}` needs decisions of the groups' shapes",
        )
        return _spread(self, decisions, like, fn=fn)

    def leaves_of(
        self, tree: Any, *, fn: str, name: str, shared: bool = False
    ) -> dict[Path, Any]:
        """The member leaves of a tree that are not `None`, by path.

        Raises:
            ValueError: If a leaf is missing, or has another shape than its members say;
                if `shared`, its axes may be 1.
        """
        if not self.groups:
            raise ValueError(f"`{fn}` needs at least one group, got none. {self}")
        found, _ = trees.mask_leaves(tree)
        here = dict(found)
        missing = [path for path in self.shapes if path not in here]
        if missing:
            raise ValueError(
                f"`{fn}` needs `{name}` with every leaf of its groups (for a part of a "
                "network: `groups.of(params)`), but has none of:\n"
                + "\n".join(f"  {path}" for path in missing)
            )
        known = {p: here[p] for p in self.shapes if here[p] is not None}

        def misfit(path: Path, leaf: Any) -> str | None:
            shape, own = _shape(leaf), self.shapes[path]
            fine = checks.fits(shape, own) if shared else shape == own
            return None if fine else f"{path}: {name} {shape}, groups {own}"

        checks.raise_all(
            (misfit(*pair) for pair in known.items()),
            f"`{fn}` needs `{name}` of the shapes that the groups know",
        )
        return known


def sums_of_units(
    groups: Groups, values: dict[str, Array], like: Scores, *, fn: str
) -> Scores:
    """For each entry the sum of the values of its units; 1 where no group is."""
    return _spread(groups, values, like, fn=fn)


def _spread(groups: Groups, values: dict[str, Array], like: Any, *, fn: str) -> Any:
    arrays = groups.leaves_of(like, fn=fn, name="like")
    arrays = {p: x for p, x in arrays.items() if isinstance(x, jax.Array)}
    found = _units.spread(values, arrays, groups=groups.groups)
    flags = all(x.dtype == bool for x in values.values())

    def of_leaf(path: Path, leaf: Any) -> Any:
        if path in found:
            if leaf is None or flags:
                return found[path]
            return found[path].astype(leaf.dtype)
        if leaf is None:
            return None
        return jnp.ones((1,) * len(_shape(leaf)), bool if flags else leaf.dtype)

    named, treedef = trees.mask_leaves(like)
    return treedef.unflatten([of_leaf(*pair) for pair in named])


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape if checks.shaped(leaf) else np.shape(leaf))
