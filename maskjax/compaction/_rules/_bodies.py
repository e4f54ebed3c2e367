"""Equations with programs inside: loops, conditionals, derivatives, recomputation."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maskjax._core.trees import Array
from maskjax.compaction._facts import Fact, Facts, Known, met
from maskjax.compaction._program import Equation, Var
from maskjax.compaction._rules._rule import Links, Rule
from maskjax.compaction._small import Small


def _same(one: Var, other: Var, links: Links) -> None:
    for axis in range(len(one.shape)):
        links.same(one, axis, other, axis)


def _met(ones: Fact, others: Fact) -> Fact:
    return tuple(met(one, other) for one, other in zip(ones, others, strict=True))


# Loops. Operands are constants of all steps, what is carried, and slices.


def _split(equation: Equation) -> tuple[int, int]:
    first = equation.params["num_consts"]
    return first, first + equation.params["num_carry"]


def _scan_links(equation: Equation, links: Links) -> None:
    [body], (first, last) = equation.bodies, _split(equation)
    links.follow(body)
    n = last - first
    for outside, inside in zip(equation.ins[:first], body.ins[:first], strict=True):
        for axis in range(len(outside.shape)):
            links.same(outside, axis, inside, axis, read=True)
    for i in range(n):
        _same(equation.ins[first + i], body.ins[first + i], links)
        _same(body.ins[first + i], body.outs[i], links)
        _same(body.ins[first + i], equation.outs[i], links)
    pairs = [
        *zip(equation.ins[last:], body.ins[last:], strict=True),
        *zip(equation.outs[n:], body.outs[n:], strict=True),
    ]
    for outside, inside in pairs:
        why = "is cut into the steps of a loop"
        links.pin(outside, [0], why)
        links.counts(outside, inside)
        for axis in range(len(inside.shape)):
            links.same(outside, axis + 1, inside, axis)


def _scan_facts(equation: Equation, facts: Facts) -> list[Fact]:
    """What is carried is known where it is in every step, the greatest such choice."""
    [body], (first, last) = equation.bodies, _split(equation)
    n = last - first
    fixed = [
        _entering(facts, var, inside)
        for var, inside in zip(equation.ins[:first], body.ins[:first], strict=True)
    ]
    carry = [facts.of(var) for var in equation.ins[first:last]]
    rows = [
        _sliced(facts, var, inside)
        for var, inside in zip(equation.ins[last:], body.ins[last:], strict=True)
    ]
    while True:
        facts.update(zip(equation.outs[:n], carry, strict=True))
        inner = [
            _entering(facts, var, inside)
            for var, inside in zip(equation.outs[:n], body.ins[first:last], strict=True)
        ]
        facts.follow(body, [*fixed, *inner, *rows])
        after = [
            _met(before, _leaving(facts, inside, outside))
            for before, inside, outside in zip(
                carry, body.outs[:n], equation.outs[:n], strict=True
            )
        ]
        if all(_equal(a, b) for a, b in zip(carry, after, strict=True)):
            break
        carry = after
    ys = [
        _stacked(facts, inside, outside)
        for inside, outside in zip(body.outs[n:], equation.outs[n:], strict=True)
    ]
    return [*carry, *ys]


def _axes(var: Var) -> list[int]:
    return list(range(len(var.shape))) if var.shape else [-1]


def _entering(facts: Facts, outside: Var, inside: Var) -> Fact:
    """A fact of a value, in every step of a loop."""
    return tuple(facts.spread(outside, a, inside, a) for a in _axes(inside))


def _leaving(facts: Facts, inside: Var, outside: Var) -> Fact:
    return tuple(facts.spread(inside, a, outside, a) for a in _axes(outside))


def _sliced(facts: Facts, outside: Var, inside: Var) -> Fact:
    """One step's slice. Where steps differ, the value outside knows them apart."""
    if inside.shape:
        return tuple(
            facts.spread(outside, axis + 1, inside, axis)
            for axis in range(len(inside.shape))
        )
    known = facts.of(outside)[0]  # a number for each step
    if known is None:
        return (None,)
    return (Known(known.where[..., None], known.value[..., None]),)


def _stacked(facts: Facts, inside: Var, outside: Var) -> Fact:
    """The slices of all steps."""
    if not inside.shape:
        known = facts.of(inside)[0]
        if known is None:
            return (None,)
        return (Known(known.where[..., 0], known.value[..., 0]),)
    rest = (
        facts.spread(inside, axis, outside, axis + 1)
        for axis in range(len(inside.shape))
    )
    return (None, *rest)


def _equal(ones: Fact, others: Fact) -> bool:
    for one, other in zip(ones, others, strict=True):
        if (one is None) != (other is None):
            return False
        if one is not None and other is not None and (one.where != other.where).any():
            return False
    return True


def _scan_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Any]:
    [body], (first, last) = equation.bodies, _split(equation)
    params, n = equation.params, last - first
    consts = [*zip(arrays[:first], equation.ins, body.ins, strict=False)]

    def step(carry: Any, slices: Any) -> Any:
        i, rows = slices
        now = small.inside(i)
        read = [now.part(*const) for const in consts]
        outs = now.follow(body, [*read, *carry, *rows])
        carry = [x.astype(c.dtype) for x, c in zip(outs[:n], carry, strict=True)]
        return carry, outs[n:]

    how = {k: params[k] for k in ("length", "reverse", "unroll") if k in params}
    count = np.arange(params["length"], dtype=np.int32)
    start = [jnp.asarray(x) for x in arrays[first:last]]
    carry, ys = lax.scan(step, start, (count, arrays[last:]), **how)
    return [*carry, *ys]


