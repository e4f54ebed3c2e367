"""What is done to a program that was read: constants, and dead code."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from maskjax.compaction._program import Const, Equation, Program, Var

# Constants.


def own_constants(program: Program) -> None:
    """Arrays of one number are made anew for each use.

    Two layers may start from the same zeros: that does not make their units the same.
    """
    made: dict[Var, Equation] = {}
    spread: dict[Var, Equation] = {}  # these, and what they are spread over in turn
    equations: list[Equation] = []

    def own(var: Var) -> Var:
        if var not in made:
            return var
        out = Var(var.kind, var.scope)
        equations.append(_again(made[var], out))
        return out

    for equation in program.equations:
        number = _one_number(equation, spread)
        if number is not None:
            spread[equation.outs[0]] = number
        if number is equation:
            made[equation.outs[0]] = equation
            continue
        if equation.name == "scan":
            _push_inside(equation, spread)
        equation.ins = [own(var) for var in equation.ins]
        equations.append(equation)
        for body in equation.bodies:
            own_constants(body)
    program.outs[:] = [own(var) for var in program.outs]
    program.equations[:] = equations


def _one_number(equation: Equation, spread: dict[Var, Equation]) -> Equation | None:
    """The equation that spreads one number over this one's output, if it is one."""
    if equation.name != "broadcast_in_dim" or len(equation.ins) != 1:
        return None
    [x] = equation.ins
    if x in spread:
        params = {**equation.params, "broadcast_dimensions": ()}
        return dataclasses.replace(equation, ins=spread[x].ins, params=params)
    return equation if isinstance(x, Const) and not x.shape else None


def _again(equation: Equation, out: Var) -> Equation:
    [number] = equation.ins
    assert isinstance(number, Const), "a number in the program's text"
    own = Const(number.value, number.kind, out.scope)
    return dataclasses.replace(equation, ins=[own], outs=[out], along={})


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


def trim(program: Program, used: Sequence[bool]) -> list[bool]:
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
        trim(body, [True] * len(body.outs))
    return equation.ins


def _picked(items: Sequence[Any], picks: Sequence[bool]) -> list[Any]:
    return [item for item, pick in zip(items, picks, strict=True) if pick]


def _trim_body(equation: Equation, wanted: list[bool]) -> list[Var]:
    """A function that is called as it is: only its inputs and outputs are fewer."""
    [body] = equation.bodies
    used = trim(body, wanted)
    body.outs[:] = _picked(body.outs, wanted)
    equation.outs[:] = _picked(equation.outs, wanted)
    body.ins[:] = _picked(body.ins, used)
    equation.ins[:] = _picked(equation.ins, used)
    return equation.ins


def _trim_cond(equation: Equation, wanted: list[bool]) -> list[Var]:
    for body in equation.bodies:
        body.outs[:] = _picked(body.outs, wanted)
    each = [trim(body, [True] * len(body.outs)) for body in equation.bodies]
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
        used = _needs(body, [*carry, *wanted[n:]])
        more = [a or b for a, b in zip(carry, used[first : first + n], strict=True)]
        if more == carry:
            break
        carry = more
    keeps = [*carry, *wanted[n:]]
    used = trim(body, keeps)
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
