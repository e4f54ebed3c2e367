"""What does searching for tickets cost beside its training steps alone?

Iterative magnitude pruning of five seeds, a fifth of each leaf in a round, as one
program. The baseline is a loop in Python: each round trains in a compiled program, then
NumPy finds thresholds and rewinds. The limit trains as often under masks that are known
already: no scores, no selection, nothing kept but the losses.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax

import maskjax
from benchmarks import _train
from benchmarks._timing import Contestant, compiled
from benchmarks.speed import _case, _network
from maskjax import masking
from maskjax.recipes import lottery_ticket

# Widths, rounds, seeds, and the steps of each training.
FULL = [((784, 300, 100, 10), 12, 5, 64)]
QUICK = [((784, 30, 10), 2, 2, 2)]
RATE = 0.2


def _trained(
    params: Any, mask: Any, x: jax.Array, y: jax.Array
) -> tuple[Any, jax.Array]:
    """A scan over batches; the last loss."""

    def loss(params: Any, mask: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return _network.loss(maskjax.apply(params, mask), x, y)

    step = _train.descend(loss, _network.OPTIMIZER)
    begun = _train.begin(_network.OPTIMIZER, params, mask)
    member, losses = lax.scan(lambda m, batch: step(m, *batch), begun, (x, y))
    return member.params, losses[-1]


def _left(n: int, rounds: int) -> list[int]:
    """What is alive of n weights after each round."""
    alive = [n]
    for _ in range(rounds):
        alive.append(alive[-1] - int(RATE * alive[-1] + 0.5))
    return alive


def smaller(weights: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A mask without the smallest of what it keeps, by `np.partition`."""
    alive = np.abs(weights[mask])
    gone = int(RATE * alive.size + 0.5)
    return mask & (np.abs(weights) > np.partition(alive, gone - 1)[gone - 1])


def _loop(train: Callable, params: Any, masks: Any, rounds: int) -> Any:
    """Rounds in Python; every seed's masks and losses."""
    found, losses = [], []
    for _ in range(rounds + 1):
        start = {
            name: {"bias": layer["bias"], "kernel": np.where(m, layer["kernel"], 0)}
            for (name, layer), m in zip(params.items(), masks, strict=True)
        }
        tree = {
            name: {"bias": None, "kernel": m}
            for name, m in zip(params, masks, strict=True)
        }
        final, loss = jax.device_get(train(start, tree))
        found.append(masks)
        losses.append(loss)
        masks = [
            np.stack([smaller(*one) for one in zip(layer["kernel"], m, strict=True)])
            for layer, m in zip(final.values(), masks, strict=True)
        ]
    return found, np.stack(losses, 1)


def case(widths: tuple[int, ...], rounds: int, seeds: int, steps: int) -> _case.Case:
    """One network, several seeds side by side."""
    keys = jax.random.split(jax.random.key(0), seeds)
    params = jax.jit(jax.vmap(lambda key: _network.init(key, widths)))(keys)
    data = _network.batches(jax.random.key(1), steps)

    def search(params: Any, key: jax.Array, *data: jax.Array) -> Any:
        def train(params: Any, mask: Any, *, key: jax.Array) -> Any:
            return _trained(params, mask, *data)

        return lottery_ticket.search(train, params, rounds=rounds, rate=RATE, key=key)

    def alone(params: Any, masks: Any, *data: jax.Array) -> Any:
        def turn(_: None, mask: Any) -> tuple[None, jax.Array]:
            return None, _trained(maskjax.apply(params, mask), mask, *data)[1]

        return lax.scan(turn, None, masks)[1]

    every = {"steps": steps * (rounds + 1)}
    mapped = functools.partial(jax.vmap, in_axes=(0, 0, None, None))
    ours = _case.contestant("search", mapped(search), params, keys, *data, **every)
    masks = ours.run().masks
    everything = jax.vmap(masking.everything)(params)
    train, compile_s = compiled(mapped(_trained), params, everything, *data)
    loop = functools.partial(
        _loop,
        lambda params, masks: train(params, masks, *data),
        jax.device_get(params),
        [np.asarray(layer["kernel"]) for layer in everything.values()],
        rounds,
    )

    def agree(results: Mapping[str, Any]) -> None:
        trace = results["search"]
        _case.close(trace.metrics, results["training alone"], rtol=1e-3)
        found, losses = results["loop, np.partition"]
        _case.close(trace.metrics[:, 0], losses[:, 0], rtol=1e-3)
        for i, (layer, final) in enumerate(
            zip(trace.masks.values(), trace.final.values(), strict=True)
        ):
            mine = np.asarray(layer["kernel"]).swapaxes(0, 1)
            counts = _left(mine[0, 0].size, rounds)
            theirs = np.stack([m[i] for m in found])
            for m in (mine, theirs):
                kept = m.sum((2, 3)).T.tolist()
                np.testing.assert_array_equal(kept, [counts] * seeds)
            # Sums in another order may turn a rank or two around.
            assert (mine[1] & theirs[1]).sum() > 0.999 * mine[1].sum()
            assert not np.asarray(final["kernel"])[~mine.swapaxes(0, 1)].any()

    least = mapped(alone), params, masks, *data
    return _case.of(
        f"{_case.named(widths)} rounds={rounds} seeds={seeds}",
        [
            ours,
            Contestant("loop, np.partition", loop, compile_s, **every),
            _case.contestant("training alone", *least, **every),
        ],
        agree,
        shape=_case.shapes(jax.tree.map(lambda p: p[0], params)),
        density=(1 - RATE) ** rounds,
        scope="leaf",
        rate=RATE,
        rounds=rounds,
        members=seeds,
        batch=_network.BATCH,
        steps_of_a_round=steps,
    )
