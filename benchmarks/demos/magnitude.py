"""Train, remove the smallest weights, train on: magnitude pruning (Han et al., 2015).

Weights are ranked once, all layers together, and cut at several densities. What was
removed stays exactly zero while the rest is trained on. The control removes as many at
random.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _pictures, _train
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import algebra, masking, score, select

LEARNING_RATE = 1.2e-3  # Adam, as Frankle & Carbin (2019) train this network
SMALLER = 12  # the paper's factor for this network
FEW = 1.0, 0.1, 1 / SMALLER, 0.02
DENSITIES = FEW, FEW, (1.0, 0.5, 0.2, 0.1, 1 / SMALLER, 0.05, 0.02, 0.01)
STEPS = (200, 60), (500, 160), (1_000, 330)  # of training, of fine-tuning
MODEL = _train.MLP()
SETTINGS = {
    "network": "300-100",
    "optimizer": "adam, cosine",
    "learning_rate": LEARNING_RATE,
    "batch_size": _train.BATCH_SIZE,
    "scope": "global",
    "inputs": "0 to 1",
}
ROWS = {
    f"{SMALLER}x smaller at no loss of accuracy (300-100, MNIST)": "dense {dense:.1%}, "
    f"{SMALLER}x smaller {{at12[smallest_tuned]:.1%}}; as many removed at random "
    "{at12[random_tuned]:.1%}",
    "training on is what recovers the accuracy": "10% kept: {at10[smallest]:.1%}, "
    "fine-tuned {at10[smallest_tuned]:.1%}; 2% kept: {at2[smallest]:.1%}, fine-tuned "
    "{at2[smallest_tuned]:.1%}",
    "removed weights stay removed": "{removed_are_zero:all exactly 0|NOT all 0} after "
    "fine-tuning",
}
LABELS = {
    "smallest_tuned": "smallest removed, fine-tuned",
    "smallest": "smallest removed",
    "random_tuned": "random ones removed, fine-tuned",
}


def run(context: Context) -> Outcome:
    """Accuracy against density, before and after fine-tuning, and for random masks."""
    data = context.data.flat()
    densities = context.pick(DENSITIES)
    epochs, tuning = (_train.epochs_of(n, data.x_train) for n in context.pick(STEPS))
    draws, chance, order, tuning_order = jax.random.split(jax.random.key(0), 4)
    accuracy = _train.accuracy_of(_logits, data.x_test, data.y_test)

    def training(epochs: int) -> tuple[Any, Any]:
        """What makes members of parameters and masks, and what trains them."""
        optimizer = optax.adam(_train.cosine(LEARNING_RATE, epochs, data.x_train))
        start, step = _train.under_masks(_apply, optimizer)
        epoch = _train.epoch_of(step, data.x_train, data.y_train)
        return jax.jit(jax.vmap(start)), epoch

    start, epoch = training(epochs)
    params = _train.draw(
        lambda key: MODEL.init(key, data.x_train[:1])["params"],
        jax.random.split(draws, context.seeds),
    )
    states = start(params, jax.vmap(masking.everything)(params))
    track = context.track("magnitude: dense networks", epochs)
    params = _train.epochs_by(epoch, states, track, key=order).params
    dense = np.asarray(accuracy(states._replace(params=params)))

    start, epoch = training(tuning)
    scores = {
        "smallest": jax.vmap(score.magnitude)(params),
        "random": _train.draw(
            lambda params, key: score.random(params, key=key),
            params,
            jax.random.split(chance, context.seeds),
        ),
    }
    found = {name: [] for which in scores for name in (which, f"{which}_tuned")}
    kept, zero = [], True
    for density in context.track("magnitude: fine-tuning at density", densities):
        for which, worth in scores.items():
            states = start(params, _highest(worth, jnp.float32(density)))
            found[which].append(accuracy(states))
            states = _train.epochs_by(epoch, states, range(tuning), key=tuning_order)
            found[f"{which}_tuned"].append(accuracy(states))
            count, rest = _kept_and_removed(states)
            zero &= not rest.any()
        kept.append(int(count[0]))

    found = {name: np.stack(values) for name, values in found.items()}
    numbers = {"densities": densities, "kept": kept, "removed_are_zero": zero}
    numbers |= {"dense": dense, **found}
    at = {
        name: {which: v[densities.index(d)] for which, v in found.items()}
        for name, d in {"at12": 1 / SMALLER, "at10": 0.1, "at2": 0.02}.items()
    }
    return Outcome(
        rows=rows(ROWS, **numbers, **at),
        settings=SETTINGS | {"epochs": epochs, "fine_tuning_epochs": tuning},
        numbers=numbers,
        pictures=[_draw(context, densities, found, dense)],
    )


def _apply(params: Any, x: jax.Array) -> jax.Array:
    return MODEL.apply({"params": params}, x)


def _logits(member: _train.Member, x: jax.Array) -> jax.Array:
    return _apply(member.params, x)


@jax.jit
def _highest(scores: Any, density: jax.Array) -> Any:
    """The density is an argument, so that one program serves all of them."""
    return jax.vmap(
        lambda scores: select.top_k(scores, density=density, scope="global")
    )(scores)


@jax.jit
@jax.vmap
def _kept_and_removed(member: _train.Member) -> tuple[jax.Array, jax.Array]:
    """How many weights the mask keeps, and the largest of those that it does not."""
    removed = _train.largest_removed(member.params, member.rest)
    return algebra.count(member.rest), removed


def _draw(
    context: Context,
    densities: tuple[float, ...],
    found: dict[str, np.ndarray],
    dense: np.ndarray,
) -> str:
    figure, axes = _pictures.figure(
        f"Magnitude pruning of a 300-100 network, {context.data.name}"
    )
    axes.axhline(dense.mean(), color="black", linestyle=":", label="dense")
    axes.axvline(1 / SMALLER, color="gray", linestyle="--", label=f"{SMALLER}x smaller")
    for name, label in LABELS.items():
        _pictures.band(axes, densities, found[name], label)
    _pictures.density_axis(axes, [d for d in densities if d != 1 / SMALLER])
    _pictures.accuracy_axis(axes, context.seeds)
    axes.legend(loc="lower right")
    return _pictures.save(figure, context.out / "magnitude_density.png")


DEMO = Demo("magnitude", "magnitude pruning (Han et al. 2015)", run, seconds=15)
