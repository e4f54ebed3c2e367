"""Pruning by magnitude, by Wanda and by SparseGPT, with or without OWL's shares."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import _encoder
from maskjax import allocation, calibration, masking, score, select, structure
from maskjax.recipes import sparsegpt

ENTRIES = structure.Entries()
MAGNITUDE, WANDA, SPARSEGPT = "magnitude", "Wanda", "SparseGPT"
OWL = {method: f"{method} + OWL" for method in (WANDA, SPARSEGPT)}
BY_LAYER = {method: f"{method}, layer by layer" for method in (WANDA, SPARSEGPT)}


class Pruned(NamedTuple):
    """Parameters after pruning, and which of them are kept."""

    params: Any
    mask: Any


class Calibrated(NamedTuple):
    """What the kernels met in the texts of one seed."""

    batches: Sequence[np.ndarray]  # tokens [B, T]
    stats: Any
    norms: Any


class Calibration:
    """Statistics of a network over texts; one program for all seeds."""

    def __init__(self, network: _encoder.Network, rows: int, length: int):
        """Batches are [rows, length]."""
        self._network, self._rows, self._length = network, rows, length
        self._update = jax.jit(
            lambda stats, params, ids: calibration.update(
                network.apply, stats, params, ids, weights=ids != _encoder.PAD
            ),
            donate_argnums=0,
        )

    def __call__(self, texts: Sequence[str]) -> Calibrated:
        """What the kernels meet in these texts."""
        net, rows, length = self._network, self._rows, self._length
        tokens = net.tokens(texts, length)
        batches = [ids for _, ids in _encoder.batches(tokens, rows, length, length)]
        stats = calibration.init(net.apply, net.params, batches[0])
        for ids in batches:
            stats = self._update(stats, net.params, ids)
        return Calibrated(batches, stats, calibration.norms(stats))


@functools.partial(jax.jit, static_argnames=("pattern", "scope"))
def _best(params: Any, scores: Any, density: Any, *, pattern: Any, scope: Any) -> Any:
    how = {"structure": pattern, "scope": scope}
    mask = select.top_k(scores, density=density, **how)
    return Pruned(masking.apply(params, mask), mask)


def magnitude(params: Any, given: Calibrated, density: Any, pattern: Any) -> Pruned:
    """The largest weights of each kernel."""
    del given
    how = {"pattern": pattern, "scope": "leaf"}
    return _best(params, score.magnitude(params), density, **how)


def wanda(params: Any, given: Calibrated, density: Any, pattern: Any) -> Pruned:
    """The largest weights, times the norm of what they meet, of each output."""
    how = {"pattern": pattern, "scope": "output" if pattern == ENTRIES else "leaf"}
    return _best(params, score.wanda(params, given.norms), density, **how)


def repaired(params: Any, given: Calibrated, density: Any, pattern: Any) -> Pruned:
    """SparseGPT: what is left makes up for what is removed."""
    how = {"density": density} if pattern == ENTRIES else {"structure": pattern}
    found = sparsegpt.prune(params, given.stats, **how)
    return Pruned(found.params, found.mask)


def with_owl(method: Any) -> Any:
    """The same, with more left in layers with more outliers."""

    def of(params: Any, given: Calibrated, density: Any, pattern: Any) -> Pruned:
        shares = allocation.owl(params, given.norms, density=density)
        return method(params, given, shares, pattern)

    return of


METHODS: dict[str, Callable[..., Pruned]] = {
    MAGNITUDE: magnitude,
    WANDA: wanda,
    SPARSEGPT: repaired,
    OWL[WANDA]: with_owl(wanda),
    OWL[SPARSEGPT]: with_owl(repaired),
}
