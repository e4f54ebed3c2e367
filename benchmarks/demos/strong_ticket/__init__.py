"""Prune a random network until it is a trained one: the strong ticket, constructed.

Malach et al. (2020) prove that it can be done, Pensia et al. (2020) with few neurons,
by sums of subsets; they took a solver and 21 hours for what meeting in the middle does
in seconds. Here: a trained network made of a random one, in the four ways to make a
weight; how errors fall with width; and what can't be made of whole neurons.
"""

import dataclasses
import resource
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from benchmarks.demos.strong_ticket import _pictures
from benchmarks.demos.strong_ticket._errors import (
    BUDGETS,
    NEURONS,
    errors_of,
    missed_by_neurons,
    slope,
    widths_of,
)
from maskjax import initializer
from maskjax.theory import strong_ticket

# The published experiment: so many coefficients for a weight, drawn once for a row.
COEFFICIENTS, TOLERANCE = 21, 0.01
RATE, MOMENTUM, DECAY, BATCH_SIZE, EPOCHS = 0.1, 0.9, 5e-4, 64, 10
MNIST_PIXELS, HIDDEN, SMALL_HIDDEN = 28 * 28, 500, 32
WAYS = {"factor": 256, "product": 256, "greedy": 256, "subset_sum": 44}
RANGE = 2.0  # of the outer weights, whatever the target
SETTINGS = {
    "coefficients": COEFFICIENTS,
    "tolerance": TOLERANCE,
    "optimizer": "sgd, cosine",
    "learning_rate": RATE,
    "momentum": MOMENTUM,
    "weight_decay": DECAY,
    "batch_size": BATCH_SIZE,
    "epochs": EPOCHS,
    "inputs": "from 0 to 1",
    "budgets": BUDGETS,
}
ROWS = {
    "subset sums of 21 random numbers make every weight to 0.01 (Pensia et al., "
    "784-500-10, all of MNIST: 97.19% before and after, 77,266 s, 3,725,871 of "
    "8,337,000 kept)": "{target:.2%} before, {near[accuracy]:.2%} after, "
    "{near[seconds]:.1f} s and {peak_gib:.1f} GiB in all; errors up to "
    "{near[largest_error]:.1e}, {near[missed]} missed; {near[kept]:,} of "
    "{near[size]:,} kept",
    "few are enough": "the fewest within 0.01: {few[kept]:,} ({few_each:.2f} a weight)"
    ", {few[accuracy]:.2%}, {few[seconds]:.1f} s",
    "any ReLU network is in a wide enough random one, whose weights are all random": (
        "{ways}"
    ),
    "the pruned network stays within the bound": "outputs off by at most {off}; "
    "{within_bound:all|NOT all} within",
    "errors fall as 1 / k (product), 1 / sqrt(k) (factor), exponentially (sums)": "as "
    "k to the power {slopes[product]:.2f} (product), {slopes[factor]:.2f} (factor); by "
    "{bits[subset_sum]:.2f} bits (subset sum) and {bits[greedy]:.2f} bits (greedy) a "
    "neuron",
    "whole neurons can't be a ReLU neuron, unless there are very many": f"of "
    f"{NEURONS:,} random neurons the best {BUDGETS[-1]} found miss "
    "{missed[greedy]:.1%} of it (learned: {missed[learned]:.1%}), ridge regression on "
    "all {missed[ridge]:.1%}",
}


class Made(NamedTuple):
    """A network made of a random one, and what that took."""

    ticket: strong_ticket.Ticket
    accuracy: float
    seconds: float
    measured: float
    bound: float

    def numbers(self) -> dict[str, Any]:
        """For results.json."""
        report = self.ticket.report
        return {
            "accuracy": self.accuracy,
            "seconds": self.seconds,
            "kept": sum(report.kept),
            "size": sum(report.size),
            "neurons": sum(report.neurons),
            "largest_error": max(error.max() for error in report.error),
            "missed": sum(int((error > TOLERANCE).sum()) for error in report.error),
            "beyond_reach": sum(int(out.sum()) for out in report.beyond),
            "output_error": self.measured,
            "bound": self.bound,
        }


