"""Texts of whoever has SciPy and scikit-learn: docstrings, and what they begin with.

Which they are follows the versions of both.
"""

import importlib
import inspect
import re
import types
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Left out are modules that repeat another's functions: fftpack, odr, stats.mstats.
MODULES = (
    *("cluster.hierarchy", "cluster.vq", "constants", "datasets", "differentiate"),
    *("fft", "integrate", "interpolate", "io", "linalg", "linalg.interpolative"),
    *("ndimage", "optimize", "signal", "signal.windows", "sparse", "sparse.csgraph"),
    *("sparse.linalg", "spatial", "spatial.distance", "special", "stats"),
    *("stats.contingency", "stats.qmc"),
)
SHORTEST = 200  # characters of a text that tells more than its first line


class Pairs(NamedTuple):
    """What functions do in a line, and the texts that go on from there."""

    lines: list[str]
    texts: list[str]


def scipy_pairs(count: int) -> Pairs:
    """So many of SciPy's public functions, always the same."""
    found = sorted(_functions().items())
    if len(found) < count:
        raise ValueError(f"SciPy has {len(found)} such docstrings, not {count}.")
    order = np.random.default_rng(0).permutation(len(found))[:count]
    return Pairs(*map(list, zip(*(found[i] for i in order), strict=True)))


def sklearn_texts(count: int, seed: int) -> list[str]:
    """So many docstrings of scikit-learn, another choice for every seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that are experimental, or leave
        from sklearn.utils import discovery

        public = dict(discovery.all_estimators() + discovery.all_functions())
    found = {_line(inspect.getdoc(each) or "") for each in public.values()}
    texts = sorted(text for text in found if len(text) >= SHORTEST)
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[i] for i in order[:count]]


def _functions() -> dict[str, str]:
    """Texts by first lines; of equal lines, or texts, the first."""
    pairs: dict[str, str] = {}
    for function in _public():
        first, blank, rest = (inspect.getdoc(function) or "").partition("\n\n")
        line, text = _line(first), _line(rest)
        signature = line.startswith(f"{function.__name__}(")  # of compiled functions
        if blank and not signature and len(text) >= SHORTEST:
            pairs.setdefault(line, text)
    return {line: text for text, line in {t: x for x, t in pairs.items()}.items()}


def _public() -> Iterator[types.FunctionType]:
    for name in MODULES:
        module = importlib.import_module(f"scipy.{name}")
        for each in sorted(module.__all__):
            function = getattr(module, each)
            if inspect.isroutine(function):
                yield function


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
