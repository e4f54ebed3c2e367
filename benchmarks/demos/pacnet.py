"""A target learned from few samples, its source kept: PAC-Net (Myung et al., 2022).

Friedman's function from 10 to 300 samples, after a relative of it from 10,000. PAC-Net
prunes the source's network, retrains what is kept and gives the rest to the target. It
is shown beside training from scratch, fine-tuning all weights, and fine-tuning with a
penalty on the distance from the source's (L2-SP): same network, same steps for all, on
the source and on the target.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from matplotlib.figure import Figure
from scipy import stats

from benchmarks import _friedman, _pictures, _train
from benchmarks._registry import Context, Demo, Outcome, Row
from maskjax import optim
from maskjax.recipes import pacnet

WIDTHS, RATE = (64, 64, 1), 1e-3
DENSITY, LAM = 0.2, 0.01
SOURCE, TEST, SIZES = 10_000, 2_000, (10, 30, 100, 300)
SOURCE_BATCH, BATCH, LOOKS = 128, 32, 10
SHOWN = 1  # which of SIZES the table tells most of
SCRATCH, TUNED, L2_SP, PAC, PAC_SOURCE = (
    "from scratch",
    "fine-tuning",
    "L2-SP",
    "PAC-Net",
    "PAC-Net from w_S",
)
Pair = tuple[jax.Array, jax.Array]
KEPT = (TUNED, L2_SP, PAC)  # what had a source to forget


class Budget(NamedTuple):
    """Distances of the sources, and steps of each training."""

    distances: tuple[float, ...]
    source: int
    again: int
    target: int


DEFAULT, QUICK = Budget((1.0, 2.0), 3_000, 1_500, 600), Budget((1.0,), 300, 150, 100)


class Start(NamedTuple):
    """Where a training begins, what it may change, and what pulls it back.

    Attributes:
        params: Parameters [S, ...].
        mask: True trains, of the parameters' shapes.
        anchor: What `lam` times the squared distance from is part of the loss.
        lam: Its strength.
    """

    params: Any
    mask: Any
    anchor: Any
    lam: jax.Array


class Sets(NamedTuple):
    """Samples: inputs and values [S, N, ...], scaled.

    Attributes:
        source: To train on.
        held_out: Of the source, to be judged by.
        few: Of the target, to train on the first of them.
        test: Of the target.
        unit: [S], what a scaled value of 1 is.
    """

    source: Pair
    held_out: Pair
    few: Pair
    test: Pair
    unit: np.ndarray


class Networks(NamedTuple):
    """Trained on the source: all weights, and PAC-Net's."""

    dense: Any
    pruned: pacnet.Pruned
    allocated: dict[str, pacnet.Allocated]


class Programs(NamedTuple):
    """What is compiled, once for all distances, sizes and methods.

    Attributes:
        source: `(start, x, y, places) -> params`, [S, ...] each.
        again: The same, of two starts [2, S, ...].
        target: `(starts, few, places, count, test) -> params, errors`, [M, S, ...].
        error: `(params, x, y) -> errors` [S].
        predict: `(params, x) -> values` [S, N, 1].
    """

    source: Callable[..., Any]
    again: Callable[..., Any]
    target: Callable[..., Any]
    error: Callable[..., Any]
    predict: Callable[..., Any]


def run(context: Context) -> Outcome:
    """Each distance in turn, all methods, sizes and seeds side by side."""
    budget = QUICK if context.quick else DEFAULT
    programs = _programs(budget)
    found = {
        distance: _transfer(context, budget, programs, i)
        for i, distance in enumerate(budget.distances)
    }
    compiled = programs.target._cache_size()
    return Outcome(
        rows=_rows(context, budget, found, compiled),
        settings={
            "data": "Friedman #1 and relatives (Pardoe & Stone, 2010), noise of 1",
            "distances": budget.distances,
            "source_samples": SOURCE,
            "target_samples": SIZES,
            "network": "-".join(map(str, (_friedman.INPUTS, *WIDTHS))),
            "seeds": context.seeds,
            "density": DENSITY,
            "scope": "global",
            "lambda": LAM,
            "optimizer": f"adam {RATE}; by a cosine to 0 on the source",
            "batch_size": {"source": SOURCE_BATCH, "target": BATCH},
            "steps": {
                "source": budget.source,
                "source, again or what is kept": budget.again,
                "target": budget.target,
            },
            "stopping": "after a fixed number of steps, the same for all",
            "rmse": f"on {TEST:,} noisy samples; the noise alone has 1",
        },
        numbers={
            "distances": {str(d): each for d, each in found.items()},
            "compiled": compiled,
        },
        pictures=[_draw(context, found)],
    )


