"""A target learned from few samples, its source kept: PAC-Net (Myung et al., 2022).

Friedman's function from 10 to 300 samples, after a relative of it from 10,000. PAC-Net
prunes the source's network, retrains what is kept and gives the rest to the target. It
is shown beside training from scratch, fine-tuning all weights, and fine-tuning with a
penalty on the distance from the source's (L2-SP): same network, same steps for all, on
the source and on the target.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _friedman, _pictures, _train
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import optim, stacking
from maskjax.recipes import pacnet

WIDTHS, RATE = (64, 64, 1), 1e-3
DENSITY, LAM = 0.2, 0.01
SOURCE, TEST, SIZES = 10_000, 2_000, (10, 30, 100, 300)
SOURCE_BATCH, BATCH = 128, 32
DISTANCE = 1.0  # of the source
SHOWN = 1  # which of SIZES the table tells most of
SCRATCH, TUNED, L2_SP, PAC = "from scratch", "fine-tuning", "L2-SP", "PAC-Net"
KEPT = (TUNED, L2_SP, PAC)  # what had a source to forget
Pair = tuple[jax.Array, jax.Array]


class Budget(NamedTuple):
    """Steps of each training."""

    source: int
    again: int
    target: int


BUDGETS = Budget(300, 150, 100), Budget(1_500, 750, 400), Budget(3_000, 1_500, 600)
SETTINGS = {
    "data": "Friedman #1 and relatives (Pardoe & Stone, 2010), noise of 1",
    "distance": DISTANCE,
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


class Start(NamedTuple):
    """Where a training begins, what it may change, and what pulls it back."""

    params: Any  # [S, ...]
    mask: Any  # True trains, of the parameters' shapes
    anchor: Any  # the squared distance from it, times `lam`, is part of the loss
    lam: jax.Array


class Sets(NamedTuple):
    """Samples: inputs and values [S, N, ...], scaled."""

    source: Pair  # to train on
    held_out: Pair  # of the source, to be judged by
    few: Pair  # of the target, to train on the first of them
    test: Pair  # of the target
    unit: np.ndarray  # [S], what a scaled value of 1 is


def run(context: Context) -> Outcome:
    """All methods, sizes and seeds side by side."""
    budget, seeds = context.pick(BUDGETS), context.seeds
    found = _transfer(seeds, budget, context.track("pacnet", SIZES))
    errors = found["rmse"]
    after = {name: found["source_rmse_after"][name][SHOWN] for name in KEPT} | {
        "before": found["source_rmse"][TUNED],
        "pruned": found["pruned_rmse"],
        "retrained": found["source_rmse"][PAC],
    }
    steps = {
        "source": budget.source,
        "source, again or what is kept": budget.again,
        "target": budget.target,
    }
    return Outcome(
        rows=rows(
            "pacnet",
            d=DISTANCE,
            rmse={name: list(each) for name, each in errors.items()},
            exact=found["bit_identical"],
            after=after,
            source=found["source_on_target"],
            pac=errors[PAC][SHOWN],
            scratch=errors[SCRATCH][SHOWN],
            sizes=len(SIZES),
            seeds=seeds,
            methods=len(errors),
            compiled=found["compiled"],
            few=SIZES[SHOWN],
        ),
        settings=SETTINGS | {"seeds": seeds, "steps": steps},
        numbers={"distances": {str(DISTANCE): found}, "compiled": found["compiled"]},
        pictures=[_draw(context, found)],
    )


_predict = _train.MLP(WIDTHS).logits


def _error(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean((_predict(params, x) - y) ** 2))


def _fit(start: Start, data: Pair, places: Any, count: Any, rate: Any) -> Any:
    """Parameters; `places` are [steps, B] in [0, 1)."""
    optimizer = optax.chain(optax.adam(rate), optim.mask_updates(start.mask))

    def loss(params: Any, start: Start, x: jax.Array, y: jax.Array) -> jax.Array:
        far = pacnet.l2_sp(params, start.anchor, start.mask, lam=start.lam)
        return jnp.mean((_predict(params, x) - y) ** 2) + far

    step = _train.descend(loss, optimizer)
    rows = jnp.minimum((places * count).astype(jnp.int32), count - 1)
    begun = _train.begin(optimizer, start.params, start)
    return _train.scan(step, begun, rows, *data)[0].params


def _on_source(start: Start, data: Pair, places: Any) -> Any:
    """Parameters, with a learning rate that falls to 0."""
    rate = optax.cosine_decay_schedule(RATE, len(places))
    return _fit(start, data, places, jnp.int32(SOURCE), rate)


def _on_target(start: Start, few: Pair, places: Any, count: Any) -> Any:
    return _fit(start, few, places, count, RATE)


_learn = jax.jit(jax.vmap(_on_source))
_learn_both = jax.jit(jax.vmap(jax.vmap(_on_source), in_axes=(0, None, None)))
_errors, _values = jax.jit(jax.vmap(_error)), jax.jit(jax.vmap(_predict))
_prune = jax.jit(jax.vmap(lambda params: pacnet.prune(params, density=DENSITY)))


def _transfer(seeds: int, budget: Budget, sizes: Iterable[int]) -> dict[str, Any]:
    """Errors [size, S], in the unit of the data."""
    # One program for all sizes and methods: [methods, seeds].
    each_seed = jax.vmap(_on_target, in_axes=(0, 0, 0, None))
    train = jax.jit(jax.vmap(each_seed, in_axes=(0, None, None, None)))
    rng, sets = np.random.default_rng(0), _sets(seeds)
    dense, pruned, kept = _sources(rng, seeds, budget, sets)
    allocated = pacnet.allocate(pruned, kept)
    starts = {SCRATCH: _start(_fresh(rng, seeds)), TUNED: _start(dense)}
    starts |= {L2_SP: _start(dense, lam=LAM)}
    starts |= {PAC: _start(allocated.params, allocated.mask)}
    source = pacnet.source(allocated)
    said = _values(source, sets.held_out[0])

    def error(params: Any, data: Pair) -> np.ndarray:
        return np.asarray(_errors(params, *data)) * sets.unit

    on_target, after, same = [], [], []
    for size in sizes:
        where = _places(rng, seeds, budget.target, BATCH)
        given = stacking.stack(list(starts.values())), sets.few, where
        trained = stacking.unstack(train(*given, jnp.int32(size)))
        on_target.append([error(params, sets.test) for params in trained])
        each = dict(zip(starts, trained, strict=True))
        each[PAC] = pacnet.source(pacnet.calibrate(allocated, each[PAC]))
        again = _values(each[PAC], sets.held_out[0])
        same.append(_train.same_bits(said, again))
        after.append([error(each[name], sets.held_out) for name in KEPT])

    def by_name(errors: list[Any], names: Any) -> dict[str, np.ndarray]:
        return dict(zip(names, np.stack(errors, axis=1), strict=True))

    before = {TUNED: dense, PAC: source}
    return {
        "rmse": by_name(on_target, starts),
        "source_on_target": error(dense, sets.test),
        "source_rmse": {n: error(w, sets.held_out) for n, w in before.items()},
        "pruned_rmse": error(pruned.params, sets.held_out),
        "source_rmse_after": by_name(after, KEPT),
        "bit_identical": all(same),
        "compiled": train._cache_size(),
    }


def _sources(rng: Any, seeds: int, budget: Budget, sets: Sets) -> tuple[Any, Any, Any]:
    """Trained on the source; pruned; and trained as long again: all, and the kept."""
    first = _start(_fresh(rng, seeds))
    where = _places(rng, seeds, budget.source, SOURCE_BATCH)
    params = _learn(first, sets.source, where)
    pruned = _prune(params)
    begun = _start(pruned.params, pruned.mask, pruned.anchor, LAM)
    where = _places(rng, seeds, budget.again, SOURCE_BATCH)
    both = _learn_both(stacking.stack([_start(params), begun]), sets.source, where)
    dense, kept = stacking.unstack(both)
    return dense, pruned, kept


def _fresh(rng: np.random.Generator, seeds: int) -> Any:
    return _train.glorot(rng, (_friedman.INPUTS, *WIDTHS), seeds)


def _places(rng: np.random.Generator, seeds: int, steps: int, size: int) -> np.ndarray:
    """Batches as fractions of however many samples, [S, steps, B]."""
    return rng.random((seeds, steps, size), np.float32)


def _sets(seeds: int) -> Sets:
    """A source, and samples, for each seed; values in the unit of the source's."""
    sources = [_friedman.source(DISTANCE, seed=seed) for seed in range(seeds)]
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


