"""A `scan` that is evaluated while it is walked."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from maskjax._core.jaxprs import scan_counts
from maskjax._core.trees import Array
from maskjax._core.walk import _parts, _sums
from maskjax._core.walk._bodies import sliced
from maskjax._core.walk._trails import Label, Trail
from maskjax._core.walk._values import Found, Value, Walk


def evaluated(equation: Any, ins: list[Value], walk: Walk) -> list[Value]:
    """A loop, as a function with operands of its own.

    Operands are constants, which all steps share, then what the loop carries, then
    slices. Sums add up over steps for constants, and are stacked for slices.
    """
    params, data = equation.params, any(value.data for value in ins)
    first, n = scan_counts(params)
    last = first + n
    carried = range(first, last)
    found = walk.found
    for i in carried:
        found.ends.update((leaf, "is carried by scan") for leaf in ins[i].leaves)
    # A parameter may come in more than once, and each time another part of it.
    entries = [
        (i, leaf)
        for i, value in enumerate(ins)
        if i not in carried
        for leaf in value.leaves
    ]
    inner = dataclasses.replace(
        walk,
        shapes=[walk.shapes[leaf] for _, leaf in entries],
        axes=[walk.axes[leaf] for _, leaf in entries] if walk.axes else (),
        found=Found(),
    )
    args = []
    for i, value in enumerate(ins):
        leaves = sliced(value.leaves) if i >= last else value.leaves
        own = {k: leaves[leaf] for k, (j, leaf) in enumerate(entries) if j == i}
        # What is carried may come to depend on data in a later step.
        depends = value.data or (data and i in carried)
        args.append(Value(own, depends, value.array))
    outs, sums = _looped(params, args, inner)
    for k, (i, leaf) in enumerate(entries):
        if k in inner.found.misfits:
            found.misfits[leaf] = inner.found.misfits[k]
        if k in inner.found.obstacles:
            found.obstacles[leaf] = inner.found.obstacles[k]
        elif k in sums:
            axes = ins[i].leaves[leaf].axes
            label = axes[0] if i >= last and axes else None
            _add_up(leaf, sums[k], label, walk)
        elif k in inner.found.ends:
            found.ends[leaf] = f"{inner.found.ends[k]}, in scan"
    entering = [leaf for value in ins for leaf in value.leaves]
    lost = Trail(None, lost="scan")
    leaves = {} if data else dict.fromkeys(entering, lost)
    return [Value(leaves, data, array) for array in outs]


def _add_up(leaf: int, sums: dict[Any, Array], label: Label | None, walk: Walk) -> None:
    """Add the sums of all steps, which are stacked, to those of a parameter.

    Args:
        leaf: The parameter.
        sums: For each kind of parts, what each step found.
        label: What the steps are of a slice; `None` of what all steps share.
        walk: That met the loop.
    """
    for part, array in sums.items():
        factors = part.factors
        if label is None:
            total = jnp.sum(array, axis=0)
        else:
            lead = tuple(factor.size for factor in label)
            array = array.reshape(*lead, *array.shape[1:])
            factors, total = _sums.ordered((*label, *factors), array)
        _sums.put(leaf, factors, total, object(), part.at, walk)


def _looped(
    params: Any, args: Sequence[Value], inner: Walk
) -> tuple[Iterable[Any], dict[int, dict[Any, Array]]]:
    """The outputs of a loop, and what each step found for each parameter."""
    first, n = scan_counts(params)
    last = first + n
    keys: dict[int, list[Any]] = {}

    def step(carry: Sequence[Any], xs: Sequence[Any]) -> tuple[Any, Any]:
        inner.found.clear()  # `lax.scan` may trace the step more than once
        arrays = [*(value.array for value in args[:first]), *carry, *xs]
        named = [a._replace(array=b) for a, b in zip(args, arrays, strict=True)]
        out = [value.array for value in inner.follow(params["jaxpr"], named, inner)]
        sums = {
            leaf: _parts.joined(parts, inner.shapes[leaf])
            for leaf, parts in inner.found.sums.items()
        }
        keys.update({leaf: [*parts] for leaf, parts in sums.items()})
        return out[:n], (out[n:], {k: [*parts.values()] for k, parts in sums.items()})

    carry = [value.array for value in args[first:last]]
    xs = [value.array for value in args[last:]]
    loop = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, found) = lax.scan(step, carry, xs, **loop)
    sums = {
        leaf: dict(zip(keys[leaf], arrays, strict=True))
        for leaf, arrays in found.items()
    }
    return (*carry, *ys), sums
