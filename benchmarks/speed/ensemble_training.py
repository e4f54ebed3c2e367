"""What does training eight networks together cost beside training them alone?

A deep ensemble, each member with its own order of the data, in one compiled call: all
members at once, by `vmap`; or one at a time, by `lax.map`, in the memory of one. The
limit is as many calls of one member's training, compiled.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _train
from benchmarks._timing import Contestant, compiled
from benchmarks.speed import _case, _network
from maskjax.recipes import deep_ensemble

MEMBERS, SAMPLES = 8, 4096
# Widths, samples a step, steps.
FULL = [
    ((13, 50, 2), 100, 40),
    ((784, 200, 200, 200, 10), 100, 10),
    ((784, 512, 512, 10), 128, 10),
]
QUICK = [((12, 16, 3), 8, 2)]
SECONDS = 10.0


def case(widths: tuple[int, ...], size: int, steps: int) -> _case.Case:
    """Networks of a few hundred weights, or of some hundred thousand."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((SAMPLES, widths[0])), jnp.float32)
    y = jnp.asarray(rng.integers(0, widths[-1], SAMPLES), jnp.int32)
    init_keys, keys = jax.random.split(jax.random.key(0), (2, MEMBERS))
    params = deep_ensemble.init(lambda k: _network.init(k, widths), keys=init_keys)

    def loss(params: Any, rest: None, x: jax.Array, y: jax.Array) -> jax.Array:
        return _network.loss(params, x, y)

    def fit(params: Any, *data: jax.Array, key: jax.Array) -> Any:
        rows = deep_ensemble.order(SAMPLES, size=size, key=key)[:steps]
        step = _train.descend(loss, _network.OPTIMIZER)
        begun = _train.begin(_network.OPTIMIZER, params)
        return _train.scan(step, begun, rows, *data)[0].params

    def together(batch_size: int | None) -> Any:
        def run(params: Any, keys: jax.Array, *data: jax.Array) -> Any:
            how = {"keys": keys, "batch_size": batch_size}
            return deep_ensemble.train(fit, params, *data, **how)

        return run

    one = lambda params, key, *data: fit(params, *data, key=key)  # noqa: E731
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(MEMBERS)]
    single, seconds = compiled(one, apart[0], keys[0], x, y)

    def alone() -> list[Any]:
        return [single(p, k, x, y) for p, k in zip(apart, keys, strict=True)]

    def agree(results: Mapping[str, Any]) -> None:
        exact = jax.tree.map(lambda *leaves: np.stack(leaves), *results["alone"])
        for name in ("all at once", "one at a time"):
            _case.close(results[name], exact, rtol=1e-3, atol=1e-4)

    given, each = (params, keys, x, y), {"steps": steps}
    return _case.of(
        f"{_case.named(widths)} M={MEMBERS} B={size}",
        [
            _case.contestant("all at once", together(None), *given, **each),
            _case.contestant("one at a time", together(1), *given, **each),
            Contestant("alone", alone, seconds, **each),
        ],
        agree,
        shape=_case.shapes(apart[0]),
        density=1.0,
        members=MEMBERS,
        batch=size,
        training_steps=steps,
    )
