"""Clients that learn together and send a bit a weight: FedPM (Isik, Pase et al., 2023).

Ten clients have images of three classes each. In a round every client trains on its own
images and sends the result to a server. FedPM trains masks of one random network, and
sends a sample of the mask. FedAvg (McMahan et al., 2017) trains the weights of the same
network, and sends them: 32 bits a weight.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from matplotlib.axes import Axes

import maskjax
from benchmarks import _pictures, _train
from benchmarks._data import CLASSES, Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import algebra, initializer, packing
from maskjax.recipes import fedpm, supermask

CLIENTS = 10
OWN = 0, 1, 3  # client i has the classes i, i + 1 and i + 3, modulo ten
SEEDS, ROUNDS = (2, 3, 5), (8, 32, 100)  # 32 cost a round of floats
EPOCHS, MNIST_EPOCHS = 2, 1  # of each client, in each round
BATCH_SIZE, MNIST_BATCH_SIZE = 48, 128
MNIST_PIXELS = 28 * 28
SAMPLES = 5  # masks that the server is tested with
LAST = 4  # rounds at the end, over which accuracies are averaged: they go up and down
# Each the best of several, a factor of about three apart: see SETTINGS.
MASK_RATE, WEIGHT_RATE = 0.3, 3e-3
MODEL = _train.MLP((256, 128, CLASSES), False)  # whole words of 32 bits
WAYS = {"fedpm": "FedPM", "fedavg": "FedAvg"}
SETTINGS = {
    "clients": CLIENTS,
    "classes_of_a_client": len(OWN),
    "network": "256-128, without biases",
    "weights": "FedPM: signed constants; FedAvg: Glorot uniform, trained",
    "optimizer": "adam, begun anew in every round",
    "learning_rate": {"fedpm": MASK_RATE, "fedavg": WEIGHT_RATE},
    "rates_tried": {
        "fedpm": [0.03, 0.1, 0.3, 1.0],
        "fedavg": [3e-4, 1e-3, 3e-3, 1e-2],
    },
    "prior": "uniform, reset in every round; also tried: every 3, 5 and 10 rounds",
    "samples": SAMPLES,
    "last_rounds_averaged": LAST,
    "inputs": "standardized",
}


class Problem(NamedTuple):
    """What the clients have, and how long they train."""

    x: Array  # [clients, N, H * W]
    y: Array  # [clients, N]
    x_test: Array
    y_test: Array
    steps: int  # of a client in a round
    batch_size: int

    def local(
        self, loss: Any, rate: float, params: Any, rest: Any, key: Array, *own: Array
    ) -> Any:
        """What a client makes of parameters or scores in a round."""
        adam = optax.adam(rate)
        step = _train.descend(loss, adam, has_aux=True)
        rows = _train.batches(key, len(own[0]), self.steps, size=self.batch_size)
        return _train.scan(step, _train.begin(adam, params, rest), rows, *own)[0].params


def run(context: Context) -> Outcome:
    """Both ways, with the same clients, images and rounds."""
    data = context.data.standardized().flat()
    seeds, rounds = context.pick(SEEDS), context.pick(ROUNDS)
    problem = _problem(data)
    keys = jax.random.split(jax.random.key(0), seeds)
    ways = {"fedpm": _fedpm(problem), "fedavg": _fedavg(problem)}
    found = {}
    for name, (begin, step, seen) in ways.items():
        states = _train.draw(functools.partial(begin, data), keys)
        go, look = _of_seeds(step), _of_seeds(seen)
        looks = [look(states, keys, rounds)]
        for i in context.track(f"fedpm: {WAYS[name]}", rounds):
            states, sent = go(states, keys, i)
            looks.append(look(states, keys, i) | sent)
        looks[0] = jax.tree.map(jnp.ones_like, looks[1]) | looks[0]
        found[name] = states, jax.tree.map(lambda *x: np.stack(x), *looks)
    numbers = _numbers(found, rounds)
    settings = SETTINGS | {"seeds": seeds, "rounds": rounds, "steps": problem.steps}
    settings |= {"batch_size": problem.batch_size, "images": problem.y.size}
    shown = {"rounds": rounds, "clients": CLIENTS, "classes": len(OWN), "end": LAST}
    return Outcome(
        rows("fedpm", **shown, **numbers, **_shown(numbers)),
        settings,
        numbers,
        [_draw(context, numbers, seeds)],
    )


def _of_seeds(function: Callable[..., Any]) -> Callable[..., Any]:
    """One seed after the other: less to compile, and clients are enough at a time."""

    @jax.jit
    def of_all(states: Any, keys: Array, i: Array) -> Any:
        each = lambda one: function(*one, i)  # noqa: E731
        return jax.lax.map(each, (states, keys))

    return of_all


def _problem(data: Data) -> Problem:
    """The images of each class dealt out to the clients that have it."""
    rng, mine = np.random.default_rng(0), [[] for _ in range(CLIENTS)]
    for label in range(CLASSES):
        images = rng.permutation(np.flatnonzero(data.y_train == label))
        for offset, part in zip(OWN, np.array_split(images, len(OWN)), strict=True):
            mine[(label - offset) % CLIENTS].append(part)
    every = [rng.permutation(np.concatenate(parts)) for parts in mine]
    rows_ = np.stack([each[: min(map(len, every))] for each in every])
    large = np.prod(data.shape) >= MNIST_PIXELS
    size = MNIST_BATCH_SIZE if large else BATCH_SIZE
    steps = max(rows_.shape[1] // size, 1) * (MNIST_EPOCHS if large else EPOCHS)
    train, test = (data.x_train[rows_], data.y_train[rows_]), (data.x_test, data.y_test)
    return Problem(*map(jnp.asarray, (*train, *test)), steps, size)


def _fedpm(problem: Problem) -> tuple[Callable[..., Any], ...]:
    """Where the server begins, a round, and what is seen then."""

    def begin(data: Data, key: Array) -> Any:
        draw, start = initializer.signed_constant(0.5), MODEL.fresh(key, data.x_train)
        weights = initializer.redraw(draw, start, key=key)
        return weights, fedpm.init(weights)

    def loss(scores: Any, rest: Any, x: Array, y: Array) -> Any:
        weights, key = rest
        key, sample = jax.random.split(key)
        params = maskjax.apply(weights, supermask.soft_mask(scores, key=sample))
        return _train.cross_entropy(MODEL.logits(params, x), y), (weights, key)

    def step(states: Any, key: Array, i: Array) -> Any:
        weights, state = states

        def client(key: Array, x: Array, y: Array) -> Any:
            train, send = jax.random.split(key)
            start, rest = fedpm.scores(state), (weights, train)
            scores = problem.local(loss, MASK_RATE, start, rest, send, x, y)
            least = fedpm.entropy(jax.tree.map(jax.nn.sigmoid, scores))
            return fedpm.message(state, weights, scores, key=send), least

        each = jax.random.split(jax.random.fold_in(key, i), CLIENTS)
        messages, least = jax.vmap(client)(each, problem.x, problem.y)
        ones = jax.vmap(algebra.density)(messages.mask)
        coded = {"least": least.mean(), "by_count": fedpm.entropy(ones)}
        return (weights, fedpm.aggregate(state, messages)), coded

    def seen(states: Any, key: Array, i: Array) -> dict[str, Array]:
        weights, state = states

        def accuracy(mask: Any) -> Array:
            logits = MODEL.logits(maskjax.apply(weights, mask), problem.x_test)
            return _train.accuracy(logits, problem.y_test)

        keys = jax.random.split(jax.random.fold_in(key, i), SAMPLES)
        samples = jax.lax.map(lambda k: accuracy(fedpm.mask(state, key=k)), keys)
        return {
            "accuracy": samples.mean(),
            "rounded": accuracy(fedpm.mask(state, key=None)),
            "mean_network": accuracy(state.probabilities),
            "entropy": fedpm.entropy(state.probabilities),
        }

    return begin, step, seen


def _fedavg(problem: Problem) -> tuple[Callable[..., Any], ...]:
    """The same of weights, whose mean is the server's."""

    def begin(data: Data, key: Array) -> Any:
        return MODEL.fresh(key, data.x_train)

    def loss(params: Any, rest: None, x: Array, y: Array) -> Any:
        return _train.cross_entropy(MODEL.logits(params, x), y), rest

    def step(params: Any, key: Array, i: Array) -> Any:
        train = functools.partial(problem.local, loss, WEIGHT_RATE, params, None)
        each = jax.random.split(jax.random.fold_in(key, i), CLIENTS)
        params = jax.vmap(train)(each, problem.x, problem.y)
        return jax.tree.map(lambda w: w.mean(0), params), {}

    def seen(params: Any, key: Array, i: Array) -> dict[str, Array]:
        del key, i
        logits = MODEL.logits(params, problem.x_test)
        return {"accuracy": _train.accuracy(logits, problem.y_test)}

    return begin, step, seen