# Conditionals.


def _cond_links(equation: Equation, links: Links) -> None:
    for body in equation.bodies:
        links.follow(body)
        for outside, inside in zip(equation.ins[1:], body.ins, strict=True):
            _same(outside, inside, links)
        for outside, inside in zip(equation.outs, body.outs, strict=True):
            _same(outside, inside, links)


def _cond_facts(equation: Equation, facts: Facts) -> list[Fact]:
    found: list[Fact] | None = None
    for body in equation.bodies:
        ins = [
            _entering(facts, outside, inside)
            for outside, inside in zip(equation.ins[1:], body.ins, strict=True)
        ]
        facts.follow(body, ins)
        outs = [
            _leaving(facts, inside, outside)
            for inside, outside in zip(body.outs, equation.outs, strict=True)
        ]
        found = outs if found is None else [*map(_met, found, outs)]
    return found or []


def _cond_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Any]:
    index, *operands = arrays
    branches = [
        (lambda *xs, body=body: tuple(small.follow(body, xs)))
        for body in equation.bodies
    ]
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        return list(lax.switch(index, branches, *operands))
    # Of branches for platforms only one is compiled: another may not be able to.
    named = {
        name: branch
        for names, branch in zip(platforms, branches, strict=True)
        for name in names or ("default",)
    }
    return list(lax.platform_dependent(*operands, **named))


# Functions that are called as they are, or with a derivative of their own.


def _call_links(equation: Equation, links: Links) -> None:
    body = equation.bodies[0]
    links.follow(body)
    for outside, inside in zip(equation.ins, body.ins, strict=True):
        _same(outside, inside, links)
    for outside, inside in zip(equation.outs, body.outs, strict=True):
        _same(outside, inside, links)
    for derivative in equation.bodies[1:]:
        links.follow(derivative)
        real = [v for v in body.ins if jnp.issubdtype(v.dtype, jnp.inexact)]
        for one, other in zip([*body.ins, *real], derivative.ins, strict=True):
            _same(one, other, links)
        outs = [v for v in body.outs if jnp.issubdtype(v.dtype, jnp.inexact)]
        for one, other in zip([*body.outs, *outs], derivative.outs, strict=False):
            _same(one, other, links)


def _call_facts(equation: Equation, facts: Facts) -> list[Fact]:
    body = equation.bodies[0]
    ins = [
        _entering(facts, outside, inside)
        for outside, inside in zip(equation.ins, body.ins, strict=True)
    ]
    for derivative in equation.bodies[1:]:
        primals = [
            _entering(facts, outside, inside)
            for outside, inside in zip(
                equation.ins, derivative.ins[: len(ins)], strict=True
            )
        ]
        tangents = derivative.ins[len(ins) :]
        facts.follow(derivative, [*primals, *map(facts.of, tangents)])
    facts.follow(body, ins)
    return [
        _leaving(facts, inside, outside)
        for inside, outside in zip(body.outs, equation.outs, strict=True)
    ]


def _remat_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Any]:
    """The same equation, with a smaller program inside."""
    [body] = equation.bodies
    closed = jax.make_jaxpr(lambda *xs: small.follow(body, xs))(*arrays)
    jaxpr = closed.jaxpr
    jaxpr = jaxpr.replace(constvars=(), invars=[*jaxpr.constvars, *jaxpr.invars])
    return equation.bind(*closed.consts, *arrays, jaxpr=jaxpr)


def _derived_emit(equation: Equation, arrays: list[Array], small: Small) -> list[Any]:
    """A function with a derivative of its own, of small values.

    The derivative is written when it is asked for, when the loops around are closed:
    so their steps are arguments.
    """
    body, derivative = equation.bodies
    moving = [step for step in small.steps if isinstance(step, jax.Array)]

    def at(moving: Sequence[Array]) -> Small:
        now = iter(moving)
        steps = (next(now) if isinstance(s, jax.Array) else s for s in small.steps)
        return small.at(tuple(steps))

    @jax.custom_jvp
    def function(moving: Any, *xs: Array) -> Any:
        return tuple(at(moving).follow(body, xs))

    def derived(moving: Any, primals: Any, tangents: Any) -> list[Array]:
        pairs = zip(tangents, primals, strict=True)
        real = [t for t, x in pairs if jnp.issubdtype(x.dtype, jnp.inexact)]
        return at(moving).follow(derivative, [*primals, *real])

    @function.defjvp
    def _jvp(primals: Any, tangents: Any) -> Any:
        outs = derived(primals[0], primals[1:], tangents[1:])
        n = len(body.outs)
        found = iter(outs[n:])
        out_tangents = tuple(
            next(found)
            if jnp.issubdtype(x.dtype, jnp.inexact)
            else np.zeros(x.shape, jax.dtypes.float0)
            for x in outs[:n]
        )
        return tuple(outs[:n]), out_tangents

    if small.trial:
        jax.eval_shape(derived, moving, arrays, arrays)
    return list(function(moving, *arrays))


_CALL = Rule(_call_links, _call_facts, _remat_emit)

RULES = {
    "scan": Rule(_scan_links, _scan_facts, _scan_emit),
    "cond": Rule(_cond_links, _cond_facts, _cond_emit),
    "remat2": _CALL,
    "checkpoint": _CALL,
    "custom_jvp_call": Rule(_call_links, _call_facts, _derived_emit),
}
