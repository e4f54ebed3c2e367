"""The walk: equation by equation, and into the bodies of those that have some."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from maskjax._core import checks
from maskjax._core.trees import Params
from maskjax._core.walk import _bodies, _loop, _moves
from maskjax._core.walk._meetings import CONTRACTIONS
from maskjax._core.walk._trails import Trail, merged, strange, whole
from maskjax._core.walk._values import Found, Meeting, Mode, Value, Walk


def found(
    apply: Callable[..., Any],
    params: Params,
    inputs: Sequence[Any],
    followed: Sequence[bool],
    *,
    fn: str,
    mode: Mode,
    weights: Any = None,
    axes: Sequence[Any] = (),
) -> Found:
    """Trace the function and walk through all of it.

    Args:
        apply: `(params, *inputs) -> output`.
        params: Tree of arrays or `jax.ShapeDtypeStruct`s; the rest is left as it is.
        inputs: The data: arrays or, unless they are evaluated, their shapes.
        followed: Which leaves of `params` are followed.
        fn: The public function that errors blame.
        mode: What is asked for.
        weights: For the rows of data, where they are measured.
        axes: The roles of the parameters' axes, for the mode "grams".

    Raises:
        TypeError: If `apply` is no function.
        ValueError: If there are no inputs.
    """
    checks.function(apply, "(params, *inputs) -> output", fn=fn, name="apply")
    if not inputs:
        raise ValueError(
            f"`{fn}` needs `inputs`, to tell data from parameters, got none."
        )
    leaves, treedef = jax.tree.flatten(params)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if checks.shaped(leaf)}

    def of_arrays(arrays: dict[int, Any], *inputs: Any) -> Any:
        merged = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        out = jax.tree.leaves(apply(treedef.unflatten(merged), *inputs))
        return [leaf for leaf in out if checks.shaped(leaf)]  # models have others

    try:
        traced = jax.make_jaxpr(of_arrays)(arrays, *inputs)
    except Exception as error:
        kinds = ", ".join(map(_kind, jax.tree.leaves(inputs)))
        error.add_note(f"`{fn}` traced the function with inputs of {kinds}.")
        raise
    shapes = [tuple(getattr(leaf, "shape", ())) for leaf in leaves]
    args = [
        Value({i: whole(shapes[i])} if followed[i] else {}, False, array)
        for i, array in arrays.items()
    ] + [Value({}, True, array) for array in jax.tree.leaves(inputs)]
    walk = Walk(shapes, mode, follow, weights, axes)
    follow(traced, args, walk)
    return walk.found


def _kind(leaf: Any) -> str:
    """The dtype and shape of an array, as JAX prints them."""
    if not checks.shaped(leaf):
        return checks.kind_of(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def follow(jaxpr: Any, args: Sequence[Value], walk: Walk) -> list[Value]:
    """Walk through a jaxpr, open or closed, and return its outputs."""
    consts, jaxpr = getattr(jaxpr, "consts", ()), getattr(jaxpr, "jaxpr", jaxpr)
    values = dict(zip(jaxpr.invars, args, strict=True))
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        values[var] = Value({}, False, const)

    def read(atom: Any) -> Value:
        if isinstance(atom, core.Literal):
            return Value({}, False, atom.val)
        return values[atom]

    for equation in jaxpr.eqns:
        out = _step(equation, [read(atom) for atom in equation.invars], walk)
        values.update(zip(equation.outvars, out, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _step(equation: Any, ins: list[Value], walk: Walk) -> list[Value]:
    """The outputs of one equation."""
    name, evaluate = equation.primitive.name, walk.evaluates
    carries = any(value.leaves for value in ins)
    skipped = carries and walk.mode != "flops" and _is_of_a_gradient(equation)
    if carries and not skipped:
        if name == "scan" and evaluate:
            return _loop.evaluated(equation, ins, walk)
        if name in _bodies.CALLS or not evaluate and name in _bodies.BODIES:
            return (_bodies.CALLS | _bodies.BODIES)[name](equation, ins, walk)
    arrays = [None] * len(equation.outvars)
    if evaluate:
        params = equation.primitive.get_bind_params(equation.params)
        out = equation.primitive.bind(*(value.array for value in ins), **params)
        arrays = out if equation.primitive.multiple_results else [out]
    data = any(value.data for value in ins)
    if not carries or skipped:
        return [Value({}, data, array) for array in arrays]
    if name in CONTRACTIONS:
        leaves = CONTRACTIONS[name](equation, ins, walk)
        return [Value({} if data else leaves, data, array) for array in arrays]
    return [
        Value(_made_of(equation, ins, walk, i), data, array)
        for i, array in enumerate(arrays)
    ]


def _is_of_a_gradient(equation: Any) -> bool:
    """Whether an equation is part of a backward pass.

    There, a kernel meets gradients of its outputs.
    """
    return any(
        part.name == "transpose" and type(part).__name__ == "Transform"
        for part in equation.source_info.name_stack.stack
    )


def _made_of(equation: Any, ins: list[Value], walk: Walk, i: int) -> dict[int, Trail]:
    """The parameters that output i is made of; the others' ends are noted."""
    name, found = equation.primitive.name, walk.found
    if name in _ONE_BY_ONE:
        ins = [v if k == i else v._replace(leaves={}) for k, v in enumerate(ins)]
    entering = [
        (value.data, leaf, _moves.moved(equation, atom.aval.shape, trail, place, i))
        for place, (value, atom) in enumerate(zip(ins, equation.invars, strict=True))
        for leaf, trail in value.leaves.items()
    ]
    end = f"goes into {name}"
    data = sum(value.data for value in ins)
    if not _moves.moves(name) and _contracts(equation):
        if walk.mode != "roles":
            found.obstacles.update((leaf, end) for _, leaf, _ in entering)
            return {}
        if data:  # a kernel of Pallas, say
            found.meetings.update(
                Meeting(leaf, frozenset(), trail.gone, end, trail.partial)
                for _, leaf, trail in entering
                if len(walk.shapes[leaf]) > 1
            )
            return {}
    if data and walk.mode != "roles":
        found.ends.update((leaf, end) for _, leaf, _ in entering)
        return {}
    if data and name in _CHOICES and not ins[0].data:
        moved = {leaf: trail for _, leaf, trail in entering}
        return _chosen(equation, ins, moved, walk)
    leaves: dict[int, Trail] = {}
    for chosen, leaf, trail in entering:
        if data and not (chosen and data == 1):
            found.touched.add((leaf, trail, name))
            continue
        known = leaves.get(leaf)
        leaves[leaf] = trail if known is None else merged(known, trail, name)
    return leaves


