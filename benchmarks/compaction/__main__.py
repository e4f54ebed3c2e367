"""maskjax's compaction beside Torch-Pruning: `python -m benchmarks.compaction --help`.

Three networks in Flax Linen and in torch, with equal weights: what may leave together,
and what is left after half of the units left, the same ones on both sides. Then small
networks, one difficulty each.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import _timing
from benchmarks.compaction import _compacted, _function_cases, _sizes, _tables
from benchmarks.speed import _results

Line = dict[str, Any]
QUESTION = "compaction_beside_torch"
RESULTS = pathlib.Path(__file__).parents[1] / "results"
INSTALL = "pip install torch torch-pruning"
THEIRS, OURS = "Torch-Pruning", "maskjax"
REPEATS, SECONDS = 30, 4.0


def main(argv: Sequence[str] | None = None) -> int:
    """Ask what the command line asks for."""
    options = _parser().parse_args(argv)
    path = (options.out or RESULTS) / _results.device_slug() / f"{QUESTION}.jsonl"
    if options.table:
        print(_tables.markdown(_lines(path).values()))
        return 0
    there = all(map(importlib.util.find_spec, ("torch", "torch_pruning")))
    committed = RESULTS / "cpu-2" / f"{QUESTION}.jsonl"
    known = {} if there else _lines(committed)
    if not there:
        print(f"The torch half is that of {committed}. To run it: {INSTALL}\n")
    parts = PARTS if options.timed else PARTS | {"networks": _untimed}
    found = [line for part in options.only or PARTS for line in parts[part](known)]
    where = {"question": QUESTION, **_results.environment(), **_versions()}
    new = [line | where for line in found if "run" not in line]
    if not options.quick:
        _results.append(path, new)
    print(_tables.markdown(found))
    return 0


def _networks(known: dict[Any, Line], *, timed: bool = True) -> list[Line]:
    """Half of the units out of each network, and how long it takes then."""
    found = []
    asked = [(name, way) for name, ways in _sizes.WAYS.items() for way in ways]
    for name, way in asked:
        case = f"{name}: {way}"
        runs: list[_timing.Contestant] = []
        if known:
            theirs = known[case, THEIRS]
        else:
            from benchmarks.compaction import _pruned

            theirs, runs = _pruned.half(name, way)
        ours, more = _compacted.same(name, theirs)
        if timed:
            how = {"repeats": REPEATS, "seconds": SECONDS}
            timings = _timing.race([*runs, *more], lambda results: None, **how)
            seconds = {run: timing.median_s for run, timing in timings.items()}
            if runs:
                theirs["median_s"] = {each.name: seconds[each.name] for each in runs}
            ours["median_s"] = {each.name: seconds[each.name] for each in more}
        found += [{"case": case, "contestant": THEIRS} | theirs]
        found += [{"case": case, "contestant": OURS} | ours]
    return found


def _untimed(known: dict[Any, Line]) -> list[Line]:
    return _networks(known, timed=False)


def _groups(known: dict[Any, Line]) -> list[Line]:
    """What may leave together, by the ends of layers."""

    def theirs(name):
        from benchmarks.compaction import _pruned

        return {"groups": _pruned.freedoms(name)}

    def ours(name):
        return {"groups": _compacted.freedoms(name)}

    cases = {f"{name}: groups": name for name in _sizes.WAYS}
    return _both(known, cases, theirs, ours)


def _cases(known: dict[Any, Line]) -> list[Line]:
    """Small networks, one difficulty each."""

    def theirs(name):
        from benchmarks.compaction import _torch_cases

        return {"outcome": _torch_cases.run(name)}

    def ours(name):
        return {"outcome": _function_cases.run(name)}

    return _both(known, {name: name for name in _function_cases.CASES}, theirs, ours)


def _both(
    known: dict[Any, Line],
    cases: dict[str, str],
    theirs: Callable[[str], Line],
    ours: Callable[[str], Line],
) -> list[Line]:
    found = []
    for case, name in cases.items():
        line = known[case, THEIRS] if known else theirs(name)
        found += [{"case": case, "contestant": THEIRS} | line]
        found += [{"case": case, "contestant": OURS} | ours(name)]
    return found


def _lines(path: pathlib.Path) -> dict[tuple[str, str], Line]:
    """The last line of each case and contestant."""
    lines = map(json.loads, path.read_text().splitlines())
    return {(line["case"], line["contestant"]): line for line in lines}


def _versions() -> Line:
    def version(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in ("flax", "torch", "torch-pruning")}


PARTS: dict[str, Callable[[dict[Any, Line]], list[Line]]] = {
    "networks": _networks,
    "groups": _groups,
    "cases": _cases,
}


def _parser() -> argparse.ArgumentParser:
    name = "python -m benchmarks.compaction"
    parser = argparse.ArgumentParser(name, description=__doc__, epilog=INSTALL)
    told = "where lines are written, instead of benchmarks/results"
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help=told)
    only = {"action": "append", "choices": PARTS, "metavar": "PART"}
    told = f"run this part ({', '.join(PARTS)}); may be repeated"
    parser.add_argument("--only", **only, help=told)
    parser.add_argument("--quick", action="store_true", help="write no lines")
    told = "time nothing, as where the machine is busy"
    parser.add_argument("--untimed", dest="timed", action="store_false", help=told)
    told = "print tables of the lines written so far, and run nothing"
    parser.add_argument("--table", action="store_true", help=told)
    return parser


if __name__ == "__main__":
    sys.exit(main())
