"""What does an optimizer that keeps, or moves, a mask cost beside the plain one?

Steps of Adam, measured as users run them, in a `lax.scan` of a hundred, so that what
happens every hundredth step happens once in each. The baseline keeps masks as people do
by hand: parameters times a mask of floats after every update. The limit is the plain
optimizer.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks._timing import Contestant, Role, compiled
from benchmarks.speed import _network
from benchmarks.speed._case import Case
from maskjax import optim, score, select

DENSITY = 0.1
EVERY = 100
BATCHES = 4
SMALL, LARGE = (784, 300, 100, 10), (784, 2048, 2048, 10)
# What is asked, widths, members, and steps in a scan.
FULL = [
    *(
        (kind, SMALL, 1, 100)
        for kind in ("keep_sparse", "mask_updates", "prune", "rigl")
    ),
    *((kind, SMALL, 8, 100) for kind in ("keep_sparse", "prune")),
    *((kind, LARGE, 1, 100) for kind in ("keep_sparse", "prune")),
]
QUICK = [(kind, (784, 30, 10), 2, 4) for kind in ("keep_sparse", "prune", "rigl")]
REPEATS = 30
SECONDS = 20.0


def cases(*, quick: bool) -> Iterator[Case]:
    """Transformations, on networks alone and side by side."""
    for kind, widths, members, steps in QUICK if quick else FULL:
        yield _case(kind, widths, members, steps)


def _tenth(params: Any) -> Any:
    return select.top_k(score.magnitude(params), density=DENSITY)


def _with_mask(kind: str, every: int) -> optax.GradientTransformationExtraArgs:
    adam = optax.adam(1e-3)
    last = {
        "keep_sparse": lambda: optim.keep_sparse(_tenth),
        "mask_updates": lambda: optim.mask_updates(_tenth),
        "prune": lambda: optim.prune(DENSITY, every=every),
        "rigl": lambda: optim.rigl(
            DENSITY, rate=0.3, every=every, key=jax.random.key(1)
        ),
    }[kind]()
    chain = optax.chain(adam, last)
    return optim.with_gradients(chain) if kind == "rigl" else chain


def _case(kind: str, widths: tuple[int, ...], members: int, steps: int) -> Case:
    every = min(EVERY, steps)
    plain, ours = optax.adam(1e-3), _with_mask(kind, every)

    def mapped(fn: Callable, in_axes: Any = 0) -> Callable:
        return fn if members == 1 else jax.vmap(fn, in_axes)

    keys = (
        jax.random.key(0)
        if members == 1
        else jax.random.split(jax.random.key(0), members)
    )
    params = jax.jit(mapped(lambda key: _network.init(key, widths)))(keys)
    floats = jax.jit(
        mapped(lambda p: jax.tree.map(lambda m: m.astype(jnp.float32), _tenth(p)))
    )(params)
    xs, ys = _network.batches(jax.random.key(1), BATCHES)

    def step(optimizer: Any, state: Any, batch: Any, mask: Any = None) -> Any:
        params, opt_state = state
        gradients = jax.grad(_network.loss)(params, *batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        if mask is not None:
            params = _network.times(mask, params)
        return (params, opt_state), None

    def contestant(
        name: str, role: Role, optimizer: Any, mask: Any = None
    ) -> Contestant:
        def several(state: Any, mask: Any, xs: Any, ys: Any) -> Any:
            def one(state: Any, i: Any) -> Any:
                return step(optimizer, state, (xs[i], ys[i]), mask)

            return lax.scan(one, state, jnp.arange(steps) % BATCHES)

        state = params, jax.jit(mapped(optimizer.init))(params)
        run, compile_s = compiled(
            mapped(several, (0, 0, None, None)), state, mask, xs, ys, donate=(0,)
        )
        loop = _network.Training(run, state, mask, xs, ys)
        return Contestant(name, role, loop, compile_s, steps)

    def agree(results: Mapping[str, Any]) -> None:
        """Removed weights are zero, frozen ones as they were, counts exact."""
        (trained, opt_state), _ = results["maskjax"]
        mask = optim.mask_of(opt_state)
        for name, layer in mask.items():
            after, kept = (
                np.asarray(trained[name]["kernel"]),
                np.asarray(layer["kernel"]),
            )
            before = np.asarray(params[name]["kernel"])
            one = kept.reshape(members, -1).sum(axis=1)
            assert set(one) == {round(DENSITY * before.size / members)}, name
            still = before if kind == "mask_updates" else np.zeros_like(before)
            np.testing.assert_array_equal(after[~kept], still[~kept])
        if kind == "keep_sparse":
            (by_hand, _), _ = results["times floats"]
            for a, b in zip(
                jax.tree.leaves(trained), jax.tree.leaves(by_hand), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)

    contestants = [
        contestant("maskjax", "ours", ours),
        contestant("times floats", "baseline", plain, floats),
        contestant("plain optimizer", "limit", plain),
    ]
    return Case(
        f"{kind} {'-'.join(map(str, widths))} members={members}",
        {
            "dtype": "float32",
            "shape": _network.shapes(params),
            "density": DENSITY,
            "structure": "Entries()",
            "batch": _network.BATCH,
            "optimizer": "adam",
            "every": every if kind in ("prune", "rigl") else None,
            "mode": f"scan of {steps}",
        },
        contestants,
        agree,
    )
