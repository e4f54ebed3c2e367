"""From a mask to a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from maskjax import masking, packing
from maskjax._core import checks, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Mask, Params
from maskjax.compaction import _calls, _facts, _follow, _network
from maskjax.compaction._cells import UNEVEN, Cell, Product
from maskjax.compaction._facts import Fact
from maskjax.compaction._folding import Folded, Folding, kind, valued
from maskjax.compaction._network import Network
from maskjax.compaction._plan import Leaf, Plan
from maskjax.compaction._program import Var
from maskjax.compaction._rules import Links

UNUSED = "nothing uses it, mask or no mask"


def plan(
    apply: Callable[..., Any],
    params: Params,
    mask: Mask,
    *inputs: Any,
    state_outputs: Any = None,
    fold: bool = False,
    ghosts: bool = False,
    stack: bool = False,
) -> Plan:
    """What a mask lets you take out of a network, exactly.

    `apply` is traced, and every axis of every value followed to where its positions are
    needed. A position leaves if everything that it is multiplied with, added to or
    summed into stays the same without it. Nothing is computed, and `params` may be
    shapes. The law: for finite values

        narrow(apply, plan)(shrink(masked, plan), *inputs) = apply(masked, *inputs)

    where `masked = maskjax.apply(params, mask)`. Each axis keeps at least one position,
    and each step of a `scan` as many as the others.

    Args:
        apply: `(params, *inputs) -> outputs`, any function that JAX can trace.
        params: Tree of arrays, or of their shapes: everything that is to shrink, with
            batch statistics.
        mask: A mask of the same structure, whose leaves are concrete. Only what it
            removes is taken for 0: parameters that happen to be 0 are not.
        *inputs: What else `apply` takes; arrays, or shapes.
        state_outputs: Which outputs may shrink: a tree of booleans like the output, or
            a prefix of it. By default those that belong to a parameter by path and
            shape, such as new batch statistics.
        fold: Whether channels that are constants leave too: what is left of a channel
            whose kernel is masked, and not the bias or what BatchNorm adds. They move
            into the next dense layer or convolution. For inference: it takes the values
            of `params`, and the small network has no gradients for them. Not for
            stacks.
        ghosts: Whether one of several positions that are provably equal may stand for
            all in a sum. A residual stream then leaves a LayerNorm that passes over its
            inputs twice (Equinox, `use_fast_variance=False`), at one position more. For
            inference: that position has no right gradient.
        stack: Whether `mask` is a stack of K masks: leaves [K, ...]. Each member keeps
            positions of its own, equally many, so that small members have one shape.
            `shrink` then gives leaves [K, ...], and `narrow` runs one member.

    Returns:
        The plan. `str(plan)` reports what leaves, and for each axis that stays though
        it is masked, why.

    Raises:
        TypeError: If a leaf of the mask is not boolean.
        ValueError: If the mask does not fit `params`, or is traced, if members of a
            stack differ in number, or if `fold` is asked for with a stack, or with
            `params` that are shapes, or traced.

    Example:
        >>> import jax
        >>> params = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}
        >>> apply = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
        >>> mask = {"up": jnp.array([[True, False, True]]), "down": None}
        >>> print(compaction.plan(apply, params, mask, jnp.ones((1, 2))))
        9 -> 6 parameters
        down: (3, 1) -> (2, 1)
        up: (2, 3) -> (2, 2)
    """
    fn = "maskjax.compaction.plan"
    members = checks.members(mask, fn=fn, name="mask") if stack else None
    if stack and fold:
        raise ValueError(f"`{fn}` can't fold (`fold=True`) what a stack masks.")
    if members is None:
        rows = checks.masked(params, mask, fn=fn)
    else:
        one = jax.tree.map(_member, mask, is_leaf=trees.is_mask_leaf)
        checks.masked(params, one, fn=fn, names=("params", "a member of mask"))
        rows = checks.rows(params, mask, fn=fn, names=("params", "mask"))
    masks = _concrete(rows, params, fn=fn)
    call = _calls.Call(params, inputs, {})
    network = call.network(apply, state_outputs, fn=fn, members=members)
    numbers = _Numbers(params, mask, fn=fn) if fold else None
    return planned(network, call, masks, numbers, ghosts=ghosts)


def _member(leaf: Any) -> Any:
    """The first mask of a stack, for its shape."""
    if leaf is None:
        return None
    whole = packing.unpack(leaf) if isinstance(leaf, PackedMask) else leaf
    return whole[0]


class _Numbers:
    """The numbers of parameters, as they are and masked, which folding needs."""

    def __init__(self, params: Params, mask: Mask, *, fn: str) -> None:
        wrong = [
            f"{path}: {checks.kind_of(leaf)}"
            for path, leaf in trees.named_leaves(params)
            if isinstance(leaf, Tracer | jax.ShapeDtypeStruct)
        ]
        if wrong:
            needs = f"`{fn}` needs the numbers of `params` for `fold=True`"
            raise checks.listing(wrong, needs)
        self.plain = [np.asarray(x) for x in jax.tree.leaves(params)]
        self.masked = [
            np.asarray(x) for x in jax.tree.leaves(masking.apply(params, mask))
        ]


def _concrete(
    rows: Sequence[Sequence[Any]], params: Params, *, fn: str
) -> list[np.ndarray | None]:
    """The leaves of a mask in NumPy."""
    masks: list[np.ndarray | None] = []
    for path, (_, leaf) in zip(trees.paths(params), rows, strict=True):
        if leaf is None:
            masks.append(None)
            continue
        whole = packing.unpack(leaf) if isinstance(leaf, PackedMask) else leaf
        if isinstance(whole, Tracer):
            raise ValueError(
                f"`{fn}` needs a concrete mask, because shapes depend on it, got a "
                f"traced leaf at {path}. Make the plan outside of `jax.jit`."
            )
        masks.append(np.asarray(whole))
    return masks


def planned(
    network: Network,
    call: _calls.Call,
    masks: Sequence[np.ndarray | None],
    numbers: _Numbers | None,
    *,
    ghosts: bool,
) -> Plan:
    """The plan of a network for a mask, or for a stack."""
    variables = [network.var(i) for i in range(len(masks))]
    present = [(i, var) for i, var in enumerate(variables) if var is not None]

    def unmasked(owner: int, var: Var) -> Fact:
        fact: Fact = (None,) * max(len(var.shape), 1)
        return fact if numbers is None else valued(fact, var, numbers.plain[owner])

    def known(owner: int, var: Var) -> Fact:
        fact = _facts.masked(masks[owner], var)
        return fact if numbers is None else valued(fact, var, numbers.masked[owner])

    def folding() -> Folding | None:
        return (
            None
            if numbers is None
            else Folding(network.program, [v for _, v in present])
        )

    pinned = _follow.Pinned()
    plain = network.links(
        network.facts(unmasked), pinned, folding=folding(), ghosts=ghosts
    )
    plain.solve()

    def wanted(links: Links) -> None:
        for _, var in present:
            for axis in range(len(var.shape)):
                links.need(var, axis, ~plain.needed(var, axis), UNUSED)

    own = folding()
    links, _ = _network.solved(
        network,
        known,
        wanted,
        pinned,
        lambda links: _network.check(network, links, pinned),
        folding=own,
        ghosts=ghosts,
    )
    rows = zip(call.paths, call.shapes, variables, masks, strict=True)
    leaves = tuple(_leaf(*row, links, network.members) for row in rows)
    report = tuple(_report(leaves, variables, links))
    if own is None or numbers is None:
        return Plan(leaves, report, ghosts=ghosts, members=network.members)
    folds = own.folds(links, [(var, numbers.masked[i]) for i, var in present])
    values = tuple(
        None if var is None or len(var.shape) > var.lead + 1 else numbers.masked[i]
        for i, var in enumerate(variables)
    )
    folded = Folded(kind(network.program), values, tuple(folds))
    return Plan(leaves, report, folded, ghosts)


def _leaf(
    path: str,
    shape: tuple[int, ...],
    var: Var | None,
    mask: np.ndarray | None,
    links: Links,
    members: int | None,
) -> Leaf:
    scope = () if members is None else (members,)
    if var is None:  # no input of the function
        every = tuple(np.ones((*scope, n), bool) for n in shape)
        no = tuple(~row for row in every)
        return Leaf(path, shape, 0, every, no, np.zeros(scope, bool))
    keep = tuple(links.at(var, axis).keep for axis in range(len(shape)))
    fact = _facts.masked(mask, var)
    dead = tuple(
        np.zeros_like(row) if known is None else known.zeros()
        for row, known in zip(keep, fact[: len(shape)], strict=True)
    )
    alive = True if mask is None else mask.any(tuple(range(len(scope), mask.ndim)))
    nothing = ~np.broadcast_to(alive, scope)
    return Leaf(path, shape, var.lead, keep, dead, nothing)


def _report(leaves: Sequence[Leaf], firsts: Sequence[Any], links: Links) -> list[str]:
    """For each axis that keeps masked positions, the first cause, and a remedy."""
    found = _axes(leaves, firsts, links)
    lines = []
    for cell, leaf, axis in found:
        keep, dead = leaf.keep[axis], leaf.dead[axis]
        still = keep & dead
        if not still.any():
            continue
        reason = links.reasons[cell.why[still][0]]
        others = [
            other.path
            for same, other, at in found
            if same is cell and other is not leaf and _adds(other, at, still)
        ]
        if reason == UNEVEN:
            reason = _uneven(cell, links.reasons.index(UNEVEN))
        elif reason.startswith("is not zero") and (n := _group(links, cell, dead)):
            reason += (
                f". They leave in whole groups of {n}, or from the same place of "
                "every group"
            )
        elif others and reason.startswith("is not zero"):
            reason += f". {_some(others)} not masked there: mask what goes together"
            reason += ", as `compaction.groups` does, or use `fold=True` for inference"
        elif reason.startswith("is not zero where it is summed"):
            reason += ". `ghosts=True` may help, for inference"
        lines.append(
            f"{leaf.path} axis {axis}: {dead.sum()} of {dead.size} masked, "
            f"{(dead & ~keep).sum()} removed: {reason}"
        )
    return lines


def _uneven(cell: Cell, filled: int) -> str:
    """How many positions each step of a loop needs, and how many it keeps."""
    counts = (cell.keep & (cell.why != filled)).sum(-1).reshape(-1).tolist()
    needed = ", ".join(map(str, counts[:8])) + ", ..." * (len(counts) > 8)
    most = int(cell.keep.sum(-1).max())
    return f"the steps of a loop need {needed} positions, and each keeps {most}"


def _group(links: Links, cell: Cell, dead: np.ndarray) -> int | None:
    """The size of groups, if an axis has some and none of them is masked as a whole."""
    for link in links.links:
        if not isinstance(link, Product) or links.root(link.flat) is not cell:
            continue
        sizes = [factor.size for factor in link.factors]
        if len(sizes) == 2 and min(sizes) > 1 and dead.any():
            grid = dead.reshape(-1, *sizes)
            if not (grid.all(1).any() or grid.all(2).any()):
                return sizes[1]
    return None


def _axes(
    leaves: Sequence[Leaf], firsts: Sequence[Any], links: Links
) -> list[tuple[Cell, Leaf, int]]:
    return [
        (links.at(var, axis), leaf, axis)
        for leaf, var in zip(leaves, firsts, strict=True)
        if var is not None
        for axis in range(len(leaf.shape))
    ]


def _adds(leaf: Leaf, axis: int, still: np.ndarray) -> bool:
    """Whether a bias, a scale or a statistic is not masked where others are."""
    return len(leaf.shape) - leaf.lead == 1 and bool((still & ~leaf.dead[axis]).any())


def _some(paths: Sequence[str]) -> str:
    first = " and ".join(paths[:2])
    if len(paths) > 2:
        first += f" and {len(paths) - 2} more"
    return f"{first} {'is' if len(paths) == 1 else 'are'}"
