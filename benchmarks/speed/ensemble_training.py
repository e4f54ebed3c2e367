"""What does training eight networks together cost beside training them alone?

A deep ensemble, each member with its own order of the data, in one compiled call: all
members at once, by `vmap`; or one at a time, by `lax.map`, in the memory of one. The
limit is as many calls of one member's training, compiled.
"""

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
    step = _train.descend(_network.plain_loss, _network.OPTIMIZER)

    def fit(params, *data, key):
        rows = deep_ensemble.order(SAMPLES, size=size, key=key)[:steps]
        begun = _train.begin(_network.OPTIMIZER, params)
        return _train.scan(step, begun, rows, *data)[0].params

    def contestant(name, batch_size):
        def run(params, keys, *data):
            how = {"keys": keys, "batch_size": batch_size}
            return deep_ensemble.train(fit, params, *data, **how)

        return _case.contestant(name, run, params, keys, x, y, steps=steps)

    apart = [_network.at(params, i) for i in range(MEMBERS)]
    one = lambda params, key, *data: fit(params, *data, key=key)  # noqa: E731
    single, seconds = compiled(one, apart[0], keys[0], x, y)

    def alone():
        return [single(p, k, x, y) for p, k in zip(apart, keys, strict=True)]

    def agree(results):
        exact = jax.tree.map(lambda *leaves: np.stack(leaves), *results["alone"])
        for name in ("all at once", "one at a time"):
            _case.close(results[name], exact, rtol=1e-3, atol=1e-4)

    contestants = [
        contestant("all at once", None),
        contestant("one at a time", 1),
        Contestant("alone", alone, seconds, steps=steps),
    ]
    name = f"{_case.named(widths)} M={MEMBERS} B={size}"
    context = {"shape": _case.shapes(apart[0]), "density": 1.0, "members": MEMBERS}
    context |= {"batch": size, "training_steps": steps}
    return _case.of(name, contestants, agree, **context)
