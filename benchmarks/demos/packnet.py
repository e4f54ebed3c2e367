"""One network, ten tasks, nothing forgotten: PackNet (Mallya & Lazebnik, CVPR 2018).

Every task shows the images with their pixels in another order. PackNet learns them one
after the other in one network, beside: SupSup, whose network of random weights has a
mask for each; the same network trained on and on; and a network for each task alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import _pictures, _tasks, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from benchmarks._tasks import BATCH_SIZE, HEAD, HEAD_NAME, RETRAINED, WIDTHS
from maskjax import bank, initializer, masking, metrics, optim
from maskjax.recipes import packnet, supsup

TASKS, SEEDS = (4, 5, 10), 3
RATE = 1e-3
EPOCHS = {"digits": (3, 5, 10), "mnist": (3, 3, 5)}
MNIST_PIXELS = 28 * 28
# Weights are shared out as if so many more tasks were to come: those of others are
# noise to a task, so that a full network is worse than one with room.
SPARE = 4
NAMES = {
    "packnet": "PackNet",
    "naive": "one network, trained on",
    "supsup": "SupSup",
    "single": "a network for each task",
}
SETTINGS = {
    "seeds": SEEDS,
    "optimizer": "adam",
    "learning_rate": RATE,
    "supsup": "signed constant, no biases; learning rate to 0 by a cosine",
    "batch_size": BATCH_SIZE,
    "inputs": "standardized",
}


class Problem(NamedTuple):
    """What is learned, with what."""

    data: Data  # images as rows
    orders: jax.Array  # [T, H * W], of the pixels
    starts: Any  # parameters [T, S, ...] that tasks begin with, or their heads
    epochs: int  # for each task,
    retrained: int  # and how many of these after pruning
    rates: tuple[float, ...]  # for each task, what pruning removes
    track: Callable[..., Any]

    def given(self, task: int) -> tuple[jax.Array, Any, np.ndarray]:
        """The order of pixels, first parameters [S, ...], and rows [S, steps, B]."""
        how = {"epochs": self.epochs, "size": BATCH_SIZE, "seed": task}
        rows = _train.orders(SEEDS, len(self.data.x_train), **how)
        start = jax.tree.map(lambda w: w[task], self.starts)
        return self.orders[task], start, rows.reshape(SEEDS, -1, BATCH_SIZE)

    def images(self, order: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What there is to learn with pixels in this order, and its labels."""
        return jnp.asarray(self.data.x_train)[:, order], jnp.asarray(self.data.y_train)


def run(context: Context) -> Outcome:
    """Several tasks, learned in four ways."""
    problem = _problem(context)
    many = len(problem.orders)
    state, packed, kept, compiled = _packnet(problem)
    matrices = {"packnet": packed, "naive": _naive(problem)}
    masked, masks = _supsup(problem)
    final = {name: matrix[:, -1] for name, matrix in matrices.items()}
    final |= {"single": _single(problem), "supsup": masked}
    forgotten = {n: np.asarray(metrics.forgetting(m)) for n, m in matrices.items()}
    one = jax.tree.map(lambda x: x[0], state)
    owned = np.asarray(one.counts)
    numbers = {
        "accuracy_matrices": matrices,
        "final": final,
        "forgetting": forgotten,
        "bits_per_task": _bits(problem, one, masks),
        "weights": sum(leaf.size for leaf in jax.tree.leaves(one.owner)),
        "owned": owned,
        "allotted": packnet.allotment(one, rates=problem.rates),
        "bit_identical": kept,
        "compiled": compiled,
    }
    found = {
        "mean": {name: accuracy.mean(1) for name, accuracy in final.items()},
        "below": {n: 100 * (final["single"] - f).mean() for n, f in final.items()},
        "kib": {NAMES[n]: numbers["bits_per_task"][n] / 8_192 for n in NAMES},
        "most_forgotten": forgotten["packnet"].max(),
        "least": owned.min(),
        "most": owned.max(),
        "free": numbers["weights"] - owned.sum(),
    }
    settings = {"tasks": many, "epochs": problem.epochs}
    return Outcome(
        rows=rows("packnet", **numbers, **found, **settings, seeds=SEEDS),
        settings=SETTINGS
        | {"network": "-".join(map(str, (problem.data.x_train.shape[1], *WIDTHS)))}
        | settings
        | {"of_these_after_pruning": problem.retrained, "rates": problem.rates},
        numbers=numbers,
        pictures=[_draw_accuracy(context, matrices, final)],
    )