def _numbers(found: dict[str, Any], rounds: int) -> dict[str, Any]:
    """What goes to results.json; curves are [1 + rounds, seeds]."""
    (weights, state), looks = found["fedpm"]
    size = sum(w[0].size for w in jax.tree.leaves(weights))
    packed = jax.tree.map(lambda p: p[0] > 0, state.probabilities)
    words = sum(m.nbytes for m in jax.tree.leaves(packing.pack(packed)))
    up = {"fedpm": (8 * words + 96) / size, "fedavg": 32.0}
    drawn = jax.jit(jax.vmap(lambda w: fedpm.init(w).network))(weights)
    kept = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.kept)])
    p = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.probabilities)])
    expected = np.clip(np.float32(kept) / CLIENTS, np.float32(0.01), np.float32(0.99))
    accuracy = {name: looks["accuracy"] for name, (_, looks) in found.items()}
    return {
        "weights": size,
        "weights_unchanged": bool(np.all(state.network == drawn)),
        "counts_exact": bool(np.all(state.received == CLIENTS))
        and bool(np.allclose(p, expected, rtol=1e-6)),
        "bits_up": up,
        "bits_up_coded": {name: looks[name][1:] for name in ("by_count", "least")},
        "bits_down": {"floats": 32, "counts": math.ceil(math.log2(CLIENTS + 1))},
        "entropy": looks["entropy"],
        "accuracy_by_round": accuracy,
        "rounded_by_round": looks["rounded"],
        "mean_network_by_round": looks["mean_network"],
        # All that FedAvg can send for as many bits; less than a round is nothing.
        "fedavg_rounds_for_as_many_bits": int(rounds * up["fedpm"] / up["fedavg"]),
    }


