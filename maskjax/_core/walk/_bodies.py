"""Equations that have a body: calls, conditionals and loops, by shapes alone."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from maskjax._core.jaxprs import body_of, scan_counts
from maskjax._core.walk._trails import Trail, merged, sized, strange
from maskjax._core.walk._values import Found, Value, Walk


def _call(equation: Any, ins: list[Value], walk: Walk) -> list[Value]:
    return walk.follow(body_of(equation), ins, walk)


def _branches(equation: Any, ins: list[Value], walk: Walk) -> list[Value]:
    """A conditional is made of what all of its branches are made of."""
    own = dataclasses.replace(walk, inside=walk.inside or "cond")
    outs = [own.follow(body, ins[1:], own) for body in equation.params["branches"]]
    joined = outs[0]
    for other in outs[1:]:
        joined = _joined(joined, other, "cond")
    return [value._replace(data=value.data or ins[0].data) for value in joined]


def _shards(equation: Any, ins: list[Value], walk: Walk) -> list[Value]:
    """`shard_map`: the body has the shapes of one device."""
    body = equation.params["jaxpr"]
    own = dataclasses.replace(walk, inside=walk.inside or "shard_map")
    parts = [_resized(v, atom) for v, atom in zip(ins, body.invars, strict=True)]
    outs = walk.follow(body, parts, own)
    return [_resized(v, atom) for v, atom in zip(outs, equation.outvars, strict=True)]


def _resized(value: Value, atom: Any) -> Value:
    """A part of a value, or the whole, by the shape of what takes it in."""
    leaves = {}
    for leaf, trail in value.leaves.items():
        if trail.axes is not None:
            cut = [
                label if math.prod(f.size for f in label) == n else sized(label, n)
                for label, n in zip(trail.axes, atom.aval.shape, strict=True)
            ]
            axes = None if None in cut else tuple(cut)
            same = axes == trail.axes
            lost = trail.lost if same else trail.lost or "shard_map"
            trail = trail._replace(axes=axes, lost=lost)
        leaves[leaf] = trail
    return value._replace(leaves=leaves)


def _while(equation: Any, ins: list[Value], walk: Walk) -> list[Value]:
    params = equation.params
    first, second = params["cond_nconsts"], params["body_nconsts"]
    consts, carry = ins[first : first + second], ins[first + second :]
    own = dataclasses.replace(walk, inside=walk.inside or "while")

    def step(carry: list[Value], walk: Walk) -> list[Value]:
        done = walk.follow(params["cond_jaxpr"], [*ins[:first], *carry], walk)
        outs = walk.follow(params["body_jaxpr"], [*consts, *carry], walk)
        return [value._replace(data=value.data or done[0].data) for value in outs]

    outs = _settled(step, carry, len(carry), own, "while")
    return _joined(carry, outs, "while")  # there may be no step


def _scan(equation: Any, ins: list[Value], walk: Walk) -> list[Value]:
    """A loop over slices; an axis that it slices is a stack.

    Operands are constants, which all steps share, then what the loop carries, then
    slices.
    """
    params = equation.params
    length, (first, n) = params["length"], scan_counts(params)
    consts, carry, xs = ins[:first], ins[first : first + n], ins[first + n :]
    rows = [value._replace(leaves=sliced(value.leaves)) for value in xs]
    own = dataclasses.replace(walk, times=walk.times * length)

    def step(carry: list[Value], walk: Walk) -> list[Value]:
        return walk.follow(params["jaxpr"], [*consts, *carry, *rows], walk)

    outs = _settled(step, carry, n, own, "scan")
    tops = {
        leaf: trail.axes[0]
        for value in xs
        for leaf, trail in value.leaves.items()
        if trail.axes is not None
    }
    stacked = [
        value._replace(
            leaves={
                leaf: _stacked(trail, tops.get(leaf), length)
                for leaf, trail in value.leaves.items()
            }
        )
        for value in outs[n:]
    ]
    return [*_joined(carry, outs[:n], "scan"), *stacked]


def sliced(leaves: dict[int, Trail]) -> dict[int, Trail]:
    """One step's slices."""
    return {
        leaf: trail
        if trail.axes is None
        else trail._replace(
            axes=trail.axes[1:],
            gone=trail.gone | {("stack", f.axis) for f in trail.axes[0]},
        )
        for leaf, trail in leaves.items()
    }


def _stacked(trail: Trail, top: Any, length: int) -> Trail:
    """The slices of all steps; those of a parameter's slices run along its axis."""
    if trail.axes is None:
        return trail
    back = frozenset(("stack", factor.axis) for factor in top or ())
    if top is None or not back <= trail.gone:
        return trail._replace(axes=(strange(length), *trail.axes))
    return trail._replace(axes=(top, *trail.axes), gone=trail.gone - back)


def _settled(
    step: Callable[[list[Value], Walk], list[Value]],
    carry: Sequence[Value],
    n: int,
    walk: Walk,
    name: str,
) -> list[Value]:
    """The outputs of a step, once its notes hold for all steps.

    What a loop carries may come to depend on data, or on parameters, in a later step.
    """
    carry = [value._replace(array=None) for value in carry]
    while True:
        own = dataclasses.replace(walk, found=Found())
        outs = step(carry, own)
        joined = _joined(carry, outs[:n], name)
        if joined == carry:
            walk.found.absorb(own.found)
            return outs
        carry = joined


def _joined(some: list[Value], others: list[Value], name: str) -> list[Value]:
    """Values that are made of either."""
    out = []
    for one, other in zip(some, others, strict=True):
        leaves = dict(one.leaves)
        for leaf, trail in other.leaves.items():
            known = leaves.get(leaf)
            leaves[leaf] = trail if known is None else merged(known, trail, name)
        data = one.data or other.data
        out.append(Value(leaves, data, None))
    return out


CALLS: dict[str, Callable[[Any, list[Value], Walk], list[Value]]] = dict.fromkeys(
    "checkpoint closed_call core_call custom_jvp_call custom_partitioning "
    "custom_vjp_call custom_vjp_call_jaxpr custom_vmap_call jit pjit remat2".split(),
    _call,
)
BODIES = {"cond": _branches, "scan": _scan, "shard_map": _shards, "while": _while}
