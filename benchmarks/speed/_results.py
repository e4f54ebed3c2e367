"""Result lines, and tables of them."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from benchmarks._timing import Contestant, Timing
from benchmarks.speed._case import Case

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
COLUMNS = ("median", "IQR", "x ours", "x limit", "compile", "repeats", "bytes")
COMPILED = (
    "code",
    "arguments",
    "temporary",
    "bytes",
    "FLOPs",
    "CPU to compile",
    "collectives",
)

UNITS = (1, "s"), (1e3, "ms"), (1e6, "us")
Line = dict[str, Any]


def device_slug() -> str:
    """The folder of this device's lines: `cpu-2` for two cores, else what it is."""
    if jax.default_backend() == "cpu":
        return f"cpu-{_cores()}"
    return re.sub(r"[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")


def environment() -> Line:
    """What every line of a run says of where and when it was measured."""
    return {
        "run": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "cores": _cores(),
        "jax": jax.__version__,
        "maskjax": importlib.metadata.version("maskjax"),
        "commit": _commit(),
    }


def lines(
    question: str, case: Case, timings: Mapping[str, Timing], where: Line
) -> list[Line]:
    """One line for each contestant of a case."""

    def line(each: Contestant) -> Line:
        timing = timings[each.name]
        return {
            "question": question,
            "case": case.name,
            "contestant": each.name,
            "role": each.role,
            "compile_s": _significant(each.compile_s),
            "median_s": _significant(timing.median_s),
            "iqr_s": _significant(timing.iqr_s),
            "repeats": timing.repeats,
            "steps": each.steps,
            "bytes": each.nbytes,
            **case.context,
            **where,
        }

    return list(map(line, case.contestants))


def append(path: pathlib.Path, new: Iterable[Line]) -> None:
    """Write lines at the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in new)


def last_run(path: pathlib.Path) -> list[list[Line]]:
    """The lines of each case, from the last run that had it."""
    by_case: dict[str, list[Line]] = {}
    for text in path.read_text().splitlines():
        line = json.loads(text)
        known = by_case.setdefault(line["case"], [])
        if known and known[0]["run"] != line["run"]:
            known.clear()
        known.append(line)
    return list(by_case.values())


def table(case: Sequence[Line]) -> str:
    """A case in Markdown, a row for each contestant."""
    compiled = "code" in case[0]  # for chips that are not there: nothing was timed
    columns, found = (COMPILED, _compiled) if compiled else (COLUMNS, _rows)
    rows = [(f"**{case[0]['case']}**", *columns), *found(case)]
    rows.insert(1, ("---", *["---:"] * len(columns)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def markdown(root: pathlib.Path, questions: Mapping[str, str]) -> str:
    """Tables of everything under a results folder, for a README."""
    parts = []
    for device in sorted(p for p in root.glob("*") if p.is_dir()):
        for name, first_line in questions.items():
            path = device / f"{name}.jsonl"
            if not path.exists():
                continue
            found = last_run(path)
            parts += [f"### {name} on {device.name}", first_line, _origin(found)]
            parts += map(table, found)
    return "\n\n".join(parts)


def into_readme(path: pathlib.Path, tables: str) -> None:
    """Put tables between the markers of a README."""
    text = path.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    path.write_text(f"{head}{BEGIN}\n\n{tables}\n\n{END}{tail}")


def _compiled(case: Sequence[Line]) -> list[tuple[str, ...]]:
    def row(line: Line) -> tuple[str, ...]:
        kinds = line["collectives"].items()
        told = ", ".join(f"{count} {kind}" for kind, count in kinds)
        largest = line["largest_collective"]
        return (
            f"{line['contestant']}{_role(line)}",
            *(_scaled(line[name]) for name in ("code", "arguments", "temporary")),
            *(_scaled(line[name]) for name in ("bytes", "flops")),
            _duration(line["compile_cpu_s"]),
            f"{told} of at most {largest:,}" if told else "",
        )

    return list(map(row, case))


def _scaled(number: float) -> str:
    fits = (
        each for each in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if number >= each[0]
    )
    scale, unit = next(fits, (1, ""))
    return f"{number / scale:.3g}{unit}"


def _role(line: Line) -> str:
    return "" if line["role"] == "baseline" else f" ({line['role']})"


def _rows(case: Sequence[Line]) -> list[tuple[str, ...]]:
    seconds = {line["role"]: line["median_s"] for line in case}

    def row(line: Line) -> tuple[str, ...]:
        return (
            f"{line['contestant']}{_role(line)}",
            _duration(line["median_s"]),
            _duration(line["iqr_s"]),
            f"{line['median_s'] / seconds['ours']:.2f}",
            f"{line['median_s'] / seconds['limit']:.2f}",
            _duration(line["compile_s"]) if line["compile_s"] else "",
            str(line["repeats"]),
            f"{line['bytes']:,}" if line["bytes"] else "",
        )

    return list(map(row, case))


def _origin(found: list[list[Line]]) -> str:
    told = "jax {jax}, maskjax {maskjax} at {commit}, {device} with {cores} cores"
    seen = {told.format(**line) for case in found for line in case}
    return "; ".join(sorted(seen)) + "."


def _duration(seconds: float) -> str:
    fits = (each for each in UNITS if seconds * each[0] >= 1)
    scale, unit = next(fits, UNITS[-1])
    return f"{seconds * scale:.3g} {unit}"


def _significant(value: float) -> float:
    return float(f"{value:.4g}")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _commit() -> str:
    root = pathlib.Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True
        )
        return done.stdout.strip()

    head = git("rev-parse", "--short", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--", "maskjax", "benchmarks/*.py")
    return f"{head}+changes" if changed else head
