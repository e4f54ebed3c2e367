"""What makes a lottery ticket: criteria, signs and zeros (Zhou et al., 2019).

Networks are trained once. Every criterion of the paper then cuts masks at several
densities. Under them networks are tested with their initial weights, never trained, and
are trained again. One mask is trained again from other starts, and with other values in
place of the weights that it removes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import maskjax
from benchmarks import _pictures, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import algebra, masking, select, stacking
from maskjax.recipes import deconstructing

LEARNING_RATE = 1.2e-3  # Adam, as in the paper
RATES = (0.2, 0.2, 0.1)  # of each layer in a round, as in the paper
ALL = (0, 1, 2, 3, 4, 6, 8, 10, 12, 15, 18, 21, 24)
ROUNDS = ALL, (0, 2, 4, 8, 12, 18), ALL
ROUND = 12  # of what is trained again: 7 % of this network
AGAIN = ("large_final", "magnitude_increase", "movement", "random", "small_final")
SIGNED = "large_final_same_sign"  # with constants, the best without training
STEPS = (200, 30), (300, 60), (1_000, 250)  # of training, of training again
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
SETTINGS = {
    "network": "300-100",
    "weights": "Glorot normal",
    "biases": "0 at first, trained, never masked",
    "optimizer": "adam",
    "learning_rate": LEARNING_RATE,
    "batch_size": _train.BATCH_SIZE,
    "rates": RATES,
    "round_of_starts": ROUND,
    "masks": "cut at once from one training",
    "inputs": "0 to 1",
}


def run(context: Context) -> Outcome:
    """Masks of every criterion, with and without training, and other starts."""
    data = context.data.flat()
    epochs, epochs_again = (
        _train.epochs_of(n, data.x_train) for n in context.pick(STEPS)
    )
    draws, chance, order, order_again = jax.random.split(jax.random.key(0), 4)
    accuracy = _train.accuracy_of(MODEL.logits, data.x_test, data.y_test)
    optimizer = optax.adam(LEARNING_RATE)
    # What a mask removes is held where it starts; both belong to the member.
    begin = jax.jit(
        jax.vmap(lambda start, mask: _train.begin(optimizer, start, (mask, start)))
    )
    step = _train.descend(_loss, optimizer)
    epoch = _train.epoch_of(step, data.x_train, data.y_train)

    draws, keys = (jax.random.split(key, context.seeds) for key in (draws, chance))
    initial = _train.draw(lambda key: MODEL.fresh(key, data.x_train), draws)
    alive = jax.vmap(masking.everything)(initial)
    track = context.track("deconstructing: dense networks", epochs)
    states = _train.epochs_by(epoch, begin(initial, alive), track, key=order)
    trained = initial, states.params
    masks, numbers = _supermasks(context, data, accuracy, (*trained, alive, keys))

    runs = {"everything": (initial, alive)}
    for name in AGAIN:
        mask = masks[ROUND][name]
        runs[f"{name}, round {ROUND}"] = _masked(initial, mask), mask
    mask = masks[ROUND]["large_final"]
    for name, start in _train.draw(_starts, *trained, mask, keys).items():
        runs[name] = start, mask
    again = {}
    for name in context.track("deconstructing: trained again", runs):
        states = begin(*runs[name])
        states = _train.epochs_by(epoch, states, range(epochs_again), key=order_again)
        again[name] = np.asarray(accuracy(_masked(states.params, *states.rest)))

    numbers |= {"dense": np.asarray(accuracy(trained[1])), "trained_again": again}
    settings = SETTINGS | {"epochs": epochs, "epochs_again": epochs_again}
    return Outcome(
        rows("deconstructing", **_compared(context, numbers)),
        settings,
        numbers,
        [_draw_masks(context, numbers)],
    )


# Where a tree of other values is given, they are in place of what is removed.
_masked = jax.jit(jax.vmap(maskjax.apply))


def _loss(params: Any, held: Any, x: Array, y: Array) -> Array:
    mask, start = held
    return _train.cross_entropy(MODEL.logits(maskjax.apply(params, mask, start), x), y)


@jax.jit
@jax.vmap
def _constants(initial: Any, mask: Any) -> Any:
    """Weights of one size in each layer under a mask, with their initial signs."""
    key = jax.random.key(0)  # of no use where signs stay
    return deconstructing.restart(initial, initial, mask, kept="constant", key=key)


def _starts(initial: Any, final: Any, mask: Any, key: Array) -> dict[str, Any]:
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


def _supermasks(context: Context, data: Data, on_test: Any, trained: Any) -> Any:
    """Masks by round and criterion, and how untrained networks do under them."""
    initial, _, alive, _ = trained
    table = _train.draw(lambda *x: deconstructing.scores(*x[:3], key=x[3]), *trained)
    on_train = _train.accuracy_of(MODEL.logits, data.x_train, data.y_train)
    stack = stacking.stack(list(table.values()))
    masks, densities, seen = {}, [], []
    weights = {name: [] for name in table}
    constants = {name: [] for name in (SIGNED, "large_final")}
    for r in context.track("deconstructing: supermasks", context.pick(ROUNDS)):
        cut = stacking.unstack(_cut(stack, alive, _rates(r)))
        masks[r] = cut = dict(zip(table, cut, strict=True))
        for name, mask in cut.items():
            weights[name].append(on_test(_masked(initial, mask)))
        for name, values in constants.items():
            values.append(on_test(_constants(initial, cut[name])))
        seen.append(on_train(_constants(initial, cut[SIGNED])))
        densities.append(float(algebra.density(cut[SIGNED])))
    return masks, {
        "densities": densities,
        "untrained": {name: np.stack(values) for name, values in weights.items()},
        "constants": {name: np.stack(values) for name, values in constants.items()},
        "constants_on_train": np.stack(seen),
    }


def _compared(context: Context, numbers: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of them."""
    again, untrained = numbers["trained_again"], numbers["untrained"]
    again = again | {TICKET: again[f"large_final, round {ROUND}"]}
    best = int(numbers["constants_on_train"].mean(1).argmax())
    signs = {
        sign: {kept: again[f"{kept}, {sign} sign"] for kept in KEPT}
        for sign in ("original", "random")
    }
    return signs | {
        "kept": numbers["densities"][context.pick(ROUNDS).index(ROUND)],
        "by_name": {name: again[f"{name}, round {ROUND}"] for name in AGAIN},
        "everything": again["everything"],
        "signed": numbers["constants"][SIGNED][best],
        "density": numbers["densities"][best],
        "initial": {n: untrained[n][best] for n in (SIGNED, "large_final", "random")},
        "ticket": again[TICKET],
        "freeze_init": again["freeze_init"],
        "mask": [again[SHRUNK[0] + way] for way in CONTROLS],
        "all": [again[SHRUNK[1] + way] for way in CONTROLS],
    }


def _draw_masks(context: Context, numbers: dict[str, Any]) -> str:
    """Accuracy of every criterion; and what signs and constants add to one."""
    title = f"Masks on weights that were never trained, {context.data.name}"
    drawn, (each, added) = _pictures.page(title, 2, size=(11, 5.4))
    densities = numbers["densities"]
    how = {"density": (0.01, 0.03, 0.1, 0.3, 1), "legend": "below"}
    how["xlim"] = (0.9 * min(densities), 1.1)
    found = {name: numbers["untrained"][name] for name in AGAIN}
    levels = {"trained, no mask": numbers["dense"]}
    _pictures.curves(each, densities, found, levels=levels, seeds=context.seeds, **how)
    variants = {f"{n}, signed constants": x for n, x in numbers["constants"].items()}
    variants |= {SIGNED: numbers["untrained"][SIGNED]}
    more = {name: 100 * (x - found["large_final"]) for name, x in variants.items()}
    how["ylabel"] = "points more than large_final: mean and range"
    _pictures.curves(added, densities, more, **how)
    return _pictures.save(drawn, context, "deconstructing_supermasks")


DEMO = Demo(
    "deconstructing", "lottery tickets taken apart (Zhou et al. 2019)", run, seconds=9
)