def _problem(context: Context) -> Problem:
    data = context.data.standardized()
    large = np.prod(data.shape) >= MNIST_PIXELS
    tasks = context.tasks or context.pick(TASKS)
    orders = _tasks.permutations(data, tasks)
    data = data.flat()
    widths = (data.x_train.shape[1], *WIDTHS)
    epochs = context.pick(EPOCHS["mnist" if large else "digits"])
    return Problem(
        data,
        jnp.asarray(orders),
        _train.glorot(np.random.default_rng(0), widths, tasks, SEEDS),
        epochs,
        round(RETRAINED * epochs),
        tuple(1 - 1 / (tasks + SPARE - task) for task in range(tasks)),
        context.track,
    )


def _fit(
    problem: Problem, params: Any, order: jax.Array, rows: jax.Array, mask: Any = None
) -> Any:
    """Parameters trained on a task, where a mask lets them, or all."""
    optimizer = optax.adam(RATE)
    if mask is not None:
        optimizer = optax.chain(optimizer, optim.mask_updates(mask))

    def loss(params: Any, rest: None, x: jax.Array, y: jax.Array) -> jax.Array:
        return _train.cross_entropy(_tasks.logits(params, x), y)

    step, begun = _train.descend(loss, optimizer), _train.begin(optimizer, params)
    return _train.scan(step, begun, rows, *problem.images(order))[0].params


def _logits(problem: Problem, params: Any, order: jax.Array) -> jax.Array:
    return _tasks.logits(params, jnp.asarray(problem.data.x_test)[:, order])


def _accuracy(problem: Problem, params: Any, order: jax.Array) -> jax.Array:
    return _train.accuracy(_logits(problem, params, order), problem.data.y_test)


def _row(problem: Problem, params_of: Callable[[jax.Array], Any]) -> jax.Array:
    """The accuracy on every task, [T]; those not learned have no meaning."""
    tasks = jnp.arange(len(problem.orders)), problem.orders
    return lax.map(lambda one: _accuracy(problem, params_of(one[0]), one[1]), tasks)


def _one_by_one(problem: Problem, name: str, learn: Any, state: Any = None) -> Any:
    """The last state, and what learning each task found, [S, T, ...].

    `learn(state, task, order, start, rows) -> (state, found [S, ...])`.
    """
    found = []
    for i in problem.track(f"packnet: {name}", len(problem.orders)):
        state, one = learn(state, i, *problem.given(i))
        found.append(np.asarray(one))
    return state, np.stack(found, axis=1)


def _compiled(task: Callable[..., Any]) -> Any:
    """One program for all tasks, and for all seeds side by side."""
    return jax.jit(jax.vmap(task, in_axes=(0, None, None, 0, 0)))


def _packnet(problem: Problem) -> tuple[Any, np.ndarray, bool, int]:
    """Networks, matrices [S, T, T], whether logits stayed, and how many compiles."""
    per_epoch = len(problem.data.x_train) // BATCH_SIZE
    first = (problem.epochs - problem.retrained) * per_epoch
    rates = jnp.float32(problem.rates)

    def task(state: Any, i: Any, order: Any, fresh: Any, rows: jax.Array) -> Any:
        training = packnet.begin(state, fresh)
        params = _fit(problem, training.params, order, rows[:first], training.mask)
        pruned = packnet.prune(training, params, rate=rates[i])
        params = _fit(problem, pruned.params, order, rows[first:], pruned.mask)
        state = packnet.commit(pruned, params)
        return state, _row(problem, functools.partial(packnet.params_of, state))

    def logits(state: Any, i: jax.Array) -> jax.Array:
        return _logits(problem, packnet.params_of(state, i), problem.orders[i])

    learn, said = _compiled(task), []
    say = jax.jit(jax.vmap(logits, in_axes=(0, None)))

    def learn_and_say(state: Any, i: int, *given: Any) -> Any:
        state, row = learn(state, i, *given)
        said.append(say(state, i))
        return state, row

    many = len(problem.orders)
    empty = functools.partial(packnet.init, head=HEAD, capacity=many)
    state = jax.vmap(empty)(problem.given(0)[1])
    state, matrix = _one_by_one(problem, f"{many} tasks", learn_and_say, state)
    kept = _train.same_bits(said, [say(state, i) for i in range(many)])
    return state, matrix, kept, learn._cache_size()


