"""A jaxpr and what it calls, read into one list of equations."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from maskjax._core import placement
from maskjax._core.jaxprs import body_of, scan_counts
from maskjax.compaction import _along, _indices, _trimming
from maskjax.compaction._program import Const, Equation, Program, Var

_CALLS = frozenset("closed_call core_call custom_vmap_call jit pjit custom_lin".split())
# A derivative may call its own function, whose derivative calls it again. So many of
# them are read as they are; in the last one, functions are what is written in them.
_DERIVATIVES = 2


def traced(
    fun: Callable[..., Any], args: Sequence[Any], scope: tuple[int, ...] = ()
) -> tuple[Program, Any]:
    """The program of a function of shapes or arrays, and its output's shapes.

    With the scope (K,) it is that of each of K members, which may keep other positions.
    """
    closed, out = jax.make_jaxpr(fun, return_shape=True)(*args)
    program = _program(closed, scope, "")
    _trimming.own_constants(program)
    _trimming.trim(program, [True] * len(program.outs))
    _indices.follow(program)
    _along.follow(program)
    return program, out


def _program(
    closed: Any, scope: tuple[int, ...], place: str, depth: int = 0
) -> Program:
    ins = [Var(v.aval, scope) for v in closed.jaxpr.invars]
    reader = _Reader(scope, depth)
    outs = reader.read(closed.jaxpr, closed.consts, ins, place)
    return Program(ins, outs, reader.equations)


class _Reader:
    """Reads a jaxpr and what it calls into one list of equations.

    `depth` tells in how many derivatives of functions it is.
    """

    def __init__(self, scope: tuple[int, ...], depth: int) -> None:
        self.scope, self.depth = scope, depth
        self.equations: list[Equation] = []

    def read(self, jaxpr: Any, consts: Any, ins: Sequence[Var], place: str) -> Any:
        env = dict(zip(jaxpr.invars, ins, strict=True))
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            env[var] = Const(value, var.aval, self.scope)

        def atom(x: Any) -> Var:
            if isinstance(x, core.Literal):
                return Const(x.val, x.aval, self.scope)
            return env[x]

        for eqn in jaxpr.eqns:
            here = "/".join(filter(None, (place, str(eqn.source_info.name_stack))))
            atoms = [atom(x) for x in eqn.invars]
            name = eqn.primitive.name
            last = self.depth == _DERIVATIVES
            if name in _CALLS or name == "custom_jvp_call" and last:
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
        out = Var(placement.typed(shape, x.kind), self.scope)
        params = {"permutation": order}
        permuted = Equation(lax.transpose_p, params, [x], [out], here, context=eqn.ctx)
        self.equations.append(permuted)
        return out

    def _called(self, eqn: Any, atoms: list[Var], here: str) -> list[Var]:
        body = body_of(eqn)
        closed = hasattr(body, "consts")
        jaxpr, consts = (body.jaxpr, body.consts) if closed else (body, ())
        return self.read(jaxpr, consts, atoms, here)

    def _equation(
        self, eqn: Any, atoms: list[Var], outs: list[Var], here: str
    ) -> Equation:
        def inside(body: Any, scope: tuple[int, ...] = self.scope) -> Program:
            return _program(body, scope, here, self.depth)

        name, params = eqn.primitive.name, eqn.params
        bodies: tuple[Program, ...] = ()
        if name == "scan":
            first, carried = scan_counts(params)
            params = {**params, "num_consts": first, "num_carry": carried}
            bodies = (inside(params["jaxpr"], (*self.scope, params["length"])),)
        elif name == "cond":
            bodies = tuple(inside(body) for body in params["branches"])
        elif name in ("remat2", "checkpoint"):
            bodies = (inside(core.ClosedJaxpr(params["jaxpr"], ())),)
        elif name == "custom_jvp_call":
            with eqn.ctx.manager:
                closed = _derivative(eqn, atoms)
            derivative = _program(closed, self.scope, here, self.depth + 1)
            bodies = (inside(params["call_jaxpr"]), derivative)
        if name == "reshape":
            params = {**params, "dimensions": None}
        effects = bool(eqn.effects)
        return Equation(
            eqn.primitive, params, atoms, outs, here, bodies, effects, eqn.ctx
        )


def _derivative(eqn: Any, atoms: Sequence[Var]) -> Any:
    """The program of a custom derivative, from primals and tangents."""
    shapes = [v.kind for v in atoms]

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
