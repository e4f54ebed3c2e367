"""What is inside the equations of a jaxpr."""

from typing import Any

_BODIES = ("jaxpr", "call_jaxpr", "call")


def scan_counts(params: Any) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many it carries."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # later than JAX 0.10
    return len([*consts]), len([*carry])


def body_of(equation: Any) -> Any:
    """The jaxpr that an equation calls once, as `jit` does; `None` if there is none."""
    params = equation.params
    return next((params[name] for name in _BODIES if name in params), None)
