"""A trained sentence encoder, pruned without any training: what its kernels meet tells.

The first lines of SciPy's docstrings look for the texts that they are from, by
embeddings of all-MiniLM-L6-v2. Only the kernels of its layers are pruned. They are
calibrated on parts of scikit-learn's docstrings, which each seed draws anew. Recall is
the share of lines that find their text first, MRR the mean of 1 / rank, and "cosine"
compares the embeddings of the pruned and of the dense network. With `--quick` the network
is a small one with random weights, and needs no package.
"""

import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _encoder, _pictures, _sentences
from benchmarks._registry import Context, Demo, Outcome, Row
from benchmarks._rows import rows
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

SMALL = _encoder.Sizes(2, 32, 4, 64, words=1000, length=128)
PAIRS, TEXTS = (60, 600, 600), (16, 256, 256)
LENGTH = 64  # tokens of a line or a text that is embedded
CALIBRATED = 128  # tokens of a part of a docstring
ROWS = 64, 32  # in a batch of either
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
ORDER = SPARSEGPT, WANDA, MAGNITUDE  # the best first
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
            "calibration": {"texts": context.pick(TEXTS), "tokens": CALIBRATED},
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
    calibrate = _methods.Calibration(network, ROWS[1], CALIBRATED)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    seconds, sizes = {}, {"dense": _megabytes(network.params, None)}
    for seed in range(context.pick(SEEDS)):
        texts = _sentences.sklearn_texts(context.pick(TEXTS), seed)
        given, spent = _timed(calibrate, texts)
        seconds["calibration"] = min(spent, seconds.get("calibration", spent))
        cases = list(_cases(context, first=not seed))
        for kind, method in context.track(f"sentence_encoder: seed {seed}", cases):
            how = _how(kind)
            pruned, spent = _timed(method_of(method), network.params, given, *how)
            seconds[method] = min(spent, seconds.get(method, spent))
            each = found.setdefault(kind, {}).setdefault(method, [])
            each.append(retrieval.measured(pruned.params))
            if method == SPARSEGPT and kind in TOLD.values() and not seed:
                sizes[kind] = _megabytes(*pruned)
    return _arrays(found), seconds, sizes
