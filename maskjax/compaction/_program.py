"""A traced function as a list of equations: calls inlined, dead code left out.

A `Var` belongs to one place of one program, so what is found out about it is kept in
dictionaries. Its `scope` has the length of every loop around it: inside a `scan` of 12
steps, what is known of a value is known for each step. Its `lead` says how many of its
own first axes count steps of a loop elsewhere, as those of stacked parameters do; the
positions that its other axes keep may differ along these.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core


class Var:
    """A value of a program."""

    __slots__ = ("dtype", "lead", "scope", "shape")

    def __init__(self, aval: Any, scope: tuple[int, ...]) -> None:
        self.shape: tuple[int, ...] = tuple(getattr(aval, "shape", ()))
        self.dtype: Any = getattr(aval, "dtype", None)
        self.scope = scope
        self.lead = 0

    def prefix(self, axis: int) -> tuple[int, ...]:
        """Along what the positions of an axis may differ."""
        return self.scope if axis < self.lead else self.scope + self.shape[: self.lead]


class Const(Var):
    """A constant: a number in the program's text, or an array that it closes over."""

    __slots__ = ("value",)

    def __init__(self, value: Any, aval: Any, scope: tuple[int, ...]) -> None:
        super().__init__(aval, scope)
        self.value = value


@dataclasses.dataclass(eq=False)
class Equation:
    """Outputs of a primitive, of what, and where in the user's program.

    `bodies` are the programs inside: the step of a loop, the branches of a conditional,
    a function with its derivative.
    """

    primitive: Any
    params: dict[str, Any]
    ins: list[Var]
    outs: list[Var]
    place: str
    bodies: tuple["Program", ...] = ()
    effects: bool = False

    @property
    def name(self) -> str:
        return self.primitive.name

    def bind(self, *arrays: Any, **changes: Any) -> list[Any]:
        """The primitive itself, of other arrays."""
        params = self.primitive.get_bind_params({**self.params, **changes})
        out = self.primitive.bind(*arrays, **params)
        return list(out) if self.primitive.multiple_results else [out]


@dataclasses.dataclass(eq=False)
class Program:
    """Equations in order, from inputs to outputs."""

    ins: list[Var]
    outs: list[Var]
    equations: list[Equation]


_CALLS = frozenset("closed_call core_call custom_vmap_call jit pjit custom_lin".split())


def traced(fun: Callable[..., Any], args: Sequence[Any]) -> tuple[Program, Any]:
    """The program of a function of shapes or arrays, and its output's shapes."""
    closed, out = jax.make_jaxpr(fun, return_shape=True)(*args)
    program = _program(closed, (), "", guard=False)
    _own_constants(program)
    _trim(program, [True] * len(program.outs))
    _lead(program)
    return program, out


def _program(
    closed: Any, scope: tuple[int, ...], place: str, *, guard: bool
) -> Program:
    ins = [Var(v.aval, scope) for v in closed.jaxpr.invars]
    reader = _Reader(scope, guard=guard)
    outs = reader.read(closed.jaxpr, closed.consts, ins, place)
    return Program(ins, outs, reader.equations)


