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
from matplotlib import colormaps, colors
from matplotlib.figure import Figure

from benchmarks import _pictures, _tasks, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome, Row
from maskjax import bank, initializer, masking, metrics, optim, where
from maskjax.recipes import packnet, supsup

TASKS, QUICK_TASKS, SEEDS = 10, 4, 3
# As published by Kang et al. (2022), who compare these methods so.
WIDTHS, BATCH_SIZE, RATE = (100, 100, 10), 10, 1e-3
EPOCHS, RETRAINED = {"mnist": 5, "digits": 10, "quick": 3}, 0.4
MNIST_PIXELS = 28 * 28
# Weights are shared out as if so many more tasks were to come: those of others are
# noise to a task, so that a full network is worse than one with room.
SPARE = 4
HEAD_NAME = "Dense_2"
HEAD = where.matching(HEAD_NAME)
NAMES = {
    "packnet": "PackNet",
    "naive": "one network, trained on",
    "supsup": "SupSup",
    "single": "a network for each task",
}


class Problem(NamedTuple):
    """What is learned, with what.

    Attributes:
        data: Images.
        orders: [T, H * W], of the pixels.
        apply: `(params, x) -> logits`.
        starts: Parameters [T, S, ...] that tasks begin with, or their heads.
        epochs: For each task,
        retrained: and how many of these after pruning.
        rates: For each task, what pruning removes.
    """

    data: Data
    orders: jax.Array
    apply: Callable[..., jax.Array]
    starts: Any
    epochs: int
    retrained: int
    rates: tuple[float, ...]

    def start(self, task: int) -> Any:
        """Parameters [S, ...] that a task begins with."""
        return jax.tree.map(lambda w: w[task], self.starts)

    def batches(self, task: int) -> np.ndarray:
        """Rows of training images, [S, epochs, steps, B], shuffled in every epoch."""
        how = {"epochs": self.epochs, "size": BATCH_SIZE, "seed": task}
        return _train.orders(SEEDS, len(self.data.x_train), **how)


def run(context: Context) -> Outcome:
    """Ten tasks, learned in four ways."""
    problem = _problem(context)
    many = len(problem.orders)
    packed, state, kept, compiled = _packnet(context, problem)
    matrices = {"packnet": packed, "naive": _naive(context, problem)}
    masked, masks = _supsup(context, problem)
    final = {name: matrix[:, -1] for name, matrix in matrices.items()}
    final |= {"single": _single(context, problem), "supsup": masked}
    lost = {n: np.asarray(metrics.forgetting(m)) for n, m in matrices.items()}
    one = jax.tree.map(lambda x: x[0], state)
    bits = _bits(problem, one, masks)
    owned = np.asarray(one.counts)
    weights = sum(leaf.size for leaf in jax.tree.leaves(one.owner))

    def said(name: str) -> str:
        means = 100 * final[name].mean(1)
        return f"{means.mean():.2f}% +- {means.std():.2f}"

    def below(name: str) -> str:
        return f"{100 * (final['single'] - final[name]).mean():.2f} points below"

    return Outcome(
        rows=[
            Row(
                f"{many} tasks in one network as good as {many} networks (Kang et al., "
                "2022, all of MNIST: PackNet 96.37%, SupSup 96.31%, a network each "
                "97.37%)",
                f"PackNet {said('packnet')}, {below('packnet')} a network each, "
                f"{said('single')}; SupSup {said('supsup')}, {below('supsup')} "
                f"({problem.epochs} epochs each)",
            ),
            Row(
                "nothing is forgotten (the same network trained on, each task with its "
                "head, keeps 78.22%)",
                f"forgetting {lost['packnet'].max():.1f}; logits of every task "
                f"{'bit-identical' if kept else 'CHANGED'} after all {many}; trained "
                f"on: {said('naive')}, forgetting {lost['naive'].mean():.1%}",
            ),
            Row(
                "a task costs few bits",
                ", ".join(
                    f"{NAMES[name]} {bits[name] / 8_192:,.1f} KiB" for name in NAMES
                )
                + f" a task; each owns {owned.min():,} to {owned.max():,} of "
                f"{weights:,} weights, {weights - owned.sum():,} are free",
            ),
            Row(
                "tasks go through one compiled program",
                f"learning a task compiled {compiled} time"
                f"{'' if compiled == 1 else 's'} for {many} tasks and "
                f"{SEEDS} seeds side by side",
            ),
        ],
        settings={
            "network": "-".join(map(str, (problem.data.x_train.shape[1], *WIDTHS))),
            "tasks": many,
            "seeds": SEEDS,
            "optimizer": "adam",
            "learning_rate": RATE,
            "supsup": "signed constant, no biases; learning rate to 0 by a cosine",
            "batch_size": BATCH_SIZE,
            "epochs": problem.epochs,
            "of_these_after_pruning": problem.retrained,
            "rates": problem.rates,
            "inputs": "standardized",
        },
        numbers={
            "accuracy_matrices": matrices,
            "final": final,
            "forgetting": lost,
            "bits_per_task": bits,
            "weights": weights,
            "owned": owned,
            "allotted": packnet.allotment(one, rates=problem.rates),
            "bit_identical": kept,
            "compiled": compiled,
        },
        pictures=[
            _draw_accuracy(context, matrices, final),
            _draw_owners(context, problem, one),
        ],
    )


