"""Train, remove the smallest weights, train on: magnitude pruning (Han et al., 2015).

Weights are ranked once, all layers together, and cut at several densities. What was
removed stays exactly zero while the rest is trained on. The control removes as many at
random.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _lenet, _pictures, _train
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import masking, score, select

SMALLER = 12  # the paper's factor for this network
FEW = 1.0, 0.1, 1 / SMALLER, 0.02
DENSITIES = FEW, FEW, (1.0, 0.5, 0.2, 0.1, 1 / SMALLER, 0.05, 0.02, 0.01)
STEPS = (200, 60), (500, 160), (1_000, 330)  # of training, of fine-tuning
LABELS = {
    "smallest_tuned": "smallest removed, fine-tuned",
    "smallest": "smallest removed",
    "random_tuned": "random ones removed, fine-tuned",
}


def run(context: Context) -> Outcome:
    """Accuracy against density, before and after fine-tuning, and for random masks."""
    data, densities = context.data.flat(), context.pick(DENSITIES)
    epochs, tuning = (_train.epochs_of(n, data.x_train) for n in context.pick(STEPS))
    draws, chance, order, tuning_order = jax.random.split(jax.random.key(0), 4)
    accuracy = _train.accuracy_of(_lenet.masked_logits, data.x_test, data.y_test)

    start, epoch = _lenet.training(epochs, data)
    params = _lenet.init(jax.random.split(draws, context.seeds), data)
    states = start(params, jax.vmap(masking.everything)(params))
    track = context.track("magnitude: dense networks", epochs)
    states = _train.epochs_by(epoch, states, track, key=order)
    params, dense = states.params, np.asarray(accuracy(states))

    start, epoch = _lenet.training(tuning, data)
    chances = jax.random.split(chance, context.seeds)
    draw = lambda params, key: score.random(params, key=key)  # noqa: E731
    scores = {
        "smallest": jax.vmap(score.magnitude)(params),
        "random": _train.draw(draw, params, chances),
    }
    # The density is an argument, so that one program serves all of them.
    highest = jax.jit(
        jax.vmap(
            lambda s, density: select.top_k(s, density=density, scope="global"),
            in_axes=(0, None),
        )
    )
    found = {name: [] for which in scores for name in (which, f"{which}_tuned")}
    kept, zero = [], True
    for density in context.track("magnitude: fine-tuning at density", densities):
        for which, worth in scores.items():
            states = start(params, highest(worth, jnp.float32(density)))
            found[which].append(accuracy(states))
            states = _train.epochs_by(epoch, states, range(tuning), key=tuning_order)
            found[f"{which}_tuned"].append(accuracy(states))
            count, rest = _lenet.kept_and_removed(states.params, states.rest)
            zero &= not rest.any()
        kept.append(int(count[0]))

    found = {name: np.stack(values) for name, values in found.items()}
    numbers = {"densities": densities, "kept": kept, "removed_are_zero": zero}
    numbers |= {"dense": dense, **found}
    at = {
        name: {which: v[densities.index(d)] for which, v in found.items()}
        for name, d in {"at12": 1 / SMALLER, "at10": 0.1, "at2": 0.02}.items()
    }
    title = f"Magnitude pruning of a 300-100 network, {context.data.name}"
    labeled = {label: found[name] for name, label in LABELS.items()}
    drawn = "magnitude_density", title, densities, labeled
    ticks = [d for d in densities if d != 1 / SMALLER]
    how = {"density": ticks, "seeds": context.seeds, "legend": "lower right"}
    return Outcome(
        rows=rows("magnitude", **numbers, **at),
        settings=_lenet.SETTINGS
        | {"scope": "global", "epochs": epochs, "fine_tuning_epochs": tuning},
        numbers=numbers,
        pictures=[_pictures.plot(context, *drawn, levels={"dense": dense}, **how)],
    )


DEMO = Demo("magnitude", "magnitude pruning (Han et al. 2015)", run, seconds=6)
