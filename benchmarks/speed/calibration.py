"""What does it cost to calibrate a network, beside its forward pass?

An encoder of the shape of MiniLM, with random weights. The limit of one batch is the
forward pass alone. Gram matrices cannot reach it: each takes d^2 multiply-adds a token,
with d inputs. In this shape these are 1.5 times those of the pass, or half of that if
symmetric matrices are computed by halves. "By hand" is the network written once more,
so that it returns the whole Gram matrix of each of a layer's four inputs: queries, keys
and values meet the same.

Layer by layer, statistics come from the pruned layers before: beside pruning all at
once, and beside a limit of three forward passes and the factorizations, that is,
SparseGPT with statistics that are there already. `programs` is how many were compiled.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import monitoring

from benchmarks import _encoder
from benchmarks._timing import Contestant
from benchmarks.speed import _case
from maskjax import calibration
from maskjax.recipes import sparsegpt

FULL = [("batch", 6, 384, 32, 128), ("layers", 12, 384, 32, 128)]
QUICK = [("batch", 2, 32, 4, 16), ("layers", 3, 32, 4, 16)]
BATCHES = 2
REPEATS = 30
SECONDS = 20.0
DENSITY = 0.5
WORDS, OURS = 1000, "Gram matrices"
COMPILED = "/jax/core/compile/backend_compile_duration"


def encoder(layers: int, width: int, length: int) -> _encoder.Network:
    """Random weights, heads of 32."""
    how = {"words": WORDS, "length": length}
    return _encoder.small(_encoder.Sizes(layers, width, width // 32, 4 * width, **how))


def by_hand(network: _encoder.Network, params: Any, ids: jax.Array) -> list[Any]:
    """Gram matrices of what the kernels of each layer meet."""
    model, met = network.merged(params), []

    def attention(*args: Any, **how: Any) -> jax.Array:
        met[-1]["out"] = nnx.dot_product_attention(*args, **how)
        return met[-1]["out"]

    x = model.embedded(ids)
    for layer in model.layers:
        met.append({"query": x})
        layer.attention.attention_fn = attention
        mask = (ids != _encoder.PAD)[:, None, None, :]
        x = layer.norm_1(x + layer.attention(x, mask=mask))
        hidden = nnx.gelu(layer.up(x), approximate=False)
        met[-1] |= {"up": x, "down": hidden}
        x = layer.norm_2(x + layer.down(hidden))
    return jax.tree.map(lambda x: _gram(x, ids), met)


def _gram(x: jax.Array, ids: jax.Array) -> jax.Array:
    there = (ids != _encoder.PAD).reshape(-1, 1)
    rows = x.reshape(ids.size, -1)
    return jnp.where(there, rows, 0).T @ rows


def case(kind: str, layers: int, width: int, rows: int, length: int) -> _case.Case:
    """Statistics of one batch, or layers that are calibrated and pruned in turn."""
    network = encoder(layers, width, length)
    ids = np.random.default_rng(0).integers(1, WORDS, (BATCHES, rows, length), np.int32)
    ids[:, 0, length // 2 :] = _encoder.PAD
    ids = jax.device_put(ids)
    size = f"{layers} layers of {width}, {rows} x {length} tokens"
    if kind == "layers":
        return _in_turn(network, ids, f"{size} x {BATCHES}")
    return _of_batch(network, ids[0], size)


def _of_batch(network: _encoder.Network, ids: jax.Array, size: str) -> _case.Case:
    params = network.params

    def updating(name: str, *, gram: bool) -> Contestant:
        stats = calibration.init(network.apply, params, ids, gram=gram)

        def update(stats: Any, params: Any, ids: jax.Array) -> tuple[Any, None]:
            how = {"weights": ids != _encoder.PAD}
            return calibration.update(network.apply, stats, params, ids, **how), None

        return _case.training(name, update, stats, params, ids)

    contestants = [
        updating(OURS, gram=True),
        _case.contestant("by hand", functools.partial(by_hand, network), params, ids),
        updating("squares alone", gram=False),
        _case.contestant("forward pass alone", network.apply, params, ids),
    ]

    def agree(results: Mapping[str, Any]) -> None:
        (grams, _), (squares, _) = (results[n] for n in (OURS, "squares alone"))
        for i, met in enumerate(results["by hand"]):
            for name, theirs in met.items():
                ours, alone = (_of(stats, i, name) for stats in (grams, squares))
                _case.close(ours, theirs, rtol=1e-3, atol=1e-2)
                _case.close(alone, jnp.diagonal(theirs), rtol=1e-3, atol=1e-2)

    context = {"shape": list(ids.shape), "density": None, "structure": None}
    return _case.of(f"one batch, {size}", contestants, agree, **context)


def _pruned(params: Any, stats: Any) -> Any:
    found = sparsegpt.prune(params, stats, density=DENSITY)
    return found.params, found.mask


def _in_turn(network: _encoder.Network, batches: jax.Array, size: str) -> _case.Case:
    begun = [network.begun(network.params, ids) for ids in batches]
    blocks, there = network.blocks(network.params), _encoder.there
    forward = jax.jit(network.apply)
    all_stats = calibration.collect(
        network.apply, network.params, batches, weights=there
    )
    stats = network.blocks(all_stats)

    def in_turn() -> list[Any]:
        how = {"prune": _pruned, "weights": _encoder.there_of_layer}
        return calibration.sequential(network.layer, blocks, begun, **how).params

    def at_once() -> list[Any]:
        given = network.apply, network.params, batches
        found = calibration.collect(*given, weights=there)
        return network.blocks(_pruned(network.params, found)[0])

    def least() -> list[Any]:
        jax.block_until_ready([forward(network.params, x) for x in 3 * [*batches]])
        pairs = zip(blocks, stats, strict=True)
        return [_pruned(block, own)[0] for block, own in pairs]

    first, programs = _first(in_turn)
    contestants = [
        Contestant("layer by layer", in_turn, first),
        Contestant("all at once", at_once, _first(at_once)[0]),
        Contestant("three passes, factorizations", least, _first(least)[0]),
    ]

    def agree(results: Mapping[str, Any]) -> None:
        """Nothing has been pruned before the first layer, and few choices are close."""
        one, *others = (jax.tree.leaves(each[0]) for each in results.values())
        for other in others:
            for a, b in zip(one, other, strict=True):
                assert np.count_nonzero(a) == np.count_nonzero(b)
                assert np.mean((a == 0) != (b == 0)) < 0.01
                assert np.linalg.norm(a - b) <= 0.05 * np.linalg.norm(a)

    context = {"shape": list(batches.shape), "density": DENSITY, "programs": programs}
    return _case.of(f"in turn, {size}", contestants, agree, **context)


def _first(run: Callable[[], Any]) -> tuple[float, int]:
    """Seconds that the first call takes more than the second, and programs compiled."""
    events: list[str] = []

    def seen(event: str, *_: Any, **__: Any) -> None:
        events.append(event)

    monitoring.register_event_duration_secs_listener(seen)
    seconds = [_seconds(run) for _ in range(2)]
    monitoring.unregister_event_duration_listener(seen)
    return max(0.0, seconds[0] - seconds[1]), events.count(COMPILED)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _of(stats: Any, layer: int, name: str) -> jax.Array:
    """The sums of a kernel."""
    each = stats["layers"][layer]
    module = each[name] if name in ("up", "down") else each["attention"][name]
    return module["kernel"].get_value().sums
