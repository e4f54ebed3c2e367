"""Learn which weights of a random network to keep: edge-popup (Ramanujan et al., 2020).

The weights are drawn once and never trained. Accuracy comes from the mask alone. Beside
the paper's masks there are others, at one density: ranked over the whole network, with
Erdos-Renyi densities, with thresholds that stay where they are, and sampled.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maskjax
from benchmarks import _pictures, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows, said
from maskjax import algebra, allocation, estimator, initializer
from maskjax.recipes import edge_popup

DENSITY = 0.5
ALL = (0.02, 0.1, 0.3, 0.7, 0.9, 1.0)
OTHERS = ALL, (0.02, 0.1, 1.0), ALL
OTHER_MASKS = "global", "thresholds frozen", "sampled"
FEW = 3  # seeds of other densities and of other masks
LEARNING_RATE, MOMENTUM = 0.1, 0.9
SAMPLED_RATE = 100.0  # of Zhou et al., whose masks these are
EPOCHS = 5, 8, 30
MODEL = _train.MLP(use_bias=False)
START = optax.sgd(optax.constant_schedule(0.0), MOMENTUM)  # its state fits every rate
SETTINGS = {
    "network": "300-100 without biases",
    "weights": "signed constant, scaled for density",
    "optimizer": "sgd, cosine",
    "learning_rate": LEARNING_RATE,
    "learning_rate_of_sampled": SAMPLED_RATE,
    "momentum": MOMENTUM,
    "batch_size": _train.BATCH_SIZE,
    "density": DENSITY,
    "seeds_of_other_densities": FEW,
    "inputs": "standardized",
}
ROWS = {
    "a random network contains subnetworks that perform as a trained one (no MNIST "
    "number is published)": f"{DENSITY:.0%} of random weights: {{first_masks:.1%}} "
    "with the first mask, {learned_masks:.1%} with the learned one ({low:.1%} to "
    "{high:.1%}); the same network, its weights trained: {trained_weights:.1%}",
    "baselines: masks that are ranked, drawn or allotted otherwise": "at random "
    "{first_masks:.1%}, {others}",
    "weights are never trained, the size of the mask is fixed": "weights "
    "{weights_unchanged:bit-identical|CHANGED}, counts {counts_exact:exact|NOT exact}",
}


class Rest(NamedTuple):
    """What belongs to a network beside its scores, a density for each kernel."""

    weights: Any
    densities: Any
    cutoffs: Any
    key: jax.Array


def run(context: Context) -> Outcome:
    """Masks of one half of the weights, masks of other densities, trained weights."""
    data = context.data.standardized().flat()
    densities, seeds = context.pick(OTHERS), context.seeds
    # One program: densities are numbers that members carry, as they carry a seed.
    each = [DENSITY] * seeds + [d for d in densities for _ in range(FEW)]
    erk = [False] * len(each) + [True] * FEW
    before = _members(data, jnp.float32(each + [DENSITY] * FEW), jnp.array(erk))
    after, curve = _learn_masks(context, data, before)
    trained = _train_weights(context, data)

    masks = _masks(after)
    unchanged = _train.same_bits(before.rest.weights, after.rest.weights)
    exact = _counts_are_exact(masks, after.rest.densities)
    curve, thin = curve[:, :-FEW], curve[-1, -FEW:]
    variants = {"Erdos-Renyi": (thin, _kept(masks)[-FEW:])}
    before = jax.tree.map(lambda x: x[:FEW], before)
    for how in OTHER_MASKS:
        after, looks = _learn_masks(context, data, before, how)
        unchanged &= _train.same_bits(before.rest.weights, after.rest.weights)
        variants[how] = looks[-1], _kept(_masks(after, how))

    main, others = curve[:, :seeds], curve[-1, seeds:].reshape(-1, FEW)
    by_density = {DENSITY: main[-1], **dict(zip(densities, others, strict=True))}
    by_density = dict(sorted(by_density.items()))
    numbers = {
        "weights_unchanged": unchanged,
        "counts_exact": exact,
        "first_masks": main[0],
        "learned_masks": main[-1],
        "trained_weights": trained,
        "learned_masks_by_epoch": main,
        "learned_masks_by_density": {f"{d:g}": a for d, a in by_density.items()},
        "other_masks": {name: found[0] for name, found in variants.items()},
        "density_of_other_masks": {name: x[1] for name, x in variants.items()},
    }
    ends = {"low": main[-1].min(), "high": main[-1].max()}
    others = ", ".join(
        f"{name} {said(found, '.1%')} ({said(kept, '.0%')} kept)"
        for name, (found, kept) in variants.items()
    )
    return Outcome(
        rows=rows(ROWS, **numbers, **ends, others=others),
        settings=SETTINGS | {"epochs": context.pick(EPOCHS)},
        numbers=numbers,
        pictures=[
            _draw_masks(context, masks["Dense_0"]["kernel"][:seeds]),
            _draw_curve(context, main, trained),
            _draw_densities(context, by_density, trained),
        ],
    )


def _logits(params: Any, x: jax.Array) -> jax.Array:
    return MODEL.apply({"params": params}, x)


def _soft_mask(scores: Any, rest: Rest, how: str) -> tuple[Any, Any]:
    """The soft mask, and where it cut."""
    if how == "sampled":
        return estimator.bernoulli(scores, key=rest.key), rest.cutoffs
    if how == "thresholds frozen":
        sizes = jax.tree.map(jnp.abs, scores)
        return estimator.threshold(sizes, at=rest.cutoffs), rest.cutoffs
    share, scope = (DENSITY, "global") if how == "global" else (rest.densities, "leaf")
    given = {"density": share, "scope": scope, "guess": rest.cutoffs}
    return edge_popup.soft_mask(scores, **given, return_cutoff=True)


def _masks(members: _train.Member, how: str = "edge-popup") -> Any:
    soft = jax.jit(jax.vmap(lambda m: _soft_mask(m.params, m.rest, how)[0]))(members)
    return jax.tree.map(lambda m: m > 0, soft)


def _kept(masks: Any) -> np.ndarray:
    """The density of each member's mask."""
    return np.asarray(jax.vmap(algebra.density)(masks))


