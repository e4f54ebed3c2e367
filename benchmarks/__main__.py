"""Show what maskjax does: train, measure, draw. `python -m benchmarks --help`."""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich import console as rich_console

from benchmarks import _compiling, _data, _episodes, _report, _running
from benchmarks._registry import Context, Demo, Outcome, Progress
from benchmarks.demos import DEMOS
from benchmarks.speed import _results

Found = dict[Demo, tuple[Outcome, float]]  # and seconds
Missing = dict[Demo, str]  # and why
INTERRUPTED = 130  # the exit status of what Ctrl-C stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status."""
    options = _options(argv)
    if options.list:
        for demo in DEMOS:
            print(_line(demo))
        return 0
    try:
        data = _data.load(options.data)
        omniglot = options.omniglot and _episodes.omniglot(options.omniglot)
        options.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out).close()  # can files be written here?
    except _data.DataError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Can't write to the folder {options.out}: {error}", file=sys.stderr)
        return 2
    if options.size == "quick":
        data = data.first(2_000)

    console = rich_console.Console(width=None if sys.stdout.isatty() else 120)
    chosen = _chosen(options)
    with Progress(chosen, console) as bars:
        how = options.size, options.out, bars, options.tasks, omniglot
        context = Context(data, *how)
        found, record, stopped = _run(context, chosen, _jobs(options))
    if options.record:
        _record_lines(context, found)
    console.print(_report.summary(record))
    console.print(f"The whole report: {options.out / 'index.html'}", soft_wrap=True)
    return INTERRUPTED if stopped else int(bool(record["missing"]))


def _run(
    context: Context, chosen: Sequence[Demo], jobs: int
) -> tuple[Found, dict[str, Any], bool]:
    """What each finds; what results.json holds; and whether the run was stopped.

    What is done is written at once, so that it stays whatever comes next.
    """
    found: Found = {}
    missing: Missing = {demo: "not run" for demo in chosen}
    record = _written(context, found, missing)
    try:
        for demo, outcome, seconds in _running.outcomes(context, chosen, jobs):
            if outcome:
                found[demo] = outcome, seconds
                del missing[demo]
            else:
                missing[demo] = "failed"
            record = _written(context, found, missing)
    except KeyboardInterrupt:
        return found, record, True
    return found, record, False


def _jobs(options: argparse.Namespace) -> int:
    """Seconds that are recorded are those of a demonstration alone."""
    return options.jobs or (1 if options.record else _running.processes())


def _written(context: Context, found: Found, missing: Missing) -> dict[str, Any]:
    """Write results.json and the report; what results.json holds."""
    text = json.dumps(_record(context, found, missing), indent=1, default=_plain)
    (context.out / "results.json").write_text(text)
    record = json.loads(text)
    _report.write(record, context.out)
    return record


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for, if it does not contradict itself."""
    parser = _parser()
    options = parser.parse_args(argv)
    chosen = _chosen(options)
    for name in ("tasks", "omniglot"):
        users = [demo.name for demo in DEMOS if name in demo.uses]
        if getattr(options, name) and not any(name in demo.uses for demo in chosen):
            parser.error(f"--{name} is for {', '.join(users)}, which --only leaves out")
    if options.record and options.size == "quick":
        parser.error("--record is not allowed with --quick: its numbers mean little")
    return options


def _chosen(options: argparse.Namespace) -> list[Demo]:
    return [demo for demo in DEMOS if not options.only or demo.name in options.only]


def _line(demo: Demo) -> str:
    return f"{demo.name}: {demo.title}, {demo.seconds:.0f} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        epilog="demonstrations, and seconds on two cores:\n"
        + "\n".join(f"  {_line(d)}" for d in DEMOS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    only = [demo.name for demo in DEMOS]
    path, tasks = {"type": pathlib.Path}, {"type": _at_least_two, "metavar": "N"}
    add, file = parser.add_argument, path | {"metavar": "PATH.npz"}
    text = "images as in Keras' mnist.npz (default: scikit-learn's digits)"
    add("--data", help=text, **file)
    text = "run this one, named below; may be repeated"
    add("--only", action="append", choices=only, metavar="NAME", help=text)
    text = (
        "how many tasks one network learns in supsup, packnet and wsn (default: fewer "
        "or more, by the size and the data)"
    )
    add("--tasks", help=text, **tasks)
    text = (
        "characters for meta_ticket (default: digits), which trains for long with "
        "--full, and for uncertainty, as unknown images (default: held-out classes)"
    )
    add("--omniglot", help=text, **file)
    sizes = parser.add_mutually_exclusive_group()
    for size, text in {
        "quick": "train for so little time that numbers mean little",
        "full": "train for as long, and as many seeds, as for published lines: "
        "more than an hour on two cores (default: about three minutes)",
    }.items():
        how = {"dest": "size", "const": size, "default": "default", "help": text}
        sizes.add_argument(f"--{size}", action="store_const", **how)
    text = "where results.json and pictures go (default: out)"
    add("--out", default=pathlib.Path("out"), metavar="DIR", help=text, **path)
    text = (
        "how many run side by side (default: one for each core, four at most; 1 on "
        "accelerators and with --record)"
    )
    add("--jobs", type=_at_least_one, metavar="N", help=text)
    text = "also append what was measured to benchmarks/results"
    add("--record", action="store_true", help=text)
    add("--list", action="store_true", help="name the demonstrations and stop")
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {number}")
    return number


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"at least 2 tasks, got {number}")
    return number


def _record(context: Context, found: Found, missing: Missing) -> dict[str, Any]:
    device = jax.devices()[0]
    packages = ("maskjax", "jax", "flax", "optax", "numpy")
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "cores": os.cpu_count(),
        },
        "data": {
            "name": context.data.name,
            "train": len(context.data.x_train),
            "test": len(context.data.x_test),
            "shape": context.data.shape,
        },
        "settings": {"size": context.size, "seeds": context.seeds}
        | {"xla_flags": _compiling.flags()},
        "demos": {
            demo.name: {"title": demo.title, "seconds": round(seconds, 2)}
            | {"rows": [row._asdict() for row in outcome.rows]}
            | {"settings": outcome.settings, "numbers": outcome.numbers}
            | {"pictures": outcome.pictures, "verdict": outcome.verdict}
            for demo, (outcome, seconds) in _in_order(found)
        },
        "missing": {demo.name: why for demo, why in missing.items()},
    }


def _in_order(found: Found) -> list[tuple[Demo, tuple[Outcome, float]]]:
    return [(demo, found[demo]) for demo in DEMOS if demo in found]


def _record_lines(context: Context, found: Found) -> None:
    """A line for each demonstration, beside those of `benchmarks.speed`."""
    record = json.loads(json.dumps(_record(context, found, {}), default=_plain))
    shared = {"data": record["data"], **record["settings"]}
    root = pathlib.Path(__file__).parent / "results" / _results.device_slug()
    _results.append(
        root / "demonstrations.jsonl",
        [
            # Of settings that say how many seeds, those are right, not the most.
            {"demo": name, **shared, **_results.environment()}
            | {"seeds": demo["settings"].get("seeds", context.seeds)}
            | {key: demo[key] for key in ("seconds", "settings", "numbers")}
            for name, demo in record["demos"].items()
        ],
    )


def _plain(value: Any) -> Any:
    """Arrays as lists of numbers that a person can read, for JSON."""
    array = np.asarray(value)
    if np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64).round(6)
    return array.tolist()


if __name__ == "__main__":
    sys.exit(main())