# Each output is made of the operand at its place.
_ONE_BY_ONE = ("device_put", "optimization_barrier", "psum", "psum_invariant")
# Operands after the first choose entries of the first.
_CHOICES = ("gather", "dynamic_slice")


def _chosen(
    equation: Any, ins: list[Value], leaves: dict[int, Trail], walk: Walk
) -> dict[int, Trail]:
    """Rows that data chooses: the axes along which it does are looked up."""
    found: dict[int, Trail] = {}
    shape = equation.invars[0].aval.shape
    sizes = equation.params["slice_sizes"]
    looked = [i for i, size in enumerate(sizes) if size != shape[i]]
    for leaf, trail in leaves.items():
        before = ins[0].leaves.get(leaf)
        if trail.axes is None or before is None or before.axes is None:
            walk.found.touched.add((leaf, trail, equation.primitive.name))
            continue
        axes = {f.axis for i in looked for f in before.axes[i]}
        kept = (pair for pair in trail.gone if pair[1] not in axes)
        gone = frozenset(kept) | {("lookup", axis) for axis in axes}
        labels = tuple(
            strange(n) if any(f.axis in axes for f in label) else label
            for label, n in zip(trail.axes, equation.outvars[0].aval.shape, strict=True)
        )
        found[leaf] = trail._replace(axes=labels, gone=gone)
        walk.found.touched.add((leaf, found[leaf], "lookup"))
    return found


def _contracts(equation: Any) -> bool:
    """Whether a primitive that is not followed contracts something, at any depth."""
    return equation.primitive.name in CONTRACTIONS or any(
        _contracts(inner)
        for jaxpr in core.jaxprs_in_params(equation.params)
        for inner in jaxpr.eqns
    )
