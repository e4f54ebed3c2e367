"""How many tasks are learned a second, side by side or one after the other?

SupSup on 784-300-100-100, batches of 128. Baselines: the same program with one task at
a time, and a Python loop over tasks, each a compiled scan over its batches. The limit
is what no mask can save: the products with the weights, forward and backward.
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
from maskjax import bank, initializer
from maskjax.recipes import supsup

WIDTHS, SMALL = (784, 300, 100, 100), (784, 20, 10)
# Widths, tasks, and steps of each.
FULL = [(WIDTHS, 1, 32), (WIDTHS, 8, 16), (WIDTHS, 64, 4)]
QUICK = [(SMALL, 1, 2), (SMALL, 3, 2)]
OPTIMIZER = optax.rmsprop(1e-4, decay=0.99, eps=1e-8)


def cases(*, quick: bool) -> Iterator[Case]:
    """More and more tasks at once."""
    for case in QUICK if quick else FULL:
        yield _case(*case)


def network(weights: Any, x: jax.Array) -> jax.Array:
    """Logits of a ReLU network without biases."""
    for w in weights[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ weights[-1]


def loss(weights: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy."""
    logits = network(weights, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def _case(widths: tuple[int, ...], k: int, steps: int) -> Case:
    shapes = list(zip(widths, widths[1:], strict=False))
    draw = initializer.signed_constant()
    weights = [draw(jax.random.key(i), s) for i, s in enumerate(shapes)]
    xs, ys = _network.batches(jax.random.key(1), steps)
    orders = jnp.asarray(
        np.stack([np.random.default_rng(i).permutation(widths[0]) for i in range(k)])
    )
    key = jax.random.key(2)

    def train(order: jax.Array, *, key: jax.Array) -> tuple[Any, jax.Array]:
        state = supsup.init(weights, OPTIMIZER, key=key)

        def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
            x, y = batch
            return supsup.step(state, weights, loss, OPTIMIZER, x[:, order], y)

        state, losses = lax.scan(step, state, (xs, ys))
        return supsup.mask(state), losses

    def learn(tasks: bank.MaskBank, orders: jax.Array) -> Any:
        return supsup.learn(train, tasks, orders, batch_size=k, key=key)

    def in_turn(tasks: bank.MaskBank, orders: jax.Array) -> Any:
        return supsup.learn(train, tasks, orders, batch_size=1, key=key)

    def products(orders: jax.Array) -> jax.Array:
        """Forward and backward through unmasked weights, which do not move."""

        def one(order: jax.Array) -> jax.Array:
            def step(total: Any, batch: Any) -> tuple[Any, None]:
                x, y = batch
                gradients = jax.grad(loss)(weights, x[:, order], y)
                return jax.tree.map(jnp.add, total, gradients), None

            total, _ = lax.scan(step, jax.tree.map(jnp.zeros_like, weights), (xs, ys))
            return jnp.stack([jnp.sum(t) for t in total])

        return jax.vmap(one)(orders)

    empty = bank.empty(weights, capacity=k)

    def contestant(
        name: str, role: Role, call: Callable, compile_s: float
    ) -> Contestant:
        return Contestant(name, role, call, compile_s, steps=k)

    together, compile_s = compiled(learn, empty, orders)
    turns, compile_turns = compiled(in_turn, empty, orders)
    alone, compile_alone = compiled(learn, empty, orders[:1])
    least, compile_least = compiled(products, orders)

    def loop() -> Any:
        tasks, losses = empty, []
        for i in range(k):
            tasks, values = alone(tasks, orders[i : i + 1])
            losses.append(values)
        return tasks, jnp.concatenate(losses)

    def agree(results: Mapping[str, Any]) -> None:
        ours = results["vmapped"]
        for name in ("one after the other", "a Python loop"):
            tasks, losses = results[name]
            np.testing.assert_allclose(ours[1], losses, rtol=1e-3, err_msg=name)
            assert int(ours[0].learned) == int(tasks.learned) == k

    return Case(
        f"{'-'.join(map(str, widths))} tasks={k}",
        {
            "dtype": "float32",
            "shape": [list(s) for s in shapes],
            "density": 0.5,
            "structure": "Entries()",
            "members": k,
            "steps_per_task": steps,
            "batch": _network.BATCH,
        },
        [
            contestant("vmapped", "ours", lambda: together(empty, orders), compile_s),
            contestant(
                "one after the other",
                "baseline",
                lambda: turns(empty, orders),
                compile_turns,
            ),
            contestant("a Python loop", "baseline", loop, compile_alone),
            contestant("products only", "limit", lambda: least(orders), compile_least),
        ],
        agree,
    )
