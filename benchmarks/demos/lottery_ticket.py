"""Train, remove the smallest, rewind: lottery tickets (Frankle & Carbin, 2019).

The searches of all trials run as one program. The masks that they find are then trained
from fresh parameters, and the first parameters are trained under random masks of the
same counts and under masks that were cut in one shot. A part of the training images is
held back for early stopping; test images are looked at only to report.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import _pictures, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax.recipes import lottery_ticket

TRIALS = 5, 3, 5  # 5 as in the paper
RATES = (0.2, 0.2, 0.1)  # of each layer, as in the paper
CONTROLLED = (3, 7), (3, 7), (3, 7, 12, 15)  # rounds with controls; the last is the end
LEARNING_RATE, BATCH_SIZE = 1.2e-3, 60  # Adam, as in the paper
# The paper's 50,000 iterations, validated every 100, are for 55,000 images.
IMAGES, ITERATIONS, EVERY, LEAST_EVERY = 55_000, 50_000, 100, 15
HELD_BACK = 12  # one of so many images, as in the paper
PARTS = 5, 5, 1  # of the iterations
MODEL = _train.MLP(kernel_init=nn.initializers.glorot_normal())
LABELS = {
    "tickets": "tickets",
    "reinit": "the same masks, fresh parameters",
    "random": "random masks of the same counts",
    "one_shot": "one-shot masks",
}
SETTINGS = {
    "network": "300-100",
    "kernels": "glorot normal",
    "optimizer": "adam, constant",
    "learning_rate": LEARNING_RATE,
    "batch_size": BATCH_SIZE,
    "rates": RATES,
    "scope": "leaf",
    "inputs": "0 to 1",
}
ROWS = {
    "the loss on held-back images is least 38% earlier than in the dense network, at "
    "21.1% of the weights": "at {density[7]:.1%}: iteration {stop:.0f}, dense "
    "{dense[iteration]:.0f}: {ahead:.0%} {is_ahead:earlier|LATER}",
    "2.51 times as early as the same masks on fresh parameters, and 0.5 points more "
    "accurate, at 21%": "at {density[7]:.1%}: {times:.2f} times as early, "
    "{points:+.2f} points (early {tickets[early][7]:.2%} and {reinit[early][1]:.2%}, "
    "dense {dense[early]:.2%}; in the end {tickets[end][7]:.2%} and "
    "{reinit[end][1]:.2%}, dense {dense[end]:.2%})",
    "one-shot masks do better than dense down to 5.2%": "points from dense at early "
    "stop, by density: {one_shot_gain:+.2f}",
    "removed weights stay removed, and each round takes a fifth (a tenth of the output "
    "layer)": "all {removed_are_zero:exactly|NOT} 0 after training; counts "
    "{counts_exact:exact|NOT exact}",
}
LATE_ROWS = {
    "0.3 points above dense at 13.5%, at early stop; up to 0.35 in the end": "at "
    "{density[9]:.1%}: {gain[early][9]:+.2f} at early stop, {gain[end][9]:+.2f} in the "
    "end; in the end at best {best:+.2f}, at {best_density:.1%}",
    "as accurate as dense at 3.6%, where fresh parameters are far below": "at "
    "{density[15]:.1%}, points from dense at early stop: {late_early:+.2f}; in the "
    "end: {late_end:+.2f}",
}


class Images(NamedTuple):
    """What to learn, what decides when to stop, and what is reported."""

    train: tuple[jax.Array, jax.Array]
    held_back: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


class Found(NamedTuple):
    """What a training reports: the curve of losses on what is held back, and the rest.

    The last is the largest of the removed weights, which should be 0.
    """

    losses: Any
    early: Any
    end: Any
    removed: Any


def run(context: Context) -> Outcome:
    """Tickets at every density, and the controls at some."""
    images = _split(context.data.flat())
    trials, controlled = context.pick(TRIALS), context.pick(CONTROLLED)
    # With fewer images both shrink, so that each is seen as often as in the paper.
    count = len(images.train[0])
    every = max(round(EVERY * count / IMAGES), LEAST_EVERY)
    iterations = ITERATIONS * count // IMAGES // context.pick(PARTS)
    length = max(iterations // every, 1), every
    keys = jax.random.split(jax.random.key(0), trials)
    bar = context.track("lottery ticket", list(LABELS))

    next(bar)
    search = jax.jit(jax.vmap(_search(length, controlled), in_axes=(0, 0, None)))
    initial = _initial(keys, images)
    trace, chosen, one_shot, random = search(initial, keys, images)
    found = {"tickets": _by_round(trace.metrics, every)}
    fresh = _initial(jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), images)
    starts = [(fresh, chosen), (initial, random), (initial, one_shot)]

    @jax.jit
    def retrained(params: Any, masks: Any, images: Images) -> Found:
        train = _trainer(images, *length)

        def one(params: Any, masks: Any, key: jax.Array) -> Found:
            return lottery_ticket.retrain(train, params, masks, key=key)[1]

        return jax.vmap(one)(params, masks, keys)

    for name, start in zip(bar, starts, strict=True):
        found[name] = _by_round(retrained(*start, images), every)

    counts, exact = _counts(trace.masks, trace.initial)
    density = counts.sum(1) / counts[0].sum()
    numbers = {
        "counts_exact": exact,
        "removed_are_zero": not any(f["removed"].any() for f in found.values()),
        "density": density,
        "counts": counts,
        "rounds_of_controls": controlled,
        **{
            name: {key: numbers[key] for key in ("end", "early", "iteration")}
            for name, numbers in found.items()
        },
    }
    drawn = context, found, density, controlled
    return Outcome(
        rows=rows(
            ROWS | (LATE_ROWS if 15 in controlled else {}),
            **_compared(found, density, controlled),
            **{key: numbers[key] for key in ("counts_exact", "removed_are_zero")},
        ),
        settings=SETTINGS
        | {
            "images": [len(part[0]) for part in images],
            "iterations": every * length[0],
            "validated_every": every,
            "rounds": controlled[-1],
            "trials": trials,
        },
        numbers=numbers,
        pictures=[
            _draw_accuracy(*drawn),
            _draw_iterations(*drawn),
            _draw_losses(*drawn, every),
        ],
    )


def _split(data: Data) -> Images:
    """The last twelfth of the training images is held back."""
    x, y = jnp.asarray(data.x_train), jnp.asarray(data.y_train)
    cut = len(x) - len(x) // HELD_BACK
    test = jnp.asarray(data.x_test), jnp.asarray(data.y_test)
    return Images((x[:cut], y[:cut]), (x[cut:], y[cut:]), test)


def _logits(params: Any, x: jax.Array) -> jax.Array:
    return MODEL.apply({"params": params}, x)


def _accuracy(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(_logits(params, x).argmax(-1) == y, dtype=jnp.float32)


def _trainer(images: Images, stretches: int, every: int) -> Any:
    """What `lottery_ticket.search` trains with: your own loop."""
    begin, step = _train.under_masks(_logits, optax.adam(LEARNING_RATE))

    def stretch(carry: Any, batches: jax.Array) -> tuple[Any, jax.Array]:
        member, best = carry
        member, _ = _train.scan(step, member, batches, *images.train)
        x, y = images.held_back
        now = _train.cross_entropy(_logits(member.params, x), y), member.params
        lower = now[0] < best[0]
        best = jax.tree.map(lambda a, b: jnp.where(lower, a, b), now, best)
        return (member, best), now[0]

    def train(params: Any, mask: Any, *, key: jax.Array) -> tuple[Any, Found]:
        carry = begin(params, mask), (jnp.float32(jnp.inf), params)
        order = _order(key, len(images.train[0]), every * stretches)
        order = order.reshape(stretches, every, BATCH_SIZE)
        ((params, *_), (_, best)), losses = lax.scan(stretch, carry, order)
        removed = _train.largest_removed(params, mask)
        early, end = (_accuracy(p, *images.test) for p in (best, params))
        return params, Found(losses, early, end, removed)

    return train


def _order(key: jax.Array, images: int, steps: int) -> jax.Array:
    """Shuffled epochs one after the other, cut into batches [steps, B]."""
    seen = steps * BATCH_SIZE
    keys = jax.random.split(key, -(-seen // images))
    epochs = lax.map(lambda key: jax.random.permutation(key, images), keys)
    return epochs.ravel()[:seen].reshape(steps, BATCH_SIZE)


def _initial(keys: jax.Array, images: Images) -> Any:
    return _train.draw(lambda key: MODEL.init(key, images.train[0][:1])["params"], keys)


def _search(length: tuple[int, int], controlled: tuple[int, ...]) -> Any:
    """A search, its masks with controls, and two kinds of others of the same counts."""
    rate = {
        f"Dense_{i}": {"kernel": rate, "bias": None} for i, rate in enumerate(RATES)
    }
    how, some = {"rounds": controlled[-1], "rate": rate}, np.array(controlled)

    def of_trial(params: Any, key: jax.Array, images: Images) -> Any:
        train = _trainer(images, *length)
        trace = lottery_ticket.search(train, params, key=key, **how)
        trained = jax.tree.map(lambda x: x[0], trace.final)
        shot = lottery_ticket.search(
            lambda params, mask, *, key: (params, None), trained, key=key, **how
        ).masks
        chosen, shot = jax.tree.map(lambda m: m[some], (trace.masks, shot))
        chance = jax.random.fold_in(key, 2)
        random = lottery_ticket.random_masks(chosen, mode="layerwise", key=chance)
        return trace._replace(final=None), chosen, shot, random

    return of_trial


def _by_round(metrics: Found, every: int) -> dict[str, np.ndarray]:
    """Each of [R, K]; the curve of losses [R, T, K]."""
    found = {k: np.moveaxis(v, 0, -1) for k, v in metrics._asdict().items()}
    return found | {"iteration": every * (1 + found["losses"].argmin(1))}


def _counts(masks: Any, initial: Any) -> tuple[np.ndarray, bool]:
    """The kept weights of each layer [R + 1, L]; whether they are as asked for.

    In every trial each round keeps a part of what the last one kept: all but
    round(rate * alive).
    """
    counts, exact = [], True
    for name, rate in zip(masks, RATES, strict=True):
        kept = np.asarray(masks[name]["kernel"])
        alive = [initial[name]["kernel"][0].size]
        while len(alive) < kept.shape[1]:
            alive.append(alive[-1] - int(rate * alive[-1] + 0.5))
        counts.append(kept[0].sum((1, 2)))
        exact &= bool((kept.sum((2, 3)) == alive).all())
        exact &= not (kept[:, 1:] & ~kept[:, :-1]).any()
    return np.stack(counts, -1), exact


def _compared(
    found: dict[str, Any], density: np.ndarray, controlled: tuple[int, ...]
) -> dict[str, Any]:
    """Means over trials, and their points from the dense network, for the table."""
    which = "early", "end", "iteration"
    means = {name: {w: f[w].mean(1) for w in which} for name, f in found.items()}
    dense = {w: means["tickets"][w][0] for w in which}
    gains = {
        name: {w: 100 * (mean[w] - dense[w]) for w in which}
        for name, mean in means.items()
    }
    stop, again = means["tickets"]["iteration"][7], means["reinit"]["iteration"][1]
    early, end = (
        {
            LABELS[name]: gain[w][15 if name == "tickets" else -1]
            for name, gain in gains.items()
        }
        if 15 in controlled
        else {}
        for w in ("early", "end")
    )
    best = int(means["tickets"]["end"].argmax())
    one_shot = zip(controlled, gains["one_shot"]["early"], strict=True)
    return means | {
        "density": density,
        "dense": dense,
        "gain": gains["tickets"],
        "stop": stop,
        "ahead": abs(1 - stop / dense["iteration"]),
        "is_ahead": stop < dense["iteration"],
        "times": again / stop,
        "points": gains["tickets"]["early"][7] - gains["reinit"]["early"][1],
        "one_shot_gain": {f"{density[r]:.1%}": gain for r, gain in one_shot},
        "late_early": early,
        "late_end": end,
        "best": gains["tickets"]["end"][best],
        "best_density": density[best],
    }


def _draw_accuracy(
    context: Context, found: Any, density: np.ndarray, controlled: tuple[int, ...]
) -> str:
    figure = _pictures.Figure(figsize=(12, 4.8), layout="constrained")
    figure.suptitle(f"Lottery tickets in a 300-100 network, {context.data.name}")
    titles = {"early": "at early stop", "end": "in the end"}
    for axes, (which, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        axes.set_title(title)
        axes.grid(visible=True, alpha=0.3)
        dense = found["tickets"][which][0].mean()
        axes.axhline(dense, color="black", linestyle=":", label="dense")
        _lines(axes, found, which, density, controlled)
        _pictures.accuracy_axis(axes, context.pick(TRIALS))
        low = min(f[which].mean(1).min() for n, f in found.items() if n != "random")
        axes.set_ylim(low - 0.2 * (dense - low), dense + 0.5 * (dense - low))
        axes.legend(loc="lower left")
    return _pictures.save(figure, context.out / "lottery_ticket_accuracy.png")


def _draw_iterations(
    context: Context, found: Any, density: np.ndarray, controlled: tuple[int, ...]
) -> str:
    title = f"Lottery tickets: when to stop, {context.data.name}"
    figure, axes = _pictures.figure(title)
    _lines(axes, found, "iteration", density, controlled)
    trials = context.pick(TRIALS)
    axes.set_ylabel(f"iteration of the least loss: mean and range of {trials}")
    axes.legend(loc="upper left")
    return _pictures.save(figure, context.out / "lottery_ticket_early_stop.png")


def _lines(
    axes: Any, found: Any, which: str, density: np.ndarray, controlled: tuple[int, ...]
) -> None:
    for name, label in LABELS.items():
        x = density if name == "tickets" else density[list(controlled)]
        _pictures.band(axes, x, found[name][which], label)
    _pictures.density_axis(axes, density[[0, *controlled]].round(3))
    axes.invert_xaxis()


def _draw_losses(
    context: Context,
    found: Any,
    density: np.ndarray,
    controlled: tuple[int, ...],
    every: int,
) -> str:
    title = f"Lottery tickets: loss on held-back images, {context.data.name}"
    figure, axes = _pictures.figure(title)
    dashed = {"linestyle": "--", "linewidth": 1}
    for i, r in enumerate((0, *controlled)):
        curve = found["tickets"]["losses"][r].mean(1)
        x, color = every * np.arange(1, 1 + len(curve)), f"C{i}"
        axes.plot(x, curve, color=color, label=f"{density[r]:.1%}" if r else "dense")
        if r:
            again = found["reinit"]["losses"][i - 1].mean(1)
            axes.plot(x, again, color=color, **dashed)
    axes.plot([], [], color="black", label=LABELS["reinit"], **dashed)
    label = f"mean of {context.pick(TRIALS)}"
    axes.set(xscale="log", yscale="log", xlabel="iteration", ylabel=label)
    axes.legend(loc="upper right")
    return _pictures.save(figure, context.out / "lottery_ticket_losses.png")


DEMO = Demo("lottery_ticket", "lottery tickets (Frankle & Carbin 2019)", run)
