"""What a demonstration is, what it is given and what it returns."""

import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rich import console as rich_console
from rich import progress

from benchmarks._data import Data
from benchmarks._episodes import Classes

SIZES = ("quick", "default", "full")
MET, PARTLY, NOT_MET, NOT_ASKED = "met", "partly", "not met", "not asked"


class Row(NamedTuple):
    """What the paper promises, what was measured, and whether that is as promised."""

    promise: str
    measured: str
    met: bool | None = None  # None: nothing that a number could meet
    short: str = ""  # what was measured, in a few words, if it is worth them


class Outcome(NamedTuple):
    """What a demonstration found: rows of the table, and what goes to results.json."""

    rows: list[Row]
    settings: dict[str, Any]
    numbers: dict[str, Any]
    pictures: list[str]  # names of the files that it wrote; the first says most

    @property
    def verdict(self) -> str:
        """Whether promises were kept: all, some or none of those that can be told."""
        met = [row.met for row in self.rows if row.met is not None]
        if not met:
            return NOT_ASKED
        return MET if all(met) else PARTLY if any(met) else NOT_MET


class Demo(NamedTuple):
    """A demonstration of a system."""

    name: str  # as given to `--only`
    title: str  # the system, and the paper it is from
    run: "Callable[[Context], Outcome]"
    seconds: float  # about how long the default size takes on two cores, alone
    uses: tuple[str, ...] = ()  # options that only some demonstrations obey
    alone: bool = False  # whether it measures time, which others beside it would take


class Progress:
    """One bar over all demonstrations; without a terminal, a line as each ends."""

    def __init__(self, demos: Sequence[Demo], console: rich_console.Console):
        self._count, self._ended = len(demos), 0
        self._all, self._done = sum(demo.seconds for demo in demos), 0.0
        self._running: list[Demo] = []
        self._began = self._last = time.perf_counter()
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[left]}"),
            progress.TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=self._all, left="")

    def __enter__(self) -> "Progress":
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def begin(self, demo: Demo) -> None:
        """A demonstration has begun, maybe beside others."""
        self._running.append(demo)
        self.tick()
        self._bar.refresh()

    def end(self, demo: Demo, verdict: str, seconds: float) -> None:
        """A demonstration has ended."""
        self._running.remove(demo)
        self._ended += 1
        self._done += demo.seconds
        self._last = time.perf_counter()
        self.tick()
        self._bar.refresh()
        if self._bar.disable:
            told = f"{demo.name}: {verdict}, {seconds:.1f} s"
            print(f"{self._ended}/{self._count} {told}", flush=True)

    def track(self, items: Iterable[Any], description: str) -> Iterator[Any]:
        """The items one by one; the bar says how many of them are done."""
        items = list(items)
        for i, item in enumerate(items):
            self.tick(f"{description} {i}/{len(items)}")
            yield item

    def tick(self, description: str = "") -> None:
        """Between ends the bar follows the clock, at the pace so far."""
        now = sum(demo.seconds for demo in self._running)
        pace = (self._last - self._began) / self._done if self._done else 1.0
        since = (time.perf_counter() - self._last) / (pace or 1.0)
        done = self._done + min(since, 0.95 * now)
        names = description or ", ".join(demo.name for demo in self._running)
        left = f"{pace * (self._all - done) / 60:.1f} min left"
        self._bar.update(self._task, completed=done, description=names, left=left)


class Context(NamedTuple):
    """What a demonstration is given."""

    data: Data
    size: str  # how much is trained, one of `SIZES`
    out: pathlib.Path  # an existing folder for pictures
    bars: Progress
    tasks: int | None = None  # that one network learns; None: the demonstration's own
    omniglot: Classes | None = None  # its characters, if they were given

    @property
    def quick(self) -> bool:
        """Whether little time is to be spent: numbers are worse, nothing else."""
        return self.size == "quick"

    @property
    def seeds(self) -> int:
        """How many networks, trained side by side as one program."""
        return self.pick((10, 3, 10))

    def pick(self, choices: Sequence[Any]) -> Any:
        """The quick, the default or the full one of three."""
        return dict(zip(SIZES, choices, strict=True))[self.size]

    def track(self, description: str, steps: int | Iterable[Any]) -> Iterator[Any]:
        """Count up to `steps`, or go through them; the bar moves."""
        items = range(steps) if isinstance(steps, int) else steps
        return self.bars.track(items, description)