def _rows(
    context: Context, budget: Budget, found: dict[float, Any], compiled: int
) -> list[Row]:
    def errors(each: dict[str, Any], name: str) -> str:
        return f"{name} " + ", ".join(_said(e) for e in each["rmse"][name])

    def after(each: dict[str, Any], name: str) -> str:
        return f"{name} {_said(each['source_rmse_after'][name][SHOWN])}"

    sizes = ", ".join(map(str, SIZES))
    first = found[budget.distances[0]]
    best = first["rmse_at_the_best_step"][SCRATCH][SHOWN]
    exact = all(each["bit_identical"] for each in found.values())
    return [
        Row(
            f"a target is learned from {sizes} samples, at distance d of the source "
            "(the paper's own figures were not available)",
            f"RMSE, mean and 95% interval of {context.seeds} seeds (noise alone: 1). "
            + "; ".join(
                f"d = {d:g}: " + "; ".join(errors(each, n) for n in each["rmse"])
                for d, each in found.items()
            ),
        ),
        Row(
            f"with {SIZES[SHOWN]} samples better than from scratch",
            f"d = {budget.distances[0]:g}: {_said(first['rmse'][PAC][SHOWN])} and "
            f"{_said(first['rmse'][SCRATCH][SHOWN])}, which at the best of its steps "
            f"in hindsight is {_said(best)}; the source's network as it is "
            f"{_said(first['source_on_target'])}",
        ),
        Row(
            "the source is kept",
            f"PAC-Net's predictions {'bit-identical' if exact else 'CHANGED'} after "
            f"the target; RMSE on the source after {SIZES[SHOWN]} samples of it: "
            + "; ".join(
                f"d = {d:g}: "
                + ", ".join(after(each, n) for n in KEPT)
                + f" (before: {_said(each['source_rmse'][TUNED])}; pruned "
                f"{_said(each['pruned_rmse'])}, retrained "
                f"{_said(each['source_rmse'][PAC])})"
                for d, each in found.items()
            ),
        ),
        Row(
            "all goes through one compiled program",
            f"training on the target compiled {compiled} time"
            f"{'' if compiled == 1 else 's'} for {len(found)} distance"
            f"{'' if len(found) == 1 else 's'}, {len(SIZES)} sizes, "
            f"{len(first['rmse'])} methods and {context.seeds} seeds",
        ),
    ]


def _programs(budget: Budget) -> Programs:
    model = _train.MLP(WIDTHS)

    def predict(params: Any, x: jax.Array) -> Any:
        return model.apply({"params": params}, x)

    def error(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.mean((predict(params, x) - y) ** 2))

    def fit(
        start: Start,
        x: jax.Array,
        y: jax.Array,
        places: jax.Array,
        count: jax.Array,
        rate: optax.ScalarOrSchedule,
        look: Callable[[Any], Any],
    ) -> tuple[Any, Any]:
        """Parameters, and looks at them; `places` are [looks, steps, B] in [0, 1)."""
        optimizer = optax.chain(optax.adam(rate), optim.mask_updates(start.mask))

        def step(carry: Any, places: jax.Array) -> tuple[Any, None]:
            params, opt_state = carry
            rows = jnp.minimum((places * count).astype(jnp.int32), count - 1)

            def loss(params: Any) -> jax.Array:
                far = pacnet.l2_sp(params, start.anchor, start.mask, lam=start.lam)
                return jnp.mean((predict(params, x[rows]) - y[rows]) ** 2) + far

            gradients = jax.grad(loss)(params)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        def stretch(carry: Any, places: jax.Array) -> tuple[Any, Any]:
            carry, _ = lax.scan(step, carry, places)
            return carry, look(carry[0])

        begun = start.params, optimizer.init(start.params)
        (params, _), seen = lax.scan(stretch, begun, places)
        return params, seen

    def on_source(steps: int) -> Callable[..., Any]:
        rate = optax.cosine_decay_schedule(RATE, steps)
        return lambda start, x, y, places: fit(
            start, x, y, places, jnp.int32(SOURCE), rate, lambda _: None
        )[0]

    def on_target(
        start: Start, few: Pair, places: Any, count: jax.Array, test: Pair
    ) -> Any:
        look = lambda params: error(params, *test)  # noqa: E731
        return fit(start, *few, places, count, RATE, look)

    again = jax.vmap(on_source(budget.again))
    target = jax.vmap(on_target, in_axes=(0, 0, 0, None, 0))
    return Programs(
        jax.jit(jax.vmap(on_source(budget.source))),
        jax.jit(jax.vmap(again, in_axes=(0, None, None, None))),
        jax.jit(jax.vmap(target, in_axes=(0, *[None] * 4))),
        jax.jit(jax.vmap(error)),
        jax.jit(jax.vmap(predict)),
    )


