"""What does `import maskjax` cost beside `import jax`?

Each import in a fresh interpreter, whose own start is not counted.
"""

import pathlib
import subprocess
import sys
from collections.abc import Mapping

from benchmarks._timing import Contestant
from benchmarks.speed import _case

REPEATS = 21
SECONDS = 60.0
_ROOT = pathlib.Path(__file__).parents[2]
FULL = QUICK = [("maskjax", "optax", "jax")]
PROGRAM = (
    "import time; start = time.perf_counter(); "
    "import {}; print(time.perf_counter() - start)"
)


def case(*modules: str) -> _case.Case:
    """The first is ours, the last is what it can't do without."""

    def importing(module: str) -> Contestant:
        command = [sys.executable, "-c", PROGRAM.format(module)]

        def run() -> float:
            return float(subprocess.check_output(command, cwd=_ROOT, text=True))

        return Contestant(f"import {module}", run, keeps_time=True)

    def agree(results: Mapping[str, float]) -> None:
        assert all(seconds > 0 for seconds in results.values())

    return _case.of(
        "fresh interpreter",
        [importing(module) for module in modules],
        agree,
        dtype=None,
        structure=None,
        shape=None,
        density=None,
    )
