"""What is done to a program that was read: constants, dead code, axes that stack."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
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
    return dataclasses.replace(equation, ins=[own], outs=[out])


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


# Axes of values outside a loop that count its steps.


def lead(program: Program) -> None:
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
