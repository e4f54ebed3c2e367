"""How long does an episode of Meta-ticket take, in a batch of tasks or one at a time?

A meta-training step on 32 tasks, through the steps that adapt to each, second order.
Times are given per task. The baseline is a Python loop over tasks, each compiled: its
gradient is added to the others' on the way, and scores move once, after the last. The
limit knows no tasks: first-order training on the same samples, as many steps, with one
set of weights for all.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import _episodes
from benchmarks._timing import Contestant, Role, compiled
from benchmarks.speed import _network
from benchmarks.speed._case import Case
from maskjax import estimator
from maskjax.recipes import meta_ticket

TASKS, RATE = 32, 0.01
WAVES, IMAGES = (1, 40, 40, 1), (784, 256, 128, 64, 64, 5)
# Widths, tasks, inner steps.
FULL = [(WAVES, TASKS, 5), (WAVES, TASKS, 1), (IMAGES, TASKS, 1)]
QUICK = [(WAVES, 3, 2), ((16, 8, 5), 3, 1)]
OPTIMIZER = optax.adam(1e-3)


def cases(*, quick: bool) -> Iterator[Case]:
    """Sine waves, five points each; and five classes of images, one of each."""
    for case in QUICK if quick else FULL:
        yield _case(*case)


def _square(params: _network.Params, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((_network.forward(params, x) - y) ** 2)


def _case(widths: tuple[int, ...], tasks: int, steps: int) -> Case:
    key = jax.random.key(0)
    if widths[0] == 1:
        loss = _square
        draw = functools.partial(_episodes.sinusoids, shots=5, queries=5)
    else:
        loss = _network.loss
        classes = jax.random.uniform(key, (50, 2, widths[0]))
        how = {"ways": widths[-1], "shots": 1, "queries": 1}
        draw = functools.partial(_episodes.images, classes=classes, **how)
    support, query = jax.jit(functools.partial(draw, tasks=tasks))(key)
    params = _network.init(key, widths)
    state = meta_ticket.init(params, OPTIMIZER, density=0.5, key=key)
    how = {"rates": RATE, "steps": steps}

    def step(state: Any, support: Any, query: Any, *, size: int | None = None) -> Any:
        return meta_ticket.step(
            state, loss, OPTIMIZER, support, query, **how, batch_size=size
        )

    def add(total: Any, state: Any, support: Any, query: Any) -> Any:
        """One task's loss and gradient, and those before it."""

        def value(scores: Any) -> jax.Array:
            soft = estimator.straight_through(meta_ticket.mask(state), scores)
            params = meta_ticket.adapt(loss, state.weights, soft, *support, **how)
            return loss(params, *query)

        found = jax.value_and_grad(value)(state.scores)
        return jax.tree.map(jnp.add, total, found)

    def move(total: Any, state: Any) -> Any:
        value, gradient = jax.tree.map(lambda x: x / tasks, total)
        learned = state.scores, state.trained
        updates, opt_state = OPTIMIZER.update(
            (gradient, state.trained), state.opt_state
        )
        scores, _ = optax.apply_updates(learned, updates)
        return state._replace(scores=scores, opt_state=opt_state), value

    def ordinary(params: Any, support: Any, query: Any) -> Any:
        """Steps on all samples at once, with the same weights."""
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        support, query = jax.tree.map(flat, (support, query))

        def descend(params: Any, _: None) -> tuple[Any, None]:
            gradients = jax.grad(loss)(params, *support)
            return jax.tree.map(lambda p, g: p - RATE * g, params, gradients), None

        params, _ = lax.scan(descend, params, length=steps)
        return jax.value_and_grad(loss)(params, *query)

    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.scores)
    sets = [jax.tree.map(lambda x, i=i: x[i], (support, query)) for i in range(tasks)]
    together, compile_s = compiled(step, state, support, query)
    chunked, compile_few = compiled(
        functools.partial(step, size=1), state, support, query
    )
    single, compile_single = compiled(add, zero, state, *sets[0])
    last, compile_last = compiled(move, zero, state)
    least, compile_least = compiled(ordinary, params, support, query)

    def loop() -> Any:
        total = zero
        for each in sets:
            total = single(total, state, *each)
        return last(total, state)

    def agree(results: Mapping[str, Any]) -> None:
        ours = results["vmapped"]
        for name in ("one at a time", "a Python loop"):
            theirs = results[name]
            np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, err_msg=name)
            # Moments, for of small gradients Adam makes steps of the same size.
            for a, b in zip(
                jax.tree.leaves(ours[0].opt_state[0].mu),
                jax.tree.leaves(theirs[0].opt_state[0].mu),
                strict=True,
            ):
                np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-6, err_msg=name)

    def contestant(
        name: str, role: Role, call: Callable[[], Any], compile_s: float
    ) -> Contestant:
        return Contestant(name, role, call, compile_s, steps=tasks)

    return Case(
        f"{'-'.join(map(str, widths))} tasks={tasks} steps={steps}",
        {
            "dtype": "float32",
            "shape": _network.shapes(params),
            "density": 0.5,
            "structure": "Entries()",
            "members": tasks,
            "inner_steps": steps,
            "samples_per_set": int(support[0].shape[1]),
        },
        [
            contestant(
                "vmapped", "ours", lambda: together(state, support, query), compile_s
            ),
            contestant(
                "one at a time",
                "baseline",
                lambda: chunked(state, support, query),
                compile_few,
            ),
            contestant(
                "a Python loop", "baseline", loop, compile_single + compile_last
            ),
            contestant(
                "ordinary training",
                "limit",
                lambda: least(params, support, query),
                compile_least,
            ),
        ],
        agree,
    )
