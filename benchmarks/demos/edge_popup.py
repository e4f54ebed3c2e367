"""Learn which weights of a random network to keep: edge-popup (Ramanujan et al., 2020).

The weights are drawn once and never trained. Accuracy comes from the mask alone. Beside
the paper's masks there are others, at one density: ranked over the whole network, and
with Erdos-Renyi densities.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import maskjax
from benchmarks import _pictures, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows, said
from maskjax import algebra, allocation, initializer
from maskjax.recipes import edge_popup

DENSITY = 0.5
ALL = (0.02, 0.1, 0.3, 0.7, 0.9, 1.0)
OTHERS = ALL, (0.02, 0.1, 1.0), ALL
FEW = 3  # seeds of other densities and of other masks
LEARNING_RATE, MOMENTUM = 0.1, 0.9
EPOCHS = 5, 6, 30
MODEL = _train.MLP(use_bias=False)
START = optax.sgd(optax.constant_schedule(0.0), MOMENTUM)  # its state fits every rate
SETTINGS = {
    "network": "300-100 without biases",
    "weights": "signed constant, scaled for density",
    "optimizer": "sgd, cosine",
    "learning_rate": LEARNING_RATE,
    "momentum": MOMENTUM,
    "batch_size": _train.BATCH_SIZE,
    "density": DENSITY,
    "seeds_of_other_densities": FEW,
    "inputs": "standardized",
}


class Rest(NamedTuple):
    """What belongs to a network beside its scores, a density for each kernel."""

    weights: Any
    densities: Any
    cutoffs: Any


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
    kept = jax.jit(jax.vmap(algebra.density))
    variants = {"Erdos-Renyi": (curve[-1, -FEW:], np.asarray(kept(masks))[-FEW:])}
    before = jax.tree.map(lambda x: x[:FEW], before)
    after, looks = _learn_masks(context, data, before, "global")
    unchanged &= _train.same_bits(before.rest.weights, after.rest.weights)
    variants["global"] = looks[-1], np.asarray(kept(_masks(after, "global")))

    main, others = curve[:, :seeds], curve[-1, seeds:-FEW].reshape(-1, FEW)
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
        rows("edge_popup", **numbers, **ends, others=others, density=DENSITY),
        SETTINGS | {"epochs": context.pick(EPOCHS)},
        numbers,
        [_draw(context, by_density, trained)],
    )


def _soft_mask(scores: Any, rest: Rest, how: str) -> tuple[Any, Any]:
    """The soft mask, and where it cut."""
    share, scope = (DENSITY, "global") if how == "global" else (rest.densities, "leaf")
    given = {"density": share, "scope": scope, "guess": rest.cutoffs}
    return edge_popup.soft_mask(scores, **given, return_cutoff=True)


def _masks(members: _train.Member, how: str = "edge-popup") -> Any:
    soft = jax.jit(jax.vmap(lambda m: _soft_mask(m.params, m.rest, how)[0]))(members)
    return jax.tree.map(lambda m: m > 0, soft)


def _members(data: Data, densities: Array, erk: Array) -> _train.Member:
    """One for each density, which is that of all kernels or of their mean."""

    def init(key: Array, density: Array, erk: Array) -> _train.Member:
        draw, start = jax.random.split(key)
        model = MODEL.clone(kernel_init=initializer.signed_constant(density))
        weights = model.fresh(draw, data.x_train)
        shares = jax.tree.map(
            lambda share: jnp.where(erk, share, density),
            allocation.erk(weights, density=density),
        )
        # Scaled for the density of each kernel.
        weights = jax.tree.map(lambda w, d: w * jnp.sqrt(density / d), weights, shares)
        # Scores are uniform in +-1 / sqrt(fan_in): so many are above this at first.
        cutoffs = jax.tree.map(lambda w: (1 - density) / w.shape[0] ** 0.5, weights)
        scores = edge_popup.init(weights, key=start)
        return _train.begin(START, scores, Rest(weights, shares, cutoffs))

    keys = jax.random.split(jax.random.split(jax.random.key(0))[0], len(densities))
    return _train.draw(init, keys, densities, erk)


def _learn_masks(
    context: Context, data: Data, before: _train.Member, how: str = "edge-popup"
) -> tuple[_train.Member, np.ndarray]:
    """The members after training, and accuracies [1 + epochs, K]."""

    def forward(scores: Any, rest: Rest, x: Array) -> tuple[Array, Rest]:
        soft, cutoffs = _soft_mask(scores, rest, how)
        logits = MODEL.logits(maskjax.apply(rest.weights, soft), x)
        return logits, rest._replace(cutoffs=cutoffs)

    order = jax.random.split(jax.random.key(0))[1]
    return _fit(context, data, before, order, f"masks, {how}", forward)


def _train_weights(context: Context, data: Data) -> np.ndarray:
    """What the same network and training reach when it is the weights that learn."""

    def init(key: Array) -> _train.Member:
        return _train.begin(START, MODEL.fresh(key, data.x_train))

    def forward(params: Any, rest: None, x: Array) -> tuple[Array, None]:
        return MODEL.logits(params, x), rest

    draws, order = jax.random.split(jax.random.key(1))
    states = _train.draw(init, jax.random.split(draws, context.seeds))
    return _fit(context, data, states, order, "trained weights", forward)[1][-1]


def _fit(
    context: Context,
    data: Data,
    states: Any,
    key: Array,
    label: str,
    forward: Any,
) -> tuple[_train.Member, np.ndarray]:
    """Train what `forward` needs: `(params, rest, x) -> (logits, rest)`."""

    def loss(params: Any, rest: Any, x: Array, y: Array) -> Any:
        logits, rest = forward(params, rest, x)
        return _train.cross_entropy(logits, y), rest

    def predict(member: _train.Member, x: Array) -> Array:
        return forward(member.params, member.rest, x)[0]

    epochs = context.pick(EPOCHS)
    optimizer = optax.sgd(_train.cosine(LEARNING_RATE, epochs, data.x_train), MOMENTUM)
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


def _draw(context: Context, by_density: dict[float, Any], trained: Any) -> str:
    title = f"Edge-popup: how much of a random network to keep, {context.data.name}"
    found = {"learned masks": [values[:FEW] for values in by_density.values()]}
    how = {"levels": {"trained weights": trained}, "seeds": FEW, "legend": "center"}
    drawn = "edge_popup_density", title, list(by_density), found
    ticks = [d for d in by_density if d != 0.9]  # too near 1 for a label
    return _pictures.plot(context, *drawn, density=ticks, **how)


DEMO = Demo("edge_popup", "edge-popup (Ramanujan et al. 2020)", run, seconds=8)