def run(context: Context) -> Outcome:
    """The published experiment, the four constructions, and whole neurons."""
    data = context.data.flat()
    large = data.x_train.shape[1] >= MNIST_PIXELS
    target, accuracy = _target(context, data, large=large)
    weights = sum(w.size for w in jax.tree.leaves(target))
    made = _published(context, data, target, fresh=large or context.quick)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    ways = {} if large else _constructions(context, data, target)
    widths, errors = widths_of(context), errors_of(context)
    missed = missed_by_neurons(context)
    both = {name: one.numbers() for name, one in (made | ways).items()}
    numbers = {
        "target": accuracy,
        "made": both,
        "peak_gib": peak,
        "within_bound": all(x["output_error"] <= x["bound"] for x in both.values()),
        "error_by_width": errors,
        "slopes": {name: slope(name, widths[name], e) for name, e in errors.items()},
        "missed_by_neurons": missed,
    }
    filled = rows(
        ROWS,
        **numbers,
        near=both["nearest"],
        few=both["fewest"],
        bits={name: -slope for name, slope in numbers["slopes"].items()},
        few_each=both["fewest"]["kept"] / weights,
        ways={
            f"{name}, {WAYS[name]} neurons an input:": f"{both[name]['accuracy']:.2%}, "
            f"{both[name]['kept']:,} of {both[name]['size']:,} kept"
            for name in ways
        },
        off=", ".join(
            f"{x['output_error']:.1e} ({name}; bound {x['bound']:.1e})"
            for name, x in both.items()
        ),
        missed={n: x if n == "ridge" else x[-1] for n, x in missed.items()},
    )
    return Outcome(
        rows=[row for row in filled if row.measured],  # without constructions on MNIST
        settings=SETTINGS
        | {
            "network": "-".join(map(str, _widths(target))),
            "biases": "bias" in target[0],
            "weights": weights,
            "widths": widths,
        },
        numbers=numbers,
        pictures=[
            _pictures.draw_errors(context, errors, numbers["slopes"]),
            _pictures.draw_weight(context),
            _pictures.draw_neurons(context, target, made),
            _pictures.draw_missed(context, missed),
        ],
    )


def _widths(target: Any) -> tuple[int, ...]:
    return (len(target[0]["kernel"]), *(w["kernel"].shape[1] for w in target))


def _target(context: Context, data: Data, *, large: bool) -> tuple[Any, float]:
    """A trained network, as in the published experiment, and its accuracy."""
    n, hidden = data.x_train.shape[1], HIDDEN if large else SMALL_HIDDEN
    rng = np.random.default_rng(0)
    start = []
    for fan_in, o in ((n, hidden), (hidden, 10)):
        draw = rng.uniform(-1, 1, (fan_in + 1, o)) / fan_in**0.5
        layer = {"kernel": draw[:-1]} | ({} if large else {"bias": draw[-1]})
        start.append(jax.tree.map(jnp.float32, layer))
    x, y = jnp.asarray(data.x_train), jnp.asarray(data.y_train)
    steps = len(x) // BATCH_SIZE
    optimizer = optax.chain(
        optax.add_decayed_weights(DECAY),
        optax.sgd(optax.cosine_decay_schedule(RATE, EPOCHS * steps), MOMENTUM),
    )

    def loss(params: Any, rest: None, x: jax.Array, y: jax.Array) -> jax.Array:
        return _train.cross_entropy(strong_ticket.forward(params, x), y)

    step = _train.descend(loss, optimizer)
    epoch = jax.jit(lambda member, rows: _train.scan(step, member, rows, x, y)[0])
    member = _train.begin(optimizer, start)
    for _ in context.track("strong_ticket: training", EPOCHS):
        order = rng.permutation(len(x))[: steps * BATCH_SIZE]
        member = epoch(member, jnp.asarray(order.reshape(steps, -1)))
    target = jax.block_until_ready(member.params)
    return target, _accuracy(strong_ticket.forward(target, data.x_test), data)


