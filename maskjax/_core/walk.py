"""Where parameters meet the data: dot products and convolutions of a traced function.

A walk over the equations of `jax.make_jaxpr` follows each parameter to the contractions
that it enters: through casts, transposes, masks and whatever leaves its entries in
their places; into `jit`, `remat`, custom derivatives and `scan`. Whatever depends on
the inputs is an activation, however many parameters went into it: their trail ends
there. The walk evaluates the function as it goes, or looks at shapes only.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from maskjax._core import checks, dtypes, trees
from maskjax._core.trees import Array, Params

# For each axis of a value the axis of the parameter that runs along it, or None; or the
# name of the operation that lost them.
Axes = tuple[int | None, ...] | str

_CALLS = frozenset(
    "checkpoint closed_call core_call custom_jvp_call custom_vjp_call jit "
    "remat2".split()
)
_CONTRACTIONS = frozenset("conv_general_dilated dot_general ragged_dot".split())
_ELEMENTWISE = frozenset(
    "abs add clamp convert_element_type copy copy_p cos div erf exp expm1 integer_pow "
    "log log1p logistic max min mul neg pow reduce_precision round rsqrt select_n "
    "sharding_constraint sign sin sqrt square stop_gradient sub tanh".split()
)


class Found(NamedTuple):
    """What is known of each parameter, by its number; filled along the way.

    Attributes:
        flops: Two for each multiplication of one of its entries.
        squares: The sums of squares of the data that meet its entries; of its rank, 1
            along axes whose entries all meet the same.
        obstacles: Why what it meets can't be told.
        ends: Where its trail ended without meeting data.
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
    """For each leaf that is picked, by its number, `Found.squares`."""
    found = _find(apply, params, inputs, picks, fn=fn, evaluate=True)
    paths = [path for path, _ in trees.named_leaves(params)]
    checks.raise_all(
        (
            f"{path}: {found.obstacles.get(i, found.ends.get(i, 'is not used'))}"
            for i, (path, pick) in enumerate(zip(paths, picks, strict=True))
            if pick and (i in found.obstacles or i not in found.squares)
        ),
        f"`{fn}` needs `where` to choose kernels, which meet the inputs in dot "
        "products or convolutions (`& ~where.matching('bias')`, say, leaves others "
        "alone)",
    )
    return found.squares


def flops(
    apply: Callable[..., Any], params: Params, inputs: Sequence[Any], *, fn: str
) -> dict[int, int]:
    """For each leaf that is part of a contraction, by its number, `Found.flops`."""
    named = trees.named_leaves(params)
    every = [True] * len(named)
    found = _find(apply, params, inputs, every, fn=fn, evaluate=False)
    checks.raise_all(
        (f"{named[i][0]}: {why}" for i, why in sorted(found.obstacles.items())),
        f"`{fn}` needs dot products and convolutions that can be counted",
    )
    return found.flops


def _find(
    apply: Callable[..., Any],
    params: Params,
    inputs: Sequence[Any],
    followed: Sequence[bool],
    *,
    fn: str,
    evaluate: bool,
) -> Found:
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
    name, params = equation.primitive.name, equation.params
    carries_leaves = any(value.leaves for value in ins)
    if carries_leaves and name in _CALLS:
        return _follow(params.get("jaxpr", params.get("call_jaxpr")), ins, walk)
    if carries_leaves and name == "scan":
        return _scan(equation, ins, walk)
    arrays = [None] * len(equation.outvars)
    if walk.evaluate:
        params = equation.primitive.get_bind_params(params)
        out = equation.primitive.bind(*(value.array for value in ins), **params)
        arrays = out if equation.primitive.multiple_results else [out]
    leaves = _trails(equation, ins, walk) if carries_leaves else {}
    data = any(value.data for value in ins)
    return [_Value(array, leaves, data) for array in arrays]


