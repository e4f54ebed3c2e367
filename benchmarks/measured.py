"""The figures of the main README, each from a committed line: `--help`.

python -m benchmarks.measured          prints the table
python -m benchmarks.measured --write  puts it into README.md
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from benchmarks._rows import rows
from benchmarks.speed import _results

ROOT = pathlib.Path(__file__).parent
README = ROOT.parent / "README.md"
DEVICE = "cpu-2"
FOLDER = ROOT / "results" / DEVICE
BEGIN, END = "<!-- measured: python -m benchmarks.measured -->", "<!-- /measured -->"

DIGITS = "digits of scikit-learn"
SMALL = "784-300-100-10 members=1"
STEPS = {
    "fixed mask": ("masked_step", "784-300-100-10 in a scan"),
    "`keep_sparse`": ("sparse_step", f"keep_sparse {SMALL}"),
    "`prune`": ("sparse_step", f"prune {SMALL}"),
    "edge-popup": ("edge_popup_step", SMALL),
}
Line = dict[str, Any]


def table() -> str:
    """The table in Markdown."""
    each = (
        f"| {row.promise} | {row.measured} |\n" for row in rows("measured", **_found())
    )
    return (
        f"| on two CPU cores | measured (lines in `benchmarks/results/{DEVICE}`) |\n"
        f"|---|---|\n{''.join(each).rstrip()}"
    )


def _found() -> Line:
    """What the rows of `promises.toml` show, by name."""
    select = _beside("maskjax", _case("selection", "n=20M normal density=0.1 global"))
    many = _numbers("supsup", "mnist.npz", tasks=250)
    lottery = _numbers("lottery_ticket", "mnist.npz")
    tickets, round_ = lottery["tickets"]["end"], lottery["rounds_of_controls"][-1]
    kernel = _case("sparsegpt", "4096 x 4096, half of each block")
    kernel = _beside("sparsegpt.prune", kernel)
    encoder = _numbers("sentence_encoder", DIGITS)
    merging = _numbers("merging", "mnist.npz")
    ways = _numbers("uncertainty", "mnist.npz", train=9_000, seeds=5)
    return {
        "select": select,
        "passes": 1 / select["times"]["compare once"],
        "steps": {name: _times(*case) for name, case in STEPS.items()},
        "compact": _beside(
            "compacted", _case("compaction", "forward ResNet18 32x32 batch=4")
        ),
        "sparsegpt": kernel | {"s": kernel["ms"] / 1e3},
        "encoder": encoder["found"]["2:4"],
        "dense": encoder["dense"],
        "task": _beside("one_shot", _case("task_inference", "784-300-100-500 K=250")),
        "supsup": many,
        "kb": many["bytes_per_task"] / 1e3,
        "tickets": {
            "last": tickets[round_],
            "density": lottery["density"][round_],
            "dense": tickets[0],
            "again": lottery["reinit"]["end"][-1],
        },
        "edge_popup": _numbers("edge_popup", "mnist.npz"),
        "packnet": _numbers("packnet", "mnist.npz", tasks=10),
        "wsn": _numbers("wsn", "mnist.npz"),
        "merging": merging,
        "merging_mb": {n: size / 1e6 for n, size in merging["bytes"].items()},
        "learned": _numbers("learned", DIGITS)["patterns"]["accuracy"],
        "pacnet": _numbers("pacnet", DIGITS, seeds=10)["distances"]["1.0"],
        "uncertainty": ways,
        "nll": {name: way["nll"] for name, way in ways["ways"].items()},
        "ticket": _numbers("strong_ticket", "mnist.npz")["made"],
    }


def _beside(ours: str, case: dict[str, float]) -> Line:
    """Milliseconds of ours, and how many times as long each takes."""
    times = {name: seconds / case[ours] for name, seconds in case.items()}
    return {"ms": 1e3 * case[ours], "times": times}


def _case(question: str, name: str) -> dict[str, float]:
    """Median seconds by contestant, of the last run that had the case."""
    cases = _results.last_run(FOLDER / f"{question}.jsonl")
    (lines,) = (case for case in cases if case[0]["case"] == name)
    return {line["contestant"]: line["median_s"] for line in lines}


def _times(question: str, name: str) -> float:
    """The seconds of ours, the first contestant, beside those of the limit."""
    ours, *_, limit = _case(question, name).values()
    return ours / limit


def _numbers(name: str, data: str, **settings: Any) -> Line:
    texts = (FOLDER / "demonstrations.jsonl").read_text().splitlines()
    lines = [x for x in map(json.loads, texts) if x["demo"] == name]
    lines = [x for x in lines if x["data"]["name"] == data and x["size"] == "full"]
    lines = [x for x in lines if settings.items() <= x["settings"].items()]
    return _arrays(lines[-1]["numbers"])


def _arrays(value: Any) -> Any:
    """Lists as arrays, of which rows show the mean."""
    if isinstance(value, dict):
        return {name: _arrays(each) for name, each in value.items()}
    return np.array(value) if isinstance(value, list) else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.measured")
    parser.add_argument("--write", action="store_true", help="write it into README.md")
    if parser.parse_args().write:
        head, rest = README.read_text().split(BEGIN)
        README.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")
    else:
        print(table())
