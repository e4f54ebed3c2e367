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
from jax import Array, lax

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
MEASURED = "end", "early", "iteration"
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


class Images(NamedTuple):
    """Images and labels to learn, to decide when to stop, and to report."""

    train: Any
    held_back: Any
    test: Any


class Found(NamedTuple):
    """What a training reports."""

    losses: Any  # the curve, on what is held back
    early: Any  # test accuracy where that was least
    end: Any
    removed: Any  # the largest of the removed weights, which should be 0


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

    def draw(key: Array) -> Any:
        return MODEL.fresh(key, images.train[0])

    next(bar)
    search = jax.jit(jax.vmap(_search(length, controlled), in_axes=(0, 0, None)))
    initial = _train.draw(draw, keys)
    trace, chosen, one_shot, random = search(initial, keys, images)
    found = {"tickets": _by_round(trace.metrics, every)}
    fresh = _train.draw(lambda key: draw(jax.random.fold_in(key, 1)), keys)
    starts = [(fresh, chosen), (initial, random), (initial, one_shot)]

    @jax.jit
    def retrained(params: Any, masks: Any, images: Images) -> Found:
        train = _trainer(images, *length)

        def one(params: Any, masks: Any, key: Array) -> Found:
            return lottery_ticket.retrain(train, params, masks, key=key)[1]

        return jax.vmap(one)(params, masks, keys)

    for name, start in zip(bar, starts, strict=True):
        found[name] = _by_round(retrained(*start, images), every)

    counts, exact = _counts(trace.masks, trace.initial)
    numbers = {
        "counts_exact": exact,
        "removed_are_zero": not any(f["removed"].any() for f in found.values()),
        "density": counts.sum(1) / counts[0].sum(),
        "counts": counts,
        "rounds_of_controls": controlled,
        **{name: {key: f[key] for key in MEASURED} for name, f in found.items()},
    }
    settings = SETTINGS | {
        "images": [len(part[0]) for part in images],
        "iterations": every * length[0],
        "validated_every": every,
        "rounds": controlled[-1],
        "trials": trials,
    }
    shown, late = _compared(numbers), ["lottery_ticket_late"] * (15 in controlled)
    return Outcome(
        [row for name in ("lottery_ticket", *late) for row in rows(name, **shown)],
        settings,
        numbers,
        [_draw_accuracy(context, numbers)],
    )


def _split(data: Data) -> Images:
    """The last twelfth of the training images is held back."""
    x, y, *test = map(jnp.asarray, data[1:])
    cut = len(x) - len(x) // HELD_BACK
    return Images((x[:cut], y[:cut]), (x[cut:], y[cut:]), tuple(test))


def _trainer(images: Images, stretches: int, every: int) -> Any:
    """What `lottery_ticket.search` trains with: your own loop."""
    begin, step = _train.under_masks(MODEL.logits, optax.adam(LEARNING_RATE))

    def stretch(carry: Any, batches: Array) -> tuple[Any, Array]:
        member, best = carry
        member, _ = _train.scan(step, member, batches, *images.train)
        x, y = images.held_back
        now = _train.cross_entropy(MODEL.logits(member.params, x), y), member.params
        lower = now[0] < best[0]
        best = jax.tree.map(lambda a, b: jnp.where(lower, a, b), now, best)
        return (member, best), now[0]

    def train(params: Any, mask: Any, *, key: Array) -> tuple[Any, Found]:
        carry = begin(params, mask), (jnp.float32(jnp.inf), params)
        how = len(images.train[0]), every * stretches
        order = _train.batches(key, *how, size=BATCH_SIZE)
        order = order.reshape(stretches, every, BATCH_SIZE)
        ((params, *_), (_, best)), losses = lax.scan(stretch, carry, order)
        removed = _train.largest_removed(params, mask)
        x, y = images.test
        early, end = (_train.accuracy(MODEL.logits(p, x), y) for p in (best, params))
        return params, Found(losses, early, end, removed)

    return train


def _search(length: tuple[int, int], controlled: tuple[int, ...]) -> Any:
    """A search, its masks with controls, and two kinds of others of the same counts."""
    rates = [{"kernel": rate, "bias": None} for rate in RATES]
    rate = {f"Dense_{i}": each for i, each in enumerate(rates)}
    how, some = {"rounds": controlled[-1], "rate": rate}, np.array(controlled)

    def stay(params: Any, mask: Any, *, key: Array) -> tuple[Any, None]:
        return params, None

    def of_trial(params: Any, key: Array, images: Images) -> Any:
        train = _trainer(images, *length)
        trace = lottery_ticket.search(train, params, key=key, **how)
        trained = jax.tree.map(lambda x: x[0], trace.final)
        shot = lottery_ticket.search(stay, trained, key=key, **how).masks
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


def _compared(numbers: dict[str, Any]) -> dict[str, Any]:
    """Means over trials, and their points from the dense network, for the table."""
    controlled, density = numbers["rounds_of_controls"], numbers["density"]
    means = {n: {w: numbers[n][w].mean(1) for w in MEASURED} for n in LABELS}
    tickets, again = means["tickets"], means["reinit"]
    dense = {w: values[0] for w, values in tickets.items()}
    gains = {
        name: {w: 100 * (mean[w] - dense[w]) for w in MEASURED}
        for name, mean in means.items()
    }
    late = {"early": {}, "end": {}}  # at round 15, which is the last that has controls
    for name, gain in gains.items() if 15 in controlled else ():
        for w, found in late.items():
            found[LABELS[name]] = gain[w][15 if name == "tickets" else -1]
    stop, best = tickets["iteration"][7], int(tickets["end"].argmax())
    one_shot = zip(controlled, gains["one_shot"]["early"], strict=True)
    return means | {
        "numbers": numbers,
        "density": density,
        "dense": dense,
        "gain": gains["tickets"],
        "stop": stop,
        "ahead": abs(1 - stop / dense["iteration"]),
        "is_ahead": stop < dense["iteration"],
        "times": again["iteration"][1] / stop,
        "points": gains["tickets"]["early"][7] - gains["reinit"]["early"][1],
        "one_shot_gain": {f"{density[r]:.1%}": gain for r, gain in one_shot},
        "late": late,
        "best": gains["tickets"]["end"][best],
        "best_density": density[best],
    }


def _draw_accuracy(context: Context, numbers: dict[str, Any]) -> str:
    """Each contestant by density."""
    title = f"Lottery tickets in a 300-100 network, {context.data.name}"
    figure, both = _pictures.page(title, 2, size=(11, 4.8), sharey=True)
    some = numbers["density"][[0, *numbers["rounds_of_controls"]]]
    x = dict.fromkeys(LABELS.values(), some[1:])
    x[LABELS["tickets"]] = numbers["density"]
    titles = {"early": "at early stop", "end": "in the end"}
    for axes, (which, title) in zip(both, titles.items(), strict=True):
        found = {label: numbers[name][which] for name, label in LABELS.items()}
        how = {"levels": {"dense": found[LABELS["tickets"]][0]}, "title": title}
        how |= {"density": some.round(3), "seeds": context.pick(TRIALS)}
        _pictures.curves(axes, x, found, legend="lower left", **how)
        axes.invert_xaxis()
    both[1].set_ylabel("")
    return _pictures.save(figure, context, "lottery_ticket_accuracy")


DEMO = Demo("lottery_ticket", "lottery tickets (Frankle & Carbin 2019)", run, seconds=8)
