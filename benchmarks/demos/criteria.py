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
from jax import lax

from benchmarks import _lenet, _pictures, _train
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import algebra, allocation, masking, score, select, stacking

DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
AT_START = (0.1, 0.02)
SEEDS = 5
STEPS = 200, 150, 1_000
ROUNDS = 100, 25, 100  # of synflow, 100 in its paper
TEMPERATURE = 200  # by which GraSP's authors divide logits, lest outputs saturate
LOGITS = _lenet.MODEL.logits
NAMES = ("magnitude", "snip", "fisher", "grasp", "synflow", "wanda", "random")
IMAGES = 1_000  # that scores see: 100 a class, about ten times what SNIP asks for


def run(context: Context) -> Outcome:
    """Accuracy of the masks of every criterion, untrained and trained."""
    data = context.data.flat()
    seeds, rounds = min(SEEDS, context.seeds), context.pick(ROUNDS)
    epochs = _train.epochs_of(context.pick(STEPS), data.x_train)
    draws, chance, order = jax.random.split(jax.random.key(0), 3)
    x, y = (jnp.asarray(a[:IMAGES]) for a in (data.x_train, data.y_train))
    params = _lenet.init(jax.random.split(draws, seeds), data)
    keys = jax.random.split(chance, seeds)
    start, epoch = _lenet.training(epochs, data)
    accuracy = _train.accuracy_of(_lenet.masked_logits, data.x_test, data.y_test)
    scores_of = jax.jit(jax.vmap(_scores, (0, None, None)))
    select_by = functools.partial(_masks, pixels=x.shape[1], rounds=rounds)

    @jax.jit
    def masks_of(scores: Any, params: Any, density: jax.Array) -> dict[str, Any]:
        found = jax.vmap(select_by, (0, 0, None))(scores, params, density)
        # Random bits for several keys at once would take twice as long to compile.
        found["random"] = lax.map(lambda one: _random(*one, density), (params, keys))
        return found

    def trained(name: str, params: Any, masks: Any) -> tuple[Any, np.ndarray]:
        track = context.track(f"criteria: {name}", epochs)
        states = _train.epochs_by(epoch, start(params, masks), track, key=order)
        return states, np.asarray(accuracy(states))

    everything = jax.vmap(masking.everything)(params)
    trainees, dense = trained("dense networks", params, everything)
    after, kept, before = {n: [] for n in NAMES}, {n: [] for n in NAMES}, {}
    scores = scores_of(trainees.params, x, y)
    for density in context.track("criteria: masks after training", DENSITIES):
        masks = masks_of(scores, trainees.params, jnp.float32(density))
        for name in NAMES:
            after[name].append(accuracy(trainees._replace(rest=masks[name])))
            kept[name].append(_first_density(masks[name]))
    scores = scores_of(params, x, y)
    for density in AT_START:
        masks = masks_of(scores, params, jnp.float32(density))
        every = _joined([params] * len(NAMES)), _joined([masks[n] for n in NAMES])
        _, found = trained(f"density {density:g}", *every)
        before[f"{density:g}"] = dict(zip(NAMES, found.reshape(-1, seeds), strict=True))

    after = {name: np.stack(found) for name, found in after.items()}
    at20 = {name: found[DENSITIES.index(0.2)] for name, found in after.items()}
    by_density = {d: _best_first(found) for d, found in before.items()}
    title = f"Trained 300-100 networks, pruned and not trained again, {data.name}"
    how = {"density": DENSITIES, "seeds": seeds, "legend": "beside"}
    drawn = "criteria_density", title, DENSITIES, after
    return Outcome(
        rows=rows("criteria", dense=dense, after=_best_first(at20), before=by_density),
        settings=_lenet.SETTINGS
        | {"grasp_temperature": TEMPERATURE, "epochs": epochs}
        | {"images_scored": len(x), "seeds": seeds, "synflow_rounds": rounds},
        numbers={
            "densities": DENSITIES,
            "kept": {name: np.stack(found) for name, found in kept.items()},
            "dense": dense,
            "after_training": after,
            "before_training": before,
        },
        pictures=[_pictures.plot(context, *drawn, levels={"dense": dense}, **how)],
    )


@jax.jit
def _first_density(masks: Any) -> jax.Array:
    """The density of the first seed's mask."""
    return algebra.density(jax.tree.map(lambda m: m[0], masks))


def _joined(trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)


def _best_first(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(sorted(found.items(), key=lambda item: -item[1].mean()))


def _scores(params: Any, x: jax.Array, y: jax.Array) -> dict[str, Any]:
    """What each weight is worth, whatever the density."""

    def loss(params: Any, x: jax.Array, y: jax.Array, divisor: float = 1.0) -> Any:
        return _train.cross_entropy(LOGITS(params, x) / divisor, y)

    soft_loss = functools.partial(loss, divisor=TEMPERATURE)
    return {
        "magnitude": score.magnitude(params),
        "snip": score.snip(loss, params, x, y),
        "fisher": score.fisher(loss, params, x, y),
        "grasp": score.grasp(soft_loss, params, x, y),
        "wanda": score.wanda(params, score.input_norms(LOGITS, params, x)),
    }


def _random(params: Any, key: jax.Array, density: jax.Array) -> Any:
    shares = allocation.erk(params, density=density)
    return select.random(params, density=shares, key=key)


def _masks(
    scores: Any, params: Any, density: Any, *, pixels: int, rounds: int
) -> dict[str, Any]:
    """The mask of every criterion but chance."""
    by_output = jax.vmap(
        lambda s: select.top_k({"": s}, density=density)[""], in_axes=-1, out_axes=-1
    )
    synflow = lambda params: score.synflow(LOGITS, params, (1, pixels))  # noqa: E731
    how = {"density": density, "rounds": rounds}
    ranked = {name: each for name, each in scores.items() if name != "wanda"}
    select_one = functools.partial(select.top_k, density=density, scope="global")
    # One selection for all criteria, rather than one to compile for each.
    masks = jax.vmap(select_one)(stacking.stack([*ranked.values()]))
    return dict(zip(ranked, stacking.unstack(masks), strict=True)) | {
        "synflow": select.iterative_top_k(synflow, params, **how),
        "wanda": jax.tree.map(by_output, scores["wanda"]),
    }


DEMO = Demo(
    "criteria",
    "scores from data (SNIP, GraSP, SynFlow, Fisher, Wanda)",
    run,
    seconds=13,
)
