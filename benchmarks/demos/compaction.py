"""Prune whole units while training, take them out, and train on: a smaller network.

A residual network learns images, a GPT the characters of docstrings. Half or three
quarters of each group of units that can only leave together are removed while the whole
network trains; then it is compacted, with its statistics and the moments of Adam, and
trains on. A network built at that width trains for as many steps. "Half of all units"
are ranked in all groups together, so that widths differ by layer.
"""

import dataclasses
import functools
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _deep, _docstrings, _pictures, _timing, _train
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import compaction, optim, score, structure

DENSITIES = {"half": 0.5, "quarter": 0.25}
GLOBAL = "half of all"
NETWORKS = 3, 3, None  # how many of "dense", "half", "built at half", and so on
PRUNED = 0.1, 0.5, 0.6  # parts of the steps: pruning begins, ends; compaction
CUTS = 20  # in so many steps units leave
SEEDS = 1, 1, 3
REPEATS = 5, 20, 50
TIMED = 64  # images, or lines of text, of a forward pass
LINES, LENGTH, TEXT = 500, 64, 400_000
STEPS = {"resnet": (40, 200, 600), "gpt": (40, 300, 2_000)}
_GPT = {"vocabulary": len(_docstrings.CHARACTERS), "width": 64, "heads": 4}
_GPT |= {"head_width": 16, "hidden": 256, "length": LENGTH}
_SHALLOW = {"widths": (16, 32), "blocks": (1, 1)}  # compiling takes longest
_RESNET = {"widths": (16, 32, 64), "blocks": (1, 1, 1)}
SIZES = {
    "resnet": (_SHALLOW, _SHALLOW, _RESNET),
    "gpt": (_GPT | {"layers": 1}, _GPT | {"layers": 1}, _GPT | {"layers": 2}),
}
COSTS = {
    "parameters": "parameters",
    "kilobytes": "bytes",
    "megaflops": "FLOPs",
    "ms": "time",
}
QUALITY = {"resnet": "{:.1%} right".format, "gpt": "{:.2f} bits a character".format}


