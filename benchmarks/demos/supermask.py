"""Learn with what probability to keep each weight of a random network (Zhou et al.).

The weights are drawn once and never trained; the mask is a fresh sample in each step. A
ladder of what the paper adds: signed constants as weights, weights rescaled by what the
sample keeps, and rounding of half of the entries while training.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import _pictures, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome, Row
from maskjax import initializer, masking
from maskjax.recipes import supermask

# Signed constants, rescaled weights, the fraction of entries rounded in training.
LADDER = {
    "plain": (False, False, 0.0),
    "signed constants": (True, False, 0.0),
    "rescaled": (False, True, 0.0),
    "both": (True, True, 0.0),
    "both, half rounded": (True, True, 0.5),
}
SEEDS, SAMPLES = 5, 10
LEARNING_RATE, MOMENTUM = 100.0, 0.9  # as in the paper, like the batch
BATCH_SIZE = 250
EPOCHS, FEW_EPOCHS, QUICK_EPOCHS = 100, 50, 12  # the paper's are 2,000
LOOKS = 10  # at the test images, while training
MODEL = _train.MLP(kernel_init=nn.initializers.glorot_normal())


class Member(NamedTuple):
    """One network in training, and where it stands on the ladder."""

    state: supermask.SupermaskState
    rescaled: jax.Array
    rounded: jax.Array
    key: jax.Array


def run(context: Context) -> Outcome:
    """Every rung of the ladder from the same weights, tested by samples and rounded."""
    data = context.data.flat()
    epochs = EPOCHS if _steps(data) > 10 else FEW_EPOCHS  # few for scikit-learn's
    epochs = QUICK_EPOCHS if context.quick else epochs
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)
    draws, order, chance = jax.random.split(jax.random.key(0), 3)
    before = _members(data, optimizer, draws)
    epoch = _epoch_of(data, optimizer)
    sampled = _train.accuracy_of(_predict_sampled, data.x_test, data.y_test)
    rounded = _train.accuracy_of(_predict_rounded, data.x_test, data.y_test)

    after, seen, curve = before, [0], [_of_rungs(sampled(before))]
    for i in context.track("supermask: logits", epochs):
        after = epoch(after, jax.random.fold_in(order, i))
        if (i + 1) % max(epochs // LOOKS, 1) == 0 or i + 1 == epochs:
            seen.append(i + 1)
            curve.append(_of_rungs(sampled(after)))
    keys = jax.random.split(chance, SAMPLES)
    tested = [sampled(_with_key(after, key)) for key in keys]
    by_samples, by_rounding = (
        _of_rungs(sum(tested) / SAMPLES),
        _of_rungs(rounded(after)),
    )
    densities = _of_rungs(jax.jit(jax.vmap(supermask.density))(after.state))
    unchanged = _same_bits(before.state.weights, after.state.weights)

    def of(rung: str, values: dict[str, np.ndarray]) -> str:
        return f"{values[rung].mean():.1%}"

    ladder = ", ".join(
        f"{rung} {of(rung, by_samples)} ({of(rung, by_rounding)})" for rung in LADDER
    )
    kept = ", ".join(f"{rung} {of(rung, densities)}" for rung in LADDER)
    return Outcome(
        rows=[
            Row(
                "a learned mask on random weights knows MNIST: 95.3%, and 98.0% with "
                "signed constants and rescaled weights (60,000 images, 2,000 epochs)",
                f"mean of {SAMPLES} samples (and rounded) after {epochs} epochs: "
                f"{ladder}; before: {of('plain', curve[0])}",
            ),
            Row(
                "weights are never trained; their density is what training makes it",
                f"weights {'bit-identical' if unchanged else 'CHANGED'}; kept, at 50% "
                f"before: {kept}",
            ),
        ],
        settings={
            "network": "300-100",
            "weights": "Glorot normal, or signed constants of their deviation",
            "biases": "0, not trained",
            "optimizer": "sgd",
            "learning_rate": LEARNING_RATE,
            "momentum": MOMENTUM,
            "batch_size": BATCH_SIZE,
            "epochs": epochs,
            "seeds": SEEDS,
            "samples": SAMPLES,
            "inputs": "0 to 1",
        },
        numbers={
            "weights_unchanged": unchanged,
            "sampled": by_samples,
            "rounded": by_rounding,
            "density": densities,
            "epochs_seen": seen,
            "one_sample_by_epoch": {
                rung: np.stack([look[rung] for look in curve]) for rung in LADDER
            },
        },
        pictures=[
            _draw_curves(context, seen, curve),
            _draw_probabilities(context, after),
        ],
    )


def _logits(params: Any, x: jax.Array) -> jax.Array:
    return MODEL.apply({"params": params}, x)


def _masked(member: Member) -> Callable[[Any, Any], Any]:
    """Rescaled or not, so that both are one program."""

    def masked(weights: Any, mask: Any) -> Any:
        apply, rescale = masking.apply(weights, mask), masking.rescale(weights, mask)
        return jax.tree.map(
            lambda a, r: jnp.where(member.rescaled, r, a), apply, rescale
        )

    return masked


def _predict_sampled(member: Member, x: jax.Array) -> jax.Array:
    out = supermask.predict(
        _logits, member.state, x, masked=_masked(member), samples=1, key=member.key
    )
    return out[0]


def _predict_rounded(member: Member, x: jax.Array) -> jax.Array:
    return supermask.predict(_logits, member.state, x, masked=_masked(member), key=None)


def _members(
    data: Data, optimizer: optax.GradientTransformation, key: jax.Array
) -> Member:
    """Each rung of the ladder for each seed, which has the same weights on all."""

    def init(key: jax.Array, constant: jax.Array, *rung: jax.Array) -> Member:
        draw, chance = jax.random.split(key)
        weights = MODEL.init(draw, data.x_train[:1])["params"]
        signed = initializer.signed_deviation(weights)
        weights = jax.tree.map(lambda s, w: jnp.where(constant, s, w), signed, weights)
        return Member(supermask.init(weights, optimizer), *rung, chance)

    keys = jnp.tile(jax.random.split(key, SEEDS), len(LADDER))
    rungs = [
        jnp.repeat(jnp.array(x), SEEDS) for x in zip(*LADDER.values(), strict=True)
    ]
    return _train.draw(init, keys, *rungs)


def _steps(data: Data) -> int:
    return max(len(data.x_train) // BATCH_SIZE, 1)


def _epoch_of(
    data: Data, optimizer: optax.GradientTransformation
) -> Callable[[Member, jax.Array], Member]:
    """Batches of the paper's size, and a key of its own for every step."""
    size = min(BATCH_SIZE, len(data.x_train))
    x, y = jnp.asarray(data.x_train), jnp.asarray(data.y_train)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return _train.cross_entropy(_logits(params, x), y)

    def of_member(member: Member, key: jax.Array, x: jax.Array, y: jax.Array) -> Member:
        def step(member: Member, batch: jax.Array) -> tuple[Member, jax.Array]:
            key, sample = jax.random.split(member.key)
            state, value = supermask.step(
                member.state,
                loss,
                optimizer,
                x[batch],
                y[batch],
                masked=_masked(member),
                rounded=member.rounded,
                key=sample,
            )
            return member._replace(state=state, key=key), value

        order = jax.random.permutation(key, len(x))[: _steps(data) * size]
        return lax.scan(step, member, order.reshape(-1, size))[0]

    of_all = jax.jit(jax.vmap(of_member, in_axes=(0, 0, None, None)))

    def epoch(members: Member, key: jax.Array) -> Member:
        keys = jnp.tile(jax.random.split(key, SEEDS), len(LADDER))
        # Waiting keeps the progress bar honest.
        return jax.block_until_ready(of_all(members, keys, x, y))

    return epoch