def _problem(context: Context) -> Problem:
    data = context.data.standardized()
    large = np.prod(data.shape) >= MNIST_PIXELS
    tasks = context.tasks or (QUICK_TASKS if context.quick else TASKS)
    orders = _tasks.permutations(data, tasks)
    data = data.flat()
    model = _train.MLP(WIDTHS)
    shapes = jax.eval_shape(model.init, jax.random.key(0), data.x_train[:1])["params"]
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> jax.Array:
        """Glorot's uniform kernels, and biases of 0, for every task and seed."""
        bound = (6 / sum(leaf.shape)) ** 0.5 if len(leaf.shape) > 1 else 0.0
        many = (tasks, SEEDS, *leaf.shape)
        return jnp.asarray(rng.uniform(-bound, bound, many), jnp.float32)

    epochs = EPOCHS["quick" if context.quick else "mnist" if large else "digits"]
    return Problem(
        data,
        jnp.asarray(orders),
        lambda params, x: model.apply({"params": params}, x),
        jax.tree.map(draw, shapes),
        epochs,
        round(RETRAINED * epochs),
        tuple(1 - 1 / (tasks + SPARE - task) for task in range(tasks)),
    )


def _fit(
    problem: Problem, params: Any, mask: Any, order: jax.Array, rows: jax.Array
) -> Any:
    """Parameters trained on a task, where a mask lets them, or all.

    `rows` are [epochs, steps, B].
    """
    x, y = (
        jnp.asarray(problem.data.x_train)[:, order],
        jnp.asarray(problem.data.y_train),
    )
    optimizer = optax.adam(RATE)
    if mask is not None:
        optimizer = optax.chain(optimizer, optim.mask_updates(mask))

    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        params, opt_state = carry

        def loss(params: Any) -> jax.Array:
            return _train.cross_entropy(problem.apply(params, x[rows]), y[rows])

        gradients = jax.grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = lax.scan(
        step, (params, optimizer.init(params)), rows.reshape(-1, BATCH_SIZE)
    )
    return params


def _logits(problem: Problem, params: Any, order: jax.Array) -> jax.Array:
    return problem.apply(params, jnp.asarray(problem.data.x_test)[:, order])


def _accuracy(problem: Problem, params: Any, order: jax.Array) -> jax.Array:
    right = jnp.argmax(_logits(problem, params, order), -1) == problem.data.y_test
    return jnp.mean(right, dtype=jnp.float32)


def _row(problem: Problem, params_of: Callable[[jax.Array], Any]) -> jax.Array:
    """The accuracy on every task, [T]; those not learned have no meaning."""
    tasks = jnp.arange(len(problem.orders)), problem.orders
    return lax.map(lambda one: _accuracy(problem, params_of(one[0]), one[1]), tasks)


