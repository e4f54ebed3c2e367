"""How errors fall with width, and what whole neurons miss."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _pictures
from benchmarks._registry import Context
from maskjax.theory import gadget, neuron

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
DIMENSIONS, NEURONS, SAMPLES, BUDGETS = 8, 300, 600, (1, 100)


def widths_of(context: Context) -> dict[str, tuple[int, ...]]:
    """Blocks of how many neurons; by default every other one, at half of the time."""
    return {name: ks[:: context.pick((1, 2, 1))] for name, ks in WIDTHS.items()}


def errors_of(context: Context) -> dict[str, np.ndarray]:
    """Mean errors of weights in [-1/2, 1/2] by width, [X, S], inputs not negative."""
    rng, seeds = np.random.default_rng(0), context.pick(ERROR_SEEDS)
    widths = widths_of(context)
    found = {name: np.zeros((len(ks), seeds)) for name, ks in widths.items()}
    turns = [(name, i) for name, ks in widths.items() for i in range(len(ks))]
    for name, i in context.track("strong_ticket: errors by width", turns):
        for seed in range(seeds):
            v, u, w = block(rng, name, widths[name][i], INPUTS, OUTPUTS)
            mask = gadget.choose(v, u, w, construction=name, nonnegative=True)
            error = np.abs(gadget.gains(v, u, mask)[0] - np.asarray(w))
            # The mean of sums is that of the few targets that are out of reach.
            found[name][i, seed] = np.median(error) if is_sum(name) else error.mean()
    return found


def is_sum(name: str) -> bool:
    """Whether a weight is the sum of several neurons."""
    return name in ("greedy", "subset_sum")


def block(rng: Any, name: str, k: int, inputs: int, outputs: int) -> Any:
    """Random blocks and weights wanted of them."""
    shapes = ((inputs, k), 1), ((inputs, k, outputs), 1), ((inputs, outputs), 0.5)
    v, u, w = (jnp.float32(rng.uniform(-most, most, s)) for s, most in shapes)
    if name == "greedy":
        v, u = jnp.sign(v), jnp.sign(u) * 2.0 ** (-14 * jnp.abs(u))
    return v, u, w


def slope(name: str, ks: tuple[int, ...], errors: np.ndarray) -> np.ndarray:
    """Powers of k, or bits a neuron, [S], by a line through the logarithms."""
    x = np.asarray(ks) if is_sum(name) else np.log2(ks)
    return np.polyfit(x, np.log2(errors), 1)[0]


def missed_by_neurons(context: Context) -> dict[str, np.ndarray]:
    """What neuron subnetworks miss of a ReLU neuron on new inputs, [budgets, S]."""
    seeds, finds = context.pick(NEURON_SEEDS), ("greedy", "learned")
    found = {name: np.zeros((len(BUDGETS), seeds)) for name in finds}
    found["ridge"] = np.zeros(seeds)
    rng = np.random.default_rng(0)
    for seed in context.track("strong_ticket: whole neurons", seeds):
        x = rng.normal(size=(2 * SAMPLES, DIMENSIONS))
        y = np.maximum(x @ rng.normal(size=DIMENSIONS), 0)
        inner = rng.normal(size=(DIMENSIONS, NEURONS))
        outputs = np.maximum(x @ inner, 0) * rng.uniform(-1, 1, NEURONS)
        given = jnp.float32(outputs), jnp.float32(y)
        found["ridge"][seed] = _miss(*given, find="ridge", budget=NEURONS)
        for i, budget in enumerate(BUDGETS):
            for find in finds:
                found[find][i, seed] = _miss(*given, find=find, budget=budget)
    return found


@functools.partial(jax.jit, static_argnames=("find", "budget"))
def _miss(outputs: jax.Array, y: jax.Array, *, find: str, budget: int) -> jax.Array:
    """What neurons found on the first half of the samples miss on the second."""
    half, rest = ((outputs[i:][:SAMPLES], y[i:][:SAMPLES]) for i in (0, SAMPLES))
    if find == "greedy":
        found = neuron.greedy(*half, budget=budget)
    elif find == "learned":
        how = {"optimizer": optax.adam(0.05), "steps": 200, "key": jax.random.key(0)}
        found = neuron.learned(*half, budget=budget, **how)
    else:  # all weights are free
        found = neuron.ridge(*half, penalty=1e-4)
    off = neuron.scale(found, *half) * (rest[0] @ found.astype(y.dtype)) - rest[1]
    return jnp.mean(off**2) / jnp.mean(rest[1] ** 2)


def draw_errors(
    context: Context, errors: dict[str, np.ndarray], slopes: dict[str, np.ndarray]
) -> str:
    """How errors fall: of one neuron a weight by a power, of sums by bits."""
    title = "Strong tickets: errors of weights that pruned random blocks stand for"
    drawn, panels = _pictures.page(title, 2, size=(11, 5.2))
    kinds = ("mean", "power", "log"), ("median", "bits a neuron", "linear")
    for i, (axes, (what, unit, scale)) in enumerate(zip(panels, kinds, strict=True)):
        x, found = {}, {}
        for name in errors:
            if is_sum(name) == bool(i):
                label = f"{LABELS[name]} ({unit}: {slopes[name].mean():.2f})"
                x[label], found[label] = widths_of(context)[name], errors[name]
        how: dict[str, Any] = {"legend": "below"}
        how["xlabel"] = "k, neurons in a block (half of them fire)"
        how["ylabel"] = f"{what} error of weights in [-1/2, 1/2]"
        _pictures.curves(axes, x, found, xscale=scale, yscale="log", **how)
    return _pictures.save(drawn, context, "strong_ticket_errors")