def _with_key(members: Member, key: jax.Array) -> Member:
    return members._replace(key=jax.random.split(key, len(members.key)))


def _of_rungs(values: jax.Array) -> dict[str, np.ndarray]:
    """Values of all members [rungs * SEEDS] by rung."""
    return dict(zip(LADDER, np.asarray(values).reshape(-1, SEEDS), strict=True))


def _same_bits(before: Any, after: Any) -> bool:
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def _draw_curves(
    context: Context, seen: list[int], curve: list[dict[str, np.ndarray]]
) -> str:
    figure, axes = _pictures.figure(
        f"Supermasks: random weights, learned masks, {context.data.name}"
    )
    for rung in LADDER:
        _pictures.band(axes, seen, np.stack([look[rung] for look in curve]), rung)
    axes.set_xlabel("epoch")
    axes.set_ylim(0.8, 1)  # they begin at chance, and differ by little in the end
    _pictures.accuracy_axis(axes, SEEDS)
    axes.legend(loc="lower right", title="one sample of the mask")
    return _pictures.save(figure, context.out / "supermask_training.png")


def _draw_probabilities(context: Context, members: Member) -> str:
    figure, axes = _pictures.figure(
        f"Supermasks: with what probability a weight is kept, {context.data.name}"
    )
    logits = members.state.logits["Dense_0"]["kernel"]
    kept = np.asarray(jax.nn.sigmoid(logits)).reshape(len(LADDER), -1)
    bins = np.linspace(0, 1, 41)
    for rung, values in zip(LADDER, kept, strict=True):
        share = np.histogram(values, bins)[0] / values.size
        axes.stairs(share, bins, label=rung, linewidth=1.5)
    axes.set_yscale("log")
    axes.set_ylim(top=1)
    axes.set_xlabel("sigmoid(logit), first layer, after training")
    axes.set_ylabel("fraction of weights")
    axes.legend(loc="upper right")
    return _pictures.save(figure, context.out / "supermask_probabilities.png")


DEMO = Demo("supermask", "learned supermasks (Zhou et al. 2019)", run)