def _transfer(
    context: Context, budget: Budget, programs: Programs, which: int
) -> dict[str, Any]:
    """Errors [size, S] at one distance, in the unit of the data."""
    distance = budget.distances[which]
    rng = np.random.default_rng(which)
    sets = _sets(context.seeds, distance)
    nets = _source_networks(budget, programs, sets, rng)
    starts = _starts(nets, _initial(context.seeds, rng))
    source = pacnet.source(nets.allocated[PAC])
    said = programs.predict(source, sets.held_out[0])

    def error(params: Any, data: Pair) -> np.ndarray:
        return np.asarray(programs.error(params, *data)) * sets.unit

    last, best, after, same = [], [], [], []
    for i in context.track(f"pacnet: distance {distance:g}", len(SIZES)):
        where = _places(rng, context.seeds, budget.target, LOOKS, BATCH)
        given = _stacked(list(starts.values())), sets.few, where
        trained, seen = programs.target(*given, jnp.int32(SIZES[i]), sets.test)
        seen = np.asarray(seen) * sets.unit[:, None]
        last.append(seen[..., -1])
        best.append(seen.min(-1))
        each = dict(zip(starts, _unstacked(trained, len(starts)), strict=True))
        state = pacnet.calibrate(nets.allocated[PAC], each[PAC])
        each[PAC] = pacnet.source(state)
        same.append(np.array_equal(said, programs.predict(each[PAC], sets.held_out[0])))
        after.append([error(each[name], sets.held_out) for name in KEPT])

    def by_name(errors: list[Any], names: Any) -> dict[str, np.ndarray]:
        pairs = zip(names, zip(*errors, strict=True), strict=True)
        return {name: np.stack(each) for name, each in pairs}

    return {
        "rmse": by_name(last, starts),
        "rmse_at_the_best_step": by_name(best, starts),
        "source_on_target": error(nets.dense, sets.test),
        "source_rmse": {
            TUNED: error(nets.dense, sets.held_out),
            PAC: error(source, sets.held_out),
        },
        "pruned_rmse": error(nets.pruned.params, sets.held_out),
        "source_rmse_after": by_name(after, KEPT),
        "bit_identical": all(same),
    }


def _sets(seeds: int, distance: float) -> Sets:
    """A source, and samples, for each seed; values in the unit of the source's."""
    sources = [_friedman.source(distance, seed=seed) for seed in range(seeds)]
    targets = [_friedman.TARGET] * seeds

    def drawn(functions: list[_friedman.Coefficients], count: int, first: int) -> Any:
        samples = [
            _friedman.samples(f, count, seed=first + i) for i, f in enumerate(functions)
        ]
        x, y = (np.stack(each) for each in zip(*samples, strict=True))
        return (x - 0.5) * 12**0.5, y  # uniform numbers of mean 0 and variance 1

    x, y = drawn(sources, SOURCE + TEST, 1_000)
    mean, unit = (f(y[:, :SOURCE], (1, 2), keepdims=True) for f in (np.mean, np.std))

    def scaled(x: np.ndarray, y: np.ndarray) -> Pair:
        return jnp.asarray(x), jnp.asarray((y - mean) / unit)

    return Sets(
        scaled(x[:, :SOURCE], y[:, :SOURCE]),
        scaled(x[:, SOURCE:], y[:, SOURCE:]),
        scaled(*drawn(targets, max(SIZES), 2_000)),
        scaled(*drawn(targets, TEST, 3_000)),
        unit[:, 0, 0],
    )


def _source_networks(
    budget: Budget, programs: Programs, sets: Sets, rng: np.random.Generator
) -> Networks:
    """Trained on the source; then, for as long, all of it again and what is kept."""
    seeds = len(sets.unit)
    first = _initial(seeds, rng)
    where = _places(rng, seeds, budget.source, 1, SOURCE_BATCH)
    params = programs.source(_start(first), *sets.source, where)
    pruned = jax.jit(jax.vmap(lambda w: pacnet.prune(w, density=DENSITY)))(params)
    begun = _start(pruned.params, pruned.mask, pruned.anchor, LAM)
    both = _stacked([_start(params), begun])
    where = _places(rng, seeds, budget.again, 1, SOURCE_BATCH)
    dense, kept = _unstacked(programs.again(both, *sets.source, where), 2)
    allocated = {
        PAC: pacnet.allocate(pruned, kept),
        PAC_SOURCE: pacnet.allocate(pruned, kept, start="source"),
    }
    return Networks(dense, pruned, allocated)


