"""What a question consists of: cases, and contestants that answer each.

A question is a module: its first line asks, `FULL` and `QUICK` are the arguments of
`case`, and `REPEATS` and `SECONDS`, where it has them, are those of `_timing.race`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._timing import Contestant, compiled

Agree = Callable[[Mapping[str, Any]], None]


class Case(NamedTuple):
    """Contestants that answer one question at one size.

    Attributes:
        name: Tells the cases of a question apart in tables.
        context: What a result line says of it: dtype, shape, density, structure, and
            whatever else was chosen.
        contestants: One of role "ours", baselines, and one "limit".
        agree: Raises unless the results, by contestant, agree.
    """

    name: str
    context: dict[str, Any]
    contestants: list[Contestant]
    agree: Agree


def of(
    name: str,
    contestants: Sequence[Contestant],
    agree: Agree,
    *,
    dtype: str | None = "float32",
    structure: str | None = "Entries()",
    **context: Any,
) -> Case:
    """A case whose first contestant is ours and whose last is the limit."""
    first, *others, last = contestants
    first = dataclasses.replace(first, role="ours")
    given = [first, *others, dataclasses.replace(last, role="limit")]
    return Case(name, {"dtype": dtype, "structure": structure, **context}, given, agree)


def contestant(
    name: str,
    fn: Callable[..., Any],
    *args: Any,
    steps: int = 1,
    nbytes: Callable[[int], int | None] = lambda scratch: None,
) -> Contestant:
    """A function, compiled, of arguments that are on the device.

    Args:
        name: What it is called in tables.
        fn: Is called with the arguments.
        args: Trees of arrays.
        steps: How many of what is timed one call does.
        nbytes: Bytes to report, from how many the program takes besides its arguments.
    """
    call, seconds = compiled(fn, *args)
    scratch = getattr(call.memory_analysis(), "temp_size_in_bytes", 0) or 0
    return Contestant(
        name, lambda: call(*args), seconds, steps=steps, nbytes=nbytes(scratch)
    )


def training(
    name: str, step: Callable[..., Any], state: Any, *rest: Any, steps: int = 1
) -> Contestant:
    """A step `(state, *rest) -> (state, value)` that goes on where its last call ended.

    Its state is donated, as users' are.
    """
    call, seconds = compiled(step, state, *rest, donate=(0,))
    held = [jax.tree.map(jnp.array, state)]  # a copy: it will be donated

    def run() -> Any:
        state, value = call(held[0], *rest)
        held[0] = state
        return state, value

    return Contestant(name, run, seconds, steps=steps)


def close(ours: Any, theirs: Any, *, rtol: float, atol: float = 0.0) -> None:
    """Raise unless two trees have nearly the same leaves."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def agreeing(names: Sequence[str], *, rtol: float, atol: float = 0.0) -> Agree:
    """Results of these names have to be nearly the same."""

    def agree(results: Mapping[str, Any]) -> None:
        for other in names[1:]:
            close(results[names[0]], results[other], rtol=rtol, atol=atol)

    return agree


def named(widths: Iterable[int]) -> str:
    """A network by its widths."""
    return "-".join(map(str, widths))


def shapes(tree: Any) -> list[list[int]]:
    """The shapes of a tree's leaves."""
    return [list(leaf.shape) for leaf in jax.tree.leaves(tree)]
