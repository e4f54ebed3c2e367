"""How many tasks are learned a second, side by side or one after the other?

SupSup on 784-300-100-100, batches of 128. Baselines: the same program with one task at
a time, and a Python loop over tasks, each a compiled scan over its batches. The limit
is what no mask can save: the products with the weights, forward and backward.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import _train
from benchmarks._timing import Contestant, compiled
from benchmarks.speed import _case, _network
from maskjax import bank, masking
from maskjax.recipes import supsup

WIDTHS, SMALL = (784, 300, 100, 100), (784, 20, 10)
# Widths, tasks, and steps of each.
FULL = [(WIDTHS, 1, 32), (WIDTHS, 8, 16), (WIDTHS, 64, 4)]
QUICK = [(SMALL, 1, 2), (SMALL, 3, 2)]
OPTIMIZER = optax.rmsprop(1e-4, decay=0.99, eps=1e-8)


def _bare_loss(weights, x, y):
    return _train.cross_entropy(_network.bare(weights, x), y)


def case(widths: tuple[int, ...], k: int, steps: int) -> _case.Case:
    """One number of tasks."""
    weights = _network.signed(widths)
    xs, ys = _network.batches(jax.random.key(1), steps)
    orders = [np.random.default_rng(i).permutation(widths[0]) for i in range(k)]
    orders, key = jnp.asarray(np.stack(orders)), jax.random.key(2)

    def loss(scores, rest, x, y):
        return _bare_loss(masking.apply(weights, supsup.soft_mask(scores)), x, y)

    def train(order, *, key):
        step = _train.descend(loss, OPTIMIZER)
        turn = lambda m, batch: step(m, batch[0][:, order], batch[1])  # noqa: E731
        begun = _train.begin(OPTIMIZER, supsup.init(weights, key=key))
        member, losses = lax.scan(turn, begun, (xs, ys))
        return supsup.mask(member.params), losses

    def learn(size):
        how = {"batch_size": size, "key": key}
        return lambda tasks, orders: supsup.learn(train, tasks, orders, **how)

    @jax.vmap
    def products(order):
        """Forward and backward through unmasked weights, which do not move."""

        def step(total, batch):
            gradients = jax.grad(_bare_loss)(weights, batch[0][:, order], batch[1])
            return jax.tree.map(jnp.add, total, gradients), None

        total, _ = lax.scan(step, jax.tree.map(jnp.zeros_like, weights), (xs, ys))
        return jnp.stack([jnp.sum(t) for t in total])

    empty = bank.empty(weights, capacity=k)
    alone, compile_alone = compiled(learn(k), empty, orders[:1])

    def loop():
        tasks, losses = empty, []
        for i in range(k):
            tasks, values = alone(tasks, orders[i : i + 1])
            losses.append(values)
        return tasks, jnp.concatenate(losses)

    def agree(results):
        ours = results["vmapped"]
        for name in ("one after the other", "a Python loop"):
            tasks, losses = results[name]
            np.testing.assert_allclose(ours[1], losses, rtol=1e-3, err_msg=name)
            assert int(ours[0].learned) == int(tasks.learned) == k

    contestants = [
        _case.contestant("vmapped", learn(k), empty, orders, steps=k),
        _case.contestant("one after the other", learn(1), empty, orders, steps=k),
        Contestant("a Python loop", loop, compile_alone, steps=k),
        _case.contestant("products only", products, orders, steps=k),
    ]
    context = {"shape": _case.shapes(weights), "density": 0.5, "members": k}
    context |= {"steps_per_task": steps, "batch": _network.BATCH}
    return _case.of(f"{_case.named(widths)} tasks={k}", contestants, agree, **context)