def _naive(problem: Problem) -> np.ndarray:
    """Matrices [S, T, T] of a network that is trained on, each task with its head."""

    def task(state: Any, i: Any, order: Any, start: Any, rows: jax.Array) -> Any:
        body, heads = state

        def params_of(task: jax.Array) -> Any:
            return {**body, HEAD_NAME: jax.tree.map(lambda w: w[task], heads)}

        body = _fit(problem, params_of(i), order, rows)
        head = body[HEAD_NAME]
        heads = jax.tree.map(lambda all_, one: all_.at[i].set(one), heads, head)
        return (body, heads), _row(problem, params_of)

    heads = jax.tree.map(lambda w: w.swapaxes(0, 1), problem.starts[HEAD_NAME])
    begun = problem.given(0)[1], heads
    return _one_by_one(problem, "one network, trained on", _compiled(task), begun)[1]


def _single(problem: Problem) -> np.ndarray:
    """Accuracies [S, T] of a network for each task."""

    def task(_: None, i: Any, order: Any, start: Any, rows: jax.Array) -> Any:
        return None, _accuracy(problem, _fit(problem, start, order, rows), order)

    return _one_by_one(problem, "a network each", _compiled(task))[1]


def _supsup(problem: Problem) -> tuple[np.ndarray, bank.MaskBank]:
    """Accuracies [S, T] of a random network under a mask for each task, and these."""
    model = _train.MLP(WIDTHS, False, initializer.signed_constant())
    x, many = problem.data.x_train, len(problem.orders)
    keys = jax.random.split(jax.random.key(1), SEEDS)
    weights = _train.draw(lambda key: model.fresh(key, x), keys)
    steps = problem.epochs * (len(x) // BATCH_SIZE)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def loss(scores: Any, weights: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        params = masking.apply(weights, supsup.soft_mask(scores))
        return _train.cross_entropy(_tasks.logits(params, x), y)

    step = _train.descend(loss, optimizer)

    def task(state: Any, i: Any, order: Any, start: Any, rows: jax.Array) -> Any:
        tasks, weights, key = state

        def train(rows: jax.Array, *, key: jax.Array) -> tuple[Any, jax.Array]:
            begun = _train.begin(optimizer, supsup.init(weights, key=key), weights)
            member, _ = _train.scan(step, begun, rows, *problem.images(order))
            mask = supsup.mask(member.params)
            return mask, _accuracy(problem, masking.apply(weights, mask), order)

        tasks, accuracy = supsup.learn(train, tasks, rows[None], key=key)
        return (tasks, weights, key), accuracy[0]

    tasks = jax.vmap(functools.partial(bank.empty, capacity=many))(weights)
    begun = tasks, weights, keys
    state, found = _one_by_one(problem, "SupSup", _compiled(task), begun)
    return found, state[0]


def _bits(problem: Problem, state: Any, tasks: bank.MaskBank) -> dict[str, float]:
    """What a task costs each way; random weights are drawn again from their key."""
    many = len(problem.orders)
    masks = jax.tree.map(lambda x: x[0], tasks.masks)
    params = packnet.params_of(state, 0)
    whole, shared = _tasks.bits_of_weights(params, many)
    owner = metrics.bits_per_task(state.owner, tasks=many, levels=many + 1)
    return {
        "single": whole,
        "packnet": shared + owner,
        "supsup": metrics.bits_per_task(masks, tasks=many),
        "naive": shared,
    }


def _draw_accuracy(
    context: Context, matrices: dict[str, np.ndarray], final: dict[str, np.ndarray]
) -> str:
    seeds, many = final["single"].shape
    title = f"Tasks: {many} orders of the pixels, {context.data.name}"
    drawn, (first, last) = _pictures.page(title, 2, size=(11, 4.8), sharey=True)
    tasks = range(1, many + 1)
    found = {NAMES[name]: matrix[:, :, 0].T for name, matrix in matrices.items()}
    how = {"title": "the first task", "xlabel": "tasks learned"}
    _pictures.curves(first, tasks, found, seeds=seeds, **how)
    found = {label: final[name].T for name, label in NAMES.items()}
    how = {"title": f"every task, after all {many}", "xlabel": "task", "ylabel": ""}
    _pictures.curves(last, tasks, found, seeds=seeds, **how)
    return _pictures.save(drawn, context, "packnet_accuracy")


DEMO = Demo(
    "packnet",
    "PackNet: many tasks in one network by pruning (Mallya & Lazebnik, 2018)",
    run,
    seconds=8,
    uses=("tasks",),
)
