"""Demonstrations run side by side, each in a process of its own, or one by one."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import process

import jax
from rich import console as rich_console

from benchmarks._registry import Context, Demo, Outcome, Progress

Ended = tuple[Demo, Outcome | None, float]  # None if it failed; and seconds
MOST = 4  # processes, each of a gigabyte or so
TICK = 0.5  # seconds after which the bar moves


def processes() -> int:
    """How many are worth it: compiling fills a core; accelerators are not shared."""
    return min(os.cpu_count() or 1, MOST) if jax.default_backend() == "cpu" else 1


def outcomes(context: Context, demos: Sequence[Demo], jobs: int) -> Iterator[Ended]:
    """What each finds, as they end, on so many processes; errors are printed.

    Those that measure time run last and alone, in this process, and so do those that
    have not begun when a process is killed.
    """
    left, apart = [*demos], [demo for demo in demos if not demo.alone]
    if min(jobs, len(apart)) > 1:
        for ended in _side_by_side(context, apart, jobs):
            left.remove(ended[0])
            yield ended
    for demo in left:
        context.bars.begin(demo)
        yield _ended(context, demo, *_found(demo, context))


def _side_by_side(
    context: Context, demos: Sequence[Demo], jobs: int
) -> Iterator[Ended]:
    # What takes longest begins first, lest it ends long after all others.
    waiting = sorted(demos, key=lambda demo: demo.seconds)
    bare = context._replace(bars=None)
    how = {"mp_context": multiprocessing.get_context("spawn"), "initializer": _deaf}
    with concurrent.futures.ProcessPoolExecutor(jobs, **how) as pool, _stopping(pool):
        running = {}
        while waiting or running:
            try:
                while waiting and len(running) < jobs:
                    running[pool.submit(_elsewhere, waiting[-1], bare)] = waiting[-1]
                    context.bars.begin(waiting.pop())
            except process.BrokenProcessPool:
                waiting.clear()
            done, _ = concurrent.futures.wait(
                running, TICK, concurrent.futures.FIRST_COMPLETED
            )
            context.bars.tick()
            for future in done:
                yield _ended(context, running.pop(future), *_result(future))


@contextlib.contextmanager
def _stopping(pool: concurrent.futures.Executor) -> Iterator[None]:
    """Whatever ends this, processes end too: Ctrl-C does not wait for them."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        raise


def _deaf() -> None:
    """Ctrl-C is for the process that began this one, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _elsewhere(demo: Demo, context: Context) -> tuple[Outcome | None, float, str]:
    quiet = rich_console.Console(quiet=True)
    return _found(demo, context._replace(bars=Progress([demo], quiet)))


def _found(demo: Demo, context: Context) -> tuple[Outcome | None, float, str]:
    """What it found, or None; seconds; and the error, if there was one."""
    outcome, error, start = None, "", time.perf_counter()
    try:
        outcome = demo.run(context)
    except Exception:
        error = traceback.format_exc()
    return outcome, time.perf_counter() - start, error


def _result(future: concurrent.futures.Future) -> tuple[Outcome | None, float, str]:
    try:
        return future.result()
    except process.BrokenProcessPool as error:
        return None, 0.0, f"A process ended: {error} Is there enough memory?\n"


def _ended(
    context: Context, demo: Demo, outcome: Outcome | None, seconds: float, error: str
) -> Ended:
    if error:
        print(f"{demo.name} failed:\n{error}", end="", file=sys.stderr)
    context.bars.end(demo, outcome.verdict if outcome else "failed", seconds)
    return demo, outcome, seconds