def _packnet(context: Context, problem: Problem) -> tuple[np.ndarray, Any, bool, int]:
    """Matrices [S, T, T], networks, whether logits stayed, and how many compiles."""
    many = len(problem.orders)
    first = problem.epochs - problem.retrained

    def task(
        state: Any, fresh: Any, rows: jax.Array, order: jax.Array, rate: jax.Array
    ) -> Any:
        training = packnet.begin(state, fresh)
        params = _fit(problem, training.params, training.mask, order, rows[:first])
        pruned = packnet.prune(training, params, rate=rate)
        params = _fit(problem, pruned.params, pruned.mask, order, rows[first:])
        state = packnet.commit(pruned, params)
        return state, _row(problem, functools.partial(packnet.params_of, state))

    def logits(state: Any, task: jax.Array, order: jax.Array) -> jax.Array:
        return _logits(problem, packnet.params_of(state, task), order)

    learn = jax.jit(jax.vmap(task, in_axes=(0, 0, 0, None, None)))
    say = jax.jit(jax.vmap(logits, in_axes=(0, None, None)))
    empty = functools.partial(packnet.init, head=HEAD, capacity=many)
    state, rows, said = jax.vmap(empty)(problem.start(0)), [], []
    for i in context.track(f"packnet: {many} tasks", many):
        given = problem.start(i), problem.batches(i), problem.orders[i]
        state, row = learn(state, *given, jnp.float32(problem.rates[i]))
        rows.append(np.asarray(row))
        said.append(np.asarray(say(state, i, problem.orders[i])))
    again = (say(state, i, order) for i, order in enumerate(problem.orders))
    kept = all(map(np.array_equal, said, again))
    return np.stack(rows, axis=1), state, kept, learn._cache_size()


def _naive(context: Context, problem: Problem) -> np.ndarray:
    """Matrices [S, T, T] of a network that is trained on, each task with its head."""

    def task(body: Any, heads: Any, i: jax.Array, rows: jax.Array) -> Any:
        def params_of(task: jax.Array) -> Any:
            return {**body, HEAD_NAME: jax.tree.map(lambda w: w[task], heads)}

        body = _fit(problem, params_of(i), None, problem.orders[i], rows)
        head = body[HEAD_NAME]
        heads = jax.tree.map(lambda all_, one: all_.at[i].set(one), heads, head)
        return body, heads, _row(problem, params_of)

    learn = jax.jit(jax.vmap(task, in_axes=(0, 1, None, 0), out_axes=(0, 1, 0)))
    body, heads = problem.start(0), problem.starts[HEAD_NAME]
    found = []
    for i in context.track("packnet: one network, trained on", len(problem.orders)):
        body, heads, row = learn(body, heads, i, problem.batches(i))
        found.append(np.asarray(row))
    return np.stack(found, axis=1)


def _single(context: Context, problem: Problem) -> np.ndarray:
    """Accuracies [S, T] of a network for each task."""

    def task(params: Any, rows: jax.Array, order: jax.Array) -> jax.Array:
        params = _fit(problem, params, None, order, rows)
        return _accuracy(problem, params, order)

    learn = jax.jit(jax.vmap(task, in_axes=(0, 0, None)))
    found = []
    for i in context.track("packnet: a network each", len(problem.orders)):
        given = problem.start(i), problem.batches(i), problem.orders[i]
        found.append(np.asarray(learn(*given)))
    return np.stack(found, axis=1)


