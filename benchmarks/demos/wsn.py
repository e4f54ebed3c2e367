"""One network, many tasks, shared weights: WSN (Kang et al., 2022) beside two others.

Every task shows the images with their pixels in another order. WSN learns weights and a
mask for each task together, and a mask may use weights of earlier tasks. Beside it:
PackNet, which gives each task weights of its own, and SupSup, whose weights are random.
All have the same network and steps, and as many settings to choose from, by accuracy on
images held out.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import maskjax
from benchmarks import _pictures, _tasks, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from benchmarks._tasks import BATCH_SIZE, HEAD, RETRAINED, WIDTHS
from maskjax import algebra, bank, initializer, metrics, optim, packing
from maskjax.recipes import packnet, supsup, wsn

Array = jax.Array

TASKS, SEEDS = (3, 4, 10), 3
HELD_OUT = 0.1  # of the training images
EPOCHS = {"digits": (2, 3, 10), "mnist": (2, 3, 5)}
MNIST_PIXELS = 28 * 28
# Learning rates, and what else there is to choose: for WSN the density of a mask; for
# PackNet the number of further tasks that weights are spared for; for SupSup nothing,
# so it tries more learning rates.
SETTINGS = {
    "WSN": [(rate, density) for rate in (1e-3, 3e-3) for density in (0.1, 0.3, 0.5)],
    "PackNet": [(rate, spare) for rate in (1e-3, 3e-3) for spare in (0, 4, 12)],
    "SupSup": [(rate, 0) for rate in (3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)],
}
SHARED = {
    "seeds": SEEDS,
    "widths": WIDTHS,
    "optimizer": "adam, learning rate to 0 by a cosine for each task",
    "batch_size": BATCH_SIZE,
    "inputs": "standardized",
    "retrained": RETRAINED,
    "settings": SETTINGS,
}


class Problem(NamedTuple):
    """What is learned, with what."""

    data: Data  # images as rows; what is held out is in neither part
    valid: tuple[Array, Array]  # images and labels that are held out
    orders: Array  # [T, H * W], of the pixels
    starts: Any  # parameters [T, 1 + S, ...] that tasks begin with, or their heads
    epochs: int

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.orders)

    def images(self, order: Array) -> tuple[Array, Array]:
        """What there is to learn with pixels in this order, and its labels."""
        return jnp.asarray(self.data.x_train)[:, order], jnp.asarray(self.data.y_train)


class Method(NamedTuple):
    """A way to learn tasks one after the other, for one network."""

    begin: Callable[..., Any]  # parameters, key -> state
    learn: Callable[..., Any]  # state, task, order, fresh, rows, setting -> state
    params: Callable[..., Any]  # state, task -> parameters


class Found(NamedTuple):
    """What became of a sequence of tasks: M networks, each with a setting."""

    state: Any
    accuracies: np.ndarray  # [M, R, T], after every task, or only after the last
    kept: bool  # whether all logits stayed, to the bit


def run(context: Context) -> Outcome:
    """Several tasks, learned in three ways."""
    problem = _problem(context)
    many = problem.tasks
    ways = {"WSN": _wsn(problem), "PackNet": _packnet(problem)}
    ways |= {"SupSup": _supsup(problem)}
    found, tried, chosen = {}, {}, {}
    for name, way in ways.items():
        one = _tuned(context, problem, name, way)
        found[name], tried[name], chosen[name] = one
    final = {name: one.accuracies[:, -1] for name, one in found.items()}
    forgotten = {
        name: np.asarray(metrics.forgetting(one.accuracies))
        for name, one in found.items()
    }
    mean = {name: accuracy.mean(1) for name, accuracy in final.items()}
    ahead = 100 * (mean["WSN"] - mean["PackNet"])
    states = {name: one.state for name, one in found.items()}
    bits = _bits(problem, jax.tree.map(lambda x: x[0], states))
    numbers = {
        "accuracy_matrices": {name: one.accuracies for name, one in found.items()},
        "mean": mean,
        "forgetting": forgotten,
        "bit_identical": {name: one.kept for name, one in found.items()},
        "ahead_of_packnet": ahead,
        "capacity": _capacity(states),
        "reused": np.asarray(states["WSN"].reused / states["WSN"].counts),
        "bits_per_task": bits,
        "tried": tried,
        "chosen": chosen,
    }
    shown = {
        "most_forgotten": {name: x.max() for name, x in forgotten.items()},
        "close": ahead.mean() >= -0.3,
        "kib": {name: size / 8_192 for name, size in bits.items()},
        "by_task": [*numbers["reused"].mean(0)],
        "each": {name: [*accuracies] for name, accuracies in tried.items()},
        "many": len(SETTINGS["WSN"]),
    }
    settings = {"tasks": many, "epochs": problem.epochs, "held_out": HELD_OUT}
    return Outcome(
        rows("wsn", **numbers, **shown, **settings),
        SHARED | {"pixels": problem.orders.shape[1]} | settings,
        numbers,
        [_draw(context, final, numbers)],
    )


def _problem(context: Context) -> Problem:
    data = context.data.standardized()
    large = np.prod(data.shape) >= MNIST_PIXELS
    tasks = context.tasks or context.pick(TASKS)
    orders, data = _tasks.permutations(data, tasks), data.flat()
    held = round(HELD_OUT * len(data.x_train))
    x, y = data.x_train, data.y_train
    widths = (x.shape[1], *WIDTHS)
    return Problem(
        data._replace(x_train=x[held:], y_train=y[held:]),
        (jnp.asarray(x[:held]), jnp.asarray(y[:held])),
        jnp.asarray(orders),
        _train.glorot(np.random.default_rng(0), widths, tasks, 1 + SEEDS),
        context.pick(EPOCHS["mnist" if large else "digits"]),
    )


def _adam(rate: Array, rows: Array) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, len(rows)))


def _wsn(problem: Problem) -> Method:
    def learn(
        state: Any, task: Array, order: Array, fresh: Any, rows: Array, setting: Any
    ) -> Any:
        del task
        rate, density = setting
        training = wsn.begin(state, fresh)
        frozen = optim.mask_updates((training.mask, True))
        optimizer = optax.chain(_adam(rate, rows), frozen)
        soft = functools.partial(wsn.soft_mask, density=density, return_cutoff=True)

        def loss(both: Any, guess: Any, x: Array, y: Array) -> Any:
            params, scores = both
            mask, cutoff = soft(scores, guess=guess)
            logits = _tasks.logits(maskjax.apply(params, mask), x)
            return _train.cross_entropy(logits, y), cutoff

        step = _train.descend(loss, optimizer, has_aux=True)
        both = training.params, training.scores
        begun = _train.begin(optimizer, both, soft(training.scores)[1])
        trained = _train.scan(step, begun, rows, *problem.images(order))[0]
        params, scores = trained.params
        return wsn.commit(training, params, scores, wsn.mask(scores, density=density))

    begin = functools.partial(_empty, wsn.init, problem.tasks)
    return Method(begin, learn, wsn.params_of)


def _empty(init: Callable[..., Any], capacity: int, params: Any, key: Array) -> Any:
    return init(params, head=HEAD, capacity=capacity, key=key)


def _packnet(problem: Problem) -> Method:
    retrained = round(RETRAINED * problem.epochs) / problem.epochs

    def fit(params: Any, mask: Any, order: Array, rows: Array, rate: Array) -> Any:
        optimizer = optax.chain(_adam(rate, rows), optim.mask_updates(mask))

        def loss(params: Any, rest: None, x: Array, y: Array) -> Array:
            return _train.cross_entropy(_tasks.logits(params, x), y)

        step, begun = _train.descend(loss, optimizer), _train.begin(optimizer, params)
        return _train.scan(step, begun, rows, *problem.images(order))[0].params

    def learn(
        state: Any, task: Array, order: Array, fresh: Any, rows: Array, setting: Any
    ) -> Any:
        rate, spare = setting
        first = round((1 - retrained) * len(rows))
        training = packnet.begin(state, fresh)
        params = fit(training.params, training.mask, order, rows[:first], rate)
        share = 1 / (problem.tasks + spare - task)
        pruned = packnet.prune(training, params, rate=1 - share)
        params = fit(pruned.params, pruned.mask, order, rows[first:], rate)
        return packnet.commit(pruned, params)

    def begin(params: Any, key: Array) -> Any:
        del key
        return packnet.init(params, head=HEAD, capacity=problem.tasks)

    return Method(begin, learn, packnet.params_of)


def _supsup(problem: Problem) -> Method:
    """A random network without biases, whose weights are drawn from the key."""
    model = _train.MLP(WIDTHS, False, initializer.signed_constant())

    def begin(params: Any, key: Array) -> Any:
        del params
        weights = model.fresh(key, problem.data.x_train)
        return bank.empty(weights, capacity=problem.tasks), weights, key

    def learn(
        state: Any, task: Array, order: Array, fresh: Any, rows: Array, setting: Any
    ) -> Any:
        del fresh
        tasks, weights, key = state
        optimizer = _adam(setting[0], rows)

        def loss(scores: Any, weights: Any, x: Array, y: Array) -> Array:
            params = maskjax.apply(weights, supsup.soft_mask(scores))
            return _train.cross_entropy(_tasks.logits(params, x), y)

        step = _train.descend(loss, optimizer)
        scores = supsup.init(weights, key=jax.random.fold_in(key, task))
        begun = _train.begin(optimizer, scores, weights)
        scores = _train.scan(step, begun, rows, *problem.images(order))[0].params
        return bank.append(tasks, supsup.mask(scores)), weights, key

    def params(state: Any, task: Array) -> Any:
        tasks, weights, _ = state
        return maskjax.apply(weights, packing.unpack(bank.take(tasks, task)))

    return Method(begin, learn, params)


def _tuned(
    context: Context, problem: Problem, name: str, way: Method
) -> tuple[Found, np.ndarray, tuple[float, float]]:
    """All seeds with the best setting, and the accuracy of each, on held-out images.

    Settings are tried on a seed of their own, as many at a time as there are seeds, so
    that one program learns a task in all runs.
    """
    settings = np.float32(SETTINGS[name])
    runs = iter(context.track(f"wsn: {name}", len(settings) // SEEDS + 1))
    learn = jax.jit(jax.vmap(way.learn, in_axes=(0, None, None, 0, 0, 0)))

    def row(state: Any, x: Array, y: Array) -> Array:
        def of_task(each: Any) -> Array:
            task, order = each
            return _train.accuracy(
                _tasks.logits(way.params(state, task), x[:, order]), y
            )

        return lax.map(of_task, (jnp.arange(problem.tasks), problem.orders))

    judge = jax.jit(jax.vmap(row, in_axes=(0, None, None)))
    tried = []
    for some in settings.reshape(-1, SEEDS, 2):
        next(runs)
        state = _sequence(problem, way, learn, [0] * SEEDS, some, lambda *_: None)
        tried.append(judge(state, *problem.valid).mean(1))
    tried = np.concatenate(tried)
    best = settings[tried.argmax()]
    next(runs)
    test = jnp.asarray(problem.data.x_test), jnp.asarray(problem.data.y_test)
    say = jax.jit(jax.vmap(functools.partial(_say, problem, way), in_axes=(0, None)))
    rows, said = [], []

    def watch(state: Any, task: int) -> None:
        rows.append(judge(state, *test))
        said.append(say(state, task))

    seeds = [1 + seed for seed in range(SEEDS)]
    state = _sequence(problem, way, learn, seeds, np.stack([best] * SEEDS), watch)
    kept = _train.same_bits(said, [say(state, i) for i in range(problem.tasks)])
    return Found(state, np.stack(rows, axis=1), kept), tried, tuple(best)


def _say(problem: Problem, way: Method, state: Any, task: Array) -> Array:
    """The logits of the test images of a task."""
    x = jnp.asarray(problem.data.x_test)[:, problem.orders[task]]
    return _tasks.logits(way.params(state, task), x)


def _sequence(
    problem: Problem,
    way: Method,
    learn: Callable[..., Any],
    seeds: list[int],
    settings: np.ndarray,
    watch: Callable[[Any, int], None],
) -> Any:
    """The state after all tasks; `watch` is called after each."""
    chosen = np.array(seeds)
    fresh = jax.tree.map(lambda w: w[:, chosen], problem.starts)
    keys = jax.random.split(jax.random.key(1), 1 + SEEDS)[chosen]
    state = jax.vmap(way.begin)(jax.tree.map(lambda w: w[0], fresh), keys)
    images = len(problem.data.x_train)
    how = {"epochs": problem.epochs, "size": BATCH_SIZE}
    for task in range(problem.tasks):
        rows = np.stack(
            [_train.orders(1, images, **how, seed=[task, seed])[0] for seed in seeds]
        ).reshape(len(seeds), -1, BATCH_SIZE)
        start = jax.tree.map(lambda w: w[task], fresh)  # noqa: B023
        given = task, problem.orders[task], start, rows, tuple(settings.T)
        state = learn(state, *given)
        watch(state, task)
    return jax.block_until_ready(state)


def _capacity(states: dict[str, Any]) -> dict[str, np.ndarray]:
    """The share of the weights with a mask that some task uses, for every seed."""
    share = jax.vmap(algebra.density)
    used = {
        "WSN": jax.vmap(wsn.union)(states["WSN"]),
        "PackNet": jax.tree.map(lambda owner: owner > 0, states["PackNet"].owner),
        "SupSup": jax.tree.map(lambda count: count > 0, states["SupSup"][0].counts),
    }
    return {name: np.asarray(share(masks)) for name, masks in used.items()}


def _bits(problem: Problem, states: dict[str, Any]) -> dict[str, float]:
    """What a task costs each way; random weights are drawn again from their key."""
    many = problem.tasks
    params = packnet.params_of(states["PackNet"], 0)
    _, shared = _tasks.bits_of_weights(params, many)
    masks = {"WSN": states["WSN"].masks.masks, "SupSup": states["SupSup"][0].masks}
    bits = {n: metrics.bits_per_task(mask, tasks=many) for n, mask in masks.items()}
    owner = states["PackNet"].owner
    return {
        "WSN": shared + bits["WSN"],
        "PackNet": shared + metrics.bits_per_task(owner, tasks=many, levels=many + 1),
        "SupSup": bits["SupSup"],
    }


def _draw(
    context: Context, final: dict[str, np.ndarray], numbers: dict[str, Any]
) -> str:
    tasks = range(1, 1 + final["WSN"].shape[1])
    title = f"Tasks: {len(tasks)} orders of the pixels, {context.data.name}"
    drawn, (left, right) = _pictures.page(title, 2, size=(11, 4.8))
    found = {name: accuracy.T for name, accuracy in final.items()}
    how = {"title": f"accuracy after all {len(tasks)} tasks", "xlabel": "task"}
    _pictures.curves(left, tasks, found, seeds=SEEDS, **how)
    how = {"title": "WSN: weights that earlier tasks use, too", "xlabel": "task"}
    _pictures.curves(right, tasks, {"": numbers["reused"].T}, legend=None, **how)
    right.set_ylabel(f"fraction of the task's weights: mean of {SEEDS} seeds")
    right.yaxis.set_major_formatter(_pictures.PERCENT)
    return _pictures.save(drawn, context, "wsn_accuracy")


DEMO = Demo(
    "wsn",
    "WSN: weights and masks of many tasks learn together (Kang et al., 2022)",
    run,
    seconds=13,
    uses=("tasks",),
)