def _accuracy(logits: Any, data: Data) -> float:
    return float(np.mean(np.argmax(logits, -1) == data.y_test))


def _published(
    context: Context, data: Data, target: Any, *, fresh: bool
) -> dict[str, Made]:
    """Weights out of 21 coefficients, from the least to the largest weight."""
    leaves = jax.tree.leaves(target)
    low = min(float(w.min()) for w in leaves)
    high = max(float(w.max()) for w in leaves)
    wide = {"inner": jax.nn.initializers.ones, "outer": initializer.uniform(low, high)}
    # An unlucky draw may miss a weight, which is then said below.
    how = {"construction": "subset_sum", "tolerance": TOLERANCE, "misses": "report"}
    runs = {"nearest": (True, how), "fewest": (True, how | {"fewest": True})}
    if fresh:
        runs["nearest, a set for each weight"] = (False, how)
    found = {}
    for name in context.track("strong_ticket: subset sums", runs):
        shared, how = runs[name]
        params = _draw(target, COEFFICIENTS, shared=shared, **wide)
        found[name] = _make(data, target, params, **how)
    return found


def _constructions(context: Context, data: Data, target: Any) -> dict[str, Made]:
    """The four ways, out of networks with all weights random."""
    found = {}
    for name in context.track("strong_ticket: constructions", WAYS):
        sizes = {"log": name == "greedy"}  # of every size, where it walks
        drawn = {"inner": _uniform(), "outer": _uniform(RANGE, **sizes)}
        params = _draw(target, WAYS[name], **drawn)
        how = {"construction": name, "misses": "report"}
        found[name] = _make(data, target, params, **how)
    return found


def _uniform(most: float = 1.0, *, log: bool = False) -> initializer.Initializer:
    """As `initializer.uniform` or `signed_log_uniform`, but by NumPy.

    `jax.random` would take longer to compile than pruning takes.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        x = rng.uniform(-1, 1, shape)
        x = np.sign(x) * 2.0 ** (-14 * np.abs(x)) if log else x
        return jnp.asarray(most * x, dtype)

    return init


def _draw(target: Any, k: int, **how: Any) -> Any:
    return strong_ticket.init(
        _widths(target), k=k, bias="bias" in target[0], key=jax.random.key(0), **how
    )


def _make(data: Data, target: Any, params: Any, **how: Any) -> Made:
    """Prune to the target, and see what the pruned network says of the test images."""
    began = time.perf_counter()
    ticket = strong_ticket.prune(params, target, nonnegative=True, **how)
    seconds = time.perf_counter() - began
    said = _said(ticket, data.x_test)
    with jax.enable_x64(True):  # so that rounding does not count as error
        double = jax.tree.map(np.float64, (ticket.params, target))
        images = np.float64(data.x_test)
        off = _said(dataclasses.replace(ticket, params=double[0]), images)
        off = off - np.asarray(strong_ticket.forward(double[1], images))
    radius = float(np.linalg.norm(images, axis=1).max())
    return Made(
        ticket,
        _accuracy(said, data),
        seconds,
        float(np.linalg.norm(off, axis=1).max()),
        strong_ticket.bound(target, ticket.report.error, radius=radius)[-1],
    )


def _said(ticket: strong_ticket.Ticket, x: np.ndarray) -> np.ndarray:
    """What the pruned network says, some images at a time for memory's sake."""
    ticket = jax.tree.map(jnp.asarray, dataclasses.replace(ticket, report=None))
    predict = jax.jit(strong_ticket.predict)
    parts = (x[i : i + 250] for i in range(0, len(x), 250))
    return np.concatenate([predict(ticket, part) for part in parts])


DEMO = Demo(
    "strong_ticket",
    "The strong lottery ticket, constructed (Malach et al., Pensia et al., 2020)",
    run,
)
