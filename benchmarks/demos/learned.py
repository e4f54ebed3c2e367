"""Masks that the loss chooses: two of every four weights, and which inputs to read.

A small transformer reads the rows of an image. Its 2:4 masks come from magnitudes, from
Wanda and from SparseGPT, which also changes weights; or they are learned, from Wanda's
and from nothing, while the weights stay as they are. For what else could be done with
as many steps, the weights under Wanda's mask are trained.

A network with as many columns of noise as pixels learns at which inputs to look, by
hard concrete gates with a Lagrangian on how many are open. Beside it: all inputs, the
pixels alone, and as many inputs as the gates keep, by the magnitude of their weights
after half of the steps. All train for as many steps.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import maskjax
from benchmarks import _pictures, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import (
    algebra,
    calibration,
    estimator,
    masking,
    score,
    select,
    structure,
    where,
)
from maskjax.recipes import maskllm, sparsegpt

SEEDS = 3, 3, 10
WIDTH, HEADS, LAYERS = 32, 4, 2  # kernels of one shape are one program
STEPS = {"dense": (100, 200, 3_000), "patterns": (60, 150, 2_000)}
STEPS |= {"inputs": (200, 400, 3_000)}
RATE, LOGITS_RATE, NORM = 3e-3, 5e-3, 1e-5
TWO_OF_FOUR = structure.NofM(2, 4)
DENSE, MAGNITUDE, WANDA, SPARSEGPT = "dense", "magnitude", "Wanda", "SparseGPT"
LEARNED, ALONE = "learned from Wanda", "learned from nothing"
TUNED = "Wanda, weights trained"
TARGET = 0.25  # of the inputs
UNITS = 100
INPUT_RATES = {"net": 1e-3, "gates": 0.05, "prices": 0.1}
CONTROLS = "all inputs", "pixels alone", "by magnitude"
GATES = "gates"
NOISE = "unsafe_rbg"  # other random bits take three times as long to compile


class Layer(nn.Module):
    """One layer of a transformer, as a step of a loop."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """Features [B, T, D] of features [B, T, D]."""
        y, shape = nn.LayerNorm(name="norm_a")(x), (*x.shape[:-1], HEADS, -1)
        parts = (nn.Dense(WIDTH, name=n)(y) for n in ("query", "key", "value"))
        mixed = nn.dot_product_attention(*(part.reshape(shape) for part in parts))
        x = x + nn.Dense(WIDTH, name="out")(mixed.reshape(x.shape))
        y = nn.gelu(nn.Dense(WIDTH, name="up")(nn.LayerNorm(name="norm_b")(x)))
        return x + nn.Dense(WIDTH, name="down")(y), None


class Transformer(nn.Module):
    """A network that reads the rows of an image."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, 10] of images [B, H, W]."""
        place = self.param("places", nn.initializers.normal(0.02), (x.shape[1], WIDTH))
        x = nn.Dense(WIDTH, name="embed")(x) + place[None]
        each = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Layer, length=LAYERS, **each)(name="layers")(x, None)
        return nn.Dense(10, name="head")(nn.LayerNorm(name="norm")(x).mean(1))


class Rest(NamedTuple):
    """What belongs to a network whose logits are trained."""

    weights: Any
    step: jax.Array
    key: jax.Array


class Gated(NamedTuple):
    """What is trained of a network whose inputs have gates."""

    net: Any
    gates: Any
    prices: jax.Array


NETWORK = Transformer()
MLP = _train.MLP(widths=(UNITS, 10))


def run(context: Context) -> Outcome:
    """Losses of 2:4 masks, and the inputs that are kept, by each way to choose."""
    seeds = context.pick(SEEDS)
    patterns, inputs = _patterns(context, seeds), _inputs(context, seeds)
    names = "pixels", "noise"
    by = {n: dict(zip(names, two, strict=True)) for n, two in inputs["kept"].items()}
    steps = {name: context.pick(each) for name, each in STEPS.items()}
    shown = {"patterns": patterns, "inputs": inputs, "steps": steps}
    shown |= {"gates": by[GATES], "magnitude": by["by magnitude"]}
    return Outcome(
        rows=rows("learned", **shown),
        settings={"width": WIDTH, "hidden": WIDTH, "heads": HEADS, "layers": LAYERS}
        | {"steps": steps, "rate": RATE, "logits_rate": LOGITS_RATE, "norm": NORM}
        | {"batch_size": _train.BATCH_SIZE, "target": TARGET, "units": UNITS}
        | {"input_rates": INPUT_RATES, "optimizer": "adam", "seeds": seeds},
        numbers={"patterns": patterns, "inputs": inputs},
        pictures=[_draw(context, patterns, inputs)],
    )


# Two of every four weights


