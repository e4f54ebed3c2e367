"""Prune a random network until it is a trained one: the strong ticket, constructed.

Malach et al. (2020) prove that it can be done, Pensia et al. (2020) with few neurons,
by sums of subsets; they took a solver and 21 hours for what meeting in the middle does
in seconds. Here: a trained network made of a random one, in the four ways to make a
weight; how errors fall with width; and what can't be made of whole neurons.
"""

import dataclasses
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from benchmarks.demos.strong_ticket import _errors
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
}


def run(context: Context) -> Outcome:
    """The published experiment, the four constructions, and whole neurons."""
    data = context.data.flat()
    large = data.x_train.shape[1] >= MNIST_PIXELS
    target, accuracy = _target(context, data, large=large)
    weights = sum(w.size for w in jax.tree.leaves(target))
    made = _published(context, data, target)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    ways = {} if large else _constructions(context, data, target)
    widths, errors = _errors.widths_of(context), _errors.errors_of(context)
    missed = _errors.missed_by_neurons(context)
    slopes = {name: _errors.slope(name, widths[name], e) for name, e in errors.items()}
    made |= ways
    numbers = {
        "target": accuracy,
        "made": made,
        "peak_gib": peak,
        "within_bound": all(x["output_error"] <= x["bound"] for x in made.values()),
        "error_by_width": errors,
        "slopes": slopes,
        "missed_by_neurons": missed,
    }
    kept = "{accuracy:.2%}, {kept:,} of {size:,} kept"
    off = "{output_error:.1e} ({name}; bound {bound:.1e})"
    found = {
        "neurons": _errors.NEURONS,
        "budget": _errors.BUDGETS[-1],
        "near": made["nearest"],
        "few": made["fewest"],
        "few_each": made["fewest"]["kept"] / weights,
        "bits": {name: -slope for name, slope in slopes.items()},
        "ways": {
            f"{name}, {WAYS[name]} neurons an input:": kept.format(**one)
            for name, one in ways.items()
        },
        "off": [off.format(name=name, **one) for name, one in made.items()],
        "missed": {n: x if n == "ridge" else x[-1] for n, x in missed.items()},
    }
    network = {"network": "-".join(map(str, _widths(target))), "weights": weights}
    network |= {"budgets": _errors.BUDGETS}
    return Outcome(
        # Without constructions, as on MNIST, there is nothing to say of them.
        rows=[row for row in rows("strong_ticket", **numbers, **found) if row.measured],
        settings=SETTINGS | network | {"biases": "bias" in target[0], "widths": widths},
        numbers=numbers,
        pictures=[_errors.draw_errors(context, errors, slopes)],
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


def _published(context: Context, data: Data, target: Any) -> dict[str, Any]:
    """Weights out of 21 coefficients, from the least to the largest weight."""
    leaves = jax.tree.leaves(target)
    ends = float(min(w.min() for w in leaves)), float(max(w.max() for w in leaves))
    wide = {"inner": jax.nn.initializers.ones, "outer": initializer.uniform(*ends)}
    # An unlucky draw may miss a weight, which is then said below.
    how = {"construction": "subset_sum", "tolerance": TOLERANCE}
    params, found = _draw(target, COEFFICIENTS, shared=True, **wide), {}
    for name in context.track("strong_ticket: subset sums", ("nearest", "fewest")):
        found[name] = _make(data, target, params, fewest=name == "fewest", **how)
    return found


def _constructions(context: Context, data: Data, target: Any) -> dict[str, Any]:
    """The four ways, out of networks with all weights random."""
    found = {}
    for name in context.track("strong_ticket: constructions", WAYS):
        sizes = {"log": name == "greedy"}  # of every size, where it walks
        drawn = {"inner": _uniform(), "outer": _uniform(RANGE, **sizes)}
        params = _draw(target, WAYS[name], **drawn)
        found[name] = _make(data, target, params, construction=name)
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
    how |= {"k": k, "bias": "bias" in target[0], "key": jax.random.key(0)}
    return strong_ticket.init(_widths(target), **how)


def _make(data: Data, target: Any, params: Any, **how: Any) -> dict[str, Any]:
    """Numbers on the ticket of a target, and on what it says of the test images."""
    how |= {"nonnegative": True, "misses": "report"}
    began = time.perf_counter()
    ticket = strong_ticket.prune(params, target, **how)
    seconds = time.perf_counter() - began
    said = _said(ticket, data.x_test)
    with jax.enable_x64(True):  # so that rounding does not count as error
        double = jax.tree.map(np.float64, (ticket.params, target))
        images = np.float64(data.x_test)
        off = _said(dataclasses.replace(ticket, params=double[0]), images)
        off = off - np.asarray(strong_ticket.forward(double[1], images))
    report, radius = ticket.report, float(np.linalg.norm(images, axis=1).max())
    return {
        "accuracy": _accuracy(said, data),
        "seconds": seconds,
        "kept": sum(report.kept),
        "size": sum(report.size),
        "neurons": sum(report.neurons),
        "largest_error": max(error.max() for error in report.error),
        "missed": sum(int((error > TOLERANCE).sum()) for error in report.error),
        "beyond_reach": sum(int(out.sum()) for out in report.beyond),
        "output_error": float(np.linalg.norm(off, axis=1).max()),
        "bound": strong_ticket.bound(target, report.error, radius=radius)[-1],
    }


def _said(ticket: strong_ticket.Ticket, x: np.ndarray) -> np.ndarray:
    """What the pruned network says, some images at a time for memory's sake."""
    ticket = jax.tree.map(jnp.asarray, dataclasses.replace(ticket, report=None))
    predict = jax.jit(strong_ticket.predict)
    parts = (x[i : i + 250] for i in range(0, len(x), 250))
    return np.concatenate([predict(ticket, part) for part in parts])


TITLE = "The strong lottery ticket, constructed (Malach et al., Pensia et al., 2020)"
DEMO = Demo("strong_ticket", TITLE, run, seconds=8)
