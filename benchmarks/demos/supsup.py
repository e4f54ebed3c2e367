"""One random network, many tasks, a bit a weight: SupSup (Wortsman et al., 2020).

Every task shows the images with their pixels in another order. Its mask is learned; the
weights never change. Then images come without their task, which is inferred from one
image alone. Last, tasks change without anybody saying so.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from matplotlib import colors, ticker
from sklearn import metrics

import maskjax
from benchmarks import _pictures, _tasks, _train
from benchmarks._data import CLASSES, Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import bank, initializer, stacking, superposition
from maskjax.recipes import supsup, supsup_stream

TASKS, MNIST_TASKS = (5, 10, 50), 5
STEPS = 150, 150, 469  # 469: one epoch of 60,000 images, in the authors' notebook
OUTPUTS = 100  # 10 with labels, 90 superfluous
MNIST_PIXELS, MNIST_RATE = 28 * 28, 1e-4
CHUNK = 5
IMAGES = 2_000, 500, 2_000  # whose task is inferred, of all tasks together
TRIED = 250  # of these, with every mask
STREAM, STREAM_EVERY = 5, 100
CAPACITY = 12, 10, 12  # 10 as there are tasks: one program for both
METHODS = ("one_shot", "superfluous"), ("exhaustive", "entropy")
SETTINGS = {
    "weights": "signed constant",
    "optimizer": "rmsprop, decay 0.99",
    "batch_size": _train.BATCH_SIZE,
    "inputs": "standardized",
    "images_with_every_mask": TRIED,
    "stream": {"tasks": STREAM, "every": STREAM_EVERY, "epsilon": 1 / 8},
}


class Problem(NamedTuple):
    """What is learned, with what; and how, for results.json."""

    data: Data
    orders: Array
    apply: Callable[..., Array]
    weights: Any
    optimizer: optax.GradientTransformation
    how: dict[str, Any]


class Asked(NamedTuple):
    """Images [B, H * W], their labels [B], and the tasks [B] that they are of."""

    x: Any
    y: Any
    task: Any


def run(context: Context) -> Outcome:
    """Tasks learned, told apart, and learned without being told apart."""
    problem = _problem(context)
    tasks, unchanged = _learn(context, problem)
    given, asked = np.asarray(_given(problem, tasks)), _images(problem)
    found = {}
    for method, by in context.track("supsup: tasks inferred", METHODS):
        x = asked.x[:TRIED] if method == "exhaustive" else asked.x
        how = {"method": method, "labels": None if by == "entropy" else CLASSES}
        found[f"{method} {by}"] = _inferred(problem, tasks, x, **how)
    best = found["one_shot superfluous"]
    is_right = {name: x == asked.task[: len(x)] for name, x in found.items()}
    says_right, given_right = (
        _says(problem, tasks, task, asked.x) == asked.y for task in (best, asked.task)
    )
    masks, weights = map(jax.tree.leaves, (tasks.masks, problem.weights))
    size = sum(leaf.size for leaf in weights)
    numbers = {
        "given": given,
        "task_inference": {name: right.mean() for name, right in is_right.items()},
        "images_given": given_right.mean(),
        "gns": says_right.mean(),
        "gnu": (given_right & (best == asked.task)).mean(),
        "unchanged": unchanged,
        "bytes_per_task": sum(leaf.nbytes for leaf in masks) / len(given),
        "weights": size,
        "stream": _stream(context, problem, asked),
    }
    shown = {
        name.replace("_", "-").replace(" ", " by "): share
        for name, share in numbers["task_inference"].items()
    }
    more = {"how": problem.how, "tried": TRIED, "right": shown, "floats": 4 * size}
    more |= {"worst": given.min(), "best": given.max()}
    return Outcome(
        rows("supsup", bits=8 * numbers["bytes_per_task"] / size, **more, **numbers),
        problem.how,
        numbers,
        [_draw_tasks(context, asked.task, best, len(given))],
    )


def _problem(context: Context) -> Problem:
    data = context.data.standardized()
    large = np.prod(data.shape) >= MNIST_PIXELS
    many = context.tasks or (MNIST_TASKS if large else context.pick(TASKS))
    orders, data = _tasks.permutations(data, many), data.flat()
    pixels, widths = data.x_train.shape[1], (300, 300 if large else 100, OUTPUTS)
    model = _train.MLP(widths, False, initializer.signed_constant())
    weights = model.fresh(jax.random.key(0), data.x_train)
    # Scores begin within 1 / sqrt(pixels): smaller images have larger ones to move.
    rate = MNIST_RATE * (MNIST_PIXELS / pixels) ** 0.5
    how = SETTINGS | {
        "network": "-".join(map(str, (pixels, *widths))) + " without biases",
        "tasks": many,
        "learning_rate": rate,
        "steps": context.pick(STEPS),
        "images_inferred": context.pick(IMAGES),
    }
    optimizer = optax.rmsprop(rate, decay=0.99, eps=1e-8)
    return Problem(data, jnp.asarray(orders), model.logits, weights, optimizer, how)


def _batches(problem: Problem, key: Array) -> Array:
    """Rows of training images, [steps, B]."""
    how = len(problem.data.x_train), problem.how["steps"]
    return _train.batches(key, *how, whole=True)


def _trained(problem: Problem, member: _train.Member, steps: Array) -> Any:
    """A member after steps on its scores; its `rest` is the order of its pixels."""

    def loss(scores: Any, order: Array, x: Array, y: Array) -> Array:
        params = maskjax.apply(problem.weights, supsup.soft_mask(scores))
        return _train.cross_entropy(problem.apply(params, x[:, order]), y)

    data = jnp.asarray(problem.data.x_train), jnp.asarray(problem.data.y_train)
    step = _train.descend(loss, problem.optimizer)
    return _train.scan(step, member, steps, *data)


def _learn(context: Context, problem: Problem) -> tuple[bank.MaskBank, bool]:
    """All tasks in chunks, and whether each says the same at the end as at first."""
    many = len(problem.orders)

    def train(order: Array, *, key: Array) -> tuple[Any, Array]:
        drawing, shuffling = jax.random.split(key)
        scores = supsup.init(problem.weights, key=drawing)
        start = _train.begin(problem.optimizer, scores, order)
        member, losses = _trained(problem, start, _batches(problem, shuffling))
        return supsup.mask(member.params), losses

    @functools.partial(jax.jit, donate_argnums=0)
    def learn(tasks: bank.MaskBank, orders: Array) -> bank.MaskBank:
        key = jax.random.key(1)
        return supsup.learn(train, tasks, orders, batch_size=CHUNK, key=key)[0]

    @jax.jit
    def say(tasks: bank.MaskBank, start: Array) -> Array:
        chunk = stacking.take(tasks.masks, start + jnp.arange(CHUNK))
        x = problem.data.x_test[:100]
        return stacking.predict(problem.apply, problem.weights, chunk, x)

    tasks, before = bank.empty(problem.weights, capacity=many), {}
    for i in context.track(f"supsup: {many} tasks", -(-many // CHUNK)):
        tasks = learn(tasks, problem.orders[i * CHUNK : (i + 1) * CHUNK])
        before[i * CHUNK] = np.asarray(say(tasks, i * CHUNK))
    return tasks, _train.same_bits(before, {i: say(tasks, i) for i in before})


def _given(problem: Problem, tasks: bank.MaskBank) -> Array:
    """Test accuracy of every task under its own mask, [K]."""
    x, y = jnp.asarray(problem.data.x_test), jnp.asarray(problem.data.y_test)

    def one(each: tuple[Any, Array]) -> Array:
        params = maskjax.apply(problem.weights, each[0])
        return _train.accuracy(problem.apply(params, x[:, each[1]]), y)

    return jax.jit(lambda tasks: lax.map(one, (tasks.masks, problem.orders)))(tasks)


def _images(problem: Problem) -> Asked:
    """Test images of all tasks mixed."""
    rng, many = np.random.default_rng(0), problem.how["images_inferred"]
    task = np.arange(many, dtype=np.int32) % len(problem.orders)
    rows = rng.integers(0, len(problem.data.x_test), many)
    rng.shuffle(task)
    orders = np.asarray(problem.orders)[task]
    x = np.take_along_axis(problem.data.x_test[rows], orders, axis=1)
    return Asked(x, problem.data.y_test[rows], task)


# Compiled once for all that asks for as many tasks and images.
_infer = jax.jit(superposition.infer, static_argnames=("apply", "method", "labels"))
_predict = jax.jit(stacking.predict_each, static_argnames="apply")


def _inferred(problem: Problem, tasks: Any, x: Any, **how: Any) -> np.ndarray:
    """The task that each image is from."""
    how = {"method": "one_shot", "labels": CLASSES} | how
    return np.asarray(_infer(problem.apply, problem.weights, tasks, x, **how))


def _says(problem: Problem, tasks: Any, task: Any, x: Any) -> np.ndarray:
    """The class of each image under the mask of that task."""
    logits = _predict(problem.apply, problem.weights, tasks.masks, task, x)
    return np.asarray(logits).argmax(-1)


def _stream(context: Context, problem: Problem, asked: Asked) -> dict[str, Any]:
    """Tasks one after the other, each as long, without a word of where they end."""
    x = jnp.asarray(problem.data.x_train)
    count = min(STREAM, len(problem.orders))
    how = {"capacity": context.pick(CAPACITY), "key": jax.random.key(2)}
    state = supsup_stream.init(problem.weights, **how)

    def objective(params: Any, x: Array) -> Array:
        return superposition.logit_entropy(problem.apply(params, x))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def turn(state: Any, opt_state: Any, rows: Array, order: Array) -> Any:
        batch = x[rows[0]][:, order]
        state = supsup_stream.allocate(objective, problem.weights, state, batch)
        fresh = _train.begin(problem.optimizer, state.scores, order)
        pick = functools.partial(jnp.where, state.switched)
        opt_state = jax.tree.map(pick, fresh.opt_state, opt_state)
        member, _ = _trained(problem, fresh._replace(opt_state=opt_state), rows)
        return state._replace(scores=member.params), member.opt_state

    currents, opt_state = [], problem.optimizer.init(state.scores)
    for task in context.track("supsup: tasks unannounced", count):
        steps = _batches(problem, jax.random.fold_in(jax.random.key(3), task))
        for start in range(0, len(steps) - STREAM_EVERY + 1, STREAM_EVERY):
            chunk = steps[start : start + STREAM_EVERY]
            state, opt_state = turn(state, opt_state, chunk, problem.orders[task])
            currents.append((task, int(state.current)))
    tasks = supsup_stream.masks(state)
    mine = np.flatnonzero(asked.task < count)[: len(asked.task) // 4]
    # The mask that was trained last on each task.
    last = np.array([dict(currents)[task] for task in range(count)], np.int32)
    found = _inferred(problem, tasks, asked.x), last[np.minimum(asked.task, count - 1)]
    return {
        "tasks": count,
        "masks": int(tasks.learned),
        **{
            name: (_says(problem, tasks, task, asked.x) == asked.y)[mine].mean()
            for name, task in zip(("accuracy", "last"), found, strict=True)
        },
    }


def _draw_tasks(context: Context, true: Any, found: Any, many: int) -> str:
    table = metrics.confusion_matrix(true, found, labels=range(many), normalize="true")
    title = f"SupSup: the task of one image, {context.data.name}"
    drawn, (axes,) = _pictures.page(title, size=(6.4, 4.8))
    axes.grid(visible=False)
    # By logarithms, for errors are rare.
    scale = colors.LogNorm(1e-3, 1)
    shown = axes.imshow(np.ma.masked_equal(table, 0), cmap="Blues", norm=scale)
    axes.set(xlabel="inferred task", ylabel="true task")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(integer=True))
    label = "fraction of the true task's images (white: none)"
    drawn.colorbar(shown, label=label, format=_pictures.PERCENT)
    return _pictures.save(drawn, context, "supsup_tasks")


DEMO = Demo(
    "supsup",
    "SupSup: supermasks in superposition (Wortsman et al., 2020)",
    run,
    seconds=9,
    uses=("tasks",),
)
