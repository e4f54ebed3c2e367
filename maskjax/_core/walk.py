"""Follow parameters through a traced function to where they meet the data.

`score.input_norms` and `report.flops` ask which dot products and convolutions a
parameter enters, and what it meets there. The walk visits the equations of
`jax.make_jaxpr` in order. Each value knows the parameters that it is made of and, for
each of them, which axis of the value runs along which axis of the parameter. What an
equation does with them depends on its primitive:

  * `moves.MOVES`: the entries stay what they are, and the axes move (a cast, a mask)
  * `_CONTRACTIONS`: the parameter meets the other operand
  * `_BODIES`: the walk goes on inside (`jit`, `remat`, custom derivatives, `scan`)

After any other primitive the axes are unknown. A value that depends on the inputs is
data: the parameters that went into it are not followed further. The walk evaluates the
function as it goes, or looks at shapes only.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from maskjax._core import checks, dtypes, moves, trees
from maskjax._core.moves import Axes
from maskjax._core.trees import Array, Params


class Found(NamedTuple):
    """What the walk found out about each parameter, by the parameter's number.

    Attributes:
        flops: Two for each multiplication of one of its entries.
        squares: The sums of squares of the data that meet its entries. They have the
            parameter's rank, and length 1 along axes whose entries meet the same data.
        obstacles: Why the data that it meets can't be measured.
        ends: Where it was lost without meeting data.
    """

    flops: dict[int, int]
    squares: dict[int, Array]
    obstacles: dict[int, str]
    ends: dict[int, str]


class _Value(NamedTuple):
    array: Any  # None where only shapes are walked
    leaves: dict[int, Axes]  # the parameters that it is made of
    data: bool  # whether it depends on the inputs


class _Walk(NamedTuple):
    ranks: Sequence[int]  # of the parameters
    found: Found
    evaluate: bool


def squares(
    apply: Callable[..., Any],
    params: Params,
    inputs: Sequence[Any],
    picks: Sequence[bool],
    *,
    fn: str,
) -> dict[int, Array]:
    """`Found.squares` for each picked leaf, or an error that names those without."""
    found = _find(apply, params, inputs, picks, fn=fn, evaluate=True)
    ends = {
        i: found.obstacles.get(i, found.ends.get(i, "is not used"))
        for i, pick in enumerate(picks)
        if pick and (i in found.obstacles or i not in found.squares)
    }
    _raise(
        ends,
        params,
        f"`{fn}` needs `where` to choose kernels, which meet the inputs in dot "
        "products or convolutions (`& ~where.matching('bias')`, say, leaves others "
        "alone)",
    )
    return found.squares


def flops(
    apply: Callable[..., Any], params: Params, inputs: Sequence[Any], *, fn: str
) -> dict[int, int]:
    """`Found.flops` for each leaf that is part of a contraction."""
    every = [True] * len(jax.tree.leaves(params))
    found = _find(apply, params, inputs, every, fn=fn, evaluate=False)
    needs = f"`{fn}` needs dot products and convolutions that can be counted"
    _raise(found.obstacles, params, needs)
    return found.flops


def _raise(faults: dict[int, str], params: Params, needs: str) -> None:
    """Raise if there are faults, and name the leaves by their paths."""
    if faults:
        paths = trees.paths(params)
        lines = (f"{paths[i]}: {why}" for i, why in sorted(faults.items()))
        raise checks.listing(lines, needs)


# The walk.


def _find(
    apply: Callable[..., Any],
    params: Params,
    inputs: Sequence[Any],
    followed: Sequence[bool],
    *,
    fn: str,
    evaluate: bool,
) -> Found:
    """Trace the function and walk through all of it."""
    if not inputs:
        raise ValueError(
            f"`{fn}` needs `inputs`, to tell data from parameters, got none."
        )
    leaves, treedef = jax.tree.flatten(params)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if checks.shaped(leaf)}

    def of_arrays(arrays: dict[int, Any], *inputs: Any) -> Any:
        merged = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        return apply(treedef.unflatten(merged), *inputs)

    traced = jax.make_jaxpr(of_arrays)(arrays, *inputs)
    ranks = [np.ndim(leaf) for leaf in leaves]
    args = [
        _Value(array, {i: tuple(range(ranks[i]))} if followed[i] else {}, False)
        for i, array in arrays.items()
    ] + [_Value(array, {}, True) for array in jax.tree.leaves(inputs)]
    walk = _Walk(ranks, Found({}, {}, {}, {}), evaluate)
    _follow(traced, args, walk)
    return walk.found


def _follow(jaxpr: Any, args: Sequence[_Value], walk: _Walk) -> list[_Value]:
    """Walk through a jaxpr, open or closed, and return its outputs."""
    consts, jaxpr = getattr(jaxpr, "consts", ()), getattr(jaxpr, "jaxpr", jaxpr)
    values = dict(zip(jaxpr.invars, args, strict=True))
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        values[var] = _Value(const, {}, False)

    def read(atom: Any) -> _Value:
        if isinstance(atom, core.Literal):
            return _Value(atom.val, {}, False)
        return values[atom]

    for equation in jaxpr.eqns:
        out = _step(equation, [read(atom) for atom in equation.invars], walk)
        values.update(zip(equation.outvars, out, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _step(equation: Any, ins: list[_Value], walk: _Walk) -> list[_Value]:
    """The outputs of one equation."""
    carries_leaves = any(value.leaves for value in ins)
    if carries_leaves and equation.primitive.name in _BODIES:
        return _BODIES[equation.primitive.name](equation, ins, walk)
    arrays = [None] * len(equation.outvars)
    if walk.evaluate:
        params = equation.primitive.get_bind_params(equation.params)
        out = equation.primitive.bind(*(value.array for value in ins), **params)
        arrays = out if equation.primitive.multiple_results else [out]
    leaves = _made_of(equation, ins, walk) if carries_leaves else {}
    data = any(value.data for value in ins)
    return [_Value(array, leaves, data) for array in arrays]


def _made_of(equation: Any, ins: list[_Value], walk: _Walk) -> dict[int, Axes]:
    """The parameters that the outputs are made of; the others' ends are noted."""
    name = equation.primitive.name
    if name in _CONTRACTIONS:
        _CONTRACTIONS[name](equation, ins, walk)
        return {}
    entering = [
        (leaf, moves.moved(equation, atom.aval.shape, axes))
        for value, atom in zip(ins, equation.invars, strict=True)
        for leaf, axes in value.leaves.items()
    ]
    if _contracts(equation):
        walk.found.obstacles.update((leaf, f"goes into {name}") for leaf, _ in entering)
        return {}
    if any(value.data for value in ins):
        walk.found.ends.update((leaf, f"goes into {name}") for leaf, _ in entering)
        return {}
    leaves: dict[int, Axes] = {}
    for leaf, axes in entering:
        known = leaves.setdefault(leaf, axes)
        # A parameter divided by its norm keeps its axes; added to its transpose it
        # does not.
        if isinstance(known, str):
            leaves[leaf] = axes
        elif not isinstance(axes, str) and axes != known:
            leaves[leaf] = name
    return leaves