def _starts(nets: Networks, fresh: Any) -> dict[str, Start]:
    """Where each method begins on the target."""
    starts = {
        SCRATCH: _start(fresh),
        TUNED: _start(nets.dense),
        L2_SP: _start(nets.dense, lam=LAM),
    }
    return starts | {n: _start(a.params, a.mask) for n, a in nets.allocated.items()}


def _start(
    params: Any, mask: Any = None, anchor: Any = None, lam: float = 0.0
) -> Start:
    """By default all trains. Masks get the parameters' shapes, so that they stack."""
    mask = jax.tree.map(lambda _: True, params) if mask is None else mask
    mask = jax.tree.map(lambda w, m: jnp.broadcast_to(m, w.shape), params, mask)
    anchor = params if anchor is None else anchor
    seeds = len(jax.tree.leaves(params)[0])
    return Start(params, mask, anchor, jnp.full(seeds, lam))


def _initial(seeds: int, rng: np.random.Generator) -> Any:
    """Glorot's uniform kernels, and biases of 0, [S, ...].

    By NumPy, as batches are: `jax.random` would take longer to compile.
    """
    widths = (_friedman.INPUTS, *WIDTHS)
    params = {}
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        bound = (6 / (a + b)) ** 0.5
        kernel = rng.uniform(-bound, bound, (seeds, a, b)).astype(np.float32)
        layer = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros((seeds, b))}
        params[f"Dense_{i}"] = layer
    return params


def _places(
    rng: np.random.Generator, seeds: int, steps: int, looks: int, size: int
) -> np.ndarray:
    """Batches as fractions of however many samples, [S, looks, steps / looks, B]."""
    return rng.random((seeds, looks, steps // looks, size), np.float32)


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstacked(tree: Any, count: int) -> list[Any]:
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


def _half(errors: np.ndarray) -> np.ndarray:
    """Half of the 95 % interval (Student's t) of the mean over the last axis."""
    seeds = errors.shape[-1]
    error = errors.std(-1, ddof=1) / seeds**0.5
    return stats.t.ppf(0.975, seeds - 1) * error


def _said(errors: np.ndarray) -> str:
    return f"{errors.mean():.2f} +- {_half(errors):.2f}"


def _draw(context: Context, found: dict[float, Any]) -> str:
    drawn = Figure(figsize=(3.8 * (1 + len(found)), 4.2), layout="constrained")
    *panels, last = drawn.subplots(1, 1 + len(found))
    drawn.suptitle(f"mean and 95% interval of {context.seeds} seeds; noise alone: 1")
    shifts = 1.04 ** np.arange(-2, 3)  # so that error bars do not hide one another
    for axes, (distance, each) in zip(panels, found.items(), strict=True):
        for i, (name, errors) in enumerate(each["rmse"].items()):
            line = {"linestyle": ":", "color": "C3"} if name == PAC_SOURCE else {}
            bars = errors.mean(-1), _half(errors)
            x = np.array(SIZES) * shifts[i]
            axes.errorbar(x, *bars, marker="o", markersize=3, label=name, **line)
        axes.axhline(1, color="gray", linestyle=":")
        axes.set_title(f"error on the target, d = {distance:g}")
    distance, each = next(iter(found.items()))
    for i, (name, errors) in enumerate(each["source_rmse_after"].items(), start=1):
        bars = errors.mean(-1), _half(errors)
        x = np.array(SIZES) * shifts[i]
        last.errorbar(x, *bars, marker="o", markersize=3, color=f"C{i}", label=name)
    before = each["source_rmse"][TUNED].mean()
    last.axhline(before, color="gray", linestyle="--", label="before, all weights")
    last.margins(y=0.3)  # for the legend
    last.set_title(f"error on the source after that, d = {distance:g}")
    for axes in (*panels, last):
        axes.set_xlabel("target samples")
        axes.set_xscale("log")
        axes.set_xticks(SIZES, map(str, SIZES))
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
    panels[0].set_ylabel("root mean squared error")
    return _pictures.save(drawn, context.out / "pacnet_rmse.png")


DEMO = Demo(
    "pacnet", "PAC-Net: few samples, and the source kept (Myung et al., 2022)", run
)
