"""The figures of the main README, each from a committed line: `--help`.

python -m benchmarks.measured          prints the table
python -m benchmarks.measured --write  puts it into README.md
"""

import argparse
import json
import pathlib
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parent
README = ROOT.parent / "README.md"
DEVICE = "cpu-2"
BEGIN, END = "<!-- measured: python -m benchmarks.measured -->", "<!-- /measured -->"

_UNCHANGED = {True: "bit-identical", False: "CHANGED"}
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
    fixed = _case("masked_step", "784-300-100-10 in a scan")
    case = _case("sparse_step", "keep_sparse 784-300-100-10 members=1")
    gradual = _case("sparse_step", "prune 784-300-100-10 members=1")
    popup = _case("edge_popup_step", "784-300-100-10 members=1")
    yield (
        "steps: under a fixed mask; of Adam that keeps a mask, or prunes; edge-popup",
        f"{fixed['maskjax.apply'] / fixed['no mask']:.2f}; "
        f"{case['maskjax'] / case['plain optimizer']:.2f}, "
        f"{gradual['maskjax'] / gradual['plain optimizer']:.2f}; "
        f"{popup['edge_popup'] / popup['ordinary step']:.2f} times the dense step",
    )
    case = _case("task_inference", "784-300-100-500 K=250")
    ours = case["one_shot"]
    yield (
        "the task of an image among 250, `superposition.one_shot`, 784-300-100-500",
        f"{ours * 1e3:.1f} ms: {case['autodiff, float masks'] / ours:.0f} times faster "
        f"than autodiff through float masks, {case['torch, float masks'] / ours:.0f} "
        f"times than in torch, {case['every mask'] / ours:.0f} times than every mask",
    )
    demo = _demonstration("supsup", "mnist.npz", tasks=250)["numbers"]
    yield (
        "`supsup`, 250 permutations of MNIST (10,000 images), 300-300-100, 469 steps",
        f"{demo['images_given']:.1%}, {demo['gnu']:.1%} if the task is found from "
        f"one image; {demo['bytes_per_task'] / 1e3:.0f} kB a task",
    )
    demo = _demonstration("lottery_ticket", "mnist.npz")["numbers"]
    tickets, again = demo["tickets"]["end"], demo["reinit"]["end"]
    round_ = demo["rounds_of_controls"][-1]
    yield (
        "`lottery_ticket`, 300-100, MNIST (10,000 images), 5 searches",
        f"{_mean(tickets[round_]):.1%} with {demo['density'][round_]:.1%} of the "
        f"weights, {_mean(tickets[0]):.1%} with all; {_mean(again[-1]):.1%} under the "
        "same masks from fresh parameters",
    )
    demo = _demonstration("edge_popup", "mnist.npz")["numbers"]
    yield (
        "`edge_popup`, 300-100 with random weights, MNIST (10,000 images), 10 seeds",
        f"{_mean(demo['learned_masks']):.1%} with learned masks of density 0.5, "
        f"{_mean(demo['first_masks']):.1%} before; "
        f"{_mean(demo['trained_weights']):.1%} with the weights trained instead",
    )
    demo = _demonstration("packnet", "mnist.npz", tasks=10)
    how, same = demo["settings"], demo["numbers"]["bit_identical"]
    found = {
        name: _mean(map(_mean, rows)) for name, rows in demo["numbers"]["final"].items()
    }
    yield (
        f"`packnet`, {how['tasks']} permutations of MNIST (10,000 images), 100-100, "
        f"{how['epochs']} epochs each",
        f"{found['packnet']:.1%}, earlier logits {_UNCHANGED[same]}; "
        f"{found['single']:.1%} with a network each, {found['naive']:.1%} without mask",
    )
    rmse = _demonstration("pacnet", "digits of scikit-learn")
    few = rmse["settings"]["target_samples"].index(30)
    found = rmse["numbers"]["distances"]["1.0"]
    tuned, scratch, ours = (
        _mean(found["rmse"][name][few])
        for name in ("fine-tuning", "from scratch", "PAC-Net")
    )
    same = found["bit_identical"]
    forgot = _mean(found["source_rmse_after"]["fine-tuning"][few])
    kept = _mean(found["source_rmse_after"]["PAC-Net"][few])
    yield (
        "`pacnet`, Friedman's function from 30 samples and a related source, "
        f"{rmse['settings']['seeds']} seeds",
        f"RMSE {ours:.2f} and {kept:.2f} on the source, {_UNCHANGED[same]}; "
        f"fine-tuning {tuned:.2f} and {forgot:.2f}; from scratch {scratch:.2f}",
    )
    demo = _demonstration("uncertainty", "mnist.npz")
    how, found = demo["settings"], demo["numbers"]
    ways = [f"{name} {_mean(way['nll']):.3f}" for name, way in found["ways"].items()]
    cost = {name: f"{way['relative']:.1f}" for name, way in found["predict"].items()}
    yield (
        f"negative log-likelihood on MNIST ({how['train']:,} images), 3 x 200, "
        f"{how['seeds']} seeds; seconds of a prediction",
        f"{'; '.join(ways)}. {how['members']['Masksembles']} thin Masksembles take "
        f"{cost['Masksembles']} times one network's, {how['members']['deep ensemble']} "
        f"networks {cost['deep ensemble']}",
    )
    demo = _demonstration("strong_ticket", "mnist.npz")["numbers"]
    made, fewest = demo["made"]["nearest"], demo["made"]["fewest"]
    yield (
        "`strong_ticket`, the 397,000 weights of 784-500-10 as sums of some of 21 each",
        f"{made['seconds']:.0f} s, none off by more than {made['largest_error']:.4f} "
        f"(published, off by 0.01: 77,266 s on 36 cores); within 0.01, "
        f"{fewest['kept']:,} of {fewest['size']:,} random weights do",
    )


def _case(question: str, name: str) -> dict[str, float]:
    """Median seconds by contestant, of the last run that had the case."""
    lines = [line for line in _lines(question) if line["case"] == name]
    return {
        line["contestant"]: line["median_s"]
        for line in lines
        if line["run"] == lines[-1]["run"]
    }


def _demonstration(name: str, data: str, **settings: Any) -> Line:
    lines = [x for x in _lines("demonstrations") if x["demo"] == name]
    lines = [x for x in lines if x["data"]["name"] == data]
    lines = [x for x in lines if settings.items() <= x["settings"].items()]
    return [x for x in lines if x["size"] == "full"][-1]


def _lines(name: str) -> list[Line]:
    path = ROOT / "results" / DEVICE / f"{name}.jsonl"
    return [json.loads(text) for text in path.read_text().splitlines()]


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.measured")
    parser.add_argument("--write", action="store_true", help="write it into README.md")
    if parser.parse_args().write:
        head, rest = README.read_text().split(BEGIN)
        README.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")
    else:
        print(table())
