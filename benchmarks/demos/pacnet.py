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

from benchmarks import _friedman, _pictures, _train
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import half, rows
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
KEPT = (TUNED, L2_SP, PAC)  # what had a source to forget
Pair = tuple[jax.Array, jax.Array]


class Budget(NamedTuple):
    """Distances of the sources, and steps of each training."""

    distances: tuple[float, ...]
    source: int
    again: int
    target: int


BUDGETS = (
    Budget((1.0,), 300, 150, 100),
    Budget((1.0,), 1_500, 750, 400),
    Budget((1.0, 2.0), 3_000, 1_500, 600),
)
SETTINGS = {
    "data": "Friedman #1 and relatives (Pardoe & Stone, 2010), noise of 1",
    "source_samples": SOURCE,
    "target_samples": SIZES,
    "network": "-".join(map(str, (_friedman.INPUTS, *WIDTHS))),
    "density": DENSITY,
    "scope": "global",
    "lambda": LAM,
    "optimizer": f"adam {RATE}; by a cosine to 0 on the source",
    "batch_size": {"source": SOURCE_BATCH, "target": BATCH},
    "stopping": "after a fixed number of steps, the same for all",
    "rmse": f"on {TEST:,} noisy samples; the noise alone has 1",
}
_SIZES = ", ".join(map(str, SIZES))
ROWS = {
    f"a target is learned from {_SIZES} samples, at distance d of the source (the "
    "paper's own figures were not available)": "RMSE, mean and 95% interval of {seeds} "
    "seeds (noise alone: 1). {rmse:.2f+-95}",
    f"with {SIZES[SHOWN]} samples better than from scratch": "d = {d:g}: "
    "{pac:.2f+-95} and {scratch:.2f+-95}, which at the best of its steps in hindsight "
    "is {best:.2f+-95}; the source's network as it is {source:.2f+-95}",
    "the source is kept": "PAC-Net's predictions {exact:bit-identical|CHANGED} after "
    f"the target; RMSE on the source after {SIZES[SHOWN]} samples of it: "
    "{after:.2f+-95}",
    "all goes through one compiled program": "times that training on the target "
    "compiled, for {sources} sources, {sizes} sizes, {methods} methods and {seeds} "
    "seeds: {compiled}",
}


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
    budget = context.pick(BUDGETS)
    programs = _programs(budget)
    found = {
        distance: _transfer(context, budget, programs, i)
        for i, distance in enumerate(budget.distances)
    }
    compiled = programs.target._cache_size()
    first = found[budget.distances[0]]
    return Outcome(
        rows=rows(
            ROWS,
            rmse={
                f"d = {d:g}:": {name: list(e) for name, e in each["rmse"].items()}
                for d, each in found.items()
            },
            d=budget.distances[0],
            pac=first["rmse"][PAC][SHOWN],
            scratch=first["rmse"][SCRATCH][SHOWN],
            best=first["rmse_at_the_best_step"][SCRATCH][SHOWN],
            source=first["source_on_target"],
            exact=all(each["bit_identical"] for each in found.values()),
            after={
                f"d = {d:g}:": {n: each["source_rmse_after"][n][SHOWN] for n in KEPT}
                | {"before": each["source_rmse"][TUNED]}
                | {"pruned": each["pruned_rmse"]}
                | {"retrained": each["source_rmse"][PAC]}
                for d, each in found.items()
            },
            sources=len(found),
            sizes=len(SIZES),
            methods=len(first["rmse"]),
            seeds=context.seeds,
            compiled=compiled,
        ),
        settings=SETTINGS
        | {
            "distances": budget.distances,
            "seeds": context.seeds,
            "steps": {
                "source": budget.source,
                "source, again or what is kept": budget.again,
                "target": budget.target,
            },
        },
        numbers={
            "distances": {str(d): each for d, each in found.items()},
            "compiled": compiled,
        },
        pictures=[_draw(context, found)],
    )


