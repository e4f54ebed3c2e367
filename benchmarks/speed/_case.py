"""What a question consists of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks._timing import Contestant


class Case(NamedTuple):
    """Contestants that answer one question at one size.

    Attributes:
        name: Tells the cases of a question apart in tables.
        context: What a result line must say of it: dtype, shape, density, structure,
            and whatever else was chosen.
        contestants: One of role "ours", one "limit", and baselines.
        agree: Raises unless the results, by contestant, agree.
    """

    name: str
    context: dict[str, Any]
    contestants: list[Contestant]
    agree: Callable[[Mapping[str, Any]], None]