def _shown(numbers: dict[str, Any]) -> dict[str, Any]:
    """What the rows say beside."""
    end = lambda curve: curve[-LAST:].mean(0)  # noqa: E731
    last = {name: end(found) for name, found in numbers["accuracy_by_round"].items()}
    few = numbers["fedavg_rounds_for_as_many_bits"]
    others = {
        "the rounded mask": end(numbers["rounded_by_round"]),
        "the mean network": end(numbers["mean_network_by_round"]),
    }
    return {
        "last": last,
        "others": others,
        "behind": {
            name: 100 * float((last["fedavg"] - accuracy).mean())
            for name, accuracy in ({"samples": last["fedpm"]} | others).items()
        },
        "few": few,
        "at_bits": numbers["accuracy_by_round"]["fedavg"][few],
        "coded": {n: found[-1] for n, found in numbers["bits_up_coded"].items()},
        "decided": numbers["entropy"][-1],
    }


def _draw(context: Context, numbers: dict[str, Any], seeds: int) -> str:
    drawn, (by_bits, by_round) = _pictures.page(
        f"FedPM: ten clients, three classes each, {context.data.name}",
        columns=2,
        size=(11, 4.5),
        sharey=True,
    )
    accuracy = numbers["accuracy_by_round"]
    curves = {
        "FedPM, samples": accuracy["fedpm"],
        "FedPM, rounded mask": numbers["rounded_by_round"],
        "FedAvg": accuracy["fedavg"],
    }
    many, bits = np.arange(len(accuracy["fedpm"])), numbers["bits_up"]

    def panel(axes: Axes, x: dict[str, Any], found: dict[str, Any], **how: Any) -> None:
        _pictures.curves(axes, x, found, seeds=seeds, legend="lower right", **how)

    each = {n: bits["fedavg" if n == "FedAvg" else "fedpm"] for n in curves}
    sent = {name: cost * many[1:] for name, cost in each.items()}
    later = {label: found[1:] for label, found in curves.items()}
    panel(by_bits, sent, later, xscale="log", xlabel="bits per weight sent by a client")
    _pictures.plain(by_bits.xaxis, (1, 10, 100, 1_000))
    panel(by_round, dict.fromkeys(curves, many), curves, xlabel="rounds", ylabel="")
    return _pictures.save(drawn, context, "fedpm_bits")


DEMO = Demo(
    "fedpm",
    "FedPM: federated masks, a bit a weight and round (Isik, Pase et al., 2023)",
    run,
    seconds=9,
)
