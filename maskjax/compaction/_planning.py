"""From a mask to a plan."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from maskjax import packing
from maskjax._core import checks, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Mask, Params
from maskjax.compaction import _calls, _facts, _follow, _network
from maskjax.compaction._facts import Fact
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
    stack: bool = False,
) -> Plan:
    """What a mask lets you take out of a network, exactly.

    `apply` is traced, and every axis of every value followed to where its positions are
    needed. A position leaves if everything that it is multiplied with, added to or summed
    into stays the same without it. Nothing is computed, and `params` may be shapes. The
    law: for finite values

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
        state_outputs: Which outputs may shrink: a tree of booleans like the output, or a
            prefix of it. By default those that belong to a parameter by path and shape,
            such as new batch statistics.
        stack: Whether `mask` is a stack of K masks: leaves [K, ...]. Each member keeps
            positions of its own, equally many, so that small members have one shape.
            `shrink` then gives leaves [K, ...], and `narrow` runs one member.

    Returns:
        The plan. `str(plan)` reports what leaves, and for each axis that stays though it
        is masked, why.

    Raises:
        TypeError: If a leaf of the mask is not boolean.
        ValueError: If the mask does not fit `params`, or is traced, or members of a
            stack differ in number.

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
    members = checks.members(mask, fn=fn) if stack else None
    if members is None:
        rows = checks.masked(params, mask, fn=fn)
    else:
        one = jax.tree.map(_member, mask, is_leaf=trees.is_mask_leaf)
        checks.masked(params, one, fn=fn, names=("params", "a member of mask"))
        rows = checks.rows(params, mask, fn=fn, names=("params", "mask"))
    masks = _concrete(rows, params, fn=fn)
    call = _calls.Call(params, inputs, {})
    network = call.network(apply, state_outputs, fn=fn, members=members)
    return planned(network, call, masks, members)


def _member(leaf: Any) -> Any:
    """The first mask of a stack, for its shape."""
    if leaf is None:
        return None
    whole = packing.unpack(leaf) if isinstance(leaf, PackedMask) else leaf
    return whole[0]


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
        if isinstance(whole, jax.core.Tracer):
            raise ValueError(
                f"`{fn}` needs a concrete mask, because shapes depend on it, got a "
                f"traced leaf at {path}. Make the plan outside of `jax.jit`."
            )
        masks.append(np.asarray(whole))
    return masks


def planned(
    network: Network,
    call: "_calls.Call",
    masks: Sequence[np.ndarray | None],
    members: int | None = None,
) -> Plan:
    """The plan of a network for a mask, or for each of so many."""

    def nothing(_: int, var: Var) -> Fact:
        return (None,) * max(len(var.shape), 1)

    def known(owner: int, var: Var) -> Fact:
        mask = masks[owner]
        return nothing(owner, var) if mask is None else _facts.masked(mask, var)

    pinned = _follow.Pinned()
    plain = network.links(network.facts(nothing), pinned, inputs=False)
    plain.solve()
    firsts = [network.var(i) for i in range(len(masks))]

    def wanted(links: Links) -> None:
        for var in firsts:
            for axis in range(len(var.shape) if var is not None else 0):
                if var is not None:
                    links.need(var, axis, ~plain.needed(var, axis), UNUSED)

    scope = () if members is None else (members,)
    links, _ = _network.solved(
        network,
        known,
        wanted,
        pinned,
        lambda links: _tried(network, links, pinned, scope),
    )
    leaves = [
        _leaf(path, shape, var, links, known(i, var) if var is not None else (), scope)
        for i, (path, shape, var) in enumerate(
            zip(call.paths, call.shapes, firsts, strict=True)
        )
    ]
    return Plan(tuple(leaves), tuple(_report(leaves, firsts, links)), members)


def _tried(
    network: Network, links: Links, pinned: _follow.Pinned, scope: tuple[int, ...]
) -> Any:
    """Write the small program for shapes alone, to see that it can be."""
    shapes = _network.small_shapes(network, links)
    member = [jax.ShapeDtypeStruct((), np.int32)] * len(scope)

    def small(member: list[Any], *arrays: Any) -> Any:
        return _network.written(network, links, pinned, arrays, tuple(member))

    return jax.eval_shape(small, member, *shapes)


def _leaf(
    path: str,
    shape: tuple[int, ...],
    var: Var | None,
    links: Links,
    fact: Fact,
    scope: tuple[int, ...],
) -> Leaf:
    if var is None:  # no input of the function
        every = tuple(np.ones((*scope, n), bool) for n in shape)
        return Leaf(path, shape, 0, every, tuple(~row for row in every))
    keep = tuple(_network.kept(links, var, axis) for axis in range(len(shape)))
    dead = tuple(
        np.zeros_like(row) if known is None else known.zeros()
        for row, known in zip(keep, fact if shape else (), strict=True)
    )
    return Leaf(path, shape, var.lead, keep, dead)


def _report(leaves: Sequence[Leaf], firsts: Sequence[Any], links: Links) -> list[str]:
    """For each axis that keeps masked positions, the first cause."""
    lines = []
    for leaf, var in zip(leaves, firsts, strict=True):
        for axis, (keep, dead) in enumerate(zip(leaf.keep, leaf.dead, strict=True)):
            still = keep & dead
            if var is None or not still.any():
                continue
            number = links.at(var, axis).why[still][0]
            lines.append(
                f"{leaf.path} axis {axis}: {dead.sum()} of {dead.size} masked, "
                f"{(dead & ~keep).sum()} removed: {links.reasons[number]}"
            )
    return lines
