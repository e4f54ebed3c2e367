"""What a weight is worth: every criterion of `score`, after training and before it.

After training: the mask of each criterion on trained networks, which are not trained
again. Before training: masks from the first weights and 1,000 images, and then the
training, under the mask. All rankings are global but for Wanda's, which compares the
weights into one output, as in its paper, and for chance, in Erdos-Renyi shares.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maskjax
from benchmarks import _pictures, _train
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import algebra, allocation, masking, score, select

LEARNING_RATE = 1.2e-3  # Adam, as Frankle & Carbin (2019) train this network
DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
AT_START = (0.1, 0.02)
SEEDS = 5
STEPS = 200, 300, 1_000
ROUNDS = 100, 25, 100  # of synflow, 100 in its paper
TEMPERATURE = 200  # by which GraSP's authors divide logits, lest outputs saturate
NAMES = ("magnitude", "snip", "fisher", "grasp", "synflow", "wanda", "random")
IMAGES = 1_000  # that scores see: 100 a class, about ten times what SNIP asks for
MODEL = _train.MLP()
SETTINGS = {
    "network": "300-100",
    "optimizer": "adam, cosine",
    "learning_rate": LEARNING_RATE,
    "batch_size": _train.BATCH_SIZE,
    "grasp_temperature": TEMPERATURE,
    "inputs": "0 to 1",
}
ROWS = {
    "what gradients and inputs say beats magnitude on a trained network (Molchanov et "
    "al., Sun et al.)": "dense {dense:.1%}; 20% kept, not trained again: {after:.1%}",
    "masks can be found before training (SNIP, GraSP, SynFlow)": "10% kept: "
    "{before[0.1]:.1%}; 2% kept: {before[0.02]:.1%}",
}


def run(context: Context) -> Outcome:
    """Accuracy of the masks of every criterion, untrained and trained."""
    data = context.data.flat()
    seeds, rounds = min(SEEDS, context.seeds), context.pick(ROUNDS)
    epochs = _train.epochs_of(context.pick(STEPS), data.x_train)
    draws, chance, order = jax.random.split(jax.random.key(0), 3)
    x, y = (jnp.asarray(a[:IMAGES]) for a in (data.x_train, data.y_train))
    optimizer = optax.adam(_train.cosine(LEARNING_RATE, epochs, data.x_train))
    start, step = _train.under_masks(_apply, optimizer)
    start = jax.jit(jax.vmap(start))
    epoch = _train.epoch_of(step, data.x_train, data.y_train)
    accuracy = _train.accuracy_of(_logits, data.x_test, data.y_test)

    def trained(name: str, states: _train.Member) -> tuple[_train.Member, np.ndarray]:
        track = context.track(f"criteria: {name}", epochs)
        states = _train.epochs_by(epoch, states, track, key=order)
        return states, np.asarray(accuracy(states))

    params = _train.draw(
        lambda key: MODEL.init(key, data.x_train[:1])["params"],
        jax.random.split(draws, seeds),
    )
    keys = jax.random.split(chance, seeds)
    everything = jax.vmap(masking.everything)(params)
    dense, dense_accuracy = trained("dense networks", start(params, everything))

    @jax.jit
    def masks_of(params: Any, density: jax.Array) -> Any:
        """Stacked: [criteria, seeds, ...]."""
        of_seed = functools.partial(_masks, rounds=rounds)
        of_all = jax.vmap(of_seed, (0, None, None, None, 0))
        found = of_all(params, x, y, density, keys)
        # By name: a dict comes out of `vmap` in the order of its keys.
        return jax.tree.map(lambda *m: jnp.stack(m), *(found[name] for name in NAMES))

    after, kept = [], []
    for density in context.track("criteria: masks after training", DENSITIES):
        masks = masks_of(dense.params, jnp.float32(density))
        kept.append(_kept(masks))
        after.append(
            [accuracy(dense._replace(rest=_at(masks, i))) for i in range(len(NAMES))]
        )
    before = {}
    for density in AT_START:
        masks = masks_of(params, jnp.float32(density))
        again = jax.tree.map(lambda p: np.concatenate([p] * len(NAMES)), params)
        masks = jax.tree.map(lambda m: m.reshape(-1, *m.shape[2:]), masks)
        _, found = trained(f"density {density:g}", start(again, masks))
        before[f"{density:g}"] = dict(
            zip(NAMES, found.reshape(len(NAMES), seeds), strict=True)
        )

    after = dict(zip(NAMES, np.swapaxes(after, 0, 1), strict=True))
    at20 = {name: found[DENSITIES.index(0.2)] for name, found in after.items()}
    numbers = {
        "densities": DENSITIES,
        "kept": dict(zip(NAMES, np.transpose(kept), strict=True)),
        "dense": dense_accuracy,
        "after_training": after,
        "before_training": before,
    }
    return Outcome(
        rows=rows(
            ROWS,
            dense=dense_accuracy,
            after=_best_first(at20),
            before={d: _best_first(found) for d, found in before.items()},
        ),
        settings=SETTINGS
        | {"epochs": epochs, "images_scored": len(x), "seeds": seeds}
        | {"synflow_rounds": rounds},
        numbers=numbers,
        pictures=[_draw(context, after, dense_accuracy, seeds)],
    )


@jax.jit
def _kept(masks: Any) -> jax.Array:
    """The density of each criterion's mask, for the first seed."""
    return jax.vmap(algebra.density)(jax.tree.map(lambda m: m[:, 0], masks))


