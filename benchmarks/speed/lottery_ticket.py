"""What does searching for tickets cost beside its training steps alone?

Iterative magnitude pruning of five seeds, a fifth of each leaf in a round, as one
program. The baseline is a loop in Python: each round trains in a compiled program, then
NumPy finds thresholds and rewinds. The limit trains as often under masks that are known
already: no scores, no selection, nothing kept but the losses.
"""

import functools
from collections.abc import Callable
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


def _trained(params, mask, *data):
    """A scan over batches; the last loss."""

    def loss(params, mask, x, y):
        return _network.loss(maskjax.apply(params, mask), x, y)

    step = _network.over_batches(_train.descend(loss, _network.OPTIMIZER))
    member, losses = step(_train.begin(_network.OPTIMIZER, params, mask), *data)
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


def _loop(train: Callable, params: Any, masks: dict[str, Any], rounds: int) -> Any:
    """Rounds in Python; every seed's masks of kernels, and losses."""
    found, losses = [], []
    for _ in range(rounds + 1):
        start, tree = {}, {}
        for name, mask in masks.items():
            bias, kernel = params[name]["bias"], params[name]["kernel"]
            start[name] = {"bias": bias, "kernel": np.where(mask, kernel, 0)}
            tree[name] = {"bias": None, "kernel": mask}
        final, loss = jax.device_get(train(start, tree))
        found.append(masks)
        losses.append(loss)
        masks = {
            name: np.stack(list(map(smaller, final[name]["kernel"], mask)))
            for name, mask in masks.items()
        }
    return found, np.stack(losses, 1)


def _agree(results, rounds: int) -> None:
    """Losses and masks nearly agree; counts are exact, and removed weights zero."""
    trace = results["search"]
    _case.close(trace.metrics, results["training alone"], rtol=1e-3)
    found, losses = results["loop, np.partition"]
    _case.close(trace.metrics[:, 0], losses[:, 0], rtol=1e-3)
    for name, layer in trace.masks.items():
        mine = np.asarray(layer["kernel"]).swapaxes(0, 1)
        theirs = np.stack([masks[name] for masks in found])
        counts = _left(mine[0, 0].size, rounds)
        for m in (mine, theirs):
            kept = m.sum((2, 3)).T.tolist()
            np.testing.assert_array_equal(kept, [counts] * mine.shape[1])
        # Sums in another order may turn a rank or two around.
        assert (mine[1] & theirs[1]).sum() > 0.999 * mine[1].sum()
        final = np.asarray(trace.final[name]["kernel"])
        assert not final[~mine.swapaxes(0, 1)].any()


def case(widths: tuple[int, ...], rounds: int, seeds: int, steps: int) -> _case.Case:
    """One network, several seeds side by side."""
    keys = _network.seeds(seeds)
    params = jax.jit(jax.vmap(lambda key: _network.init(key, widths)))(keys)
    data = _network.batches(jax.random.key(1), steps)

    def search(params, key, *data):
        def train(params, mask, *, key):
            return _trained(params, mask, *data)

        return lottery_ticket.search(train, params, rounds=rounds, rate=RATE, key=key)

    def alone(params, masks, *data):
        def turn(_, mask):
            return None, _trained(maskjax.apply(params, mask), mask, *data)[1]

        return lax.scan(turn, None, masks)[1]

    every = {"steps": steps * (rounds + 1)}
    mapped = functools.partial(jax.vmap, in_axes=(0, 0, None, None))
    ours = _case.contestant("search", mapped(search), params, keys, *data, **every)
    everything = jax.vmap(masking.everything)(params)
    train, compile_s = compiled(mapped(_trained), params, everything, *data)
    first = {name: np.asarray(layer["kernel"]) for name, layer in everything.items()}
    given = lambda *start: train(*start, *data), jax.device_get(params), first, rounds  # noqa: E731
    loop = functools.partial(_loop, *given)
    least = mapped(alone), params, ours.run().masks, *data
    contestants = [
        ours,
        Contestant("loop, np.partition", loop, compile_s, **every),
        _case.contestant("training alone", *least, **every),
    ]
    name = f"{_case.named(widths)} rounds={rounds} seeds={seeds}"
    agree = functools.partial(_agree, rounds=rounds)
    context = {"shape": _case.shapes(_network.at(params, 0)), "scope": "leaf"}
    context |= {"density": (1 - RATE) ** rounds, "rate": RATE, "rounds": rounds}
    context |= {"members": seeds, "batch": _network.BATCH, "steps_of_a_round": steps}
    return _case.of(name, contestants, agree, **context)