def _contracts(equation: Any) -> bool:
    """Whether a primitive that is not followed contracts something, at any depth."""
    return equation.primitive.name in (*_CONTRACTIONS, "ragged_dot") or any(
        _contracts(inner)
        for jaxpr in core.jaxprs_in_params(equation.params)
        for inner in jaxpr.eqns
    )


# Contractions: note what the parameters in each operand meet.


def _dot(equation: Any, ins: list[_Value], walk: _Walk) -> None:
    contracted, batch = equation.params["dimension_numbers"]
    shapes = [atom.aval.shape for atom in equation.invars]
    lengths = [shapes[0][axis] for axis in contracted[0]]
    flops = 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lengths)
    for own, other in ((0, 1), (1, 0)):
        met = None
        if walk.evaluate and ins[own].leaves and ins[other].data:
            axes = [*batch[other], *contracted[other]]
            places = [*batch[own], *contracted[own]]
            squares = _sum_of_squares(ins[other].array, axes)
            met = _placed(squares, places, len(shapes[own]))
        _note(ins[own], flops, met, walk)


def _convolution(equation: Any, ins: list[_Value], walk: _Walk) -> None:
    image, kernel = ins
    met: Array | str | None = None
    if walk.evaluate and kernel.leaves and image.data:
        met = _features(equation, image.array)
    flops = _convolution_flops(equation)
    _note(kernel, flops, met, walk)
    met = "is the image of a convolution" if walk.evaluate and kernel.data else None
    _note(image, flops, met, walk)


def _convolution_flops(equation: Any) -> int:
    numbers = equation.params["dimension_numbers"]
    image, kernel = (atom.aval.shape for atom in equation.invars)
    out = equation.outvars[0].aval.shape
    # A transposed convolution puts zeros between pixels, which are not counted.
    spatial = zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)
    positions = (
        image[i] if dilation > 1 else out[o]
        for (i, o), dilation in zip(
            spatial, equation.params["lhs_dilation"], strict=True
        )
    )
    return 2 * out[numbers.out_spec[0]] * math.prod(positions) * math.prod(kernel)


