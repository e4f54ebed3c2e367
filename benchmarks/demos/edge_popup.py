"""Learn which weights of a random network to keep: edge-popup (Ramanujan et al., 2020).

The weights are drawn once and never trained. Accuracy comes from the mask alone. Beside
the paper's masks there are others, at one density: ranked over the whole network, with
Erdos-Renyi densities, with thresholds that stay where they are, and sampled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _pictures, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome, Row
from maskjax import algebra, allocation, initializer
from maskjax.recipes import edge_popup

DENSITY = 0.5
OTHERS = (0.02, 0.1, 0.3, 0.7, 0.9, 1.0)
OTHERS_SEEDS = 3
LEARNING_RATE, MOMENTUM = 0.1, 0.9
SAMPLED_RATE = 100.0  # of Zhou et al., whose masks these are
EPOCHS, QUICK_EPOCHS = 30, 5
MODEL = _train.MLP(use_bias=False)


class Member(NamedTuple):
    """One network in training, with a density for each kernel."""

    state: edge_popup.EdgePopupState
    densities: Any
    key: jax.Array


# What decides on a member's mask; the first is the paper's.
HOW: dict[str, Callable[[Member], dict[str, Any]]] = {
    "edge-popup": lambda member: {"density": member.densities},
    "global": lambda member: {"density": DENSITY, "scope": "global"},
    "thresholds frozen": lambda member: {"density": None},
    "sampled": lambda member: {"density": None, "sample": member.key},
}


def run(context: Context) -> Outcome:
    """Masks of one half of the weights, masks of other densities, trained weights."""
    data = context.data.standardized().flat()
    epochs = QUICK_EPOCHS if context.quick else EPOCHS
    seeds = context.seeds
    # One program: densities are numbers that members carry, as they carry a seed.
    densities = [DENSITY] * seeds + [d for d in OTHERS for _ in range(OTHERS_SEEDS)]
    erk = [False] * len(densities) + [True] * OTHERS_SEEDS
    densities = jnp.float32(densities + [DENSITY] * OTHERS_SEEDS)
    before = _members(data, densities, jnp.array(erk))
    after, curve = _learn_masks(context, data, epochs, before)
    trained = _train_weights(context, data, epochs)

    masks = _masks(after)
    unchanged = _same_bits(before.state.weights, after.state.weights)
    exact = _counts_are_exact(masks, after.densities)
    curve, thin = curve[:, :-OTHERS_SEEDS], curve[-1, -OTHERS_SEEDS:]
    variants = {"Erdos-Renyi": (thin, _kept(masks)[-OTHERS_SEEDS:])}
    before = jax.tree.map(lambda x: x[:OTHERS_SEEDS], before)
    for how in list(HOW)[1:]:
        after, looks = _learn_masks(context, data, epochs, before, how)
        unchanged &= _same_bits(before.state.weights, after.state.weights)
        variants[how] = looks[-1], _kept(_masks(after, how))

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
                "baselines: masks that are ranked, drawn or allotted otherwise",
                f"at random {main[0].mean():.1%}, "
                + ", ".join(
                    f"{name} {accuracy.mean():.1%} ({kept.mean():.0%} kept)"
                    for name, (accuracy, kept) in variants.items()
                ),
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
            "learning_rate_of_sampled": SAMPLED_RATE,
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
            "other_masks": {name: found[0] for name, found in variants.items()},
            "density_of_other_masks": {name: x[1] for name, x in variants.items()},
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


def _optimizer(
    data: Data, epochs: int, rate: float = LEARNING_RATE
) -> optax.GradientTransformation:
    steps = epochs * _train.steps_per_epoch(data.x_train)
    return optax.sgd(optax.cosine_decay_schedule(rate, steps), MOMENTUM)


def _masks(members: Member, how: str = "edge-popup") -> Any:
    return jax.jit(jax.vmap(lambda m: edge_popup.mask(m.state, **HOW[how](m))))(members)


def _members(data: Data, densities: jax.Array, erk: jax.Array) -> Member:
    """One for each density, which is that of all kernels or of their mean."""

    def init(key: jax.Array, density: jax.Array, erk: jax.Array) -> Member:
        draw, scores = jax.random.split(key)
        model = MODEL.clone(kernel_init=initializer.signed_constant(density))
        weights = model.init(draw, data.x_train[:1])["params"]
        shares = jax.tree.map(
            lambda share: jnp.where(erk, share, density),
            allocation.erk(weights, density=density),
        )
        # Scaled for the density of each kernel.
        weights = jax.tree.map(lambda w, d: w * jnp.sqrt(density / d), weights, shares)
        optimizer = _optimizer(data, 1)  # whose state is the same for any rate
        state = edge_popup.init(weights, optimizer, density=density, key=scores)
        return Member(state, shares, key)

    keys = jax.random.split(jax.random.split(jax.random.key(0))[0], len(densities))
    return _train.draw(init, keys, densities, erk)


def _learn_masks(
    context: Context, data: Data, epochs: int, before: Member, how: str = "edge-popup"
) -> tuple[Member, np.ndarray]:
    """The members after training, and accuracies [1 + epochs, K]."""
    rate = SAMPLED_RATE if how == "sampled" else LEARNING_RATE
    optimizer = _optimizer(data, epochs, rate)

    def step(member: Member, x: jax.Array, y: jax.Array) -> tuple[Member, jax.Array]:
        key, _ = jax.random.split(member.key)
        state, loss = edge_popup.step(
            member.state, _loss, optimizer, x, y, **HOW[how](member)
        )
        return member._replace(state=state, key=key), loss

    def predict(member: Member, x: jax.Array) -> jax.Array:
        return edge_popup.predict(_logits, member.state, x, **HOW[how](member))

    order = jax.random.split(jax.random.key(0))[1]
    track = context.track(f"edge-popup: masks, {how}", epochs)
    return _train.fit(step, predict, before, data, track, key=order)


def _train_weights(context: Context, data: Data, epochs: int) -> np.ndarray:
    """What the same network and training reach when it is the weights that learn."""
    optimizer = _optimizer(data, epochs)

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


def _counts_are_exact(masks: Any, densities: Any) -> bool:
    """Every kernel of every member keeps density * n of its n weights, rounded."""

    def exact(kept: jax.Array, density: jax.Array) -> np.bool_:
        kept = np.asarray(kept).reshape(len(density), -1)
        # Densities are float32, so that what is half a weight is not quite that.
        wanted = np.asarray(density).astype(np.float64) * kept.shape[1]
        return np.all(np.abs(kept.sum(1) - wanted) < 0.5 + 1e-6 * kept.shape[1])

    return bool(all(jax.tree.leaves(jax.tree.map(exact, masks, densities))))


def _kept(masks: Any) -> np.ndarray:
    """The density of each member's mask."""
    return np.asarray(jax.vmap(algebra.density)(masks))


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