class _Reader:
    """Reads a jaxpr and what it calls into one list of equations."""

    def __init__(self, scope: tuple[int, ...], *, guard: bool) -> None:
        self.scope, self.guard = scope, guard
        self.equations: list[Equation] = []

    def read(self, jaxpr: Any, consts: Any, ins: Sequence[Var], place: str) -> Any:
        env = dict(zip(jaxpr.invars, ins, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            is_var = isinstance(value, Var)
            env[var] = value if is_var else Const(value, var.aval, self.scope)

        def atom(x: Any) -> Var:
            if isinstance(x, core.Literal):
                return Const(x.val, x.aval, self.scope)
            return env[x]

        for eqn in jaxpr.eqns:
            here = "/".join(filter(None, (place, str(eqn.source_info.name_stack))))
            atoms = [atom(x) for x in eqn.invars]
            name = eqn.primitive.name
            # A derivative may call its own function: that is what is written there.
            if name in _CALLS or name == "custom_jvp_call" and self.guard:
                outs = self._called(eqn, atoms, here)
            else:
                outs = [Var(x.aval, self.scope) for x in eqn.outvars]
                if name == "reshape" and eqn.params["dimensions"] is not None:
                    atoms = [self._permuted(eqn, atoms[0], here)]
                self.equations.append(self._equation(eqn, atoms, outs, here))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [atom(x) for x in jaxpr.outvars]

    def _permuted(self, eqn: Any, x: Var, here: str) -> Var:
        """A reshape may permute axes first: that is an equation of its own."""
        order = tuple(eqn.params["dimensions"])
        shape = tuple(x.shape[i] for i in order)
        out = Var(jax.ShapeDtypeStruct(shape, x.dtype), self.scope)
        params = {"permutation": order}
        self.equations.append(Equation(lax.transpose_p, params, [x], [out], here))
        return out

    def _called(self, eqn: Any, atoms: list[Var], here: str) -> list[Var]:
        params = eqn.params
        body = next(params[n] for n in ("jaxpr", "call_jaxpr", "call") if n in params)
        closed = hasattr(body, "consts")
        jaxpr, consts = (body.jaxpr, body.consts) if closed else (body, ())
        return self.read(jaxpr, consts, atoms, here)

    def _equation(
        self, eqn: Any, atoms: list[Var], outs: list[Var], here: str
    ) -> Equation:
        def inside(body: Any, scope: tuple[int, ...] = self.scope) -> Program:
            return _program(body, scope, here, guard=self.guard)

        name, params = eqn.primitive.name, eqn.params
        bodies: tuple[Program, ...] = ()
        if name == "scan":
            bodies = (inside(params["jaxpr"], (*self.scope, params["length"])),)
        elif name == "cond":
            bodies = tuple(inside(body) for body in params["branches"])
        elif name in ("remat2", "checkpoint"):
            bodies = (inside(core.ClosedJaxpr(params["jaxpr"], ())),)
        elif name == "custom_jvp_call":
            derivative = _program(_derivative(eqn, atoms), self.scope, here, guard=True)
            bodies = (inside(params["call_jaxpr"]), derivative)
        if name == "reshape":
            params = {**params, "dimensions": None}
        return Equation(
            eqn.primitive, params, atoms, outs, here, bodies, bool(eqn.effects)
        )


def _derivative(eqn: Any, atoms: Sequence[Var]) -> Any:
    """The program of a custom derivative, from primals and tangents."""
    shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in atoms]

    def fun(*primals: Any) -> Any:
        params = eqn.primitive.get_bind_params(eqn.params)
        return eqn.primitive.bind(*primals, **params)

    def jvp(primals: Any, tangents: Any) -> Any:
        given = iter(tangents)
        every = [
            next(given) if _real(x) else np.zeros(x.shape, jax.dtypes.float0)
            for x in primals
        ]
        outs, rates = jax.jvp(fun, primals, tuple(every))
        return outs, [t for x, t in zip(outs, rates, strict=True) if _real(x)]

    return jax.make_jaxpr(jvp)(tuple(shapes), tuple(filter(_real, shapes)))


def _real(x: Any) -> bool:
    return jax.numpy.issubdtype(x.dtype, jax.numpy.inexact)


# Constants.


def _own_constants(program: Program) -> None:
    """Arrays of one number are made anew for each use.

    Two layers may start from the same zeros: that does not make their units the same.
    """
    made: dict[Var, Equation] = {}
    equations: list[Equation] = []

    def own(var: Var) -> Var:
        if var not in made:
            return var
        out = Var(var, var.scope)
        equations.append(_again(made[var], out))
        return out

    for equation in program.equations:
        if _is_one_number(equation):
            made[equation.outs[0]] = equation
            continue
        if equation.name == "scan":
            _push_inside(equation, made)
        equation.ins = [own(var) for var in equation.ins]
        equations.append(equation)
        for body in equation.bodies:
            _own_constants(body)
    program.outs[:] = [own(var) for var in program.outs]
    program.equations[:] = equations


def _is_one_number(equation: Equation) -> bool:
    return (
        equation.name == "broadcast_in_dim"
        and len(equation.ins) == 1
        and isinstance(equation.ins[0], Const)
        and not equation.ins[0].shape
    )


def _again(equation: Equation, out: Var) -> Equation:
    [number] = equation.ins
    assert isinstance(number, Const), "a number in the program's text"
    own = Const(number.value, number, out.scope)
    return Equation(equation.primitive, equation.params, [own], [out], equation.place)


def _push_inside(equation: Equation, made: dict[Var, Equation]) -> None:
    """What is the same in all steps of a loop, and one number, is made in each step."""
    [body], n = equation.bodies, equation.params["num_consts"]
    gone = [i < n and var in made for i, var in enumerate(equation.ins)]
    inside = [
        _again(made[var], own)
        for var, own, out in zip(equation.ins, body.ins, gone, strict=True)
        if out
    ]
    body.equations[:0] = inside
    stays = [not out for out in gone]
    equation.ins[:] = _picked(equation.ins, stays)
    body.ins[:] = _picked(body.ins, stays)
    equation.params = {**equation.params, "num_consts": n - sum(gone)}


# Dead code.


def _trim(program: Program, used: Sequence[bool]) -> list[bool]:
    """Drop the equations that no used output needs; tell which inputs are needed."""
    live = {var for var, use in zip(program.outs, used, strict=True) if use}
    kept = []
    for equation in reversed(program.equations):
        wanted = [var in live for var in equation.outs]
        if not any(wanted) and not equation.effects:
            continue
        cut = _TRIMMED.get(equation.name, _whole)
        live.update(cut(equation, wanted))
        kept.append(equation)
    program.equations[:] = reversed(kept)
    return [var in live for var in program.ins]


def _whole(equation: Equation, wanted: list[bool]) -> list[Var]:
    for body in equation.bodies:
        _trim(body, [True] * len(body.outs))
    return equation.ins


def _picked(items: Sequence[Any], picks: Sequence[bool]) -> list[Any]:
    return [item for item, pick in zip(items, picks, strict=True) if pick]


def _trim_body(equation: Equation, wanted: list[bool]) -> list[Var]:
    """A function that is called as it is: only its inputs and outputs are fewer."""
    [body] = equation.bodies
    used = _trim(body, wanted)
    body.outs[:] = _picked(body.outs, wanted)
    equation.outs[:] = _picked(equation.outs, wanted)
    body.ins[:] = _picked(body.ins, used)
    equation.ins[:] = _picked(equation.ins, used)
    return equation.ins


def _trim_cond(equation: Equation, wanted: list[bool]) -> list[Var]:
    for body in equation.bodies:
        body.outs[:] = _picked(body.outs, wanted)
    each = [_trim(body, [True] * len(body.outs)) for body in equation.bodies]
    used = [any(uses) for uses in zip(*each, strict=True)]
    for body in equation.bodies:
        body.ins[:] = _picked(body.ins, used)
    equation.outs[:] = _picked(equation.outs, wanted)
    equation.ins[:] = [equation.ins[0], *_picked(equation.ins[1:], used)]
    return equation.ins


def _trim_scan(equation: Equation, wanted: list[bool]) -> list[Var]:
    """What is carried is needed if a needed output or carry of the step needs it."""
    params, [body] = equation.params, equation.bodies
    first, n = params["num_consts"], params["num_carry"]
    carry = wanted[:n]
    while True:
        trial = Program(body.ins, body.outs, list(body.equations))
        used = _needs(trial, [*carry, *wanted[n:]])
        more = [a or b for a, b in zip(carry, used[first : first + n], strict=True)]
        if more == carry:
            break
        carry = more
    keeps = [*carry, *wanted[n:]]
    used = _trim(body, keeps)
    used[first : first + n] = carry
    body.outs[:] = _picked(body.outs, keeps)
    equation.outs[:] = _picked(equation.outs, keeps)
    body.ins[:] = _picked(body.ins, used)
    equation.ins[:] = _picked(equation.ins, used)
    counts = {"num_consts": sum(used[:first]), "num_carry": sum(carry)}
    equation.params = {**params, **counts}
    return equation.ins


def _needs(program: Program, used: Sequence[bool]) -> list[bool]:
    """The inputs that the used outputs need, at most: bodies count as a whole."""
    live = {var for var, use in zip(program.outs, used, strict=True) if use}
    for equation in reversed(program.equations):
        if equation.effects or any(var in live for var in equation.outs):
            live.update(equation.ins)
    return [var in live for var in program.ins]


_TRIMMED = {
    "checkpoint": _trim_body,
    "cond": _trim_cond,
    "remat2": _trim_body,
    "scan": _trim_scan,
}


# Axes of values outside a loop that count its steps.


def _lead(program: Program) -> None:
    """Set `lead` of all values: stacked parameters, their moments and sums."""
    while _leads(program):
        pass


def _leads(program: Program) -> bool:
    changed = False
    for equation in program.equations:
        for group in _alike(equation):
            most = max(var.lead + more for var, more in group)
            for var, more in group:
                if var.lead + more < most <= len(var.shape) + more:
                    var.lead, changed = most - more, True
        for body in equation.bodies:
            changed |= _leads(body)
    return changed


def _alike(equation: Equation) -> Iterator[list[tuple[Var, int]]]:
    """Values whose axes correspond: (value, how many axes fewer it has)."""
    if equation.name == "scan":
        [body], params = equation.bodies, equation.params
        last = params["num_consts"] + params["num_carry"]
        n = params["num_carry"]
        pairs = zip(equation.ins, body.ins, strict=True)
        for i, (outside, inside) in enumerate(pairs):
            yield [(outside, 0), (inside, int(i >= last))]
        for i, (outside, inside) in enumerate(
            zip(equation.outs, body.outs, strict=True)
        ):
            yield [(outside, 0), (inside, int(i >= n))]
        first = params["num_consts"]
        for inside, outside in zip(body.ins[first:last], body.outs[:n], strict=True):
            yield [(inside, 0), (outside, 0)]
    elif equation.bodies:
        ins = equation.ins[1:] if equation.name == "cond" else equation.ins
        for body in equation.bodies:
            for one, other in itertools.chain(
                zip(ins, body.ins, strict=False),
                zip(equation.outs, body.outs, strict=False),
            ):
                yield [(one, 0), (other, 0)]
    elif len(equation.outs) == 1:
        [out] = equation.outs
        alike = [(var, 0) for var in equation.ins if var.shape == out.shape]
        if alike and out.shape:
            yield [(out, 0), *alike]
