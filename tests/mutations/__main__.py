"""Shows that the tests find mistakes: makes each of many, and runs the tests.

    python -m tests.mutations               all faults, one after the other
    python -m tests.mutations --only NAME   one of them; may be repeated
    python -m tests.mutations --list        what there is, and whether it still applies
    python -m tests.mutations --jobs 2      two at a time

Each fault is made in a copy of the package, in a temporary folder: the working tree is
never touched. The exit code is 1 if a fault survives, or if one could not be tried.
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from tests.mutations.faults import FAULTS, Fault

ROOT = pathlib.Path(__file__).parents[2]
COPIED = ("maskjax", "tests", "conftest.py", "pyproject.toml")
CAUGHT, SURVIVED, FAILED = "caught", "SURVIVED", "could not be tried"
LIMIT = 1800  # seconds for the tests of one fault


class Stale(Exception):
    """The text of a fault is not in the library exactly once."""


class Result(NamedTuple):
    """What became of a fault."""

    fault: Fault
    outcome: str
    why: str
    seconds: float


def place_of(fault: Fault, package: pathlib.Path) -> pathlib.Path:
    """The one file that holds the text of a fault.

    Args:
        fault: The fault.
        package: The folder `maskjax`.

    Returns:
        The path of the file.

    Raises:
        Stale: If the text is not there, or more than once.
    """
    place = package / fault.place
    files = [*place.rglob("*.py"), place.with_suffix(".py")]
    counts = {f: f.read_text().count(fault.old) for f in files if f.is_file()}
    found = [file for file, count in counts.items() if count]
    if len(found) != 1 or counts[found[0]] != 1:
        many = sum(counts.values())
        raise Stale(f"its text is {many} times in maskjax/{fault.place}, not once")
    return found[0]


def attempt(fault: Fault) -> Result:
    """Makes a fault in a copy of the package and runs the tests that should find it."""
    start = time.perf_counter()

    def result(outcome: str, why: str) -> Result:
        return Result(fault, outcome, why, time.perf_counter() - start)

    with tempfile.TemporaryDirectory(prefix="maskjax-fault-") as folder:
        copy = pathlib.Path(folder)
        for name in COPIED:
            how = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            how(ROOT / name, copy / name)
        try:
            file = place_of(fault, copy / "maskjax")
        except Stale as error:
            return result(FAILED, str(error))
        file.write_text(file.read_text().replace(fault.old, fault.new))
        try:
            done = run_tests(fault, copy)
        except subprocess.TimeoutExpired:
            return result(FAILED, f"its tests did not end in {LIMIT} s")
    if done.returncode == 0:
        return result(SURVIVED, f"all tests pass in {', '.join(fault.tests)}")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not failed:  # no test ran: a mistake in the data
        lines = (done.stdout + done.stderr).strip().splitlines()
        return result(FAILED, lines[-1] if lines else "pytest says nothing")
    return result(CAUGHT, failed[1])


def run_tests(fault: Fault, copy: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Runs the tests of a fault in the copied tree, up to the first that fails."""
    cache = ROOT / ".pytest_cache" / "d" / "jax"  # where the suite keeps it too
    # `python -m` puts the working directory, the copy, first on the path.
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-n0", "--tb=no"]
    return subprocess.run(
        [*command, *(f"tests/{name}" for name in fault.tests)],
        cwd=copy,
        env={
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            **os.environ,
        },
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def listed(faults: list[Fault]) -> int:
    """Prints faults and whether they still apply; how many do not."""
    stale = 0
    for fault in faults:
        print(f"{fault.name}: {fault.breaks}")
        try:
            place_of(fault, ROOT / "maskjax")
        except Stale as error:
            stale += 1
            print(f"    COULD NOT BE APPLIED: {error}")
    print(f"{len(faults)} faults, {stale} of them could not be applied")
    return stale


def chosen(names: list[str] | None) -> list[Fault]:
    """The faults of these names, or all."""
    known = {fault.name: fault for fault in FAULTS}
    assert len(known) == len(FAULTS), "two faults have one name"
    if unknown := set(names or ()) - set(known):
        raise SystemExit(f"no such fault: {', '.join(sorted(unknown))}")
    return [known[name] for name in names or known]


def main() -> int:
    """Runs the script; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", metavar="NAME")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    faults = chosen(options.only)
    if options.list:
        return int(listed(faults) > 0)
    tally: collections.Counter[str] = collections.Counter()
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for fault, outcome, why, seconds in pool.map(attempt, faults):
            tally[outcome] += 1
            print(f"{outcome:9} {seconds:6.1f} s  {fault.name}  ({why})", flush=True)
    parts = [f"{tally[outcome]} {outcome}" for outcome in (CAUGHT, SURVIVED, FAILED)]
    seconds = time.perf_counter() - start
    print(f"{len(faults)} faults: {', '.join(parts)}, in {seconds:.0f} s")
    return int(tally[CAUGHT] < len(faults))


if __name__ == "__main__":
    sys.exit(main())
