"""What does an optimizer that keeps, or moves, a mask cost beside the plain one?

Steps of Adam, measured as users run them, in a `lax.scan` of a hundred, so that what
happens every hundredth step happens once in each. The baseline keeps masks as people do
by hand: parameters times a mask of floats after every update. The limit is the plain
optimizer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import _train
from benchmarks.speed import _case, _network
from maskjax import optim, score, select

DENSITY, EVERY, BATCHES = 0.1, 100, 4
SMALL, LARGE = (784, 300, 100, 10), (784, 2048, 2048, 10)
# What is asked, widths, members, and steps in a scan.
FULL = [
    *((kind, SMALL, 1, 100) for kind in ("keep_sparse", "mask_updates")),
    *((kind, SMALL, 1, 100) for kind in ("prune", "rigl")),
    *((kind, SMALL, 8, 100) for kind in ("keep_sparse", "prune")),
    *((kind, LARGE, 1, 100) for kind in ("keep_sparse", "prune")),
]
QUICK = [(kind, (784, 30, 10), 2, 4) for kind in ("keep_sparse", "prune", "rigl")]
REPEATS = 30
SECONDS = 20.0


def _tenth(params: Any) -> Any:
    return select.top_k(score.magnitude(params), density=DENSITY)


def _with_mask(kind: str, every: int) -> optax.GradientTransformation:
    moving = {"rate": 0.3, "every": every, "key": jax.random.key(1)}
    last = {
        "keep_sparse": lambda: optim.keep_sparse(_tenth),
        "mask_updates": lambda: optim.mask_updates(_tenth),
        "prune": lambda: optim.prune(DENSITY, every=every),
        "rigl": lambda: optim.rigl(DENSITY, **moving),
    }[kind]()
    chain = optax.chain(optax.adam(1e-3), last)
    return optim.with_gradients(chain) if kind == "rigl" else chain


def case(kind: str, widths: tuple[int, ...], members: int, steps: int) -> _case.Case:
    """One transformation, on a network alone or on several side by side."""
    every = min(EVERY, steps)

    def mapped(fn: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        return fn if members == 1 else jax.vmap(fn, in_axes)

    key = jax.random.key(0)
    keys = key if members == 1 else jax.random.split(key, members)
    params = jax.jit(mapped(lambda key: _network.init(key, widths)))(keys)
    tenth = mapped(lambda p: jax.tree.map(lambda m: m.astype(jnp.float32), _tenth(p)))
    data = _network.batches(jax.random.key(1), BATCHES)

    def loss(params: Any, floats: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        del floats
        return _network.loss(params, x, y)

    def contestant(name: str, optimizer: Any, floats: Any = None) -> Any:
        step = _train.descend(loss, optimizer)

        def one(member: Any, batch: Any) -> Any:
            member, value = step(member, *batch)
            if floats is not None:
                masked = _network.times(member.rest, member.params)
                member = member._replace(params=masked)
            return member, value

        def several(member: Any, *data: Any) -> Any:
            batch = lambda i: jax.tree.map(lambda leaf: leaf[i], data)  # noqa: E731
            turns = jnp.arange(steps) % BATCHES
            return lax.scan(lambda m, i: one(m, batch(i)), member, turns)

        opt_state = jax.jit(mapped(optimizer.init))(params)
        member = _train.Member(params, opt_state, floats)
        run = mapped(several, (0, None, None))
        return _case.training(name, run, member, *data, steps=steps)

    def agree(results: Mapping[str, Any]) -> None:
        """Removed weights are zero, frozen ones as they were, counts exact."""
        trained = results["maskjax"][0]
        for name, layer in optim.mask_of(trained.opt_state).items():
            kept = np.asarray(layer["kernel"])
            before, after = (
                np.asarray(p[name]["kernel"]) for p in (params, trained.params)
            )
            one = kept.reshape(members, -1).sum(axis=1)
            assert set(one) == {round(DENSITY * before.size / members)}, name
            still = before if kind == "mask_updates" else np.zeros_like(before)
            np.testing.assert_array_equal(after[~kept], still[~kept])
        if kind == "keep_sparse":
            by_hand = results["times floats"][0].params
            _case.close(trained.params, by_hand, rtol=1e-2, atol=1e-3)

    plain = optax.adam(1e-3)
    return _case.of(
        f"{kind} {_case.named(widths)} members={members}",
        [
            contestant("maskjax", _with_mask(kind, every)),
            contestant("times floats", plain, jax.jit(tenth)(params)),
            contestant("plain optimizer", plain),
        ],
        agree,
        shape=_case.shapes(params),
        density=DENSITY,
        batch=_network.BATCH,
        optimizer="adam",
        every=every if kind in ("prune", "rigl") else None,
        mode=f"scan of {steps}",
    )