def _members(data: Data, densities: jax.Array, erk: jax.Array) -> _train.Member:
    """One for each density, which is that of all kernels or of their mean."""

    def init(key: jax.Array, density: jax.Array, erk: jax.Array) -> _train.Member:
        draw, start = jax.random.split(key)
        model = MODEL.clone(kernel_init=initializer.signed_constant(density))
        weights = model.init(draw, data.x_train[:1])["params"]
        shares = jax.tree.map(
            lambda share: jnp.where(erk, share, density),
            allocation.erk(weights, density=density),
        )
        # Scaled for the density of each kernel.
        weights = jax.tree.map(lambda w, d: w * jnp.sqrt(density / d), weights, shares)
        # Scores are uniform in +-1 / sqrt(fan_in): so many are above this at first.
        cutoffs = jax.tree.map(lambda w: (1 - density) / w.shape[0] ** 0.5, weights)
        scores = edge_popup.init(weights, key=start)
        return _train.begin(START, scores, Rest(weights, shares, cutoffs, key))

    keys = jax.random.split(jax.random.split(jax.random.key(0))[0], len(densities))
    return _train.draw(init, keys, densities, erk)


def _learn_masks(
    context: Context, data: Data, before: _train.Member, how: str = "edge-popup"
) -> tuple[_train.Member, np.ndarray]:
    """The members after training, and accuracies [1 + epochs, K]."""

    def forward(scores: Any, rest: Rest, x: jax.Array) -> tuple[jax.Array, Rest]:
        soft, cutoffs = _soft_mask(scores, rest, how)
        logits = _logits(maskjax.apply(rest.weights, soft), x)
        key, _ = jax.random.split(rest.key)
        return logits, rest._replace(cutoffs=cutoffs, key=key)

    rate = SAMPLED_RATE if how == "sampled" else LEARNING_RATE
    order = jax.random.split(jax.random.key(0))[1]
    return _fit(context, data, f"masks, {how}", forward, before, rate, order)


def _train_weights(context: Context, data: Data) -> np.ndarray:
    """What the same network and training reach when it is the weights that learn."""

    def init(key: jax.Array) -> _train.Member:
        return _train.begin(START, MODEL.init(key, data.x_train[:1])["params"])

    def forward(params: Any, rest: None, x: jax.Array) -> tuple[jax.Array, None]:
        return _logits(params, x), rest

    draws, order = jax.random.split(jax.random.key(1))
    states = _train.draw(init, jax.random.split(draws, context.seeds))
    label, rate = "trained weights", LEARNING_RATE
    return _fit(context, data, label, forward, states, rate, order)[1][-1]


def _fit(
    context: Context,
    data: Data,
    label: str,
    forward: Any,
    states: _train.Member,
    rate: float,
    key: jax.Array,
) -> tuple[_train.Member, np.ndarray]:
    """Train what `forward` needs: `(params, rest, x) -> (logits, rest)`."""

    def loss(params: Any, rest: Any, x: jax.Array, y: jax.Array) -> Any:
        logits, rest = forward(params, rest, x)
        return _train.cross_entropy(logits, y), rest

    def predict(member: _train.Member, x: jax.Array) -> jax.Array:
        return forward(member.params, member.rest, x)[0]

    epochs = context.pick(EPOCHS)
    optimizer = optax.sgd(_train.cosine(rate, epochs, data.x_train), MOMENTUM)
    step = _train.descend(loss, optimizer, has_aux=True)
    track = context.track(f"edge-popup: {label}", epochs)
    return _train.fit(step, predict, states, data, track, key=key)


def _counts_are_exact(masks: Any, densities: Any) -> bool:
    """Every kernel of every member keeps density * n of its n weights, rounded."""
    for kept, density in zip(*map(jax.tree.leaves, (masks, densities)), strict=True):
        kept = np.asarray(kept).reshape(len(density), -1)
        # Densities are float32, so that what is half a weight is not quite that.
        off = kept.sum(1) - np.asarray(density).astype(np.float64) * kept.shape[1]
        if (abs(off) >= 0.5 + 1e-6 * kept.shape[1]).any():
            return False
    return True


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
    values = np.stack([a[:FEW] for a in accuracies.values()])
    label = "random weights, learned masks"
    _pictures.band(axes, list(accuracies), values, label)
    _pictures.density_axis(axes, list(accuracies), log=False)
    _pictures.accuracy_axis(axes, FEW)
    axes.legend(loc="center")
    return _pictures.save(figure, context.out / "edge_popup_density.png")


DEMO = Demo("edge_popup", "edge-popup (Ramanujan et al. 2020)", run, seconds=20)
