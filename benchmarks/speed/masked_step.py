"""What does training under a fixed mask cost beside training without one?

A step of SGD with momentum, the mask applied inside the loss, measured as users run it:
once with its buffers donated, and as one of several in a `lax.scan`. The baseline
multiplies by a mask of floats. The limit is the same step without a mask.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import maskjax
from benchmarks._timing import Contestant, Role, compiled
from benchmarks.speed import _network
from benchmarks.speed._case import Case
from maskjax import select

# Widths, and how many steps a scan makes.
FULL = [((784, 300, 100, 10), 32), ((784, 2048, 2048, 10), 8)]
QUICK = [((784, 30, 10), 2)]
DENSITY = 0.5


def cases(*, quick: bool) -> Iterator[Case]:
    """Networks, alone and in a scan."""
    for widths, steps in QUICK if quick else FULL:
        for scanned in (False, True):
            yield _case(widths, steps if scanned else 1, scanned=scanned)


def dense(params: Any, mask: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The loss without a mask."""
    del mask
    return _network.loss(params, x, y)


def masked(params: Any, mask: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The loss under a boolean mask."""
    return _network.loss(maskjax.apply(params, mask), x, y)


def multiplied(params: Any, mask: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The loss with parameters times a floating mask."""
    return _network.loss(_network.times(mask, params), x, y)


def _case(widths: tuple[int, ...], steps: int, *, scanned: bool) -> Case:

    @jax.jit
    def start(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        params = _network.init(keys[0], widths)
        mask = select.random(params, density=DENSITY, key=keys[1])
        floats = jax.tree.map(lambda m: m.astype(jnp.float32), mask)
        return params, mask, floats, _network.batches(keys[2], steps)

    params, mask, floats, (xs, ys) = start(jax.random.key(0))
    data = (xs, ys) if scanned else (xs[0], ys[0])
    state = _network.dense_init(params)

    def step(objective: Callable) -> Callable:
        def one(state: Any, mask: Any, x: jax.Array, y: jax.Array) -> Any:
            return _network.descend(objective, state, mask, x, y)

        def several(state: Any, mask: Any, x: jax.Array, y: jax.Array) -> Any:
            return lax.scan(lambda s, batch: one(s, mask, *batch), state, (x, y))

        return several if scanned else one

    def contestant(name: str, role: Role, objective: Callable, mask: Any) -> Contestant:
        call, compile_s = compiled(step(objective), state, mask, *data, donate=(0,))
        loop = _network.Training(call, state, mask, *data)
        return Contestant(name, role, loop, compile_s, steps)

    def agree(results: Mapping[str, Any]) -> None:
        ours, by_hand = results["maskjax.apply"], results["times floats"]
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(by_hand), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        (trained, _), _ = ours
        for name, layer in mask.items():
            removed = ~np.asarray(layer["kernel"])
            still, before = (np.asarray(p[name]["kernel"]) for p in (trained, params))
            np.testing.assert_array_equal(still[removed], before[removed])
        everything = maskjax.masking.everything(params)
        kept = jax.jit(step(masked))(state, everything, *data)
        plain = results["no mask"]
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    return Case(
        f"{'-'.join(map(str, widths))} " + ("in a scan" if scanned else "one step"),
        {
            "dtype": "float32",
            "shape": _network.shapes(params),
            "density": DENSITY,
            "structure": "Entries()",
            "batch": _network.BATCH,
            "mode": "scan" if scanned else "single, donated",
        },
        [
            contestant("maskjax.apply", "ours", masked, mask),
            contestant("times floats", "baseline", multiplied, floats),
            contestant("no mask", "limit", dense, mask),
        ],
        agree,
    )
