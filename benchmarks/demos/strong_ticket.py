"""Prune a random network until it is a trained one: the strong ticket, constructed.

Malach et al. (2020) prove that it can be done, Pensia et al. (2020) with few neurons,
by sums of subsets; they took a solver and 21 hours for what meeting in the middle does
in seconds. Here: a trained network made of a random one, in the four ways to make a
weight; how errors fall with width; and what can't be made of whole neurons.
"""

import dataclasses
import functools
import resource
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import _pictures, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import initializer
from maskjax.theory import gadget, neuron, strong_ticket

# The published experiment: so many coefficients for a weight, drawn once for a row.
COEFFICIENTS, TOLERANCE = 21, 0.01
RATE, MOMENTUM, DECAY, BATCH_SIZE, EPOCHS = 0.1, 0.9, 5e-4, 64, 10
MNIST_PIXELS, HIDDEN, SMALL_HIDDEN = 28 * 28, 500, 32
WAYS = {"factor": 256, "product": 256, "greedy": 256, "subset_sum": 44}
RANGE = 2.0  # of the outer weights, whatever the target
WIDTHS = {
    "factor": (64, 512, 4096),
    "product": (64, 512, 4096),
    "greedy": (16, 32, 48, 64),
    "subset_sum": (6, 12, 18, 24, 30, 36),
}
LABELS = {
    "factor": "factor: v near |w|, u near +-1",
    "product": "product: u v nearest w",
    "greedy": "greedy, log-uniform u",
    "subset_sum": "subset sum",
}
INPUTS, OUTPUTS = 12, 20  # weights whose errors are averaged
ERROR_SEEDS, NEURON_SEEDS = (3, 3, 10), (2, 2, 5)
DIMENSIONS, NEURONS, SAMPLES, BUDGETS = 8, 300, 600, (1, 10, 100)
FINDS = ("greedy", "learned", "regression")
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
    "widths": WIDTHS,
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
    errors = _errors(context)
    missed = _neurons(context)
    both = {name: one.numbers() for name, one in (made | ways).items()}
    numbers = {
        "target": accuracy,
        "made": both,
        "peak_gib": peak,
        "within_bound": all(x["output_error"] <= x["bound"] for x in both.values()),
        "error_by_width": errors,
        "slopes": {name: _slope(name, values) for name, values in errors.items()},
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
        },
        numbers=numbers,
        pictures=[
            _draw_errors(context, errors, numbers["slopes"]),
            _draw_weight(context),
            _draw_neurons(context, target, made),
            _draw_missed(context, missed),
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


def _errors(context: Context) -> dict[str, np.ndarray]:
    """Mean errors of weights in [-1/2, 1/2] by width, [X, S], inputs not negative."""
    rng, seeds = np.random.default_rng(0), context.pick(ERROR_SEEDS)
    found = {name: np.zeros((len(widths), seeds)) for name, widths in WIDTHS.items()}
    turns = [(name, i) for name, widths in WIDTHS.items() for i in range(len(widths))]
    for name, i in context.track("strong_ticket: errors by width", turns):
        for seed in range(seeds):
            v, u, w = _block(rng, name, WIDTHS[name][i], INPUTS, OUTPUTS)
            mask = gadget.choose(v, u, w, construction=name, nonnegative=True)
            error = np.abs(gadget.gains(v, u, mask)[0] - np.asarray(w))
            # The mean of sums is that of the few targets that are out of reach.
            found[name][i, seed] = np.median(error) if _sums(name) else error.mean()
    return found


def _sums(name: str) -> bool:
    return name in ("greedy", "subset_sum")


def _block(rng: Any, name: str, k: int, inputs: int, outputs: int) -> Any:
    """Random blocks and weights wanted of them."""
    shapes = ((inputs, k), 1), ((inputs, k, outputs), 1), ((inputs, outputs), 0.5)
    v, u, w = (jnp.float32(rng.uniform(-most, most, s)) for s, most in shapes)
    if name == "greedy":
        v, u = jnp.sign(v), jnp.sign(u) * 2.0 ** (-14 * jnp.abs(u))
    return v, u, w


def _slope(name: str, errors: np.ndarray) -> np.ndarray:
    """Powers of k, or bits a neuron, [S], by a line through the logarithms."""
    x = np.asarray(WIDTHS[name]) if _sums(name) else np.log2(WIDTHS[name])
    return np.polyfit(x, np.log2(errors), 1)[0]


def _neurons(context: Context) -> dict[str, np.ndarray]:
    """What neuron subnetworks miss of a ReLU neuron on new inputs, [budgets, S]."""
    seeds = context.pick(NEURON_SEEDS)
    found = {name: np.zeros((len(BUDGETS), seeds)) for name in FINDS}
    found["ridge"] = np.zeros(seeds)
    rng = np.random.default_rng(0)
    for seed in context.track("strong_ticket: whole neurons", seeds):
        x = rng.normal(size=(2 * SAMPLES, DIMENSIONS))
        y = np.maximum(x @ rng.normal(size=DIMENSIONS), 0)
        inner = rng.normal(size=(DIMENSIONS, NEURONS))
        outputs = np.maximum(x @ inner, 0) * rng.uniform(-1, 1, NEURONS)
        given = jnp.float32(outputs), jnp.float32(y)
        found["ridge"][seed] = _miss(*given, find="regression", budget=NEURONS)
        for i, budget in enumerate(BUDGETS):
            for find in FINDS:
                found[find][i, seed] = _miss(*given, find=find, budget=budget)
    return found


@functools.partial(jax.jit, static_argnames=("find", "budget"))
def _miss(outputs: jax.Array, y: jax.Array, *, find: str, budget: int) -> jax.Array:
    """What neurons found on the first half of the samples miss on the second."""
    half, rest = ((outputs[i:][:SAMPLES], y[i:][:SAMPLES]) for i in (0, SAMPLES))
    if find == "greedy":
        found = neuron.greedy(*half, budget=budget)
    elif find == "learned":
        optimizer, key = optax.adam(0.05), jax.random.key(0)
        found = neuron.learned(
            *half, budget=budget, optimizer=optimizer, steps=200, key=key
        )
    else:  # of the first few all weights are free
        some = half[0].at[:, budget:].set(0)
        found = neuron.ridge(some, half[1], penalty=1e-4)
    off = neuron.scale(found, *half) * (rest[0] @ found.astype(y.dtype)) - rest[1]
    return jnp.mean(off**2) / jnp.mean(rest[1] ** 2)


def _draw_errors(
    context: Context, errors: dict[str, np.ndarray], slopes: dict[str, np.ndarray]
) -> str:
    drawn = Figure(figsize=(11, 4.5), layout="constrained")
    powers, bits = drawn.subplots(1, 2)
    for name, values in errors.items():
        axes, unit = (bits, "bits a neuron") if _sums(name) else (powers, "power")
        label = f"{LABELS[name]} ({unit}: {slopes[name].mean():.2f})"
        _pictures.band(axes, WIDTHS[name], values, label)
    powers.set(xscale="log", ylabel="mean error of weights in [-1/2, 1/2]")
    bits.set(ylabel="median error of weights in [-1/2, 1/2]")
    for axes in (powers, bits):
        axes.set(yscale="log", xlabel="k, neurons in a block (half of them fire)")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    return _pictures.save(drawn, context.out / "strong_ticket_errors.png")


def _draw_weight(context: Context) -> str:
    """The neurons that become one weight, in the plane of their two weights."""
    rng = np.random.default_rng(3)
    drawn = Figure(figsize=(12, 3.4), layout="constrained")
    panels: Sequence[Axes] = drawn.subplots(1, 4, sharey=True)
    for name, axes in zip(LABELS, panels, strict=True):
        v, u, _ = _block(rng, name, 40, 1, 1)
        w = 0.35
        mask = gadget.choose(v, u, jnp.full((1, 1), w), construction=name)[0, :, 0]
        v, u = np.asarray(v[0]), np.asarray(u[0, :, 0])
        error = max(abs(v[side & mask] @ u[side & mask] - w) for side in (v > 0, v < 0))
        axes.scatter(v[~mask], u[~mask], s=12, color="lightgray", label="removed")
        axes.scatter(v[mask], u[mask], s=30, color="tab:blue", label="kept")
        line = np.linspace(w, 1, 50)
        for sign in (1, -1):
            axes.plot(sign * line, sign * w / line, "k:", linewidth=1)
        axes.set(title=f"{name}: off by {error:.1e}", xlabel="v, from the input")
    panels[0].set(ylabel="u, to the output")
    panels[0].legend(loc="lower right")
    drawn.suptitle("one weight of 0.35: on the dotted line u v = 0.35")
    return _pictures.save(drawn, context.out / "strong_ticket_weight.png")


def _draw_neurons(context: Context, target: Any, made: dict[str, Made]) -> str:
    """Which neurons of each pixel's block one hidden unit keeps."""
    shape = context.data.shape
    pixels = shape[0] * shape[1]
    kernel = np.asarray(target[0]["kernel"])
    unit = int(np.linalg.norm(kernel, axis=0).argmax())
    drawn = Figure(figsize=(11, 5), layout="constrained")
    left, right = drawn.subfigures(1, 2, width_ratios=(1, 1.5))
    title = "a hidden unit's weights"
    _pictures.heat(left, kernel[:, unit].reshape(shape), title, "weight of a pixel")
    panels = right.subplots(1, 2, sharey=True)
    for name, axes in zip(("nearest", "fewest"), panels, strict=True):
        mask = np.asarray(made[name].ticket.mask[0]["outer"])[:pixels, :, unit]
        axes.imshow(mask, cmap="Blues", vmax=1.2, aspect="auto", interpolation="none")
        axes.set(title=f"{name}: {mask.sum():,} kept", xlabel="neuron of the block")
    panels[0].set(ylabel="pixel")
    right.suptitle("the neurons that make them (dark)")
    return _pictures.save(drawn, context.out / "strong_ticket_neurons.png")


def _draw_missed(context: Context, missed: dict[str, np.ndarray]) -> str:
    drawn, axes = _pictures.figure(
        f"One ReLU neuron of {DIMENSIONS} inputs, of {NEURONS:,} random neurons"
    )
    for name in FINDS:
        label = "the first few, by regression" if name == "regression" else name
        _pictures.band(axes, BUDGETS, missed[name], label)
    axes.axhline(missed["ridge"].mean(), color="k", ls=":", label="all, by regression")
    axes.set(xscale="log", yscale="log", xlabel="neurons kept")
    axes.set_ylabel("squared error on new inputs, as a fraction")
    axes.legend()
    return _pictures.save(drawn, context.out / "strong_ticket_missed.png")


DEMO = Demo(
    "strong_ticket",
    "The strong lottery ticket, constructed (Malach et al., Pensia et al., 2020)",
    run,
)