def _programs(budget: Budget) -> Programs:
    model = _train.MLP(WIDTHS)

    def predict(params: Any, x: jax.Array) -> Any:
        return model.apply({"params": params}, x)

    def error(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.mean((predict(params, x) - y) ** 2))

    def loss(params: Any, start: Start, x: jax.Array, y: jax.Array) -> jax.Array:
        far = pacnet.l2_sp(params, start.anchor, start.mask, lam=start.lam)
        return jnp.mean((predict(params, x) - y) ** 2) + far

    def fit(
        start: Start, x: Any, y: Any, places: Any, count: Any, rate: Any, look: Any
    ) -> tuple[Any, Any]:
        """Parameters, and looks at them; `places` are [looks, steps, B] in [0, 1)."""
        optimizer = optax.chain(optax.adam(rate), optim.mask_updates(start.mask))
        step = _train.descend(loss, optimizer)

        def stretch(member: _train.Member, places: jax.Array) -> tuple[Any, Any]:
            rows = jnp.minimum((places * count).astype(jnp.int32), count - 1)
            member, _ = _train.scan(step, member, rows, x, y)
            return member, look(member.params)

        begun = _train.begin(optimizer, start.params, start)
        member, seen = lax.scan(stretch, begun, places)
        return member.params, seen

    def on_source(steps: int) -> Callable[..., Any]:
        rate = optax.cosine_decay_schedule(RATE, steps)
        return lambda start, x, y, places: fit(
            start, x, y, places, jnp.int32(SOURCE), rate, lambda _: None
        )[0]

    def on_target(start: Start, few: Pair, places: Any, count: Any, test: Pair) -> Any:
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
    distance, seeds = budget.distances[which], context.seeds
    rng = np.random.default_rng(which)
    widths = (_friedman.INPUTS, *WIDTHS)
    sets = _sets(seeds, distance)

    def places(steps: int, looks: int, size: int) -> np.ndarray:
        """Batches as fractions of however many samples."""
        return rng.random((seeds, looks, steps // looks, size), np.float32)

    # Trained on the source; then, for as long, all of it again and what is kept.
    first = _start(_train.glorot(rng, widths, seeds))
    where = places(budget.source, 1, SOURCE_BATCH)
    params = programs.source(first, *sets.source, where)
    pruned = jax.jit(jax.vmap(lambda w: pacnet.prune(w, density=DENSITY)))(params)
    begun = _start(pruned.params, pruned.mask, pruned.anchor, LAM)
    where = places(budget.again, 1, SOURCE_BATCH)
    both = programs.again(_stacked([_start(params), begun]), *sets.source, where)
    dense, kept = _unstacked(both, 2)
    allocated = {
        PAC: pacnet.allocate(pruned, kept),
        PAC_SOURCE: pacnet.allocate(pruned, kept, start="source"),
    }
    starts = {
        SCRATCH: _start(_train.glorot(rng, widths, seeds)),
        TUNED: _start(dense),
        L2_SP: _start(dense, lam=LAM),
    } | {name: _start(each.params, each.mask) for name, each in allocated.items()}
    source = pacnet.source(allocated[PAC])
    said = programs.predict(source, sets.held_out[0])

    def error(params: Any, data: Pair) -> np.ndarray:
        return np.asarray(programs.error(params, *data)) * sets.unit

    last, best, after, same = [], [], [], []
    for size in context.track(f"pacnet: distance {distance:g}", SIZES):
        where = places(budget.target, LOOKS, BATCH)
        given = _stacked(list(starts.values())), sets.few, where
        trained, seen = programs.target(*given, jnp.int32(size), sets.test)
        seen = np.asarray(seen) * sets.unit[:, None]
        last.append(seen[..., -1])
        best.append(seen.min(-1))
        each = dict(zip(starts, _unstacked(trained, len(starts)), strict=True))
        state = pacnet.calibrate(allocated[PAC], each[PAC])
        each[PAC] = pacnet.source(state)
        again = programs.predict(each[PAC], sets.held_out[0])
        same.append(_train.same_bits(said, again))
        after.append([error(each[name], sets.held_out) for name in KEPT])

    def by_name(errors: list[Any], names: Any) -> dict[str, np.ndarray]:
        return dict(zip(names, np.stack(errors, axis=1), strict=True))

    return {
        "rmse": by_name(last, starts),
        "rmse_at_the_best_step": by_name(best, starts),
        "source_on_target": error(dense, sets.test),
        "source_rmse": {
            TUNED: error(dense, sets.held_out),
            PAC: error(source, sets.held_out),
        },
        "pruned_rmse": error(pruned.params, sets.held_out),
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


def _start(
    params: Any, mask: Any = None, anchor: Any = None, lam: float = 0.0
) -> Start:
    """By default all trains. Masks get the parameters' shapes, so that they stack."""
    mask = jax.tree.map(lambda _: True, params) if mask is None else mask
    mask = jax.tree.map(lambda w, m: jnp.broadcast_to(m, w.shape), params, mask)
    anchor = params if anchor is None else anchor
    seeds = len(jax.tree.leaves(params)[0])
    return Start(params, mask, anchor, jnp.full(seeds, lam))


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstacked(tree: Any, count: int) -> list[Any]:
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


def _draw(context: Context, found: dict[float, Any]) -> str:
    drawn = Figure(figsize=(3.8 * (1 + len(found)), 4.2), layout="constrained")
    *panels, last = drawn.subplots(1, 1 + len(found))
    drawn.suptitle(f"mean and 95% interval of {context.seeds} seeds; noise alone: 1")
    shifts = 1.04 ** np.arange(-2, 3)  # so that error bars do not hide one another
    for axes, (distance, each) in zip(panels, found.items(), strict=True):
        for i, (name, errors) in enumerate(each["rmse"].items()):
            line = {"linestyle": ":", "color": "C3"} if name == PAC_SOURCE else {}
            bars = errors.mean(-1), half(errors)
            x = np.array(SIZES) * shifts[i]
            axes.errorbar(x, *bars, marker="o", markersize=3, label=name, **line)
        axes.axhline(1, color="gray", linestyle=":")
        axes.set_title(f"error on the target, d = {distance:g}")
    distance, each = next(iter(found.items()))
    for i, (name, errors) in enumerate(each["source_rmse_after"].items(), start=1):
        bars = errors.mean(-1), half(errors)
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
