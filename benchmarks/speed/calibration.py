"""What does it cost to calibrate a network, beside its forward pass?

An encoder of the shape of MiniLM, with random weights. The limit is the forward pass
alone. Gram matrices take more multiply-adds than the pass where layers are narrow and
tokens many: d^2 for each token and kernel with d inputs. "By hand" is the network
written once more, so that it returns the Gram matrix of each of a layer's four inputs:
queries, keys and values meet the same.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import _encoder
from benchmarks._timing import Contestant
from benchmarks.speed import _case
from maskjax import calibration

FULL = [("batch", 6, 384, 32, 128)]
QUICK = [("batch", 2, 32, 4, 16)]
REPEATS = 30
SECONDS = 20.0
WORDS, OURS = 1000, "Gram matrices"


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
    """Statistics of one batch, added to those before."""
    del kind
    network = encoder(layers, width, length)
    params, shape = network.params, (rows, length)
    ids = np.random.default_rng(0).integers(1, WORDS, shape, np.int32)
    ids[0, length // 2 :] = _encoder.PAD
    ids = jax.device_put(ids)

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

    name = f"one batch, {layers} layers of {width}, {rows} x {length} tokens"
    return _case.of(name, contestants, agree, shape=shape, density=None)


def _of(stats: Any, layer: int, name: str) -> jax.Array:
    """The sums of a kernel."""
    each = stats["layers"][layer]
    module = each[name] if name in ("up", "down") else each["attention"][name]
    return module["kernel"].get_value().sums
