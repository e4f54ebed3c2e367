"""What does training eight networks together cost beside training them alone?

A deep ensemble, each member with its own order of the data, in one compiled call: all
members at once, by `vmap`; or one at a time, by `lax.map`, in the memory of one. The
limit is as many calls of one member's training, compiled.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks._timing import Contestant, compiled
from benchmarks.speed import _network
from benchmarks.speed._case import Case
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


def cases(*, quick: bool) -> Iterator[Case]:
    """Networks of a few hundred weights and of some hundred thousand."""
    for case in QUICK if quick else FULL:
        yield _case(*case)


def _case(widths: tuple[int, ...], size: int, steps: int) -> Case:
    key = jax.random.key(0)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((SAMPLES, widths[0])), jnp.float32)
    y = jnp.asarray(rng.integers(0, widths[-1], SAMPLES), jnp.int32)
    init_keys, keys = jax.random.split(key, (2, MEMBERS))
    params = deep_ensemble.init(lambda k: _network.init(k, widths), keys=init_keys)

    def fit(params: Any, x: jax.Array, y: jax.Array, *, key: jax.Array) -> Any:
        order = deep_ensemble.order(SAMPLES, size=size, key=key)[:steps]

        def step(state: Any, which: jax.Array) -> tuple[Any, jax.Array]:
            return _network.descend(_network.loss, state, x[which], y[which])

        return lax.scan(step, _network.dense_init(params), order)[0][0]

    def together(batch_size: int | None) -> Callable:
        def run(params: Any, keys: jax.Array, *data: jax.Array) -> Any:
            how = {"keys": keys, "batch_size": batch_size}
            return deep_ensemble.train(fit, params, *data, **how)

        return run

    one = lambda params, key, *data: fit(params, *data, key=key)  # noqa: E731
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(MEMBERS)]
    vmapped, compile_all = compiled(together(None), params, keys, x, y)
    mapped, compile_one = compiled(together(1), params, keys, x, y)
    single, compile_single = compiled(one, apart[0], keys[0], x, y)

    def alone() -> list[Any]:
        return [single(p, k, x, y) for p, k in zip(apart, keys, strict=True)]

    def agree(results: Mapping[str, Any]) -> None:
        exact = jax.tree.map(lambda *leaves: jnp.stack(leaves), *results["alone"])
        for name in ("all at once", "one at a time"):
            for a, b in zip(
                jax.tree.leaves(results[name]), jax.tree.leaves(exact), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=name)

    return Case(
        f"{'-'.join(map(str, widths))} M={MEMBERS} B={size}",
        {
            "dtype": "float32",
            "shape": _network.shapes(apart[0]),
            "density": 1.0,
            "structure": "Entries()",
            "members": MEMBERS,
            "batch": size,
            "training_steps": steps,
        },
        [
            Contestant(
                "all at once",
                "ours",
                lambda: vmapped(params, keys, x, y),
                compile_all,
                steps=steps,
            ),
            Contestant(
                "one at a time",
                "baseline",
                lambda: mapped(params, keys, x, y),
                compile_one,
                steps=steps,
            ),
            Contestant("alone", "limit", alone, compile_single, steps=steps),
        ],
        agree,
    )