class Problem(NamedTuple):
    """Something to learn, and by what."""

    name: str
    build: Callable[..., nn.Module]  # a network, of a share of its widths
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    quality: Callable[..., jax.Array]  # of logits, for labels
    batch_size: int
    rate: float
    steps: int

    def rows(self, seed: int) -> np.ndarray:
        """Batches [steps, B] of what there is to learn."""
        count, size = len(self.train[0]), min(self.batch_size, len(self.train[0]))
        epochs = -(-self.steps // (count // size))
        orders = _train.orders(1, count, epochs=epochs, size=size, seed=seed)
        return orders.reshape(-1, size)[: self.steps]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network at the end, and what was seen when it was compacted."""

    forward: Callable[..., jax.Array]
    variables: Any
    quality: float
    widths: dict[str, int] = dataclasses.field(default_factory=dict)
    seen: dict[str, float] = dataclasses.field(default_factory=dict)


def run(context: Context) -> Outcome:
    """Quality and cost of networks: dense, pruned and compacted, built small."""
    found = {p.name: _found(p, context) for p in _problems(context)}
    seen = [each["seen"] for each in found.values()]
    differences = [at["difference"] for each in seen for at in each.values()]
    return Outcome(
        rows=rows("compaction", difference=max(differences), **found),
        settings={"sizes": {name: context.pick(s) for name, s in SIZES.items()}}
        | {"pruned": PRUNED, "densities": DENSITIES}
        | {"steps": {name: context.pick(s) for name, s in STEPS.items()}}
        | {"seeds": context.pick(SEEDS), "optimizer": "adam, cosine"},
        numbers=found,
        pictures=[_draw_costs(context, found), *_draw_widths(context, found)],
    )


def _found(problem: Problem, context: Context) -> dict[str, Any]:
    """Quality of each seed's networks; what else is told is of the first seed's."""
    net, x = problem.build(), problem.train[0][:2]
    forward = jax.jit(_deep.logits(net))
    units = compaction.groups(forward, _deep.fresh(net, x), x)
    how = problem, net, forward, units
    prunings = {scope: _pruning(*how, scope) for scope in ("leaf", "global")}
    seeds = range(context.pick(SEEDS))
    many = [_networks(problem, prunings, seed, context) for seed in seeds]
    first = many[0]
    seen = {name: one.seen for name, one in first.items() if one.seen}
    return {
        "quality": {n: np.array([each[n].quality for each in many]) for n in first},
        "seen": seen,
        "then": {name: each["small"] for name, each in seen.items()},
        "units": {group.name: group.size for group in units},
        "widths": {name: one.widths for name, one in first.items() if one.widths},
        **_costs(problem, first, context),
    }


def _problems(context: Context) -> list[Problem]:
    def built(make: Callable[..., nn.Module], name: str) -> Callable[..., nn.Module]:
        return lambda share=1.0: make(share, **context.pick(SIZES[name]))

    def steps(name: str) -> int:
        return context.pick(STEPS[name])

    data = context.data.standardized()
    images = [(x[..., None], y) for x, y in ((data[1:3]), (data[3:5]))]
    text = _docstrings.load(TEXT // (10 if context.quick else 1), LENGTH)
    lines = text[:2], tuple(part[:LINES] for part in text[2:])
    of_images = built(_deep.resnet, "resnet"), *images, jax.jit(_train.accuracy)
    of_text = built(_deep.gpt, "gpt"), *lines, _bits
    return [
        Problem("resnet", *of_images, _train.BATCH_SIZE, 3e-3, steps("resnet")),
        Problem("gpt", *of_text, 16, 6e-3, steps("gpt")),
    ]


@jax.jit
def _bits(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Bits per character."""
    return _train.cross_entropy(logits, y) / jnp.log(2.0)


class Pruning(NamedTuple):
    """Training that removes units; one program for all densities."""

    net: nn.Module
    forward: Callable[..., jax.Array]  # of all its units, compiled once
    units: structure.Groups  # of its parameters
    optimizer: Callable[..., Any]  # of a density
    step: Callable[..., Any]  # `(density, variables, opt_state, x, y)`


def _pruning(
    problem: Problem, net: nn.Module, forward: Any, units: Any, scope: Any
) -> Pruning:
    units = units.of(_deep.apart(_deep.fresh(net, problem.train[0]))[0])
    how = {"every": problem.steps // CUTS, "scope": scope, "structure": units}
    how |= {"score": _relative} if scope == "global" else {}

    def optimizer(density: Any) -> Any:
        falling = _falling(density, problem.steps)
        return optax.chain(_adam(problem), optim.prune(falling, **how))

    def step(density: Any, *state_and_data: Any) -> tuple[Any, ...]:
        return _deep.descent(net, optimizer(density))(*state_and_data)

    return Pruning(net, forward, units, optimizer, jax.jit(step))


def _relative(params: Any, **how: Any) -> Any:
    """Magnitudes beside the mean of their leaf, to compare large kernels with small."""
    return jax.tree.map(lambda s: s / s.mean(), score.magnitude(params, **how))


def _networks(
    problem: Problem, prunings: dict[str, Pruning], seed: int, context: Context
) -> dict[str, Trained]:
    """All networks, trained from the same seed."""
    apart, together = prunings["leaf"], prunings["global"]
    kinds = {"dense": lambda: _dense(problem, apart, seed)}
    for name, density in DENSITIES.items():
        kinds[name] = lambda d=density: _pruned(problem, apart, seed, d)
        kinds[f"built at {name}"] = lambda d=density: _built(problem, d, seed)
    kinds[GLOBAL] = lambda: _pruned(problem, together, seed, DENSITIES["half"])
    names = list(kinds)[: context.pick(NETWORKS)]
    track = context.track(f"compaction: {problem.name}", names)
    return {name: kinds[name]() for name in track}


def _built(problem: Problem, share: float, seed: int) -> Trained:
    """A network of that width from the start."""
    net, adam = problem.build(share), _adam(problem)
    variables = _deep.fresh(net, problem.train[0], seed)
    begun = variables, jax.jit(adam.init)(_deep.apart(variables)[0])
    step = jax.jit(_deep.descent(net, adam))
    variables, _ = _descended(step, begun, problem, problem.rows(seed))
    forward = jax.jit(_deep.logits(net))
    return Trained(forward, variables, _quality(problem, forward, variables))


def _dense(problem: Problem, pruning: Pruning, seed: int) -> Trained:
    """The whole network, which loses nothing: it has been compiled for that anyway."""
    variables, _ = _masked(problem, pruning, seed, 1.0, problem.rows(seed))
    forward = pruning.forward
    return Trained(forward, variables, _quality(problem, forward, variables))


def _masked(
    problem: Problem, pruning: Pruning, seed: int, density: float, order: np.ndarray
) -> tuple[Any, Any]:
    """Variables and the optimizer's state of a network that has been losing units."""
    variables = _deep.fresh(pruning.net, problem.train[0], seed)
    begin = jax.jit(pruning.optimizer(density).init)
    begun = variables, begin(_deep.apart(variables)[0])
    step = functools.partial(pruning.step, jnp.float32(density))
    return _descended(step, begun, problem, order)


def _pruned(problem: Problem, pruning: Pruning, seed: int, density: float) -> Trained:
    """A whole network that loses units, is compacted, and trains on."""
    order, compacted = problem.rows(seed), round(PRUNED[2] * problem.steps)
    masked = _masked(problem, pruning, seed, density, order[:compacted])
    variables, (moments, held) = masked

    told = pruning.forward
    mask = _deep.with_rest(optim.mask_of(held), variables)
    plan = compaction.plan(told, variables, mask, problem.train[0][:2])
    # Adam without pruning goes on: there is no mask any more.
    small = jax.jit(lambda tree: compaction.shrink(tree, plan))((variables, moments))
    forward = jax.jit(compaction.narrow(told, plan))
    x, y = problem.test
    before, after = told(variables, x), forward(small[0], x)
    seen = {
        "difference": float(jnp.abs(before - after).max()),
        "masked": float(problem.quality(before, y)),
        "small": float(problem.quality(after, y)),
    }
    descent = _deep.descent(pruning.net, _adam(problem))
    step = jax.jit(compaction.narrow(descent, plan))
    variables, _ = _descended(step, small, problem, order[compacted:])
    quality, widths = _quality(problem, forward, variables), _widths(pruning, held)
    return Trained(forward, variables, quality, widths, seen)


def _adam(problem: Problem) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(problem.rate, problem.steps))


def _falling(density: float, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Zhu & Gupta's cubic schedule."""
    begin, end, _ = PRUNED

    def at(step: jax.Array) -> jax.Array:
        part = jnp.clip((step / steps - begin) / (end - begin), 0.0, 1.0)
        return density + (1 - density) * (1 - part) ** 3

    return at


def _descended(
    step: Callable[..., Any], state: Any, problem: Problem, order: np.ndarray
) -> tuple[Any, Any]:
    """Variables and the optimizer's state after these batches."""
    # No `lax.scan`: in loops on CPU, convolutions take twenty times as long.
    for batch in order:
        *state, _ = step(*state, *(part[batch] for part in problem.train))
    return jax.block_until_ready(tuple(state))


def _quality(problem: Problem, forward: Callable[..., Any], variables: Any) -> float:
    x, y = problem.test
    return float(problem.quality(forward(variables, x), y))


def _widths(pruning: Pruning, held: Any) -> dict[str, int]:
    """How many units of each group are left, by the group's name."""
    kept = pruning.units.kept(optim.mask_of(held))
    return {name: int(flags.sum()) for name, flags in kept.items()}


def _costs(problem: Problem, each: dict[str, Trained], context: Context) -> Any:
    """Parameters, bytes on disk, FLOPs and milliseconds of a forward pass."""
    x = jnp.asarray(problem.test[0][:TIMED])
    racing, flops = [], {}
    for name, one in each.items():
        call, seconds = _timing.compiled(one.forward, one.variables, x)
        ask = lambda call=call, v=one.variables: call(v, x)  # noqa: E731
        racing.append(_timing.Contestant(name, ask, seconds))
        flops[name] = call.cost_analysis()["flops"] / 1e6
    how = {"repeats": context.pick(REPEATS), "seconds": 2.0}
    timings = _timing.race(racing, lambda _: None, **how)
    params = {n: _deep.parameters(_deep.apart(t.variables)[0]) for n, t in each.items()}
    return {
        "parameters": params,
        "kilobytes": {n: _on_disk(t.variables) / 1e3 for n, t in each.items()},
        "megaflops": flops,
        "ms": {name: 1e3 * timing.median_s for name, timing in timings.items()},
    }


def _on_disk(variables: Any) -> int:
    file = io.BytesIO()
    np.savez(file, *map(np.asarray, jax.tree.leaves(variables)))
    return file.getbuffer().nbytes


def _draw_costs(context: Context, found: dict[str, dict[str, Any]]) -> str:
    """Bars for networks that lost units, or were built so small."""
    title = "Costs of networks that lost units, and of ones built so small"
    drawn, plots = _pictures.page(title, len(found), size=(11, 4.8), sharey=True)
    for axes, (name, each) in zip(plots, found.items(), strict=True):
        quality = {n: QUALITY[name](q.mean()) for n, q in each["quality"].items()}
        names = [network for network in quality if network != "dense"]
        thick = 0.8 / len(names)
        for i, network in enumerate(names):
            shares = [100 * each[c][network] / each[c]["dense"] for c in COSTS]
            at = np.arange(len(COSTS)) + (i + 0.5) * thick - 0.4
            bars = axes.bar(at, shares, thick, label=f"{network}: {quality[network]}")
            axes.bar_label(bars, fmt="%.0f", fontsize=7)
        axes.set_xticks(range(len(COSTS)), list(COSTS.values()))
        axes.set_title(f"{_title(name, context)}\ndense: {quality['dense']}")
        _pictures.below(axes)
    plots[0].set_ylabel("% of the dense network's")
    return _pictures.save(drawn, context, "compaction_costs")


def _draw_widths(context: Context, found: dict[str, dict[str, Any]]) -> list[str]:
    """Of networks in which all units were ranked together: others are as asked."""
    if any(GLOBAL not in each["widths"] for each in found.values()):
        return []
    title = "Units left in each group"
    drawn, plots = _pictures.page(title, len(found), size=(12, 5))
    for axes, (name, each) in zip(plots, found.items(), strict=True):
        sizes, widths = each["units"], each["widths"]
        thick = 1 / (len(widths) + 1)
        for i, (label, left) in enumerate(widths.items()):
            at = np.arange(len(sizes)) + (i - (len(widths) - 1) / 2) * thick
            shares = [100 * left[group] / size for group, size in sizes.items()]
            axes.barh(at, shares, thick, label=label)
        named = [f"{_short(group)} ({size})" for group, size in sizes.items()]
        axes.set_yticks(range(len(sizes)), named, fontsize=7)
        axes.invert_yaxis()
        axes.set(title=_title(name, context), xlabel="% of the units", xlim=(0, 100))
    plots[-1].legend(loc="lower right")
    return [_pictures.save(drawn, context, "compaction_widths")]


def _title(name: str, context: Context) -> str:
    of_text = name == "gpt"
    return "GPT, docstrings" if of_text else f"ResNet, {context.data.name}"


def _short(group: str) -> str:
    """Where a group's first member is, without what is the same everywhere."""
    return group.removeprefix("params/").replace("/kernel", "")


DEMO = Demo("compaction", "units taken out of a network", run, seconds=25, alone=True)
