"""What does `import maskjax` cost beside `import jax`?

Each import in a fresh interpreter, whose own start is not counted.
"""

import functools
import pathlib
import subprocess
import sys

from benchmarks._timing import Contestant
from benchmarks.speed import _case

REPEATS = 21
SECONDS = 60.0
FULL = QUICK = [("maskjax", "optax", "jax")]
PROGRAM = (
    "import time; start = time.perf_counter(); "
    "import {}; print(time.perf_counter() - start)"
)


def case(*modules: str) -> _case.Case:
    """The first is ours, the last is what it can't do without."""

    def imported(module):
        command = [sys.executable, "-c", PROGRAM.format(module)]
        root = pathlib.Path(__file__).parents[2]
        return float(subprocess.check_output(command, cwd=root, text=True))

    def agree(results):
        assert all(seconds > 0 for seconds in results.values())

    contestants = [
        Contestant(f"import {name}", functools.partial(imported, name), keeps_time=True)
        for name in modules
    ]
    context = {"dtype": None, "structure": None, "shape": None, "density": None}
    return _case.of("fresh interpreter", contestants, agree, **context)
