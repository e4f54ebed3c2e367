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
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import bank, initializer, masking, metrics, optim, where
from maskjax.recipes import packnet, supsup

TASKS, SEEDS = (4, 5, 10), 3
# As published by Kang et al. (2022), who compare these methods so.
WIDTHS, BATCH_SIZE, RATE = (100, 100, 10), 10, 1e-3
EPOCHS = {"digits": (3, 5, 10), "mnist": (3, 3, 5)}
RETRAINED = 0.4  # of the epochs
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
SETTINGS = {
    "seeds": SEEDS,
    "optimizer": "adam",
    "learning_rate": RATE,
    "supsup": "signed constant, no biases; learning rate to 0 by a cosine",
    "batch_size": BATCH_SIZE,
    "inputs": "standardized",
}
ROWS = {
    "many tasks in one network as good as a network each (Kang et al., 2022, all of "
    "MNIST, 10 tasks: PackNet 96.37%, SupSup 96.31%, a network each 97.37%)": "{tasks} "
    "tasks: PackNet {mean[packnet]:.2%+-}, {below[packnet]:.2f} points below a network "
    "each, {mean[single]:.2%+-}; SupSup {mean[supsup]:.2%+-}, {below[supsup]:.2f} "
    "points below ({epochs} epochs each)",
    "nothing is forgotten (the same network trained on, each task with its head, keeps "
    "78.22%)": "forgetting {most_forgotten:.1f}; logits of every task "
    "{bit_identical:bit-identical|CHANGED} after all {tasks}; trained on: "
    "{mean[naive]:.2%+-}, forgetting {forgetting[naive]:.1%}",
    "a task costs few bits": "{kib:,.1f} KiB a task; each owns {least:,} to {most:,} "
    "of {weights:,} weights, {free:,} are free",
    "tasks go through one compiled program": "times that learning a task compiled, for "
    "{tasks} tasks and {seeds} seeds side by side: {compiled}",
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

    def given(self, task: int) -> tuple[Any, np.ndarray, jax.Array]:
        """First parameters [S, ...], rows [S, steps, B] of images, and pixels."""
        how = {"epochs": self.epochs, "size": BATCH_SIZE, "seed": task}
        rows = _train.orders(SEEDS, len(self.data.x_train), **how)
        start = jax.tree.map(lambda w: w[task], self.starts)
        return start, rows.reshape(SEEDS, -1, BATCH_SIZE), self.orders[task]


def run(context: Context) -> Outcome:
    """Several tasks, learned in four ways."""
    problem = _problem(context)
    many = len(problem.orders)
    packed, state, kept, compiled = _packnet(context, problem)
    matrices = {"packnet": packed, "naive": _naive(context, problem)}
    masked, masks = _supsup(context, problem)
    final = {name: matrix[:, -1] for name, matrix in matrices.items()}
    final |= {"single": _single(context, problem), "supsup": masked}
    one = jax.tree.map(lambda x: x[0], state)
    owned = np.asarray(one.counts)
    numbers = {
        "accuracy_matrices": matrices,
        "final": final,
        "forgetting": {
            n: np.asarray(metrics.forgetting(m)) for n, m in matrices.items()
        },
        "bits_per_task": _bits(problem, one, masks),
        "weights": sum(leaf.size for leaf in jax.tree.leaves(one.owner)),
        "owned": owned,
        "allotted": packnet.allotment(one, rates=problem.rates),
        "bit_identical": kept,
        "compiled": compiled,
    }
    below = {n: 100 * (final["single"] - f).mean() for n, f in final.items()}
    kib = {label: numbers["bits_per_task"][n] / 8_192 for n, label in NAMES.items()}
    return Outcome(
        rows=rows(
            ROWS,
            **numbers,
            mean={name: found.mean(1) for name, found in final.items()},
            below=below,
            kib=kib,
            tasks=many,
            seeds=SEEDS,
            epochs=problem.epochs,
            most_forgotten=numbers["forgetting"]["packnet"].max(),
            least=owned.min(),
            most=owned.max(),
            free=numbers["weights"] - owned.sum(),
        ),
        settings=SETTINGS
        | {
            "network": "-".join(map(str, (problem.data.x_train.shape[1], *WIDTHS))),
            "tasks": many,
            "epochs": problem.epochs,
            "of_these_after_pruning": problem.retrained,
            "rates": problem.rates,
        },
        numbers=numbers,
        pictures=[
            _draw_accuracy(context, matrices, final),
            _draw_owners(context, problem, one),
        ],
    )


def _problem(context: Context) -> Problem:
    data = context.data.standardized()
    large = np.prod(data.shape) >= MNIST_PIXELS
    tasks = context.tasks or context.pick(TASKS)
    orders = _tasks.permutations(data, tasks)
    data = data.flat()
    model = _train.MLP(WIDTHS)
    widths = (data.x_train.shape[1], *WIDTHS)
    epochs = context.pick(EPOCHS["mnist" if large else "digits"])
    return Problem(
        data,
        jnp.asarray(orders),
        lambda params, x: model.apply({"params": params}, x),
        _train.glorot(np.random.default_rng(0), widths, tasks, SEEDS),
        epochs,
        round(RETRAINED * epochs),
        tuple(1 - 1 / (tasks + SPARE - task) for task in range(tasks)),
    )


def _fit(
    problem: Problem, params: Any, mask: Any, order: jax.Array, rows: jax.Array
) -> Any:
    """Parameters trained on a task, where a mask lets them, or all."""
    optimizer = optax.adam(RATE)
    if mask is not None:
        optimizer = optax.chain(optimizer, optim.mask_updates(mask))

    def loss(params: Any, rest: None, x: jax.Array, y: jax.Array) -> jax.Array:
        return _train.cross_entropy(problem.apply(params, x), y)

    step, begun = _train.descend(loss, optimizer), _train.begin(optimizer, params)
    return _train.scan(step, begun, rows, *_images(problem, order))[0].params


def _images(problem: Problem, order: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = jnp.asarray(problem.data.x_train), jnp.asarray(problem.data.y_train)
    return x[:, order], y


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
    first = (problem.epochs - problem.retrained) * (
        len(problem.data.x_train) // BATCH_SIZE
    )

    def task(state: Any, fresh: Any, rows: Any, order: Any, rate: Any) -> Any:
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
    state, matrix, said = jax.vmap(empty)(problem.given(0)[0]), [], []
    for i in context.track(f"packnet: {many} tasks", many):
        rate = jnp.float32(problem.rates[i])
        state, row = learn(state, *problem.given(i), rate)
        matrix.append(np.asarray(row))
        said.append(np.asarray(say(state, i, problem.orders[i])))
    again = [np.asarray(say(state, i, order)) for i, order in enumerate(problem.orders)]
    kept = _train.same_bits(said, again)
    return np.stack(matrix, axis=1), state, kept, learn._cache_size()


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
    body, heads = problem.given(0)[0], problem.starts[HEAD_NAME]
    found = []
    for i in context.track("packnet: one network, trained on", len(problem.orders)):
        body, heads, row = learn(body, heads, i, problem.given(i)[1])
        found.append(np.asarray(row))
    return np.stack(found, axis=1)


def _single(context: Context, problem: Problem) -> np.ndarray:
    """Accuracies [S, T] of a network for each task."""

    def task(params: Any, rows: jax.Array, order: jax.Array) -> jax.Array:
        return _accuracy(problem, _fit(problem, params, None, order, rows), order)

    learn = jax.jit(jax.vmap(task, in_axes=(0, 0, None)))
    tasks = context.track("packnet: a network each", len(problem.orders))
    return np.stack([np.asarray(learn(*problem.given(i))) for i in tasks], axis=1)


def _supsup(context: Context, problem: Problem) -> tuple[np.ndarray, bank.MaskBank]:
    """Accuracies [S, T] of a random network under a mask for each task, and these."""
    model = _train.MLP(WIDTHS, False, initializer.signed_constant())
    x, many = problem.data.x_train, len(problem.orders)
    keys = jax.random.split(jax.random.key(1), SEEDS)
    weights = _train.draw(lambda key: model.init(key, x[:1])["params"], keys)
    steps = problem.epochs * (len(x) // BATCH_SIZE)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    mine = problem._replace(apply=lambda params, x: model.apply({"params": params}, x))

    def loss(scores: Any, weights: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        params = masking.apply(weights, supsup.soft_mask(scores))
        return _train.cross_entropy(mine.apply(params, x), y)

    step = _train.descend(loss, optimizer)

    def one(
        tasks: bank.MaskBank, weights: Any, key: jax.Array, rows: jax.Array, order: Any
    ) -> Any:
        def train(rows: jax.Array, *, key: jax.Array) -> tuple[Any, jax.Array]:
            begun = _train.begin(optimizer, supsup.init(weights, key=key), weights)
            member, _ = _train.scan(step, begun, rows, *_images(problem, order))
            mask = supsup.mask(member.params)
            return mask, _accuracy(mine, masking.apply(weights, mask), order)

        return supsup.learn(train, tasks, rows[None], key=key)

    learn = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, None)), donate_argnums=0)
    tasks = jax.vmap(functools.partial(bank.empty, capacity=many))(weights)
    found = []
    for i in context.track("packnet: SupSup", many):
        tasks, accuracy = learn(tasks, weights, keys, *problem.given(i)[1:])
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