def _trails(equation: Any, ins: list[_Value], walk: _Walk) -> dict[int, Axes]:
    """Which parameters the outputs are made of; what they meet here is noted."""
    name = equation.primitive.name
    if name == "dot_general":
        _dot(equation, ins, walk)
        return {}
    if name == "conv_general_dilated":
        _convolution(equation, ins, walk)
        return {}
    entering = [
        (leaf, _moved(equation, atom.aval.shape, axes))
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
        # A parameter divided by its norm is still itself; added to its transpose, not.
        if isinstance(known, str):
            leaves[leaf] = axes
        elif not isinstance(axes, str) and axes != known:
            leaves[leaf] = name
    return leaves


def _contracts(equation: Any) -> bool:
    """Whether an operation that is not followed contracts something, at any depth."""
    return equation.primitive.name in _CONTRACTIONS or any(
        _contracts(inner)
        for jaxpr in core.jaxprs_in_params(equation.params)
        for inner in jaxpr.eqns
    )


def _moved(equation: Any, shape: tuple[int, ...], axes: Axes) -> Axes:
    """Where an operation takes the axes of an operand of that shape."""
    name, params = equation.primitive.name, equation.params
    out = equation.outvars[0].aval.shape
    if isinstance(axes, str):
        return axes
    if name in _ELEMENTWISE:
        return axes if shape == out else (None,) * len(out)  # a scalar meets them all
    if name == "transpose":
        return tuple(axes[i] for i in params["permutation"])
    if name == "squeeze":
        return tuple(a for i, a in enumerate(axes) if i not in params["dimensions"])
    moved: list[int | None] = [None] * len(out)
    if name == "broadcast_in_dim":
        for i, place in enumerate(params["broadcast_dimensions"]):
            moved[place] = axes[i] if shape[i] == out[place] else None
        return tuple(moved)
    long = [i for i, length in enumerate(shape) if length != 1]
    places = [i for i, length in enumerate(out) if length != 1]
    if name == "reshape" and [shape[i] for i in long] == [out[i] for i in places]:
        for i, place in zip(long, places, strict=True):
            moved[place] = axes[i]
        return tuple(moved)
    return name


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
    params, numbers = equation.params, equation.params["dimension_numbers"]
    image, kernel = (atom.aval.shape for atom in equation.invars)
    out = equation.outvars[0].aval.shape
    # The zeros that a transposed convolution puts between pixels are not counted.
    spatial = zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)
    positions = (
        image[i] if dilation > 1 else out[o]
        for (i, o), dilation in zip(spatial, params["lhs_dilation"], strict=True)
    )
    flops = 2 * out[numbers.out_spec[0]] * math.prod(positions) * math.prod(kernel)
    met: Array | str | None = None
    if walk.evaluate and ins[1].leaves and ins[0].data:
        features = _sum_of_squares(ins[0].array, [numbers.lhs_spec[1]])
        outputs, inputs, *_ = numbers.rhs_spec
        groups = params["feature_group_count"]
        features = features.reshape(groups, kernel[inputs])
        if groups > 1:  # outputs come group by group, and meet the inputs of their own
            features = jnp.repeat(features, kernel[outputs] // groups, axis=0)
        met = _placed(features, [outputs, inputs], len(kernel))
        if params["batch_group_count"] > 1:
            met = "is the kernel of a convolution in groups of the batch"
    _note(ins[1], flops, met, walk)
    met = "is the image of a convolution" if walk.evaluate and ins[1].data else None
    _note(ins[0], flops, met, walk)


def _scan(equation: Any, ins: list[_Value], walk: _Walk) -> list[_Value]:
    """A loop, whose operands meet what they meet in its body, summed over its steps."""
    params, data = equation.params, any(value.data for value in ins)
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    ranks = [len(a.aval.shape) - (i >= last) for i, a in enumerate(equation.invars)]
    inner = _Walk(ranks, Found({}, {}, {}, {}), walk.evaluate)
    args = [
        _Value(
            value.array,
            {i: tuple(range(rank))} if value.leaves and not first <= i < last else {},
            # What a loop carries may come to depend on data later than in step one.
            value.data or (data and first <= i < last),
        )
        for i, (value, rank) in enumerate(zip(ins, ranks, strict=True))
    ]
    for value in ins[first:last]:
        walk.found.ends.update((leaf, "is carried by scan") for leaf in value.leaves)

    def step(carry: Sequence[Any], xs: Sequence[Any]) -> tuple[Any, Any]:
        for notes in inner.found:  # which an earlier trace may have left
            notes.clear()
        arrays = [*(value.array for value in ins[:first]), *carry, *xs]
        named = [a._replace(array=b) for a, b in zip(args, arrays, strict=True)]
        out = [value.array for value in _follow(params["jaxpr"], named, inner)]
        n = params["num_carry"]
        return out[:n], (out[n:], dict(inner.found.squares))

    carry, xs = (
        [value.array for value in part] for part in (ins[first:last], ins[last:])
    )
    if walk.evaluate:
        loop = {name: params[name] for name in ("length", "reverse", "unroll")}
        carry, (ys, squares) = lax.scan(step, carry, xs, **loop)
    else:
        carry, (ys, squares) = step(carry, xs)
    for i, value in enumerate(ins):
        met = inner.found.obstacles.get(i, squares.get(i))
        if i < first and i in squares and not isinstance(met, str):
            met = jnp.sum(squares[i], axis=0)
        if i in inner.found.flops or met is not None:
            _note(value, params["length"] * inner.found.flops.get(i, 0), met, walk)
        elif i in inner.found.ends:
            end = inner.found.ends[i]
            walk.found.ends.update((leaf, f"{end}, in scan") for leaf in value.leaves)
    entering = [leaf for value in ins for leaf in value.leaves]
    leaves: dict[int, Axes] = {} if data else dict.fromkeys(entering, "scan")
    return [_Value(array, leaves, data) for array in (*carry, *ys)]


def _note(value: _Value, flops: int, met: Array | str | None, walk: _Walk) -> None:
    """Note what an operand meets: squares along its axes, an obstacle, or no data."""
    for leaf, axes in value.leaves.items():
        walk.found.flops[leaf] = walk.found.flops.get(leaf, 0) + flops
        if met is None:
            walk.found.ends[leaf] = "meets no data"
        elif isinstance(met, str):
            walk.found.obstacles[leaf] = met
        elif isinstance(axes, str):
            walk.found.obstacles[leaf] = f"loses its axes in {axes}"
        else:
            strange = tuple(i for i, axis in enumerate(axes) if axis is None)
            places = [axis for axis in axes if axis is not None]
            placed = _placed(jnp.sum(met, axis=strange), places, walk.ranks[leaf])
            if leaf in walk.found.squares:
                known = walk.found.squares[leaf]
                placed = known + placed.astype(known.dtype)
            walk.found.squares[leaf] = placed


def _sum_of_squares(array: Any, kept: Sequence[int]) -> Array:
    """Summed over all axes but those kept, which come in the order given."""
    array = jnp.abs(jnp.asarray(array))  # of complex numbers too
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    wide = dtypes.at_least_float32(array.dtype if floating else jnp.float32)
    rest = tuple(i for i in range(array.ndim) if i not in kept)
    summed = jnp.sum(jnp.square(array.astype(wide)), axis=rest)
    return summed.transpose(np.argsort(np.argsort(kept)))


def _placed(array: Array, places: Sequence[int], rank: int) -> Array:
    """An array of that rank whose axes lie at those places, and 1 elsewhere."""
    shape = [1] * rank
    for length, place in zip(array.shape, places, strict=True):
        shape[place] = length
    return array.transpose(np.argsort(places)).reshape(shape)
