"""The only timer: contestants take turns, medians are reported, compilation apart.

A machine is never quiet. What is compared is therefore measured in one run, a call of
each contestant in every turn, so that noise and drift hit all of them alike.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax

Role = Literal["ours", "baseline", "limit"]

# Below this many seconds a call is preceded by one that is not timed, since caches and
# pages gone cold during the turns of others would be a good part of what is measured.
_SHORT = 1.0


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Something to be timed."""

    name: str  # what it is called in tables
    run: Callable[[], Any]  # one call, on inputs that are on the device already
    compile_s: float = 0.0
    steps: int = 1  # of one call; times are given per step
    nbytes: int | None = None  # of its operands, where that is the question
    keeps_time: bool = False  # `run` returns its own seconds, of another process, say
    role: Role = "baseline"  # "ours", a "baseline", or the "limit" that nothing beats


class Timing(NamedTuple):
    """Seconds per step: the median, the range between the quartiles, of how many."""

    median_s: float
    iqr_s: float
    repeats: int


def compiled(
    fn: Callable[..., Any], *args: Any, donate: Sequence[int] = ()
) -> tuple[Callable[..., Any], float]:
    """A function compiled for arguments like these, and how many seconds that took."""
    # A function of its own, for one compiled before would be found in the cache.
    jitted = jax.jit(lambda *args: fn(*args), donate_argnums=tuple(donate))
    start = time.perf_counter()
    executable = jitted.lower(*args).compile()
    return executable, time.perf_counter() - start


def race(
    contestants: Sequence[Contestant],
    agree: Callable[[Mapping[str, Any]], None],
    *,
    repeats: int = 50,
    seconds: float = 4.0,
) -> dict[str, Timing]:
    """Time contestants of different names side by side, once their results agree.

    Args:
        contestants: Who takes turns.
        agree: Raises unless the results of the first calls, by name, agree.
        repeats: How often each is timed.
        seconds: Those that would need longer are timed less often, evenly spread, but
            five times at least.
    """
    results, first = {}, {}
    for each in contestants:
        first[each.name], results[each.name] = _call(each)
    agree(results)
    results.clear()  # what was returned may be donated to the next call

    wanted = {
        name: max(min(5, repeats), min(repeats, int(seconds / max(once, 1e-9))))
        for name, once in first.items()
    }
    samples: dict[str, list[float]] = {each.name: [] for each in contestants}
    for turn in range(repeats):
        for place in range(len(contestants)):
            each = contestants[(place + turn) % len(contestants)]
            due = -(-(turn + 1) * wanted[each.name] // repeats)
            if len(samples[each.name]) == due:
                continue
            if first[each.name] < _SHORT:
                _call(each)
            samples[each.name].append(_call(each)[0] / each.steps)
    return {name: _summary(values) for name, values in samples.items()}


def _call(contestant: Contestant) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(contestant.run())
    taken = time.perf_counter() - start
    return (result if contestant.keeps_time else taken), result


def _summary(values: list[float]) -> Timing:
    low, high = values[0], values[0]
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(statistics.median(values), high - low, len(values))