def _draw(context: Context, found: dict[str, Any]) -> str:
    """Errors on the target, and on the source after that."""
    seeds = f"mean and 95% interval of {context.seeds} seeds"
    title = f"PAC-Net on Friedman's function, {seeds}"
    drawn, both = _pictures.page(title, 2, size=(11, 4.5))
    shown = {"rmse": "on the target"}
    shown |= {"source_rmse_after": "on the source, after learning the target"}
    before = found["source_rmse"][TUNED].mean()
    both[1].axhline(before, color="gray", linestyle="--", label="before")
    for axes, (name, title) in zip(both, shown.items(), strict=True):
        first = len(found["rmse"]) - len(found[name])  # nothing is kept from scratch
        _pictures.errorbars(axes, SIZES, found[name], apart=1.04, first=first)
        axes.set(title=title, xlabel="target samples", xscale="log")
        axes.set_xticks(SIZES, map(str, SIZES))
        axes.minorticks_off()
    both[0].set_ylabel("root mean squared error (the noise alone: 1)")
    both[0].legend()
    _pictures.beside(both[1])
    return _pictures.save(drawn, context, "pacnet_rmse")


DEMO = Demo(
    "pacnet",
    "PAC-Net: few samples, and the source kept (Myung et al., 2022)",
    run,
    seconds=4,
)
