"""A `scan` that is evaluated while it is walked."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from maskjax._core.trees import Array
from maskjax._core.walk import _squares
from maskjax._core.walk._trails import Trail, whole
from maskjax._core.walk._values import Value, Walk


def evaluated(equation: Any, ins: list[Value], walk: Walk) -> list[Value]:
    """A loop, as a function with operands of its own.

    Operands are constants, which all steps share, then what the loop carries, then
    slices. Sums of squares add up over steps for constants, and are stacked for slices.
    """
    params, data = equation.params, any(value.data for value in ins)
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    carried = range(first, last)
    found = walk.found
    for i in carried:
        found.ends.update((leaf, "is carried by scan") for leaf in ins[i].leaves)
    shapes = [
        atom.aval.shape[1:] if i >= last else atom.aval.shape
        for i, atom in enumerate(equation.invars)
    ]
    args = [
        Value(
            {i: whole(shape)} if value.leaves and i not in carried else {},
            # What is carried may come to depend on data in a later step.
            value.data or (data and i in carried),
            value.array,
        )
        for i, (value, shape) in enumerate(zip(ins, shapes, strict=True))
    ]
    inner = Walk(shapes, walk.mode, walk.follow, walk.weights)
    outs, squares = _looped(params, args, inner)
    for i, value in enumerate(ins):
        if i in inner.found.misfits:
            shape = inner.found.misfits[i]
            found.misfits.update(dict.fromkeys(value.leaves, shape))
        if i in inner.found.obstacles:
            end = inner.found.obstacles[i]
            found.obstacles.update((leaf, end) for leaf in value.leaves)
        elif i in squares:
            total = jnp.sum(squares[i], axis=0) if i < first else squares[i]
            _squares.add(value, total, walk)
        elif i in inner.found.ends:
            end = f"{inner.found.ends[i]}, in scan"
            found.ends.update((leaf, end) for leaf in value.leaves)
    entering = [leaf for value in ins for leaf in value.leaves]
    lost = Trail(None, lost="scan")
    leaves = {} if data else dict.fromkeys(entering, lost)
    return [Value(leaves, data, array) for array in outs]


def _looped(
    params: Any, args: Sequence[Value], inner: Walk
) -> tuple[Iterable[Any], dict[int, Array]]:
    """The outputs of a loop, and each operand's sums of squares, step by step."""
    n = params["num_carry"]
    first, last = params["num_consts"], params["num_consts"] + n

    def step(carry: Sequence[Any], xs: Sequence[Any]) -> tuple[Any, Any]:
        inner.found.clear()  # `lax.scan` may trace the step more than once
        arrays = [*(value.array for value in args[:first]), *carry, *xs]
        named = [a._replace(array=b) for a, b in zip(args, arrays, strict=True)]
        out = [value.array for value in inner.follow(params["jaxpr"], named, inner)]
        return out[:n], (out[n:], dict(inner.found.squares))

    carry = [value.array for value in args[first:last]]
    xs = [value.array for value in args[last:]]
    loop = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, squares) = lax.scan(step, carry, xs, **loop)
    return (*carry, *ys), squares
