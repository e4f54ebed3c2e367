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
from jax import lax
from matplotlib.figure import Figure

import maskjax
from benchmarks import _pictures, _tasks, _train
from benchmarks._data import CLASSES, Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import bank, initializer, stacking, superposition
from maskjax.recipes import supsup, supsup_stream

TASKS, MNIST_TASKS = (5, 10, 50), 5
STEPS = 150, 200, 469  # 469: one epoch of 60,000 images, in the authors' notebook
OUTPUTS = 100  # 10 with labels, 90 superfluous
MNIST_PIXELS, MNIST_RATE = 28 * 28, 1e-4
CHUNK = 5
IMAGES = 2_000, 500, 2_000  # whose task is inferred, of all tasks together
TRIED = 250  # of these, with every mask
STREAM, STREAM_CAPACITY, STREAM_EVERY = 5, 12, 100
METHODS = (
    ("one_shot", "entropy"),
    ("one_shot", "superfluous"),
    ("binary", "superfluous"),
    ("exhaustive", "entropy"),
)
SETTINGS = {
    "weights": "signed constant",
    "optimizer": "rmsprop, decay 0.99",
    "batch_size": _train.BATCH_SIZE,
    "inputs": "standardized",
    "images_with_every_mask": TRIED,
    "stream": {"tasks": STREAM, "every": STREAM_EVERY, "epsilon": 1 / 8},
}
ROWS = {
    "GG: thousands of tasks in one network of random weights (notebook of the authors, "
    "5 permutations of MNIST: 92.4% after an epoch)": "{many} tasks: {given:.1%} "
    "({worst:.1%} to {best:.1%}) after {steps} steps each, whose task is given",
    "the task is found from one image (notebook: 250 of 250)": "{right:.1%} (every "
    "mask on {tried} images, else {images})",
    "GNs: a task not given costs nothing (notebook: 92.4%); GNu, where a wrong task is "
    "a wrong answer: 94.9% for 250 tasks of MNIST": "on {images} single images: task "
    "given {known:.1%}, GNs {gns:.1%}, GNu {gnu:.1%}",
    "nothing is forgotten": "outputs of every task {kept:bit-identical|CHANGED} after "
    "all others were learned",
    "a bit a weight and task": "{per_task:,.0f} bytes a task for {weights:,} weights, "
    "{bits:.3f} bits each; as floats {floats:,}",
    "NNs: tasks that change unannounced get masks of their own": "{stream[tasks]} "
    "tasks got {stream[masks]} masks: {stream[accuracy]:.1%} with inferred masks, "
    "{stream[last]:.1%} with those that each task trained last",
}


class Problem(NamedTuple):
    """What is learned, with what."""

    data: Data
    orders: jax.Array
    apply: Callable[..., jax.Array]
    weights: Any
    optimizer: optax.GradientTransformation
    steps: int
    widths: tuple[int, ...]
    rate: float
    images: int


def run(context: Context) -> Outcome:
    """Tasks learned, told apart, and learned without being told apart."""
    problem = _problem(context)
    tasks, kept = _learn(context, problem)
    given = np.asarray(_given(problem, tasks))
    images, labels, true = _images(problem)
    right, seen = {}, {}
    for method, objective in context.track("supsup: tasks inferred", METHODS):
        some = TRIED if method == "exhaustive" else len(images)
        found = _inferred(problem, tasks, images[:some], method, objective)
        says = _says(problem, tasks, found, images[:some])
        right[method, objective] = np.asarray(found == true[:some])
        seen[method, objective] = found, np.asarray(says == labels[:some])
    best = ("one_shot", "superfluous")
    known = np.asarray(_says(problem, tasks, true, images) == labels)
    found, says_right = seen[best]
    by_count = _by_count(problem, tasks, images, labels, true)
    stream = _stream(context, problem)

    many = len(problem.orders)
    per_task = sum(leaf.nbytes for leaf in jax.tree.leaves(tasks.masks)) / many
    weights = sum(leaf.size for leaf in jax.tree.leaves(problem.weights))
    both = says_right & right[best]
    return Outcome(
        rows=rows(
            ROWS,
            many=many,
            given=given,
            worst=given.min(),
            best=given.max(),
            steps=problem.steps,
            right={f"{m.replace('_', '-')} by {o}": x for (m, o), x in right.items()},
            tried=TRIED,
            images=len(images),
            known=known,
            gns=says_right,
            gnu=both,
            kept=kept,
            per_task=per_task,
            weights=weights,
            bits=8 * per_task / weights,
            floats=4 * weights,
            stream=stream,
        ),
        settings=SETTINGS
        | {
            "network": "-".join(map(str, problem.widths)) + " without biases",
            "tasks": many,
            "learning_rate": problem.rate,
            "steps": problem.steps,
            "images_inferred": len(images),
        },
        numbers={
            "given": given,
            "task_inference": {f"{m} {o}": x.mean() for (m, o), x in right.items()},
            "images_given": known.mean(),
            "gns": says_right.mean(),
            "gnu": both.mean(),
            "by_count": by_count,
            "unchanged": kept,
            "bytes_per_task": per_task,
            "weights": weights,
            "stream": stream,
        },
        pictures=[
            _draw_tasks(context, np.asarray(true), np.asarray(found), many),
            _draw_counts(context, by_count),
            _draw_masks(context, problem, tasks),
        ],
    )


