"""Cases by name, and which of a few units stay in all of them."""

from collections.abc import Callable

HALF = [0, 3, 4, 6]  # of eight units
SAME = [0, 3, 4, 7]  # the same two of four, twice

Case = Callable[[], str]


def registry() -> tuple[dict[str, Case], Callable[[str], Callable[[Case], Case]]]:
    """Cases by name, empty, and the decorator that adds one."""
    cases: dict[str, Case] = {}

    def case(name: str) -> Callable[[Case], Case]:
        def added(fn: Case) -> Case:
            cases[name] = fn
            return fn

        return added

    return cases, case