def _supsup(context: Context, problem: Problem) -> tuple[np.ndarray, bank.MaskBank]:
    """Accuracies [S, T] of a random network under a mask for each task, and these."""
    model = _train.MLP(WIDTHS, False, initializer.signed_constant())
    x, y = jnp.asarray(problem.data.x_train), jnp.asarray(problem.data.y_train)
    many = len(problem.orders)
    keys = jax.random.split(jax.random.key(1), SEEDS)
    weights = _train.draw(lambda key: model.init(key, x[:1])["params"], keys)
    steps = problem.epochs * (len(x) // BATCH_SIZE)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    mine = problem._replace(apply=lambda params, x: model.apply({"params": params}, x))

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return _train.cross_entropy(mine.apply(params, x), y)

    def one(
        tasks: bank.MaskBank, weights: Any, key: jax.Array, rows: jax.Array, order: Any
    ) -> Any:
        shown = x[:, order]

        def train(rows: jax.Array, *, key: jax.Array) -> tuple[Any, jax.Array]:
            state = supsup.init(weights, optimizer, key=key)

            def step(state: Any, rows: jax.Array) -> tuple[Any, None]:
                data = shown[rows], y[rows]
                return supsup.step(state, weights, loss, optimizer, *data)[0], None

            mask = supsup.mask(lax.scan(step, state, rows)[0])
            return mask, _accuracy(mine, masking.apply(weights, mask), order)

        return supsup.learn(train, tasks, rows.reshape(1, -1, BATCH_SIZE), key=key)

    learn = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, None)), donate_argnums=0)
    tasks = jax.vmap(functools.partial(bank.empty, capacity=many))(weights)
    found = []
    for i in context.track("packnet: SupSup", many):
        given = problem.batches(i), problem.orders[i]
        tasks, accuracy = learn(tasks, weights, keys, *given)
        found.append(np.asarray(accuracy[:, 0]))
    return np.stack(found, axis=1), tasks


def _bits(problem: Problem, state: Any, tasks: bank.MaskBank) -> dict[str, float]:
    """What a task costs each way; random weights are drawn again from their key."""
    many = len(problem.orders)
    masks = jax.tree.map(lambda x: x[0], tasks.masks)
    params = packnet.params_of(state, 0)
    head = metrics.bits_per_task(params[HEAD_NAME], tasks=1)
    whole = metrics.bits_per_task(params, tasks=1)
    owner = metrics.bits_per_task(state.owner, tasks=many, levels=many + 1)
    shared = (whole - head) / many + head
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
    drawn = Figure(figsize=(11, 4.5), layout="constrained")
    first, last = drawn.subplots(1, 2)
    tasks = range(1, many + 1)
    for name, label in NAMES.items():
        _pictures.band(last, tasks, final[name].T, label)
        if name in matrices:
            _pictures.band(first, tasks, matrices[name][:, :, 0].T, label)
    first.set(title="the first task", xlabel="tasks learned")
    last.set(title=f"every task, after all {many}", xlabel="task")
    for axes in (first, last):
        _pictures.accuracy_axis(axes, seeds)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    return _pictures.save(drawn, context.out / "packnet_accuracy.png")


def _draw_owners(context: Context, problem: Problem, state: Any) -> str:
    """Whose the second layer's weights are, and how many of each pixel's."""
    many, (height, width) = len(problem.orders), context.data.shape
    drawn = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = drawn.subfigures(1, 2, width_ratios=(3, 4))
    axes = left.subplots()
    hues = colormaps["tab20"].colors
    palette = colors.ListedColormap(["white", *(hues[i % 20] for i in range(many))])
    owner = np.asarray(state.owner["Dense_1"]["kernel"])
    picture = axes.imshow(
        owner, cmap=palette, vmin=-0.5, vmax=many + 0.5, interpolation="nearest"
    )
    axes.set(xlabel="unit", ylabel="input", title="second layer: whose is a weight?")
    left.colorbar(picture, ax=axes, label="task (0: free)", shrink=0.8)
    owner = np.asarray(state.owner["Dense_0"]["kernel"])
    panels = right.subplots(2, 3).flat
    for task, axes in zip(range(min(many, 6)), panels, strict=False):
        image = np.zeros(height * width)
        image[np.asarray(problem.orders[task])] = (owner == task + 1).mean(1)
        axes.imshow(image.reshape(height, width), cmap="viridis")
        axes.set(xticks=[], yticks=[], title=f"task {task + 1}")
    right.suptitle("first layer: the fraction of each pixel's weights that a task owns")
    return _pictures.save(drawn, context.out / "packnet_owners.png")


DEMO = Demo(
    "packnet",
    "PackNet: many tasks in one network by pruning (Mallya & Lazebnik, 2018)",
    run,
)
