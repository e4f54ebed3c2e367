"""What a demonstration is, what it is given and what it returns."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rich import progress

from benchmarks._data import Data
from benchmarks._episodes import Classes


class Context(NamedTuple):
    """What a demonstration is given.

    Attributes:
        data: Images of ten classes.
        quick: Train for little time: numbers will be worse, nothing else differs.
        out: An existing folder for pictures.
        bars: Where progress is shown.
        seeds: How many networks, trained side by side as one program.
        tasks: How many tasks one network learns; `None` leaves it to the demonstration.
        omniglot: Characters to learn from few of, or not at all, if any were given.
    """

    data: Data
    quick: bool
    out: pathlib.Path
    bars: progress.Progress
    seeds: int = 10
    tasks: int | None = None
    omniglot: Classes | None = None

    def track(self, description: str, steps: int) -> Iterator[int]:
        """Count up to `steps`, moving a bar."""
        return iter(self.bars.track(range(steps), description=description))


class Row(NamedTuple):
    """A line of the table: what the paper promises, and what was measured."""

    promise: str
    measured: str


class Outcome(NamedTuple):
    """What a demonstration found.

    Attributes:
        rows: For the table.
        settings: How it was done; for results.json.
        numbers: Everything that was measured; for results.json.
        pictures: Names of the files that it wrote.
    """

    rows: list[Row]
    settings: dict[str, Any]
    numbers: dict[str, Any]
    pictures: list[str]


class Demo(NamedTuple):
    """A demonstration.

    Attributes:
        name: As given to `--only`.
        title: The system, and the paper it is from.
        run: Trains, writes pictures, and returns what it found.
    """

    name: str
    title: str
    run: Callable[[Context], Outcome]
