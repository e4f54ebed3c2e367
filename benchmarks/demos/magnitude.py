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
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome, Row
from maskjax import algebra, masking, score, select

LEARNING_RATE = 1.2e-3  # Adam, as Frankle & Carbin (2019) train this network
SMALLER = 12  # the paper's factor for this network
DENSITIES = (1.0, 0.5, 0.2, 0.1, 1 / SMALLER, 0.05, 0.02, 0.01)
QUICK_DENSITIES = (1.0, 0.1, 1 / SMALLER, 0.02)
STEPS, QUICK_STEPS = (1_000, 330), (200, 60)  # of training, of fine-tuning
MODEL = _train.MLP()


def run(context: Context) -> Outcome:
    """Accuracy against density, before and after fine-tuning, and for random masks."""
    data = context.data.flat()
    densities = QUICK_DENSITIES if context.quick else DENSITIES
    epochs, tuning_epochs = (
        _train.epochs_of(steps, data.x_train)
        for steps in (QUICK_STEPS if context.quick else STEPS)
    )
    draws, chance, order, tuning_order = jax.random.split(jax.random.key(0), 4)
    accuracy = _train.accuracy_of(_logits, data.x_test, data.y_test)

    start, epoch = _training(data, epochs)
    params = _train.draw(
        lambda key: MODEL.init(key, data.x_train[:1])["params"],
        jax.random.split(draws, context.seeds),
    )
    states = start(params, jax.vmap(masking.everything)(params))
    for i in context.track("magnitude: dense networks", epochs):
        states, _ = epoch(states, jax.random.fold_in(order, i))
    params, dense = states.params, np.asarray(accuracy(states))

    start, epoch = _training(data, tuning_epochs)
    scores = {
        "smallest": jax.vmap(score.magnitude)(params),
        "random": _train.draw(
            lambda params, key: score.random(params, key=key),
            params,
            jax.random.split(chance, context.seeds),
        ),
    }
    found = {name: [] for which in scores for name in (which, f"{which}_tuned")}
    bar = context.track(
        "magnitude: fine-tuning", len(densities) * len(scores) * tuning_epochs
    )
    kept, zero = [], True
    for density in densities:
        for which, worth in scores.items():
            masks = _highest(worth, jnp.float32(density))
            states = start(params, masks)
            found[which].append(accuracy(states))
            for i, _ in zip(range(tuning_epochs), bar, strict=False):
                states, _ = epoch(states, jax.random.fold_in(tuning_order, i))
            found[f"{which}_tuned"].append(accuracy(states))
            count, rest = _kept_and_removed(states)
            zero &= not rest.any()
        kept.append(int(count[0]))
    next(bar, None)

    found = {name: np.stack(values) for name, values in found.items()}
    return Outcome(
        rows=_rows(densities, found, dense, zero=zero),
        settings={
            "network": "300-100",
            "optimizer": "adam, cosine",
            "learning_rate": LEARNING_RATE,
            "batch_size": _train.BATCH_SIZE,
            "epochs": epochs,
            "fine_tuning_epochs": tuning_epochs,
            "scope": "global",
            "inputs": "0 to 1",
        },
        numbers={
            "densities": densities,
            "kept": kept,
            "removed_are_zero": zero,
            "dense": dense,
            **found,
        },
        pictures=[_draw(context, densities, found, dense)],
    )


def _apply(params: Any, x: jax.Array) -> jax.Array:
    return MODEL.apply({"params": params}, x)


def _logits(member: _train.Masked, x: jax.Array) -> jax.Array:
    return _apply(member.params, x)


@jax.jit
def _highest(scores: Any, density: jax.Array) -> Any:
    """The density is an argument, so that one program serves all of them."""
    return jax.vmap(
        lambda scores: select.top_k(scores, density=density, scope="global")
    )(scores)


def _training(data: Data, epochs: int) -> tuple[Any, Any]:
    """What makes members of parameters and masks, and what trains them an epoch."""
    steps = epochs * _train.steps_per_epoch(data.x_train)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    start, step = _train.under_masks(_apply, optimizer)
    epoch = _train.epoch_of(step, data.x_train, data.y_train)
    return jax.jit(jax.vmap(start)), epoch


@jax.jit
@jax.vmap
def _kept_and_removed(member: _train.Masked) -> tuple[jax.Array, jax.Array]:
    """How many weights the mask keeps, and the largest of those that it does not."""
    removed = _train.largest_removed(member.params, member.mask)
    return algebra.count(member.mask), removed


def _rows(
    densities: tuple[float, ...],
    found: dict[str, np.ndarray],
    dense: np.ndarray,
    *,
    zero: bool,
) -> list[Row]:
    def at(density: float, name: str) -> str:
        return f"{found[name][densities.index(density)].mean():.1%}"

    promised = 1 / SMALLER
    return [
        Row(
            f"{SMALLER}x smaller at no loss of accuracy (300-100, MNIST)",
            f"dense {dense.mean():.1%}, {SMALLER}x smaller "
            f"{at(promised, 'smallest_tuned')}; as many removed at random "
            f"{at(promised, 'random_tuned')}",
        ),
        Row(
            "training on is what recovers the accuracy",
            f"10% kept: {at(0.1, 'smallest')}, fine-tuned {at(0.1, 'smallest_tuned')};"
            f" 2% kept: {at(0.02, 'smallest')}, fine-tuned "
            f"{at(0.02, 'smallest_tuned')}",
        ),
        Row(
            "removed weights stay removed",
            "all exactly 0 after fine-tuning" if zero else "NOT all 0",
        ),
    ]


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
    for name, label in {
        "smallest_tuned": "smallest removed, fine-tuned",
        "smallest": "smallest removed",
        "random_tuned": "random ones removed, fine-tuned",
    }.items():
        _pictures.band(axes, densities, found[name], label)
    _pictures.density_axis(axes, [d for d in densities if d != 1 / SMALLER])
    _pictures.accuracy_axis(axes, context.seeds)
    axes.legend(loc="lower right")
    return _pictures.save(figure, context.out / "magnitude_density.png")


DEMO = Demo("magnitude", "magnitude pruning (Han et al. 2015)", run)
