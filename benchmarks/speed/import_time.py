"""What does `import maskjax` cost beside `import jax`?

Each import in a fresh interpreter, whose own start is not counted.
"""

import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping

from benchmarks._timing import Contestant, Role
from benchmarks.speed._case import Case

REPEATS = 21
SECONDS = 60.0
_ROOT = pathlib.Path(__file__).parents[2]


def cases(*, quick: bool) -> Iterator[Case]:
    """One, whatever the size."""
    del quick

    def agree(results: Mapping[str, float]) -> None:
        assert all(seconds > 0 for seconds in results.values())

    yield Case(
        "fresh interpreter",
        {"dtype": None, "shape": None, "density": None, "structure": None},
        [
            _importing("maskjax", "ours"),
            _importing("optax", "baseline"),
            _importing("jax", "limit"),
        ],
        agree,
    )


def _importing(module: str, role: Role) -> Contestant:
    program = (
        "import time; start = time.perf_counter(); "
        f"import {module}; print(time.perf_counter() - start)"
    )

    def run() -> float:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=_ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        return float(done.stdout)

    return Contestant(f"import {module}", role, run, keeps_time=True)
