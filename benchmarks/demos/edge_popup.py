"""Learn which weights of a random network to keep: edge-popup (Ramanujan et al., 2020).

The weights are drawn once and never trained. Accuracy comes from the mask alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _pictures, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome, Row
from maskjax import algebra, initializer, stacking
from maskjax.recipes import edge_popup

DENSITY = 0.5
OTHERS = (0.02, 0.1, 0.3, 0.7, 0.9, 1.0)
OTHERS_SEEDS = 3
LEARNING_RATE, MOMENTUM = 0.1, 0.9
EPOCHS, QUICK_EPOCHS = 30, 5
MODEL = _train.MLP(use_bias=False)


class Member(NamedTuple):
    """One network in training."""

    state: edge_popup.EdgePopupState
    density: jax.Array


def run(context: Context) -> Outcome:
    """Masks of one half of the weights, masks of other densities, trained weights."""
    data = context.data.standardized().flat()
    epochs = QUICK_EPOCHS if context.quick else EPOCHS
    seeds = context.seeds
    optimizer = optax.sgd(
        optax.cosine_decay_schedule(
            LEARNING_RATE, epochs * _train.steps_per_epoch(data.x_train)
        ),
        MOMENTUM,
    )

    # One program: a density is a number that members carry, as they carry a seed.
    densities = jnp.float32([DENSITY] * seeds + list(np.repeat(OTHERS, OTHERS_SEEDS)))
    before, after, curve = _learn_masks(context, data, optimizer, densities, epochs)
    trained = _train_weights(context, data, optimizer, epochs)

    masks = jax.jit(jax.vmap(_mask))(after)
    unchanged = _same_bits(before.state.weights, after.state.weights)
    exact = _counts_are_exact(masks, densities)
    main, others = curve[:, :seeds], curve[-1, seeds:].reshape(-1, OTHERS_SEEDS)
    by_density = {DENSITY: main[-1], **dict(zip(OTHERS, others, strict=True))}
    by_density = dict(sorted(by_density.items()))
    return Outcome(
        rows=[
            Row(
                "a random network contains subnetworks that perform as a trained one "
                "(no MNIST number is published)",
                f"{DENSITY:.0%} of random weights: {main[0].mean():.1%} with the "
                f"first mask, {main[-1].mean():.1%} with the learned one "
                f"({main[-1].min():.1%} to {main[-1].max():.1%}); the same network, "
                f"its weights trained: {trained.mean():.1%}",
            ),
            Row(
                "weights are never trained, the size of the mask is fixed",
                f"weights {'bit-identical' if unchanged else 'CHANGED'}, counts "
                f"{'exact' if exact else 'NOT exact'}",
            ),
        ],
        settings={
            "network": "300-100 without biases",
            "weights": "signed constant, scaled for density",
            "optimizer": "sgd, cosine",
            "learning_rate": LEARNING_RATE,
            "momentum": MOMENTUM,
            "batch_size": _train.BATCH_SIZE,
            "epochs": epochs,
            "density": DENSITY,
            "seeds_of_other_densities": OTHERS_SEEDS,
            "inputs": "standardized",
        },
        numbers={
            "weights_unchanged": unchanged,
            "counts_exact": exact,
            "first_masks": main[0],
            "learned_masks": main[-1],
            "trained_weights": trained,
            "learned_masks_by_epoch": main,
            "learned_masks_by_density": {f"{d:g}": a for d, a in by_density.items()},
        },
        pictures=[
            _draw_masks(context, masks["Dense_0"]["kernel"][:seeds]),
            _draw_curve(context, main, trained),
            _draw_densities(context, by_density, trained),
        ],
    )


def _logits(params: Any, x: jax.Array) -> jax.Array:
    return MODEL.apply({"params": params}, x)


def _loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return _train.cross_entropy(_logits(params, x), y)


def _mask(member: Member) -> Any:
    return edge_popup.mask(member.state, density=member.density)


def _learn_masks(
    context: Context,
    data: Data,
    optimizer: optax.GradientTransformation,
    densities: jax.Array,
    epochs: int,
) -> tuple[Member, Member, np.ndarray]:
    """One member for each density; before, after, and accuracies [1 + epochs, K]."""

    def init(key: jax.Array, density: jax.Array) -> Member:
        draw, scores = jax.random.split(key)
        model = MODEL.clone(kernel_init=initializer.signed_constant(density))
        weights = model.init(draw, data.x_train[:1])["params"]
        return Member(edge_popup.init(weights, optimizer, key=scores), density)

    def step(member: Member, x: jax.Array, y: jax.Array) -> tuple[Member, jax.Array]:
        state, loss = edge_popup.step(
            member.state, _loss, optimizer, x, y, density=member.density
        )
        return Member(state, member.density), loss

    def predict(member: Member, x: jax.Array) -> jax.Array:
        return edge_popup.predict(_logits, member.state, x, density=member.density)

    draws, order = jax.random.split(jax.random.key(0))
    before = _train.draw(init, jax.random.split(draws, len(densities)), densities)
    track = context.track("edge-popup: masks", epochs)
    after, curve = _train.fit(step, predict, before, data, track, key=order)
    return before, after, curve


def _train_weights(
    context: Context,
    data: Data,
    optimizer: optax.GradientTransformation,
    epochs: int,
) -> np.ndarray:
    """What the same network and training reach when it is the weights that learn."""

    def init(key: jax.Array) -> tuple[Any, optax.OptState]:
        params = MODEL.init(key, data.x_train[:1])["params"]
        return params, optimizer.init(params)

    def step(member: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        params, opt_state = member
        loss, gradients = jax.value_and_grad(_loss)(params, x, y)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    def predict(member: Any, x: jax.Array) -> jax.Array:
        return _logits(member[0], x)

    draws, order = jax.random.split(jax.random.key(1))
    states = _train.draw(init, jax.random.split(draws, context.seeds))
    track = context.track("edge-popup: trained weights", epochs)
    _, curve = _train.fit(step, predict, states, data, track, key=order)
    return curve[-1]


def _same_bits(before: Any, after: Any) -> bool:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def _counts_are_exact(masks: Any, densities: jax.Array) -> bool:
    """Every layer of every member keeps density * n of its n weights, rounded."""
    return all(
        int(algebra.count(kept)) == int(round(float(density), 6) * kept.size + 0.5)
        for i, density in enumerate(densities)
        for kept in jax.tree.leaves(stacking.take(masks, i))
    )


def _draw_masks(context: Context, masks: jax.Array) -> str:
    """First-layer masks [K, H * W, 300]: some units of one, and the mean of all."""
    picture = "edge_popup_masks.png"
    shape = context.data.shape
    units = np.asarray(masks[0, :, :24]).T.reshape(-1, *shape)
    figure = _pictures.Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(f"Edge-popup: masks of the first layer, {context.data.name}")
    left, right = figure.subfigures(1, 2, width_ratios=(1.4, 1))
    _pictures.tiles(left, units, 6, "one seed, 24 hidden units (dark: weight kept)")
    _pictures.heat(
        right,
        np.asarray(masks.mean((0, 2), dtype=jnp.float32)).reshape(shape),
        f"which pixels are used: {len(masks)} seeds, all 300 units",
        "fraction of the pixel's weights that is kept",
    )
    return _pictures.save(figure, context.out / picture)


def _draw_curve(context: Context, curve: np.ndarray, trained: np.ndarray) -> str:
    figure, axes = _pictures.figure(
        f"Edge-popup: {DENSITY:.0%} of the weights, {context.data.name}"
    )
    axes.axhline(trained.mean(), color="black", linestyle=":", label="trained weights")
    label = "random weights, learned masks"
    _pictures.band(axes, range(len(curve)), curve, label)
    axes.set_xlabel("epoch")
    _pictures.accuracy_axis(axes, context.seeds)
    axes.legend(loc="center right")
    return _pictures.save(figure, context.out / "edge_popup_training.png")


def _draw_densities(
    context: Context, accuracies: dict[float, np.ndarray], trained: np.ndarray
) -> str:
    figure, axes = _pictures.figure(
        f"Edge-popup: how much of a random network to keep, {context.data.name}"
    )
    axes.axhline(trained.mean(), color="black", linestyle=":", label="trained weights")
    values = np.stack([a[:OTHERS_SEEDS] for a in accuracies.values()])
    label = "random weights, learned masks"
    _pictures.band(axes, list(accuracies), values, label)
    _pictures.density_axis(axes, list(accuracies), log=False)
    _pictures.accuracy_axis(axes, OTHERS_SEEDS)
    axes.legend(loc="center")
    return _pictures.save(figure, context.out / "edge_popup_density.png")


DEMO = Demo("edge_popup", "edge-popup (Ramanujan et al. 2020)", run)
