"""What makes a lottery ticket: criteria, signs and zeros (Zhou et al., 2019).

Networks are trained once. Every criterion of the paper then cuts masks at several
densities. Under them networks are tested with their initial weights, never trained, and
are trained again. One mask is trained again from other starts, and with other values in
place of the weights that it removes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import maskjax
from benchmarks import _pictures, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome, Row
from maskjax import algebra, masking, select, stacking
from maskjax.recipes import deconstructing

LEARNING_RATE = 1.2e-3  # Adam, as in the paper
RATES = (0.2, 0.2, 0.1)  # of each layer in a round, as in the paper
ROUNDS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 15, 18, 21, 24)
ROUNDS_AGAIN = (6, 12, 18)
ROUND = 12  # of other starts: 7 % of this network
AGAIN = ("large_final", "magnitude_increase", "movement", "random", "small_final")
SIGNED = "large_final_same_sign"  # with constants, the best without training
STEPS, QUICK_STEPS = (1_000, 250), (200, 30)  # of training, of training again
MODEL = _train.MLP(kernel_init=nn.initializers.glorot_normal())

KEPT = ("rewind", "reinit", "reshuffle", "constant")
SHRUNK = ("freeze_init_zero_mask", "freeze_init_zero_all")
CONTROLS = ("", "_reshuffle", "_rev")
STARTS = {
    f"{kept}, {sign} sign": {"kept": kept, "sign": sign}
    for sign in ("original", "random")
    for kept in KEPT
} | {
    removed: {"removed": removed}
    for removed in ("freeze_init", *(a + b for a in SHRUNK for b in CONTROLS))
}
TICKET = "rewind, original sign"  # and zeros for what is removed


class Member(NamedTuple):
    """One network in training; what its mask removes is held where it starts."""

    params: Any
    mask: Any
    start: Any
    opt_state: optax.OptState


def run(context: Context) -> Outcome:
    """Masks of every criterion, with and without training, and other starts."""
    data = context.data.flat()
    lengths = QUICK_STEPS if context.quick else STEPS
    epochs, epochs_again = (_train.epochs_of(n, data.x_train) for n in lengths)
    draws, chance, order, order_again = jax.random.split(jax.random.key(0), 4)
    accuracy = _train.accuracy_of(_logits, data.x_test, data.y_test)
    begin, epoch = _training(data)

    initial = _train.draw(
        lambda key: MODEL.init(key, data.x_train[:1])["params"],
        jax.random.split(draws, context.seeds),
    )
    alive = jax.vmap(masking.everything)(initial)
    states = begin(initial, alive)
    for i in context.track("deconstructing: dense networks", epochs):
        states, _ = epoch(states, jax.random.fold_in(order, i))
    trained = initial, states.params
    keys = jax.random.split(chance, context.seeds)
    table = _train.draw(_scores, *trained, alive, keys)
    masks, numbers = _supermasks(context, data, accuracy, initial, alive, table)

    runs = {"everything": (initial, alive)}
    for name in AGAIN:
        for r in ROUNDS_AGAIN:
            mask = masks[r][name]
            runs[f"{name}, round {r}"] = _masked(initial, mask), mask
    mask = masks[ROUND]["large_final"]
    for name, start in _train.draw(_starts, *trained, mask, keys).items():
        runs[name] = start, mask
    bar = context.track("deconstructing: trained again", len(runs) * epochs_again)
    again = {}
    for name, (start, mask) in runs.items():
        states = begin(start, mask)
        for i, _ in zip(range(epochs_again), bar, strict=False):
            states, _ = epoch(states, jax.random.fold_in(order_again, i))
        again[name] = np.asarray(accuracy(_effective(states)))
    next(bar, None)

    numbers |= {"dense": np.asarray(accuracy(trained[1])), "trained_again": again}
    return Outcome(
        rows=_rows(numbers),
        settings={
            "network": "300-100",
            "weights": "Glorot normal",
            "biases": "0 at first, trained, never masked",
            "optimizer": "adam",
            "learning_rate": LEARNING_RATE,
            "batch_size": _train.BATCH_SIZE,
            "epochs": epochs,
            "epochs_again": epochs_again,
            "rates": RATES,
            "rounds_again": ROUNDS_AGAIN,
            "round_of_starts": ROUND,
            "masks": "cut at once from one training",
            "inputs": "0 to 1",
        },
        numbers=numbers,
        pictures=[
            _draw_supermasks(context, numbers),
            _draw_criteria(context, numbers),
            _draw_starts(context, numbers),
        ],
    )


def _logits(params: Any, x: jax.Array) -> jax.Array:
    return MODEL.apply({"params": params}, x)


def _training(data: Data) -> tuple[Any, Any]:
    """What makes members of starts and masks, and what trains them an epoch."""
    optimizer = optax.adam(LEARNING_RATE)

    def begin(start: Any, mask: Any) -> Member:
        return Member(start, mask, start, optimizer.init(start))

    def step(member: Member, x: jax.Array, y: jax.Array) -> tuple[Member, jax.Array]:
        def loss(params: Any) -> jax.Array:
            params = maskjax.apply(params, member.mask, fill=member.start)
            return _train.cross_entropy(_logits(params, x), y)

        value, gradients = jax.value_and_grad(loss)(member.params)
        updates, opt_state = optimizer.update(gradients, member.opt_state)
        params = optax.apply_updates(member.params, updates)
        return member._replace(params=params, opt_state=opt_state), value

    epoch = _train.epoch_of(step, data.x_train, data.y_train)
    return jax.jit(jax.vmap(begin)), epoch


@jax.jit
@jax.vmap
def _effective(member: Member) -> Any:
    return maskjax.apply(member.params, member.mask, fill=member.start)


_masked = jax.jit(jax.vmap(maskjax.apply))


@jax.jit
@jax.vmap
def _constants(initial: Any, mask: Any) -> Any:
    """Weights of one size in each layer under a mask, with their initial signs."""
    key = jax.random.key(0)  # of no use where signs stay
    return deconstructing.restart(initial, initial, mask, kept="constant", key=key)


def _scores(initial: Any, final: Any, alive: Any, key: jax.Array) -> dict[str, Any]:
    return deconstructing.scores(initial, final, alive, key=key)


def _starts(initial: Any, final: Any, mask: Any, key: jax.Array) -> dict[str, Any]:
    return {
        name: deconstructing.restart(initial, final, mask, key=key, **how)
        for name, how in STARTS.items()
        if name != TICKET  # it is the large_final of `AGAIN`
    }


@jax.jit
def _cut(stack: Any, alive: Any, rates: Any) -> Any:
    """Masks of scores [C, K, ...]; rates are arguments, for one program."""
    drop = jax.vmap(lambda s, m: select.drop(s, m, rate=rates))
    return jax.vmap(drop, in_axes=(0, None))(stack, alive)


def _rates(r: int) -> Any:
    """What r rounds remove of each layer."""
    return {
        f"Dense_{i}": {"kernel": jnp.float32(1 - (1 - rate) ** r), "bias": None}
        for i, rate in enumerate(RATES)
    }


def _supermasks(
    context: Context,
    data: Data,
    on_test: Callable[[Any], jax.Array],
    initial: Any,
    alive: Any,
    table: dict[str, Any],
) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """Masks by round and criterion, and how untrained networks do under them."""
    on_train = _train.accuracy_of(_logits, data.x_train, data.y_train)
    stack = stacking.stack(list(table.values()))
    masks, densities = {}, []
    weights = {name: [] for name in table}
    constants, seen = {name: [] for name in (SIGNED, "large_final")}, []
    for i in context.track("deconstructing: supermasks", len(ROUNDS)):
        cut = stacking.unstack(_cut(stack, alive, _rates(ROUNDS[i])))
        cut = dict(zip(table, cut, strict=True))
        for name, mask in cut.items():
            weights[name].append(on_test(_masked(initial, mask)))
        for name, values in constants.items():
            values.append(on_test(_constants(initial, cut[name])))
        seen.append(on_train(_constants(initial, cut[SIGNED])))
        densities.append(float(algebra.density(cut[SIGNED])))
        if ROUNDS[i] in ROUNDS_AGAIN:
            masks[ROUNDS[i]] = cut
    # All of one sign, whatever their size: the "_single" of the criterion.
    single = jax.tree.map(lambda scores: scores > 0, table[SIGNED])
    return masks, {
        "densities": densities,
        "untrained": {name: np.stack(values) for name, values in weights.items()},
        "constants": {name: np.stack(values) for name, values in constants.items()},
        "constants_on_train": np.stack(seen),
        "single": on_test(_masked(initial, single)),
        "single_constants": on_test(_constants(initial, single)),
        "single_density": float(algebra.density(single)),
    }


def _rows(numbers: dict[str, Any]) -> list[Row]:
    def mean(values: Any) -> str:
        return f"{np.mean(values):.1%}"

    again = {name: mean(values) for name, values in numbers["trained_again"].items()}
    of_name = {name: again[f"{name}, round {ROUND}"] for name in AGAIN}
    again[TICKET] = of_name["large_final"]
    kept = f"{numbers['densities'][ROUNDS.index(ROUND)]:.1%} kept"
    best = int(numbers["constants_on_train"].mean(1).argmax())
    at_best = {name: mean(a[best]) for name, a in numbers["untrained"].items()}
    signs = {
        sign: ", ".join(f"{kept} {again[f'{kept}, {sign} sign']}" for kept in KEPT)
        for sign in ("original", "random")
    }
    mask, everywhere = ([again[name + way] for way in CONTROLS] for name in SHRUNK)
    return [
        Row(
            "weights that end large, or that grew, make tickets; small_final does not",
            f"{kept}, rewound, trained: "
            + ", ".join(f"{name} {found}" for name, found in of_name.items())
            + f"; all weights, trained as long: {again['everything']}",
        ),
        Row(
            f"a mask alone, no training: 86% on MNIST ({SIGNED}, signed constants)",
            f"{mean(numbers['constants'][SIGNED][best])} at density "
            f"{numbers['densities'][best]:.0%}, the best on training images; with the "
            f"initial values {at_best[SIGNED]}, large_final {at_best['large_final']}, "
            f"random {at_best['random']}; constants under all of one sign "
            f"{mean(numbers['single_constants'])}",
        ),
        Row(
            "signs matter, initial values do not: with their signs kept, other values "
            "train as well as rewound ones",
            f"{kept}, signs kept: {signs['original']}; signs at random: "
            f"{signs['random']}",
        ),
        Row(
            "0 is a good value for weights that shrank: freezing all at their initial "
            "value is worse than 0, freezing only those that grew is better",
            f"{kept}: 0 {again[TICKET]}, frozen {again['freeze_init']}, frozen unless "
            f"shrunk {mask[0]} (as many at random {mask[1]}, reverse {mask[2]}), kept "
            f"ones that shrank start at 0 too {everywhere[0]} ({everywhere[1]}, "
            f"{everywhere[2]})",
        ),
    ]


def _draw_supermasks(context: Context, numbers: dict[str, Any]) -> str:
    figure, axes = _pictures.figure(
        f"Masks on weights that were never trained, {context.data.name}"
    )
    figure.set_size_inches(9.5, 5.5)
    densities = numbers["densities"]
    axes.axhline(
        numbers["dense"].mean(), color="black", linestyle=":", label="trained, no mask"
    )
    for name, values in numbers["constants"].items():
        _pictures.band(axes, densities, values, f"{name}, signed constants")
    means = {name: values.mean(1) for name, values in numbers["untrained"].items()}
    best_first = sorted(means.items(), key=lambda item: -item[1].max())
    for place, (name, values) in enumerate(best_first):
        line, color = "-" if place < 7 else "--", f"C{2 + place % 7}"
        axes.plot(densities, values, line, color=color, label=name)
    _pictures.density_axis(axes, (0.01, 0.03, 0.1, 0.3, 1))
    _pictures.accuracy_axis(axes, context.seeds)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return _pictures.save(figure, context.out / "deconstructing_supermasks.png")


def _draw_criteria(context: Context, numbers: dict[str, Any]) -> str:
    figure, axes = _pictures.figure(
        f"Rewound and trained again, by criterion, {context.data.name}"
    )
    again = numbers["trained_again"]
    densities = [numbers["densities"][ROUNDS.index(r)] for r in ROUNDS_AGAIN]
    axes.axhline(
        again["everything"].mean(), color="black", linestyle=":", label="all weights"
    )
    for name in AGAIN:
        values = np.stack([again[f"{name}, round {r}"] for r in ROUNDS_AGAIN])
        _pictures.band(axes, densities, values, name)
    _pictures.density_axis(axes, [round(d, 3) for d in densities])
    _pictures.accuracy_axis(axes, context.seeds)
    axes.legend(loc="lower right")
    return _pictures.save(figure, context.out / "deconstructing_criteria.png")


def _draw_starts(context: Context, numbers: dict[str, Any]) -> str:
    figure, axes = _pictures.figure(
        f"One mask ({numbers['densities'][ROUNDS.index(ROUND)]:.1%}), trained again "
        f"from other starts, {context.data.name}"
    )
    figure.set_size_inches(8.5, 5)
    again = numbers["trained_again"]
    ticket = again[f"large_final, round {ROUND}"]
    values = {name: again.get(name, ticket) for name in STARTS}
    for place, found in enumerate(values.values()):
        color = f"C{min(place // len(KEPT), 2)}"  # by sign, and what is removed
        axes.plot([place] * 2, [found.min(), found.max()], color=color, alpha=0.4)
        axes.plot(place, found.mean(), "o", color=color)
    axes.axhline(ticket.mean(), color="black", linestyle=":")
    axes.set_xticks(range(len(values)), values, rotation=35, ha="right")
    _pictures.accuracy_axis(axes, context.seeds)
    return _pictures.save(figure, context.out / "deconstructing_starts.png")


DEMO = Demo("deconstructing", "lottery tickets taken apart (Zhou et al. 2019)", run)
