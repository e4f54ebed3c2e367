"""The figures of the main README, each from a committed line: `--help`.

python -m benchmarks.measured          prints the table
python -m benchmarks.measured --write  puts it into README.md
"""

import argparse
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks._rows import said

ROOT = pathlib.Path(__file__).parent
README = ROOT.parent / "README.md"
DEVICE = "cpu-2"
BEGIN, END = "<!-- measured: python -m benchmarks.measured -->", "<!-- /measured -->"

SMALL = "784-300-100-10 members=1"
Line = dict[str, Any]


def table() -> str:
    """The table in Markdown."""
    rows = "\n".join(f"| {what} | {figure} |" for what, figure in _rows())
    return (
        f"| on two CPU cores | measured (lines in `benchmarks/results/{DEVICE}`) |\n"
        f"|---|---|\n{rows}"
    )


def _rows() -> Iterator[tuple[str, str]]:
    case = _case("selection", "n=20M normal density=0.1 global")
    ours = case["maskjax"]
    yield (
        "`select.top_k`, a tenth of 20 million scores in 8 leaves, global",
        f"{ours * 1e3:.0f} ms: {case['argsort'] / ours:.0f} times faster than sorting "
        f"(`argsort`), {case['np.partition'] / ours:.1f} times faster than "
        f"`np.partition`; {ours / case['compare once']:.1f} passes over the data",
    )
    times = {
        "fixed mask": _times("masked_step", "784-300-100-10 in a scan"),
        "`keep_sparse`": _times("sparse_step", f"keep_sparse {SMALL}"),
        "`prune`": _times("sparse_step", f"prune {SMALL}"),
        "edge-popup": _times("edge_popup_step", SMALL),
    }
    yield (
        "one training step, beside the dense one",
        f"{said(times, '.2f')} times as long",
    )
    case = _case("task_inference", "784-300-100-500 K=250")
    ours = case["one_shot"]
    yield (
        "the task of an image among 250, `superposition.one_shot`, 784-300-100-500",
        f"{ours * 1e3:.1f} ms: {case['autodiff, float masks'] / ours:.0f} times faster "
        f"than autodiff through float masks, {case['torch, float masks'] / ours:.0f} "
        f"times than in torch, {case['every mask'] / ours:.0f} times than every mask",
    )
    demo = _numbers("supsup", "mnist.npz", tasks=250)
    yield (
        "`supsup`, 250 permutations of MNIST (10,000 images), 300-300-100, 469 steps",
        f"{demo['images_given']:.1%}, {demo['gnu']:.1%} if the task is found from "
        f"one image; {demo['bytes_per_task'] / 1e3:.0f} kB a task",
    )
    demo = _numbers("lottery_ticket", "mnist.npz")
    tickets, again = demo["tickets"]["end"], demo["reinit"]["end"]
    round_ = demo["rounds_of_controls"][-1]
    yield (
        "`lottery_ticket`, 300-100, MNIST (10,000 images), 5 searches",
        f"{_mean(tickets[round_]):.1%} with {demo['density'][round_]:.1%} of the "
        f"weights, {_mean(tickets[0]):.1%} with all; {_mean(again[-1]):.1%} under the "
        "same masks from fresh parameters",
    )
    demo = _numbers("edge_popup", "mnist.npz")
    yield (
        "`edge_popup`, 300-100 with random weights, MNIST (10,000 images), 10 seeds",
        f"{_mean(demo['learned_masks']):.1%} with learned masks of density 0.5, "
        f"{_mean(demo['first_masks']):.1%} before; "
        f"{_mean(demo['trained_weights']):.1%} with the weights trained instead",
    )
    demo = _numbers("packnet", "mnist.npz", tasks=10)
    found = {name: _mean(rows) for name, rows in demo["final"].items()}
    yield (
        "`packnet`, 10 permutations of MNIST (10,000 images), 100-100, 5 epochs each",
        f"{found['packnet']:.1%}, earlier logits {_same(demo)}; "
        f"{found['single']:.1%} with a network each, {found['naive']:.1%} without mask",
    )
    demo = _numbers("pacnet", "digits of scikit-learn", seeds=10)["distances"]["1.0"]
    of = {name: _mean(errors[1]) for name, errors in demo["rmse"].items()}
    after = {n: _mean(errors[1]) for n, errors in demo["source_rmse_after"].items()}
    yield (
        "`pacnet`, Friedman's function from 30 samples and a related source, 10 seeds",
        f"RMSE {of['PAC-Net']:.2f} and {after['PAC-Net']:.2f} on the source, "
        f"{_same(demo)}; fine-tuning {of['fine-tuning']:.2f} and "
        f"{after['fine-tuning']:.2f}; from scratch {of['from scratch']:.2f}",
    )
    demo = _numbers("uncertainty", "mnist.npz", train=9_000, seeds=5)
    likely = {name: np.array(way["nll"]) for name, way in demo["ways"].items()}
    cost = {name: way["relative"] for name, way in demo["predict"].items()}
    yield (
        "negative log-likelihood on MNIST (9,000 images), 3 x 200, 5 seeds; seconds of "
        "a prediction",
        f"{said(likely, '.3f')}. 4 thin Masksembles take {cost['Masksembles']:.1f} "
        f"times one network's, 5 networks {cost['deep ensemble']:.1f}",
    )
    made = _numbers("strong_ticket", "mnist.npz")["made"]
    near, fewest = made["nearest"], made["fewest"]
    yield (
        "`strong_ticket`, the 397,000 weights of 784-500-10 as sums of some of 21 each",
        f"{near['seconds']:.0f} s, none off by more than {near['largest_error']:.4f} "
        f"(published, off by 0.01: 77,266 s on 36 cores); within 0.01, "
        f"{fewest['kept']:,} of {fewest['size']:,} random weights do",
    )


def _case(question: str, name: str) -> dict[str, float]:
    """Median seconds by contestant, of the last run that had the case."""
    lines = [line for line in _lines(question) if line["case"] == name]
    last = [line for line in lines if line["run"] == lines[-1]["run"]]
    return {line["contestant"]: line["median_s"] for line in last}


def _times(question: str, name: str) -> float:
    """The seconds of ours, the first contestant, beside those of the limit."""
    ours, *_, limit = _case(question, name).values()
    return ours / limit


def _numbers(name: str, data: str, **settings: Any) -> Line:
    lines = [x for x in _lines("demonstrations") if x["demo"] == name]
    lines = [x for x in lines if x["data"]["name"] == data and x["size"] == "full"]
    lines = [x for x in lines if settings.items() <= x["settings"].items()]
    return lines[-1]["numbers"]


def _lines(name: str) -> list[Line]:
    path = ROOT / "results" / DEVICE / f"{name}.jsonl"
    return [json.loads(text) for text in path.read_text().splitlines()]


def _mean(values: Any) -> float:
    return float(np.mean(values))


def _same(numbers: Line) -> str:
    return said(numbers["bit_identical"], "bit-identical|CHANGED")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.measured")
    parser.add_argument("--write", action="store_true", help="write it into README.md")
    if parser.parse_args().write:
        head, rest = README.read_text().split(BEGIN)
        README.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")
    else:
        print(table())