def _net(params: Any, x: jax.Array) -> jax.Array:
    return NETWORK.apply({"params": params}, x)


def _patterns(context: Context, seeds: int) -> dict[str, Any]:
    data = context.data.standardized()
    x, y = jnp.asarray(data.x_train), jnp.asarray(data.y_train)
    fresh = lambda key: NETWORK.init(key, x[:1])["params"]  # noqa: E731
    draws = jax.random.key(0, impl=NOISE)
    start = _train.draw(fresh, jax.random.split(draws, seeds))
    one = jax.tree.map(lambda p: p[0], start)
    chosen = where.matching("^layers/") & where.traced(_net, one, x[:1])
    everything = jax.vmap(lambda p: masking.everything(p, where=chosen))(start)
    trained = _training(context, x, y)
    params = trained("dense", start, everything)
    masks, repaired = jax.jit(jax.vmap(lambda p: _one_shot(p, x, chosen)))(params)
    keys = jax.random.split(jax.random.key(1, impl=NOISE), 2 * seeds)
    found = _learned(context, params, masks[WANDA], chosen, keys, x, y)
    masks |= dict(zip((LEARNED, ALONE), found, strict=True))
    masked = {name: maskjax.apply(params, mask) for name, mask in masks.items()}
    tuned = trained("patterns", params, masks[WANDA])
    networks = {DENSE: params} | masked | {SPARSEGPT: repaired, TUNED: tuned}
    tested = _tested(data)
    scored = {name: tested(each) for name, each in networks.items()}
    accuracy = {name: np.asarray(each[0]) for name, each in scored.items()}
    loss = {name: np.asarray(each[1]) for name, each in scored.items()}
    ahead = loss[WANDA] - loss[LEARNED]
    return {
        "accuracy": accuracy,
        "loss": loss,
        "ahead": ahead,
        "reached": bool(ahead.mean() >= 0),
        "exact": all(_is_exact(mask) for mask in masks.values()),
        "overlap": jax.vmap(algebra.overlap)(masks[WANDA], masks[LEARNED]),
    }


def _training(context: Context, x: jax.Array, y: jax.Array) -> Any:
    """A function from networks and masks [K, ...] to trained networks; one program."""
    start, step = _train.under_masks(_net, optax.adam(RATE))
    begin, epoch = jax.jit(jax.vmap(start)), _train.epoch_of(step, x, y)

    def trained(steps: str, params: Any, masks: Any) -> Any:
        epochs = _train.epochs_of(context.pick(STEPS[steps]), x)
        track = context.track(f"learned: weights, {steps}", epochs)
        states = begin(params, masks)
        states = _train.epochs_by(epoch, states, track, key=jax.random.key(4))
        return jax.vmap(maskjax.apply)(states.params, states.rest)

    return trained


def _one_shot(params: Any, x: jax.Array, chosen: Any) -> tuple[dict[str, Any], Any]:
    """Masks that take no training, and the parameters that SparseGPT leaves."""
    stats = calibration.init(_net, params, x, where=chosen)
    stats = calibration.update(_net, stats, params, x)
    scores = {MAGNITUDE: score.magnitude(params, where=chosen)}
    norms = calibration.norms(stats)
    scores[WANDA] = score.wanda(params, norms, where=chosen)
    how = {"density": 0.5, "structure": TWO_OF_FOUR, "where": chosen}
    masks = {name: select.top_k(each, **how) for name, each in scores.items()}
    pruned = sparsegpt.prune(params, stats, structure=TWO_OF_FOUR)
    return masks | {SPARSEGPT: pruned.mask}, pruned.params


def _learned(
    context: Context,
    params: Any,
    prior: Any,
    chosen: Any,
    keys: jax.Array,
    x: jax.Array,
    y: jax.Array,
) -> list[Any]:
    """Masks [K, ...] that were learned from a prior, and from nothing."""
    epochs = _train.epochs_of(context.pick(STEPS["patterns"]), x)
    steps = epochs * _train.steps_per_epoch(x)
    adam, how = optax.adam(LOGITS_RATE), {"where": chosen}

    def start(params: Any, prior: Any, strength: Any, key: jax.Array) -> _train.Member:
        began, later = jax.random.split(key)
        given = {"strength": strength, "key": began, **how}
        logits = maskllm.init(params, prior, **given)
        return _train.begin(adam, logits, Rest(params, jnp.int32(0), later))

    def loss(logits: Any, rest: Rest, x: jax.Array, y: jax.Array) -> tuple[Any, Rest]:
        params, step, key = rest
        progress, key_now = step / steps, jax.random.fold_in(key, step)
        given = {"progress": progress, "key": key_now, **how}
        soft = maskllm.soft_mask(logits, params, **given)
        value = _train.cross_entropy(_net(maskjax.apply(params, soft), x), y)
        large = NORM * (1 - progress) * maskllm.squared_norm(params, soft)
        return value - large, Rest(params, step + 1, key)

    def twice(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.concatenate([a, a]), tree)

    half = len(keys) // 2
    strength = jnp.repeat(jnp.array([3.0, 0.0]), half)
    states = jax.jit(jax.vmap(start))(twice(params), twice(prior), strength, keys)
    step = _train.descend(loss, adam, has_aux=True)
    epoch = _train.epoch_of(step, x, y, groups=2)
    track = context.track("learned: patterns", epochs)
    states = _train.epochs_by(epoch, states, track, key=jax.random.key(1))
    ends = jax.jit(jax.vmap(lambda m: maskllm.mask(m.params, m.rest.weights, **how)))
    masks = ends(states)
    return [jax.tree.map(lambda m, i=i: m[i : i + half], masks) for i in (0, half)]


