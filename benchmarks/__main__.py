"""Show what maskjax does: train, measure, draw. `python -m benchmarks --help`."""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich import console as rich_console
from rich import markup, table

from benchmarks import _data, _episodes
from benchmarks._registry import Context, Demo, Outcome, Progress
from benchmarks.demos import DEMOS
from benchmarks.speed import _results

Found = dict[Demo, tuple[Outcome, float]]  # and seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status."""
    options = _parser().parse_args(argv)
    if options.list:
        for demo in DEMOS:
            print(f"{demo.name}: {demo.title}")
        return 0
    try:
        data = _data.load(options.data)
        omniglot = options.omniglot and _episodes.omniglot(options.omniglot)
        options.out.mkdir(parents=True, exist_ok=True)
    except _data.DataError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Can't write to the folder {options.out}: {error}", file=sys.stderr)
        return 2
    if options.size == "quick":
        data = data.first(2_000)

    console = rich_console.Console(width=None if sys.stdout.isatty() else 120)
    chosen = [demo for demo in DEMOS if not options.only or demo.name in options.only]
    with Progress(chosen, console) as bars:
        how = options.size, options.out, bars, options.tasks, omniglot
        context = Context(data, *how)
        found = {demo: bars.run(demo, context) for demo in chosen}

    results = options.out / "results.json"
    results.write_text(json.dumps(_record(context, found), indent=1, default=_plain))
    if options.record:
        _record_lines(context, found)
    console.print(_table(context, found))
    pictures = [name for outcome, _ in found.values() for name in outcome.pictures]
    console.print(f"In {options.out}: {', '.join([results.name, *pictures])}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        epilog="demonstrations:\n" + "\n".join(f"  {d.name}: {d.title}" for d in DEMOS),
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
        "full": "train for as long, and as many seeds, as for published lines: about "
        "half an hour on two cores (default: about five minutes)",
    }.items():
        how = {"dest": "size", "const": size, "default": "default", "help": text}
        sizes.add_argument(f"--{size}", action="store_const", **how)
    text = "where results.json and pictures go (default: out)"
    add("--out", default=pathlib.Path("out"), metavar="DIR", help=text, **path)
    text = "also append what was measured to benchmarks/results"
    add("--record", action="store_true", help=text)
    add("--list", action="store_true", help="name the demonstrations and stop")
    return parser


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"at least 2 tasks, got {number}")
    return number


def _table(context: Context, found: Found) -> table.Table:
    drawn = table.Table(
        title=f"{context.data.name}, up to {context.seeds} seeds", show_lines=True
    )
    for name in ("system", "what the paper promises", "what was measured", "seconds"):
        drawn.add_column(name, justify="right" if name == "seconds" else "left")
    for demo, (outcome, seconds) in found.items():
        for i, row in enumerate(outcome.rows):
            ends = (demo.title, f"{seconds:.1f}") if i == 0 else ("", "")
            told = map(markup.escape, (ends[0], *row))  # brackets are no styles
            drawn.add_row(*told, ends[1])
    return drawn


def _record(context: Context, found: Found) -> dict[str, Any]:
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
        "settings": {"size": context.size, "seeds": context.seeds},
        "demos": {
            demo.name: {"title": demo.title, "seconds": round(seconds, 2)}
            | {"rows": [row._asdict() for row in outcome.rows]}
            | {"settings": outcome.settings, "numbers": outcome.numbers}
            | {"pictures": outcome.pictures}
            for demo, (outcome, seconds) in found.items()
        },
    }


def _record_lines(context: Context, found: Found) -> None:
    """A line for each demonstration, beside those of `benchmarks.speed`."""
    record = json.loads(json.dumps(_record(context, found), default=_plain))
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