def _features(equation: Any, image: Any) -> Array | str:
    """The sums of squares of the features that each entry of a kernel meets."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    outputs, inputs, *_ = numbers.rhs_spec
    groups = params["feature_group_count"]
    if params["batch_group_count"] > 1:
        return "is the kernel of a convolution in groups of the batch"
    squares = _sum_of_squares(image, [numbers.lhs_spec[1]])
    squares = squares.reshape(groups, kernel[inputs])
    if groups > 1:  # outputs come group by group, and each meets its group's inputs
        squares = jnp.repeat(squares, kernel[outputs] // groups, axis=0)
    return _placed(squares, [outputs, inputs], len(kernel))


_CONTRACTIONS = {"conv_general_dilated": _convolution, "dot_general": _dot}


# Bodies that the walk goes into.


def _call(equation: Any, ins: list[_Value], walk: _Walk) -> list[_Value]:
    params = equation.params
    return _follow(params.get("jaxpr", params.get("call_jaxpr")), ins, walk)


def _scan(equation: Any, ins: list[_Value], walk: _Walk) -> list[_Value]:
    """A loop, as a function with operands of its own.

    Operands are constants, which all steps share, then what the loop carries, then
    slices. Sums of squares add up over steps for constants, and are stacked for slices.
    """
    params, data = equation.params, any(value.data for value in ins)
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    carried = range(first, last)
    for i in carried:
        ends = ((leaf, "is carried by scan") for leaf in ins[i].leaves)
        walk.found.ends.update(ends)
    ranks = [len(a.aval.shape) - (i >= last) for i, a in enumerate(equation.invars)]
    args = [
        _Value(
            value.array,
            {i: tuple(range(rank))} if value.leaves and i not in carried else {},
            # What is carried may come to depend on data in a later step.
            value.data or (data and i in carried),
        )
        for i, (value, rank) in enumerate(zip(ins, ranks, strict=True))
    ]
    inner = _Walk(ranks, Found({}, {}, {}, {}), walk.evaluate)
    outs, squares = _looped(params, args, inner)
    for i, value in enumerate(ins):
        met: Any = inner.found.obstacles.get(i, squares.get(i))
        if i < first and i in squares and not isinstance(met, str):
            met = jnp.sum(met, axis=0)
        if i in inner.found.flops or met is not None:
            _note(value, params["length"] * inner.found.flops.get(i, 0), met, walk)
        elif i in inner.found.ends:
            end = f"{inner.found.ends[i]}, in scan"
            walk.found.ends.update((leaf, end) for leaf in value.leaves)
    entering = [leaf for value in ins for leaf in value.leaves]
    leaves: dict[int, Axes] = {} if data else dict.fromkeys(entering, "scan")
    return [_Value(array, leaves, data) for array in outs]


def _looped(
    params: Any, args: Sequence[_Value], inner: _Walk
) -> tuple[Iterable[Any], dict[int, Array]]:
    """The outputs of a loop, and each operand's sums of squares, step by step."""
    n = params["num_carry"]
    first, last = params["num_consts"], params["num_consts"] + n

    def step(carry: Sequence[Any], xs: Sequence[Any]) -> tuple[Any, Any]:
        for notes in inner.found:  # `lax.scan` may trace the step more than once
            notes.clear()
        arrays = [*(value.array for value in args[:first]), *carry, *xs]
        named = [a._replace(array=b) for a, b in zip(args, arrays, strict=True)]
        out = [value.array for value in _follow(params["jaxpr"], named, inner)]
        return out[:n], (out[n:], dict(inner.found.squares))

    carry = [value.array for value in args[first:last]]
    xs = [value.array for value in args[last:]]
    if inner.evaluate:
        loop = {name: params[name] for name in ("length", "reverse", "unroll")}
        carry, (ys, squares) = lax.scan(step, carry, xs, **loop)
    else:
        carry, (ys, squares) = step(carry, xs)
    return (*carry, *ys), squares


_BODIES: dict[str, Callable[[Any, list[_Value], _Walk], list[_Value]]] = {
    "scan": _scan
} | dict.fromkeys(
    "checkpoint closed_call core_call custom_jvp_call custom_vjp_call jit "
    "remat2".split(),
    _call,
)


# Notes.


def _note(value: _Value, flops: int, met: Array | str | None, walk: _Walk) -> None:
    """Note what an operand meets: squares along its axes, an obstacle, or no data."""
    found = walk.found
    for leaf, axes in value.leaves.items():
        found.flops[leaf] = found.flops.get(leaf, 0) + flops
        if met is None:
            found.ends[leaf] = "meets no data"
        elif isinstance(met, str):
            found.obstacles[leaf] = met
        elif isinstance(axes, str):
            found.obstacles[leaf] = f"loses its axes in {axes}"
        else:
            strange = tuple(i for i, axis in enumerate(axes) if axis is None)
            places = [axis for axis in axes if axis is not None]
            placed = _placed(jnp.sum(met, axis=strange), places, walk.ranks[leaf])
            if leaf in found.squares:
                known = found.squares[leaf]
                placed = known + placed.astype(known.dtype)
            found.squares[leaf] = placed


def _sum_of_squares(array: Any, kept: Sequence[int]) -> Array:
    """The sum over all axes but those kept, which come in the order given."""
    array = jnp.abs(jnp.asarray(array))  # complex numbers too
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    wide = dtypes.at_least_float32(array.dtype if floating else jnp.float32)
    rest = tuple(i for i in range(array.ndim) if i not in kept)
    summed = jnp.sum(jnp.square(array.astype(wide)), axis=rest)
    return summed.transpose(np.argsort(np.argsort(kept)))


def _placed(array: Array, places: Sequence[int], rank: int) -> Array:
    """The array with its axes at those places, and length 1 along all others."""
    shape = [1] * rank
    for length, place in zip(array.shape, places, strict=True):
        shape[place] = length
    return array.transpose(np.argsort(places)).reshape(shape)
