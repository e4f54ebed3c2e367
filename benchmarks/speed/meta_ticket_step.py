"""How long does an episode of Meta-ticket take, in a batch of tasks or one at a time?

A meta-training step on 32 tasks, through the steps that adapt to each, second order.
Times are given per task. The baseline is a Python loop over tasks, each compiled: its
gradient is added to the others' on the way, and scores move once, after the last. The
limit knows no tasks: first-order training on the same samples, as many steps, with one
set of weights for all.
"""

import functools

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


def _square(params, x, y):
    return jnp.mean((_network.forward(params, x) - y) ** 2)


def _problem(widths, tasks, key):
    """The loss, and the samples of so many tasks."""
    if widths[0] == 1:
        draw = functools.partial(_episodes.sinusoids, shots=5, queries=5)
    else:
        classes = jax.random.uniform(key, (50, 2, widths[0]))
        how = {"ways": widths[-1], "shots": 1, "queries": 1}
        draw = functools.partial(_episodes.images, classes=classes, **how)
    loss = _square if widths[0] == 1 else _network.loss
    return loss, jax.jit(functools.partial(draw, tasks=tasks))(key)


def _move(member, found):
    """A step of the scores by the mean gradient."""
    value, gradient = found
    updates, opt_state = OPTIMIZER.update(gradient, member.opt_state)
    scores = optax.apply_updates(member.params, updates)
    return member._replace(params=scores, opt_state=opt_state), value


def _one_by_one(of_task, member, data):
    """A loop in Python over compiled tasks, and how long compiling took."""

    def add(total, member, *data):
        return jax.tree.map(jnp.add, total, of_task(member.params, *data))

    def last(total, member):
        return _move(member, jax.tree.map(lambda x: x / len(sets), total))

    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, member.params)
    sets = [_network.at(data, i) for i in range(len(data[0][0]))]
    single, seconds = compiled(add, zero, member, *sets[0])
    finish, more = compiled(last, zero, member)

    def loop():
        total = zero
        for each in sets:
            total = single(total, member, *each)
        return finish(total, member)

    return loop, seconds + more


def _agree(results):
    ours, value = results["vmapped"]
    for name in ("one at a time", "a Python loop"):
        theirs, other = results[name]
        _case.close(value, other, rtol=1e-4)
        # Moments, for of small gradients Adam makes steps of the same size.
        moments = (each.opt_state[0].mu for each in (ours, theirs))
        _case.close(*moments, rtol=1e-2, atol=1e-6)


def case(widths: tuple[int, ...], tasks: int, steps: int) -> _case.Case:
    """Sine waves, five points each; or five classes of images, one of each."""
    key = jax.random.key(0)
    loss, data = _problem(widths, tasks, key)
    params = _network.init(key, widths)
    scores, thresholds = meta_ticket.init(params, density=0.5, key=key)
    member = _train.begin(OPTIMIZER, scores, thresholds)

    def after_adapting(scores, support, query):
        soft = meta_ticket.soft_mask(scores, thresholds)
        how = {"inner_learning_rates": RATE, "steps": steps}
        return loss(meta_ticket.adapt(loss, params, soft, *support, **how), *query)

    of_task = jax.value_and_grad(after_adapting)

    def together(name, size):
        def step(member, *data):
            mean = meta_ticket.mean_over_tasks
            return _move(member, mean(of_task, member.params, *data, batch_size=size))

        return _case.contestant(name, step, member, *data, steps=tasks)

    def ordinary(params, support, query):
        """Steps on all samples at once, with the same weights."""
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        support, query = jax.tree.map(flat, (support, query))

        def descend(params, _):
            gradients = jax.grad(loss)(params, *support)
            return jax.tree.map(lambda p, g: p - RATE * g, params, gradients), None

        params, _ = lax.scan(descend, params, length=steps)
        return jax.value_and_grad(loss)(params, *query)

    loop, seconds = _one_by_one(of_task, member, data)
    contestants = [
        together("vmapped", None),
        together("one at a time", 1),
        Contestant("a Python loop", loop, seconds, steps=tasks),
        _case.contestant("ordinary training", ordinary, params, *data, steps=tasks),
    ]
    name = f"{_case.named(widths)} tasks={tasks} steps={steps}"
    context = {"shape": _case.shapes(params), "density": 0.5, "members": tasks}
    context |= {"inner_steps": steps, "samples_per_set": int(data[0][0].shape[1])}
    return _case.of(name, contestants, _agree, **context)
