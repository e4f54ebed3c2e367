"""Ask how fast maskjax is: `python -m benchmarks.speed --help`."""

import argparse
import importlib
import pathlib
import sys
from collections.abc import Sequence

from benchmarks import _timing
from benchmarks.speed import _results

QUESTIONS = (
    "selection",
    "masked_step",
    "sparse_step",
    "compaction",
    "edge_popup_step",
    "lottery_ticket",
    "packing",
    "tasks_learned",
    "task_inference",
    "meta_ticket_step",
    "ensemble_predict",
    "ensemble_training",
    "sparsegpt",
    "subset_sum",
    "calibration",
    "compile_selection",
    "traced",
    "import_time",
)
ELSEWHERE = ("tpu_compile",)  # asked by a command of its own
RESULTS = pathlib.Path(__file__).parents[1] / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    options = _parser().parse_args(argv)
    if options.list:
        for name, question in _first_lines().items():
            print(f"{name}: {question}")
        return 0
    if options.table:
        root = options.out or RESULTS
        tables = _results.markdown(root, _first_lines(QUESTIONS + ELSEWHERE))
        print(tables)
        readme = root.parent / "README.md"
        if readme.exists() and _results.BEGIN in readme.read_text():
            _results.into_readme(readme, tables)
        return 0
    root = options.out or (None if options.quick else RESULTS)
    where = _results.environment()
    for name in options.only or QUESTIONS:
        _ask(name, root, where, quick=options.quick)
    return 0


def _ask(
    name: str,
    root: pathlib.Path | None,
    where: _results.Line,
    *,
    quick: bool,
) -> None:
    question = importlib.import_module(f"benchmarks.speed.{name}")
    repeats = 3 if quick else getattr(question, "REPEATS", 50)
    how = {"repeats": repeats, "seconds": getattr(question, "SECONDS", 4.0)}
    print(f"{_first_lines()[name]}\n")
    for sizes in question.QUICK if quick else question.FULL:
        case = question.case(*sizes)
        timings = _timing.race(case.contestants, case.agree, **how)
        found = _results.lines(name, case, timings, where)
        if root is not None:
            path = root / _results.device_slug() / f"{name}.jsonl"
            _results.append(path, found)
        print(f"{_results.table(found)}\n", flush=True)


def _first_lines(questions: Sequence[str] | None = None) -> dict[str, str]:
    names = QUESTIONS if questions is None else questions
    modules = {q: importlib.import_module(f"benchmarks.speed.{q}") for q in names}
    return {q: (m.__doc__ or "").splitlines()[0] for q, m in modules.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__)
    only = {"action": "append", "choices": QUESTIONS, "metavar": "QUESTION"}
    parser.add_argument("--only", **only, help="ask this one; may be repeated")
    where = {"type": pathlib.Path, "metavar": "DIR"}
    kept = "where lines are written, instead of benchmarks/results"
    parser.add_argument("--out", **where, help=kept)
    switches = {
        "--quick": "small sizes and few repeats; writes only where --out says",
        "--list": "list the questions",
        "--table": "print tables of the lines written so far; also into the README "
        "beside the folder of results, between its markers",
    }
    for name, told in switches.items():
        parser.add_argument(name, action="store_true", help=told)
    return parser


if __name__ == "__main__":
    sys.exit(main())