def _problem(context: Context) -> Problem:
    data = context.data.standardized()
    large = np.prod(data.shape) >= MNIST_PIXELS
    most = MNIST_TASKS if large else context.pick(TASKS)
    orders = _tasks.permutations(data, context.tasks or most)
    data = data.flat()
    widths = (300, 300, OUTPUTS) if large else (300, 100, OUTPUTS)
    model = _train.MLP(widths, False, initializer.signed_constant())
    weights = model.init(jax.random.key(0), data.x_train[:1])["params"]
    # Scores begin within 1 / sqrt(pixels): smaller images have larger ones to move.
    rate = MNIST_RATE * (MNIST_PIXELS / data.x_train.shape[1]) ** 0.5
    return Problem(
        data,
        jnp.asarray(orders),
        lambda params, x: model.apply({"params": params}, x),
        weights,
        optax.rmsprop(rate, decay=0.99, eps=1e-8),
        context.pick(STEPS),
        (data.x_train.shape[1], *widths),
        rate,
        context.pick(IMAGES),
    )


def _batches(problem: Problem, key: jax.Array) -> jax.Array:
    """Rows of training images, [steps, B], epoch after epoch in another order."""
    size = len(problem.data.x_train)
    batch = min(_train.BATCH_SIZE, size)
    whole = size // batch
    keys = jax.random.split(key, -(-problem.steps // whole))
    orders = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
    return orders[:, : whole * batch].reshape(-1, batch)[: problem.steps]


def _trained(problem: Problem, member: _train.Member, steps: jax.Array) -> Any:
    """A member after steps on its scores; its `rest` is the order of its pixels."""

    def loss(scores: Any, order: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        params = maskjax.apply(problem.weights, supsup.soft_mask(scores))
        return _train.cross_entropy(problem.apply(params, x[:, order]), y)

    data = jnp.asarray(problem.data.x_train), jnp.asarray(problem.data.y_train)
    step = _train.descend(loss, problem.optimizer)
    return _train.scan(step, member, steps, *data)


def _learn(context: Context, problem: Problem) -> tuple[bank.MaskBank, bool]:
    """All tasks in chunks, and whether each says the same at the end as at first."""
    many = len(problem.orders)

    def train(order: jax.Array, *, key: jax.Array) -> tuple[Any, jax.Array]:
        drawing, shuffling = jax.random.split(key)
        scores = supsup.init(problem.weights, key=drawing)
        start = _train.begin(problem.optimizer, scores, order)
        member, losses = _trained(problem, start, _batches(problem, shuffling))
        return supsup.mask(member.params), losses

    @functools.partial(jax.jit, donate_argnums=0)
    def learn(tasks: bank.MaskBank, orders: jax.Array) -> bank.MaskBank:
        key = jax.random.key(1)
        return supsup.learn(train, tasks, orders, batch_size=CHUNK, key=key)[0]

    say = jax.jit(lambda tasks, start: _say(problem, tasks, start))
    tasks, before = bank.empty(problem.weights, capacity=many), {}
    for i in context.track(f"supsup: {many} tasks", -(-many // CHUNK)):
        tasks = learn(tasks, problem.orders[i * CHUNK : (i + 1) * CHUNK])
        before[i * CHUNK] = np.asarray(say(tasks, i * CHUNK))
    return tasks, _train.same_bits(before, {i: say(tasks, i) for i in before})


def _say(problem: Problem, tasks: bank.MaskBank, start: jax.Array) -> jax.Array:
    """What a chunk of tasks says of some test images."""
    chunk = stacking.take(tasks.masks, start + jnp.arange(CHUNK))
    x = problem.data.x_test[:100]
    return stacking.predict(problem.apply, problem.weights, chunk, x)


def _given(problem: Problem, tasks: bank.MaskBank) -> jax.Array:
    """Test accuracy of every task under its own mask, [K]."""
    x, y = jnp.asarray(problem.data.x_test), jnp.asarray(problem.data.y_test)

    def one(each: tuple[Any, jax.Array]) -> jax.Array:
        mask, order = each
        logits = problem.apply(maskjax.apply(problem.weights, mask), x[:, order])
        return jnp.mean(jnp.argmax(logits, -1) == y)

    return jax.jit(lambda tasks: lax.map(one, (tasks.masks, problem.orders)))(tasks)


def _images(problem: Problem) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Test images of all tasks mixed, their labels, and the tasks they are of."""
    rng = np.random.default_rng(0)
    true = np.arange(problem.images, dtype=np.int32) % len(problem.orders)
    rows = rng.integers(0, len(problem.data.x_test), problem.images)
    rng.shuffle(true)
    orders = np.asarray(problem.orders)[true]
    x = np.take_along_axis(problem.data.x_test[rows], orders, axis=1)
    return jnp.asarray(x), jnp.asarray(problem.data.y_test[rows]), jnp.asarray(true)


def _inferred(
    problem: Problem,
    tasks: bank.MaskBank,
    images: jax.Array,
    method: Any,
    objective: str,
) -> jax.Array:
    labels = None if objective == "entropy" else CLASSES
    infer = functools.partial(
        superposition.infer, problem.apply, method=method, labels=labels
    )
    return jax.jit(infer)(problem.weights, tasks, images)


def _says(
    problem: Problem, tasks: bank.MaskBank, whose: jax.Array, images: jax.Array
) -> jax.Array:
    """The class of each image under the mask of that task."""
    logits = jax.jit(functools.partial(stacking.predict_each, problem.apply))(
        problem.weights, tasks.masks, whose, images
    )
    return jnp.argmax(logits, -1)


def _by_count(
    problem: Problem,
    tasks: bank.MaskBank,
    images: jax.Array,
    labels: jax.Array,
    true: jax.Array,
) -> dict[int, dict[str, float]]:
    """GG, and GNu where only the first so many tasks have been learned."""
    many = len(problem.orders)
    ask = jax.jit(
        lambda learned: superposition.infer(
            problem.apply,
            problem.weights,
            bank.from_stack(tasks.masks, learned=learned),
            images,
            labels=CLASSES,
        )
    )
    given = np.asarray(_says(problem, tasks, true, images) == labels)
    counts = sorted({max(round(many * share), 2) for share in (0.1, 0.2, 0.5, 1.0)})
    result = {}
    for count in counts:
        found = np.asarray(ask(count))
        mine = np.asarray(true) < count
        result[count] = {
            "gg": float(given[mine].mean()),
            "gnu": float((given & (found == np.asarray(true)))[mine].mean()),
        }
    return result


def _stream(context: Context, problem: Problem) -> dict[str, Any]:
    """Tasks one after the other, each as long, without a word of where they end."""
    x = jnp.asarray(problem.data.x_train)
    count = min(STREAM, len(problem.orders))
    state = supsup_stream.init(
        problem.weights, capacity=STREAM_CAPACITY, key=jax.random.key(2)
    )

    def objective(params: Any, x: jax.Array) -> jax.Array:
        return superposition.logit_entropy(problem.apply(params, x))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def turn(state: Any, opt_state: Any, rows: jax.Array, order: jax.Array) -> Any:
        batch = x[rows[0]][:, order]
        state = supsup_stream.allocate(objective, problem.weights, state, batch)
        fresh = _train.begin(problem.optimizer, state.scores, order)
        opt_state = jax.tree.map(
            lambda new, old: jnp.where(state.switched, new, old),
            fresh.opt_state,
            opt_state,
        )
        start = fresh._replace(opt_state=opt_state)
        member, _ = _trained(problem, start, rows)
        return state._replace(scores=member.params), member.opt_state

    currents, opt_state = [], problem.optimizer.init(state.scores)
    for task in context.track("supsup: tasks unannounced", count):
        steps = _batches(problem, jax.random.fold_in(jax.random.key(3), task))
        for start in range(0, len(steps) - STREAM_EVERY + 1, STREAM_EVERY):
            chunk = steps[start : start + STREAM_EVERY]
            state, opt_state = turn(state, opt_state, chunk, problem.orders[task])
            currents.append((task, int(state.current)))
    tasks = supsup_stream.masks(state)
    images, labels, true = _images(problem)
    mine = np.flatnonzero(np.asarray(true) < count)[: problem.images // 4]
    found = _inferred(problem, tasks, images[mine], "one_shot", "superfluous")
    says = _says(problem, tasks, found, images[mine])
    # The mask that was trained last on each task.
    last = jnp.asarray([dict(currents)[task] for task in range(count)])
    own = _says(problem, tasks, last[true[mine]], images[mine])
    return {
        "tasks": count,
        "masks": int(tasks.learned),
        "overflowed": int(tasks.overflowed),
        "accuracy": float(np.mean(np.asarray(says == labels[mine]))),
        "last": float(np.mean(np.asarray(own == labels[mine]))),
        "decisions": [list(pair) for pair in currents],
    }


def _draw_tasks(
    context: Context, true: np.ndarray, found: np.ndarray, many: int
) -> str:
    drawn, axes = _pictures.figure("which task is an image from? one-shot, one image")
    table = np.zeros((many, many))
    np.add.at(table, (true, found), 1)
    table /= np.maximum(table.sum(1, keepdims=True), 1)
    shown = axes.imshow(table, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    axes.set(xlabel="inferred task", ylabel="true task")
    drawn.colorbar(shown, ax=axes, label="fraction of the task's images")
    return _pictures.save(drawn, context.out / "supsup_tasks.png")


def _draw_counts(context: Context, by_count: dict[int, dict[str, float]]) -> str:
    drawn, axes = _pictures.figure("one network of random weights, more and more tasks")
    counts = list(by_count)
    for name, label in (("gg", "task given (GG)"), ("gnu", "inferred (GNu)")):
        values = [by_count[count][name] for count in counts]
        axes.plot(counts, values, marker="o", label=label)
    axes.set(xlabel="tasks learned", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_ylabel("test accuracy of single images")
    axes.legend()
    return _pictures.save(drawn, context.out / "supsup_counts.png")


def _draw_masks(context: Context, problem: Problem, tasks: bank.MaskBank) -> str:
    """The first layer of some tasks, put back into the order of the pixels."""
    drawn = Figure(figsize=(7.5, 3), layout="constrained")
    shown = min(5, len(problem.orders))
    height, width = context.data.shape
    for i, axes in enumerate(drawn.subplots(1, shown)):
        mask = bank.take(tasks, i)["Dense_0"]["kernel"]
        kept = maskjax.apply(jnp.ones(mask.shape), mask).mean(1)
        image = np.zeros(height * width)
        image[np.asarray(problem.orders[i])] = np.asarray(kept)
        axes.imshow(image.reshape(height, width), cmap="viridis")
        axes.set(xticks=[], yticks=[], title=f"task {i}")
    drawn.suptitle("first layer: the fraction of each pixel's weights that is kept")
    return _pictures.save(drawn, context.out / "supsup_masks.png")


DEMO = Demo(
    "supsup",
    "SupSup: supermasks in superposition (Wortsman et al., 2020)",
    run,
    seconds=20,
)
