"""What is inside the equations of a jaxpr."""

from typing import Any

_BODIES = ("jaxpr", "call_jaxpr", "call")


def body_of(equation: Any) -> Any:
    """The jaxpr that an equation calls once, as `jit` does; `None` if there is none."""
    params = equation.params
    return next((params[name] for name in _BODIES if name in params), None)
