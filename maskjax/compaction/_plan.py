"""A plan: which positions of which axes of which parameters stay."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from maskjax import packing
from maskjax._core import checks, placement, rows
from maskjax.compaction import _matching
from maskjax.compaction._folding import Folded
from maskjax.compaction._matching import PackedMask
from maskjax.compaction._small import places


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """What stays of one parameter.

    Attributes:
        path: Its path.
        shape: Its whole shape.
        lead: How many first axes stack: along them, others may keep other positions.
        keep: For each axis which positions stay, [*stack, n]; [K, *stack, n] for a
            stack of K masks.
        dead: For each axis which positions the mask makes 0, of the same shapes.
        nothing: Whether the mask makes all of it 0, [] or [K].
    """

    path: str
    shape: tuple[int, ...]
    lead: int
    keep: tuple[np.ndarray, ...]
    dead: tuple[np.ndarray, ...]
    nothing: np.ndarray

    @property
    def small(self) -> tuple[int, ...]:
        """The shape of what stays."""
        return tuple(int(k.sum(-1).flat[0]) if k.size else 0 for k in self.keep)

    def key(self) -> Any:
        """What makes two of them equal."""
        rows = (*self.keep, *self.dead, self.nothing)
        own = (self.path, self.shape, self.lead)
        return own, tuple(r.tobytes() for r in rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which units of a network stay; see `plan`. Hashable; `str` gives the report.

    Attributes:
        leaves: What stays of each parameter, in their order.
        report: For each axis that keeps positions though they are masked, why.
        folded: With `fold=True`, the constants that left.
        ghosts: Whether one of several equal positions stands for all in a sum.
        members: K, for a stack of masks: each member keeps other positions, but as
            many.
    """

    leaves: tuple[Leaf, ...]
    report: tuple[str, ...] = ()
    folded: Folded | None = None
    ghosts: bool = False
    members: int | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> Any:
        folded = None if self.folded is None else self.folded.key()
        leaves = tuple(leaf.key() for leaf in self.leaves)
        return self.members, self.ghosts, folded, leaves

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The small shape of each parameter, by path: what a rebuilt model needs."""
        return {leaf.path: leaf.small for leaf in self.leaves}

    def member(self, i: int) -> Plan:
        """The plan of one member of a stack, a number in [0, K)."""
        if self.members is None or not 0 <= i < self.members:
            raise ValueError(
                "`maskjax.compaction.Plan.member` needs the number of a member, got "
                f"{i} of {self.members or 'a plan of one mask'}."
            )
        leaves = [
            dataclasses.replace(
                leaf,
                keep=tuple(row[i] for row in leaf.keep),
                dead=tuple(row[i] for row in leaf.dead),
                nothing=np.asarray(leaf.nothing[i]),
            )
            for leaf in self.leaves
        ]
        return Plan(tuple(leaves), ghosts=self.ghosts)

    def __str__(self) -> str:
        before = sum(math.prod(leaf.shape) for leaf in self.leaves)
        after = sum(math.prod(leaf.small) for leaf in self.leaves)
        each = "" if self.members is None else f"{self.members} members, each "
        lines = [f"{each}{before:,} -> {after:,} parameters"]
        for leaf in self.leaves:
            if leaf.small != leaf.shape:
                lines.append(f"{leaf.path}: {leaf.shape} -> {leaf.small}")
        return "\n".join([*lines, *self.report])


def require(plan: Any, *, fn: str) -> None:
    """Raise if something is not a plan."""
    if not isinstance(plan, Plan):
        raise TypeError(
            f"`{fn}` needs `plan` as a `Plan`, got {type(plan).__name__}. "
            "`compaction.plan` makes one."
        )


def shrink(tree: Any, plan: Plan) -> Any:
    """What stays of any tree that belongs to the parameters of a plan.

    Give it parameters that the mask was applied to (`maskjax.apply`): each axis keeps
    what any of its units needs, so that entries that were masked may stay.

    Parameters, gradients, moments of optimizers, averages, statistics and masks: a leaf
    belongs to the parameter whose path its own path ends with, and whose shape it has.
    A part of the tree whose paths are those of all parameters belongs to them, also
    where paths are numbers. Other leaves, such as counters, are handed back.

    Args:
        tree: Arrays, or shapes. Mask leaves may be `None`, packed, or have axes of 1.
            With the plan of `fold=True`, parameters of the values that it was made of.
            With that of a stack of K masks, leaves that all members share, or that
            have each its own, [K, ...].
        plan: From `plan`.

    Returns:
        The tree, with smaller leaves; [K, ...] for a stack.

    Raises:
        TypeError: If `plan` is not a plan.
        ValueError: If no leaf of `tree` belongs to a parameter of the plan, or one is
            named like a parameter that shrinks, but has another shape, such as the
            factored moments of `optax.adafactor`.

    Example:
        >>> import jax
        >>> params = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}
        >>> apply = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> mask = {"up": jnp.array([[True, False, True]]), "down": None}
        >>> plan = compaction.plan(apply, params, mask, jnp.ones((1, 2)))
        >>> jax.tree.map(jnp.shape, compaction.shrink(params, plan))
        {'down': (2, 1), 'up': (2, 2)}
    """
    require(plan, fn="maskjax.compaction.shrink")
    return _changed(tree, plan, _taken, [leaf.shape for leaf in plan.leaves], "shrink")


def expand(tree: Any, plan: Plan) -> Any:
    """The inverse of `shrink`: zeros, in masks False, where something was taken out.

    Args:
        tree: A tree that belongs to the small parameters.
        plan: From `plan`.

    Returns:
        The tree, with whole leaves.

    Raises:
        TypeError: As `shrink`.
        ValueError: As `shrink`.

    Example:
        >>> params = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}
        >>> apply = lambda p, x: x @ p["up"] @ p["down"]
        >>> mask = {"up": jnp.array([[True, False, True]]), "down": None}
        >>> plan = compaction.plan(apply, params, mask, jnp.ones((1, 2)))
        >>> compaction.expand(compaction.shrink(params, plan), plan)["up"][0]
        Array([1., 0., 1.], dtype=float32)
    """
    require(plan, fn="maskjax.compaction.expand")
    return _changed(
        tree, plan, _put_back, [leaf.small for leaf in plan.leaves], "expand"
    )


def _changed(tree: Any, plan: Plan, change: Any, shapes: Sequence[Any], fn: str) -> Any:
    leaves, treedef = _matching.named(tree)
    paths, members = [leaf.path for leaf in plan.leaves], plan.members
    owners = _matching.owners(leaves, paths, shapes, members)
    strays = {
        i: [p for p in owned if plan.leaves[p].small != plan.leaves[p].shape]
        for i, owned in _matching.strays(leaves, owners, paths).items()
    }
    checks.raise_all(
        (
            f"{path}: {_matching.shape_of(leaf)}, {named}"
            for i, (path, leaf) in enumerate(leaves)
            if (
                named := ", or ".join(
                    f"{paths[p]} {shapes[p]}" for p in strays.get(i, ())
                )
            )
        ),
        f"`maskjax.compaction.{fn}` needs leaves that are named like parameters to "
        "have their shapes, and one parameter for each. Leave the others out, and make "
        "them anew, as by `optimizer.init`. This tree has",
    )
    if all(owner is None for owner in owners):
        given = [f"{path}: {_matching.shape_of(leaf)}" for path, leaf in leaves]
        given = given or ["a tree without leaves"]
        raise checks.listing(
            given,
            f"`maskjax.compaction.{fn}` needs leaves with the paths and shapes of the "
            "plan's parameters",
        )
    changed = [
        leaf if owner is None else _of_kind(change, leaf, plan.leaves[owner], members)
        for (_, leaf), owner in zip(leaves, owners, strict=True)
    ]
    return treedef.unflatten(changed)


def _of_kind(
    change: Callable[[Any, Leaf, int | None], Any],
    x: Any,
    leaf: Leaf,
    members: int | None,
) -> Any:
    if x is None:
        return None
    if not isinstance(x, PackedMask):
        return change(x, leaf, members)
    whole, pack = _matching.unpacked(x), packing.pack
    of_one = lambda mask: change(mask, leaf, members)  # noqa: E731
    if members is not None:
        pack = jax.vmap(pack)
    else:
        for _ in x.lead:
            of_one, pack = jax.vmap(of_one), jax.vmap(pack)
    if isinstance(whole, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda mask: pack(of_one(mask)), whole)
    return pack(of_one(whole))


def _each(
    one: Callable[..., Any], x: Any, tables: Any, leaf: Leaf, members: int | None
) -> Any:
    """Of a stack, for each member; what has no axis of members is shared."""
    if members is None:
        return one(x, tables)
    own = 0 if x.ndim > len(leaf.shape) else None
    return jax.vmap(one, in_axes=(own, 0), axis_size=members)(x, tables)


def _taken(x: Any, leaf: Leaf, members: int | None) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return _sized(x, leaf.shape, leaf.small, members)
    tables = [None if keep.all() else places(keep) for keep in leaf.keep]

    def one(x: Any, tables: Sequence[Any]) -> Any:
        for axis, table in enumerate(tables):
            if table is not None and x.shape[axis] == leaf.shape[axis]:
                x = rows.taken(x, table, axis)
        return x

    return _each(one, x, tables, leaf, members)


def _sized(x: Any, before: Any, after: Any, members: int | None) -> Any:
    own = x.shape[len(x.shape) - len(before) :]
    pairs = zip(own, before, after, strict=True)
    shape = tuple(to if n == whole else n for n, whole, to in pairs)
    if members is not None:
        return jax.ShapeDtypeStruct((members, *shape), x.dtype)
    where = x.sharding
    if isinstance(where, NamedSharding):
        where = placement.fitted(where, shape)
    return x.update(shape=shape, sharding=where)


def _put_back(x: Any, leaf: Leaf, members: int | None) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return _sized(x, leaf.small, leaf.shape, members)
    # Each whole position has the place of a small one, or one past them: 0.
    ranks = [
        None if keep.all() else np.where(keep, keep.cumsum(-1) - 1, k)
        for keep, k in zip(leaf.keep, leaf.small, strict=True)
    ]

    def one(x: Any, ranks: Sequence[Any]) -> Any:
        for axis, rank in enumerate(ranks):
            if rank is not None and x.shape[axis] == leaf.small[axis]:
                x = rows.taken(x, rank, axis, fill=True)
        return x

    return _each(one, x, ranks, leaf, members)
