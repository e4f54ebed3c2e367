"""What does training under a fixed mask cost beside training without one?

A step of SGD with momentum, the mask applied inside the loss, measured as users run it:
once with its buffers donated, and as one of several in a `lax.scan`. The baseline
multiplies by a mask of floats. The limit is the same step without a mask.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import maskjax
from benchmarks import _train
from benchmarks.speed import _case, _network
from maskjax import masking, select

SMALL, LARGE, DENSITY = (784, 300, 100, 10), (784, 2048, 2048, 10), 0.5
# Widths, steps, and whether these are a scan.
ALONE, SCANNED = "one step", "in a scan"
FULL = [(SMALL, 1, ALONE), (SMALL, 32, SCANNED)]
FULL += [(LARGE, 1, ALONE), (LARGE, 8, SCANNED)]
QUICK = [((784, 30, 10), 1, ALONE), ((784, 30, 10), 2, SCANNED)]
UNDER: dict[str, Any] = {
    "maskjax.apply": maskjax.apply,
    "times floats": lambda params, mask: _network.times(mask, params),
    "no mask": lambda params, mask: params,
}


def _start(key, widths, steps):
    keys = jax.random.split(key, 3)
    params = _network.init(keys[0], widths)
    mask = select.random(params, density=DENSITY, key=keys[1])
    floats = jax.tree.map(lambda m: m.astype(jnp.float32), mask)
    return params, mask, floats, _network.batches(keys[2], steps)


def case(widths: tuple[int, ...], steps: int, how: str) -> _case.Case:
    """One network, alone or in a scan."""
    start = jax.jit(lambda key: _start(key, widths, steps))
    params, mask, floats, data = start(jax.random.key(0))
    data = data if how == SCANNED else _network.at(data, 0)
    rests = dict(zip(UNDER, (mask, floats, None), strict=True))

    def step_under(name):
        def loss(params, mask, x, y):
            return _network.loss(UNDER[name](params, mask), x, y)

        step = _train.descend(loss, _network.OPTIMIZER)
        return _network.over_batches(step) if how == SCANNED else step

    def contestant(name):
        member = _train.begin(_network.OPTIMIZER, params, rests[name])
        return _case.training(name, step_under(name), member, *data, steps=steps)

    def agree(results):
        found = [(member[:2], value) for member, value in map(results.get, UNDER)]
        ours, by_hand, plain = found
        _case.close(ours, by_hand, rtol=1e-4, atol=1e-6)
        for name, layer in mask.items():
            removed = ~np.asarray(layer["kernel"])
            trees = ours[0][0], params
            still, before = (np.asarray(p[name]["kernel"]) for p in trees)
            np.testing.assert_array_equal(still[removed], before[removed])
        everything = masking.everything(params)
        kept = _train.begin(_network.OPTIMIZER, params, everything)
        member, value = jax.jit(step_under("maskjax.apply"))(kept, *data)
        _case.close((member[:2], value), plain, rtol=1e-4, atol=1e-6)

    contestants = list(map(contestant, UNDER))
    context = {"shape": _case.shapes(params), "density": DENSITY}
    context |= {"mode": "scan" if how == SCANNED else "single, donated"}
    name, batch = f"{_case.named(widths)} {how}", _network.BATCH
    return _case.of(name, contestants, agree, batch=batch, **context)