def _tested(data: Data) -> Any:
    """Accuracies and losses [K] of networks [K, ...] on the test images."""
    x, y = jnp.asarray(data.x_test), jnp.asarray(data.y_test)

    def of_one(params: Any) -> list[jax.Array]:
        logits = _net(params, x)
        return [judge(logits, y) for judge in (_train.accuracy, _train.cross_entropy)]

    return jax.jit(jax.vmap(of_one))


def _is_exact(masks: Any) -> bool:
    """Whether stacked kernels [K, L, in, out] keep two of every four inputs."""
    counts = (
        np.asarray(m).reshape(*m.shape[:2], -1, 4, m.shape[-1]).sum(3)
        for m in jax.tree.leaves(masks)
    )
    return all((count == 2).all() for count in counts)


# Which inputs


def _inputs(context: Context, seeds: int) -> dict[str, Any]:
    data = _noisy(context.data.flat())
    x, y = jnp.asarray(data.x_train), jnp.asarray(data.y_train)
    pixels = x.shape[1] // 2
    start = _train.glorot(np.random.default_rng(0), (2 * pixels, UNITS, 10), seeds)
    epochs = 2 * _train.epochs_of(context.pick(STEPS["inputs"]) // 2, x)
    gated = _gated(context, start, x, y, epochs)
    gates = jax.vmap(lambda m: estimator.hard_concrete(m.params.gates, key=None))(gated)
    opened = np.asarray(gates["Dense_0"]["kernel"][..., 0]) > 0  # [K, inputs]

    def predict(member: _train.Member, x: jax.Array) -> jax.Array:
        gates = estimator.hard_concrete(member.params.gates, key=None)
        return MLP.logits(maskjax.apply(member.params.net, gates), x)

    right = _train.accuracy_of(predict, data.x_test, data.y_test)(gated)
    count = jnp.asarray(opened.mean(1), jnp.float32)
    accuracy, chosen = _controls(context, start, count, data, epochs)
    expected = jax.vmap(
        lambda m: algebra.expected_density(
            estimator.hard_concrete_probabilities(m.params.gates)
        )
    )(gated)
    each = {GATES: opened, "by magnitude": chosen}
    return {
        "pixels": pixels,
        "noise": pixels,
        "target": TARGET,
        "expected": np.asarray(expected),
        "density": opened.mean(1),
        "accuracy": {GATES: np.asarray(right), **accuracy},
        "open": np.split(opened.mean(0), 2),
        "kept": {
            name: (kept[:, :pixels].sum(1), kept[:, pixels:].sum(1))
            for name, kept in each.items()
        },
    }


def _noisy(data: Data) -> Data:
    """Images [N, P] with P more columns, of noise as wide as the pixels are."""
    rng, width = np.random.default_rng(1), data.x_train.std()

    def wider(x: np.ndarray) -> np.ndarray:
        both = x, rng.normal(0.0, width, x.shape)
        return np.concatenate(both, axis=1, dtype=np.float32)

    return data._replace(x_train=wider(data.x_train), x_test=wider(data.x_test))


def _gated(context: Context, start: Any, x: Any, y: Any, epochs: int) -> _train.Member:
    """Networks that were trained together with gates of their inputs."""
    rates = {name: optax.adam(rate) for name, rate in INPUT_RATES.items()}
    rates["net"] = optax.adam(_train.cosine(INPUT_RATES["net"], epochs, x))
    adam = optax.partition(rates, Gated("net", "gates", "prices"))
    warm = epochs * _train.steps_per_epoch(x) // 3
    target = optax.linear_schedule(1.0, TARGET, warm)

    def begin(params: Any, key: jax.Array) -> _train.Member:
        nothing = jax.tree.map(lambda _: None, params)
        open_ = jnp.full((x.shape[1], 1), 2.0)
        gates = nothing | {"Dense_0": {**nothing["Dense_0"], "kernel": open_}}
        whole = Gated(params, gates, jnp.zeros(2))
        return _train.begin(adam, whole, (jnp.int32(0), key))

    def loss(whole: Gated, rest: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        step, key = rest
        gates = estimator.hard_concrete(whole.gates, key=jax.random.fold_in(key, step))
        value = _train.cross_entropy(MLP.logits(maskjax.apply(whole.net, gates), x), y)
        open_ = estimator.hard_concrete_probabilities(whole.gates)
        excess = algebra.expected_density(open_) - target(step)
        term = estimator.lagrangian(excess, whole.prices)
        return value + term, (step + 1, key)

    keys = jax.random.split(
        jax.random.key(2, impl=NOISE), len(start["Dense_0"]["bias"])
    )
    states = jax.jit(jax.vmap(begin))(start, keys)
    epoch = _train.epoch_of(_train.descend(loss, adam, has_aux=True), x, y)
    track = context.track("learned: gates", epochs)
    return _train.epochs_by(epoch, states, track, key=jax.random.key(3))


def _controls(
    context: Context, start: Any, shares: jax.Array, data: Data, epochs: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Accuracies [K] without gates, and the inputs that magnitude chooses [K, P]."""
    x, y, seeds = data.x_train, data.y_train, len(shares)
    rate = _train.cosine(INPUT_RATES["net"], epochs, x)
    begin, step = _train.under_masks(MLP.logits, optax.adam(rate))
    epoch = _train.epoch_of(step, x, y, groups=len(CONTROLS))
    is_pixel = jnp.arange(x.shape[1]) < x.shape[1] // 2
    shown = jnp.stack([jnp.ones_like(is_pixel), is_pixel, jnp.ones_like(is_pixel)])
    nothing = jax.tree.map(lambda _: None, start)

    def mask_of(kept: jax.Array) -> Any:
        return nothing | {"Dense_0": {**nothing["Dense_0"], "kernel": kept[..., None]}}

    params = jax.tree.map(lambda p: jnp.concatenate([p] * len(CONTROLS)), start)
    masks = mask_of(jnp.repeat(shown, seeds, axis=0))
    states = jax.jit(jax.vmap(begin))(params, masks)
    track, half = list(range(epochs)), epochs // 2
    key = jax.random.key(3)
    states = _train.epochs_by(epoch, states, track[:half], key=key)

    def chosen(params: Any, share: jax.Array) -> jax.Array:
        scores = {"": score.magnitude(params)["Dense_0"]["kernel"]}
        units = structure.Units("inputs")
        return select.top_k(scores, density=share, structure=units)[""][:, 0]

    last = jax.tree.map(lambda p: p[-seeds:], states.params)
    kept = jax.jit(jax.vmap(chosen))(last, shares)
    whole = jnp.concatenate([jnp.repeat(shown[:2], seeds, axis=0), kept])
    states = states._replace(rest=mask_of(whole))
    states = _train.epochs_by(epoch, states, track[half:], key=key)

    def predict(member: _train.Member, x: jax.Array) -> jax.Array:
        return MLP.logits(maskjax.apply(member.params, member.rest), x)

    right = _train.accuracy_of(predict, data.x_test, data.y_test)(states)
    each = np.asarray(right).reshape(len(CONTROLS), seeds)
    return dict(zip(CONTROLS, each, strict=True)), np.asarray(kept)


def _draw(context: Context, patterns: dict[str, Any], inputs: dict[str, Any]) -> str:
    title = f"Masks that the loss chooses, {context.data.name}"
    drawn, (left, right) = _pictures.page(title, 2, size=(11, 4))
    for i, losses in enumerate(patterns["loss"].values()):
        left.plot(losses, np.full(len(losses), i), "o", alpha=0.5)
        left.plot(losses.mean(), i, "k|", markersize=18)
    left.set_yticks(range(len(patterns["loss"])), list(patterns["loss"]))
    left.invert_yaxis()
    left.set(title="2:4 masks: seeds, mean", xscale="log", xlabel="test loss (nats)")
    _pictures.plain(left.xaxis, (0.1, 0.2, 0.5, 1, 2, 5))
    pixels, noise = (part.reshape(context.data.shape) for part in inputs["open"])
    between = np.full((len(pixels), 1), np.nan)
    image = right.imshow(np.hstack([pixels, between, noise]), vmin=0, vmax=1)
    right.set(title="inputs kept: pixels (left), noise (right)", xticks=[], yticks=[])
    right.grid(visible=False)
    drawn.colorbar(image, ax=right, label="fraction of seeds", shrink=0.6)
    return _pictures.save(drawn, context, "learned_masks")


DEMO = Demo("learned", "learned N:M masks, hard concrete gates", run, seconds=19)
