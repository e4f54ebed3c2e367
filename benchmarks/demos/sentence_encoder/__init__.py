"""A trained sentence encoder, pruned without any training: what its kernels meet tells.

The first lines of SciPy's docstrings look for the texts that they are from, by
embeddings of all-MiniLM-L6-v2. Only the kernels of its layers are pruned. They are
calibrated on docstrings of scikit-learn, which each seed draws anew, cut to the length
of what is embedded later. Recall is the share of lines that find their text first, MRR
the mean of 1 / rank; "cosine" is between embeddings of the pruned and of the dense
network. With `--quick` the network is a small one with random weights, and needs no
package.
"""

import itertools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _encoder, _pictures, _sentences
from benchmarks._registry import Context, Demo, Outcome, Row
from benchmarks._rows import error, rows
from benchmarks.demos.sentence_encoder import _methods, _retrieval
from benchmarks.demos.sentence_encoder._methods import (
    BY_LAYER,
    ENTRIES,
    MAGNITUDE,
    OWL,
    SPARSEGPT,
    WANDA,
)
from maskjax import storage, structure

SMALL = _encoder.Sizes(2, 32, 4, 64, words=1000, length=64)
PAIRS, TEXTS = (60, 600, 600), (16, 256, 256)
LENGTH = 64  # tokens of a text, at most
ROWS = 64, 32  # of a batch: to embed, and for calibration
SEEDS = 2, 1, 3
DENSITIES = (0.5, 0.3), (0.5, 0.3), (0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
HALF, PATTERN, FEW = "0.5", "2:4", "0.3"
TOLD = {"half": HALF, "pattern": PATTERN, "few": FEW}  # what rows call them
NOFM = structure.NofM(2, 4)
WEIGHED = 10  # texts that the package itself embeds, too
# What the figures of the trained network are held against: of each measure, the least.
GOALS = {
    (PATTERN, SPARSEGPT): {"cosine": 0.85, "recall": 0.455},
    (HALF, WANDA): {"cosine": 0.82},
}
ORDER = MAGNITUDE, WANDA, SPARSEGPT  # the best last
Found = dict[str, dict[str, dict[str, np.ndarray]]]  # by pattern, method and measure


def run(context: Context) -> Outcome:
    """Prune an encoder in many ways, and ask it to find texts."""
    if not context.quick and (lacking := _encoder.missing()):
        row = Row("a trained sentence encoder, pruned without training", _encoder.ASK)
        return Outcome([row], {}, {"missing": lacking}, [])
    network = _encoder.small(SMALL) if context.quick else _encoder.load()
    retrieval = _retrieval.of(network, context.pick(PAIRS), ROWS[0], LENGTH)
    found, seconds, sizes = _measured(context, network, retrieval)
    numbers = {
        "dense": retrieval.measured(network.params),
        "package": None if context.quick else _difference(network),
        "found": found,
        "reached": _reached(found),
        "order": {m: _ordered(found, m) for m in _retrieval.MEASURES},
        "megabytes": sizes,
        "seconds": seconds,
    }
    return Outcome(
        rows=rows("sentence_encoder", **_for_rows(numbers)),
        settings={
            "network": "small, random weights" if context.quick else _encoder.NAME,
            "pairs": context.pick(PAIRS),
            "tokens": LENGTH,
            "calibration": {"texts": context.pick(TEXTS)},
            "densities": context.pick(DENSITIES),
            "seeds": context.pick(SEEDS),
        },
        numbers=numbers,
        pictures=[_draw(context, numbers)],
    )


def _measured(
    context: Context, network: _encoder.Network, retrieval: _retrieval.Retrieval
) -> tuple[Found, dict[str, float], dict[str, float]]:
    """What is left of retrieval, the seconds of each method, megabytes on disk."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    seconds, sizes = {}, {"dense": _megabytes(network.params, None)}
    for seed in range(context.pick(SEEDS)):
        texts = _sentences.sklearn_texts(context.pick(TEXTS), seed)
        how = ROWS[1], LENGTH
        given, spent = _timed(_methods.calibrated, network, texts, *how)
        seconds["calibration"] = min(spent, seconds.get("calibration", spent))
        cases = list(_cases(context, first=not seed))
        for kind, method in context.track(f"sentence_encoder: seed {seed}", cases):
            task = network, given, method, *_how(kind)
            pruned, spent = _timed(_methods.pruned, *task)
            seconds[method] = min(spent, seconds.get(method, spent))
            each = found.setdefault(kind, {}).setdefault(method, [])
            each.append(retrieval.measured(pruned.params))
            if method == SPARSEGPT and kind in TOLD.values() and not seed:
                sizes[kind] = _megabytes(*pruned)
    return _arrays(found), seconds, sizes


def _cases(context: Context, *, first: bool) -> Iterator[tuple[str, str]]:
    """Which pattern, by which method; magnitudes are the same for every seed."""
    for kind in (*map(str, context.pick(DENSITIES)), PATTERN):
        methods = list(ORDER if first else ORDER[1:])
        if kind == FEW or (context.size == "full" and kind != PATTERN):
            methods += OWL.values()
        if context.size == "full" and kind in TOLD.values():
            methods += BY_LAYER.values()
        elif kind == PATTERN:
            methods.append(BY_LAYER[SPARSEGPT])
        yield from ((kind, method) for method in methods)


def _how(kind: str) -> tuple[jax.Array, structure.Structure]:
    """The density, and the pattern."""
    return (jnp.float32(0.5), NOFM) if kind == PATTERN else (jnp.float32(kind), ENTRIES)


def _timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    found = jax.block_until_ready(function(*args))
    return found, time.perf_counter() - start


def _arrays(found: Any) -> Found:
    """Each seed's measures as arrays [S]."""
    return {
        kind: {
            method: {m: np.array([one[m] for one in each]) for m in each[0]}
            for method, each in methods.items()
        }
        for kind, methods in found.items()
    }


def _megabytes(params: Any, mask: Any) -> float:
    """What a file of the whole network takes, the embeddings of words included."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "params.safetensors"
        storage.save_params(path, params, mask)
        return path.stat().st_size / 1e6


def _difference(network: _encoder.Network) -> float | None:
    """From what the package makes of some texts, short ones and long ones."""
    pairs = _sentences.scipy_pairs(WEIGHED // 2)
    texts = pairs.lines + pairs.texts
    theirs = _encoder.by_package(texts)
    if theirs is None:
        return None
    ((order, ids),) = _encoder.batches(network.tokens(texts, 256), WEIGHED, 256, 256)
    ours = np.asarray(network.apply(network.params, ids))[np.argsort(order)]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    return float(np.abs(ours - theirs).max())


def _reached(found: Found) -> dict[str, dict[str, bool]]:
    return {
        f"{method} {kind}": {
            measure: bool(found[kind][method][measure].mean() >= least)
            for measure, least in goals.items()
        }
        for (kind, method), goals in GOALS.items()
    }


def _ordered(found: Found, measure: str) -> dict[str, bool]:
    """Whether methods come in order, within two standard errors, by pattern."""

    def before(better: np.ndarray, worse: np.ndarray) -> bool:
        # Of one seed there is no standard error: then the order has to be strict.
        errors = [error(x) if len(x) > 1 else 0.0 for x in (better, worse)]
        return bool(better.mean() >= worse.mean() - 2 * np.hypot(*errors))

    return {
        kind: all(
            before(methods[better][measure], methods[worse][measure])
            for worse, better in itertools.pairwise(ORDER)
        )
        for kind, methods in found.items()
    }


def _for_rows(numbers: dict[str, Any]) -> dict[str, Any]:
    found, package = numbers["found"], numbers["package"]
    compared = "not compared" if package is None else f"at most {package:.1e} off"
    order = {
        measure: "kept" if all(kept.values()) else _not_kept(kept)
        for measure, kept in numbers["order"].items()
    }
    in_order = all(all(kept.values()) for kept in numbers["order"].values())
    more = {"compared": compared, "order": order, "in_order": in_order, "goals": {}}
    for (kind, method), goals in GOALS.items():
        each = {m: found[kind][method][m] for m in goals}
        more["goals"][kind] = {"found": each, **numbers["reached"][f"{method} {kind}"]}
    return numbers | {name: found[kind] for name, kind in TOLD.items()} | more


def _not_kept(kept: dict[str, bool]) -> str:
    return f"NOT at {', '.join(kind for kind, fine in kept.items() if not fine)}"


def _draw(context: Context, numbers: dict[str, Any]) -> str:
    found, densities = numbers["found"], context.pick(DENSITIES)
    title = "A sentence encoder, pruned without training, on SciPy's docstrings"
    drawn, plots = _pictures.page(title, 2, size=(11, 5))
    labels = {
        "recall": "fraction of lines that find their text first",
        "cosine": "cosine to the dense network's embeddings",
    }
    for axes, (measure, label) in zip(plots, labels.items(), strict=True):
        curves = {
            method: [found[str(d)][method][measure] for d in densities]
            for method in found[HALF]
            if method not in BY_LAYER.values()
        }
        levels = {"dense": numbers["dense"][measure]}
        how = {"levels": levels, "density": densities, "legend": "below"}
        _pictures.curves(axes, densities, curves, ylabel=label, **how)
    return _pictures.save(drawn, context, "sentence_encoder")


DEMO = Demo(
    "sentence_encoder", "a trained encoder, pruned without training", run, seconds=110
)
