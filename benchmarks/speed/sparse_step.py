"""What does an optimizer that keeps, or moves, a mask cost beside the plain one?

Steps of Adam, measured as users run them, in a `lax.scan` of a hundred, so that what
happens every hundredth step happens once in each. The baseline keeps masks as people do
by hand: parameters times a mask of floats after every update. The limit is the plain
optimizer.
"""

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


def _steps(optimizer, steps):
    """Many steps; a member's `rest` is a mask of floats to multiply by, or `None`."""
    step = _train.descend(_network.plain_loss, optimizer)

    def several(member, *data):
        def one(member, i):
            member, value = step(member, *_network.at(data, i))
            if member.rest is not None:
                masked = _network.times(member.rest, member.params)
                member = member._replace(params=masked)
            return member, value

        return lax.scan(one, member, jnp.arange(steps) % BATCHES)

    return several


def case(kind: str, widths: tuple[int, ...], members: int, steps: int) -> _case.Case:
    """One transformation, on a network alone or on several side by side."""
    every = min(EVERY, steps)

    def jitted(fn):
        return jax.jit(_network.mapped(members, fn))

    params = jitted(lambda k: _network.init(k, widths))(_network.keys(members))
    tenth = jitted(lambda p: jax.tree.map(lambda m: m.astype(jnp.float32), _tenth(p)))
    data = _network.batches(jax.random.key(1), BATCHES)

    def contestant(name, optimizer, floats=None):
        run = _network.mapped(members, _steps(optimizer, steps), (0, None, None))
        member = _train.Member(params, jitted(optimizer.init)(params), floats)
        return _case.training(name, run, member, *data, steps=steps)

    def agree(results):
        """Removed weights are zero, frozen ones as they were, counts exact."""
        trained = results["maskjax"][0]
        for name, layer in optim.mask_of(trained.opt_state).items():
            kept = np.asarray(layer["kernel"])
            trees = params, trained.params
            before, after = (np.asarray(p[name]["kernel"]) for p in trees)
            one = kept.reshape(members, -1).sum(axis=1)
            assert set(one) == {round(DENSITY * before.size / members)}, name
            still = before if kind == "mask_updates" else np.zeros_like(before)
            np.testing.assert_array_equal(after[~kept], still[~kept])
        if kind == "keep_sparse":
            by_hand = results["times floats"][0].params
            _case.close(trained.params, by_hand, rtol=1e-2, atol=1e-3)

    plain = optax.adam(1e-3)
    contestants = [
        contestant("maskjax", _with_mask(kind, every)),
        contestant("times floats", plain, tenth(params)),
        contestant("plain optimizer", plain),
    ]
    name = f"{kind} {_case.named(widths)} members={members}"
    context = {"shape": _case.shapes(params), "density": DENSITY, "optimizer": "adam"}
    context |= {"every": every if kind in ("prune", "rigl") else None}
    context |= {"batch": _network.BATCH, "mode": f"scan of {steps}"}
    return _case.of(name, contestants, agree, **context)
