"""How long does an episode of Meta-ticket take, in a batch of tasks or one at a time?

A meta-training step on 32 tasks, through the steps that adapt to each, second order.
Times are given per task. The baseline is a Python loop over tasks, each compiled: its
gradient is added to the others' on the way, and scores move once, after the last. The
limit knows no tasks: first-order training on the same samples, as many steps, with one
set of weights for all.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from benchmarks import _episodes, _train
from benchmarks._timing import Contestant, compiled
from benchmarks.speed import _case, _network
from maskjax.recipes import meta_ticket

TASKS, RATE = 32, 0.01
WAVES, IMAGES = (1, 40, 40, 1), (784, 256, 128, 64, 64, 5)
# Widths, tasks, inner steps.
FULL = [(WAVES, TASKS, 5), (WAVES, TASKS, 1), (IMAGES, TASKS, 1)]
QUICK = [(WAVES, 3, 2), ((16, 8, 5), 3, 1)]
OPTIMIZER = optax.adam(1e-3)


def _square(params: _network.Params, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((_network.forward(params, x) - y) ** 2)


def case(widths: tuple[int, ...], tasks: int, steps: int) -> _case.Case:
    """Sine waves, five points each; or five classes of images, one of each."""
    key = jax.random.key(0)
    if widths[0] == 1:
        loss = _square
        draw = functools.partial(_episodes.sinusoids, shots=5, queries=5)
    else:
        loss = _network.loss
        classes = jax.random.uniform(key, (50, 2, widths[0]))
        how = {"ways": widths[-1], "shots": 1, "queries": 1}
        draw = functools.partial(_episodes.images, classes=classes, **how)
    data = jax.jit(functools.partial(draw, tasks=tasks))(key)
    params = _network.init(key, widths)
    scores, thresholds = meta_ticket.init(params, density=0.5, key=key)
    member = _train.begin(OPTIMIZER, scores, thresholds)

    def after_adapting(scores: Any, support: Any, query: Any) -> jax.Array:
        soft = meta_ticket.soft_mask(scores, thresholds)
        how = {"inner_learning_rates": RATE, "steps": steps}
        return loss(meta_ticket.adapt(loss, params, soft, *support, **how), *query)

    of_task = jax.value_and_grad(after_adapting)

    def move(member: Any, found: Any) -> Any:
        value, gradient = found
        updates, opt_state = OPTIMIZER.update(gradient, member.opt_state)
        scores = optax.apply_updates(member.params, updates)
        return member._replace(params=scores, opt_state=opt_state), value

    def together(size: int | None) -> Any:
        def step(member: Any, *data: Any) -> Any:
            mean = meta_ticket.mean_over_tasks
            return move(member, mean(of_task, member.params, *data, batch_size=size))

        return step

    def add(total: Any, member: Any, *data: Any) -> Any:
        """One task's loss and gradient, and those before it."""
        return jax.tree.map(jnp.add, total, of_task(member.params, *data))

    def last(total: Any, member: Any) -> Any:
        return move(member, jax.tree.map(lambda x: x / tasks, total))

    def ordinary(params: Any, support: Any, query: Any) -> Any:
        """Steps on all samples at once, with the same weights."""
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        support, query = jax.tree.map(flat, (support, query))

        def descend(params: Any, _: None) -> tuple[Any, None]:
            gradients = jax.grad(loss)(params, *support)
            return jax.tree.map(lambda p, g: p - RATE * g, params, gradients), None

        params, _ = lax.scan(descend, params, length=steps)
        return jax.value_and_grad(loss)(params, *query)

    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, scores)
    sets = [jax.tree.map(lambda x, i=i: x[i], data) for i in range(tasks)]
    single, compile_single = compiled(add, zero, member, *sets[0])
    finish, compile_finish = compiled(last, zero, member)

    def loop() -> Any:
        total = zero
        for each in sets:
            total = single(total, member, *each)
        return finish(total, member)

    def agree(results: Mapping[str, Any]) -> None:
        ours, value = results["vmapped"]
        for name in ("one at a time", "a Python loop"):
            theirs = results[name]
            _case.close(value, theirs[1], rtol=1e-4)
            # Moments, for of small gradients Adam makes steps of the same size.
            moments = (each.opt_state[0].mu for each in (ours, theirs[0]))
            _case.close(*moments, rtol=1e-2, atol=1e-6)

    each = {"steps": tasks}
    return _case.of(
        f"{_case.named(widths)} tasks={tasks} steps={steps}",
        [
            _case.contestant("vmapped", together(None), member, *data, **each),
            _case.contestant("one at a time", together(1), member, *data, **each),
            Contestant("a Python loop", loop, compile_single + compile_finish, **each),
            _case.contestant("ordinary training", ordinary, params, *data, **each),
        ],
        agree,
        shape=_case.shapes(params),
        density=0.5,
        members=tasks,
        inner_steps=steps,
        samples_per_set=int(data[0][0].shape[1]),
    )