def _at(masks: Any, i: int) -> Any:
    return jax.tree.map(lambda m: m[i], masks)


def _best_first(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(sorted(found.items(), key=lambda item: -item[1].mean()))


def _masks(
    params: Any,
    x: jax.Array,
    y: jax.Array,
    density: Any,
    key: jax.Array,
    *,
    rounds: int,
) -> dict[str, Any]:
    """The mask of every criterion."""

    def top(scores: Any) -> Any:
        return select.top_k(scores, density=density, scope="global")

    def synflow(params: Any) -> Any:
        return score.synflow(_apply, params, x[:1].shape)

    by_output = jax.vmap(
        lambda s: select.top_k({"": s}, density=density)[""], in_axes=-1, out_axes=-1
    )
    norms = score.input_norms(_apply, params, x)
    shares = allocation.erk(params, density=density)
    return {
        "magnitude": top(score.magnitude(params)),
        "snip": top(score.snip(_loss, params, x, y)),
        "fisher": top(score.fisher(_loss, params, x, y)),
        "grasp": top(score.grasp(_soft_loss, params, x, y)),
        "synflow": select.iterative_top_k(
            synflow, params, density=density, rounds=rounds
        ),
        "wanda": jax.tree.map(by_output, score.wanda(params, norms)),
        "random": select.random(params, density=shares, key=key),
    }


def _apply(params: Any, x: jax.Array) -> jax.Array:
    return MODEL.apply({"params": params}, x)


def _loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return _train.cross_entropy(_apply(params, x), y)


def _soft_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return _train.cross_entropy(_apply(params, x) / TEMPERATURE, y)


def _logits(member: _train.Member, x: jax.Array) -> jax.Array:
    return _apply(maskjax.apply(member.params, member.rest), x)


def _draw(
    context: Context, after: dict[str, np.ndarray], dense: np.ndarray, seeds: int
) -> str:
    figure, axes = _pictures.figure(
        f"Trained 300-100 networks, pruned and not trained again, {context.data.name}"
    )
    axes.axhline(dense.mean(), color="black", linestyle=":", label="dense")
    for name, values in after.items():
        _pictures.band(axes, DENSITIES, values, name)
    _pictures.density_axis(axes, DENSITIES)
    _pictures.accuracy_axis(axes, seeds)
    axes.legend(loc="lower right")
    return _pictures.save(figure, context.out / "criteria_density.png")


DEMO = Demo("criteria", "scores from data (SNIP, GraSP, SynFlow, Fisher, Wanda)", run)
