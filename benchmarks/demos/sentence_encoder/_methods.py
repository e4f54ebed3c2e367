"""Pruning by magnitude, Wanda and SparseGPT: at once, with OWL, and layer by layer."""

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
BY_LAYER = {method: f"{method} layer by layer" for method in (WANDA, SPARSEGPT)}


class Calibrated(NamedTuple):
    """What the kernels of a dense network met in the texts of one seed."""

    batches: Sequence[np.ndarray]  # tokens [B, T]
    stats: Any
    norms: Any


class Pruned(NamedTuple):
    """Parameters after pruning, and which of them are kept."""

    params: Any
    mask: Any


def calibrated(
    network: _encoder.Network, texts: Sequence[str], rows: int, length: int
) -> Calibrated:
    """What the kernels meet in these texts, in batches [rows, length]."""
    tokens = network.tokens(texts, length)
    batches = [ids for _, ids in _encoder.batches(tokens, rows, length, length)]
    given = network.apply, network.params, batches
    stats = calibration.collect(*given, weights=_encoder.there)
    return Calibrated(batches, stats, calibration.norms(stats))


def pruned(
    network: _encoder.Network, given: Calibrated, method: str, density: Any, how: Any
) -> Pruned:
    """A network pruned to a density, or in a pattern, by a method."""
    if method in BY_LAYER.values():
        base = next(name for name in BY_LAYER if BY_LAYER[name] == method)
        return _by_layer(network, given, base, float(density), how)
    if method in OWL.values():
        method = next(name for name in OWL if OWL[name] == method)
        shares = {"density": density, "layer": _encoder.layer_of}
        density = allocation.owl(network.params, given.norms, **shares)
    return _METHODS[method](network.params, given.stats, density, how)


def _magnitude(params: Any, stats: Any, density: Any, pattern: Any) -> Pruned:
    del stats
    return _best(params, score.magnitude(params), density, pattern, "leaf")


def _wanda(params: Any, stats: Any, density: Any, pattern: Any) -> Pruned:
    scores = score.wanda(params, calibration.norms(stats))
    # A pattern is within an output anyway.
    scope = "output" if pattern == ENTRIES else "leaf"
    return _best(params, scores, density, pattern, scope)


def _sparsegpt(params: Any, stats: Any, density: Any, pattern: Any) -> Pruned:
    how = {"density": density} if pattern == ENTRIES else {"structure": pattern}
    found = sparsegpt.prune(params, stats, **how)
    return Pruned(found.params, found.mask)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _best(params: Any, scores: Any, density: Any, pattern: Any, scope: Any) -> Pruned:
    how = {"structure": pattern, "scope": scope}
    mask = select.top_k(scores, density=density, **how)
    return Pruned(masking.apply(params, mask), mask)


_METHODS: dict[str, Callable[..., Pruned]] = {
    MAGNITUDE: _magnitude,
    WANDA: _wanda,
    SPARSEGPT: _sparsegpt,
}


@functools.cache
def _of_block(method: str, density: float, pattern: Any) -> Callable[..., Pruned]:
    """The same function for every seed, so that it is compiled once."""
    return lambda params, stats: _METHODS[method](params, stats, density, pattern)


def _by_layer(
    network: _encoder.Network, given: Calibrated, method: str, density: float, how: Any
) -> Pruned:
    """Each layer is calibrated on what the pruned ones before it give."""
    done = calibration.sequential(
        network.layer,
        network.blocks(network.params),
        [network.begun(network.params, ids) for ids in given.batches],
        prune=_of_block(method, density, how),
        weights=_encoder.there_of_layer,
    )
    params = network.with_blocks(network.params, done.params)
    nothing = jax.tree.map(lambda _: None, network.params)
    return Pruned(params, network.with_blocks(nothing, done.mask))
