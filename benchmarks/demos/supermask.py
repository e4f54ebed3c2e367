"""Learn with what probability to keep each weight of a random network (Zhou et al.).

The weights are drawn once and never trained; the mask is a fresh sample in each step. A
ladder of what the paper adds: signed constants as weights, weights rescaled by what the
sample keeps, and rounding of half of the entries while training.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from benchmarks import _pictures, _train
from benchmarks._data import Data
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows, said
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
SEEDS, SAMPLES = (5, 3, 5), 10
LEARNING_RATE, MOMENTUM = 100.0, 0.9  # as in the paper, like the batch
BATCH_SIZE = 250
EPOCHS = 12, 30, 100  # the paper's are 2,000
FEW_EPOCHS = 12, 20, 50  # of scikit-learn's digits
LOOKS = 10  # at the test images, while training
MODEL = _train.MLP(kernel_init=nn.initializers.glorot_normal())
SETTINGS = {
    "network": "300-100",
    "weights": "Glorot normal, or signed constants of their deviation",
    "biases": "0, not trained",
    "optimizer": "sgd",
    "learning_rate": LEARNING_RATE,
    "momentum": MOMENTUM,
    "batch_size": BATCH_SIZE,
    "samples": SAMPLES,
    "inputs": "0 to 1",
}


class Rest(NamedTuple):
    """What belongs to a network beside its scores, and where it is on the ladder."""

    weights: Any
    rescaled: Array
    rounded: Array
    key: Array


def run(context: Context) -> Outcome:
    """Every rung of the ladder from the same weights, tested by samples and rounded."""
    data, seeds = context.data.flat(), context.pick(SEEDS)
    x, y = data.x_train, data.y_train
    enough = _train.steps_per_epoch(x, BATCH_SIZE) > 10
    epochs = context.pick(EPOCHS if enough else FEW_EPOCHS)
    draws, order, chance = jax.random.split(jax.random.key(0), 3)
    optimizer = optax.sgd(LEARNING_RATE, MOMENTUM)
    before = _members(data, optimizer, jax.random.split(draws, seeds))
    step = _train.descend(_loss, optimizer, has_aux=True)
    epoch = _train.epoch_of(step, x, y, size=BATCH_SIZE, groups=len(LADDER))
    sampled, rounded = (
        _train.accuracy_of(
            functools.partial(_predict, sampled=sampled), data.x_test, data.y_test
        )
        for sampled in (True, False)
    )
    after, seen, curve = before, [0], [_of_rungs(sampled(before))]
    for i in context.track("supermask: scores", epochs):
        after, _ = epoch(after, jax.random.fold_in(order, i))
        if (i + 1) % max(epochs // LOOKS, 1) == 0 or i + 1 == epochs:
            seen.append(i + 1)
            curve.append(_of_rungs(sampled(after)))
    tested = [sampled(_with_key(after, k)) for k in jax.random.split(chance, SAMPLES)]
    curves = {rung: np.stack([look[rung] for look in curve]) for rung in LADDER}
    numbers = {
        "weights_unchanged": _train.same_bits(before.rest.weights, after.rest.weights),
        "sampled": _of_rungs(sum(tested) / SAMPLES),
        "rounded": _of_rungs(rounded(after)),
        "density": _of_rungs(jax.jit(jax.vmap(supermask.density))(after.params)),
        "epochs_seen": seen,
        "one_sample_by_epoch": curves,
    }
    ladder = ", ".join(
        f"{rung} {said(found, '.1%')} ({said(numbers['rounded'][rung], '.1%')})"
        for rung, found in numbers["sampled"].items()
    )
    shown = {"epochs": epochs, "before": curves["plain"][0], "ladder": ladder}
    shown |= {"samples": SAMPLES}
    named = context.data.name
    return Outcome(
        rows("supermask", **shown, **numbers),
        SETTINGS | {"epochs": epochs, "seeds": seeds},
        numbers,
        [
            _pictures.plot(
                context,
                "supermask_training",
                f"Supermasks: random weights, a sample of the mask, {named}",
                seen,
                {rung: 1 - curve for rung, curve in curves.items()},
                seeds=seeds,
                xlabel="epoch",
                # They begin at chance, and differ by little in the end.
                yscale="log",
                yticks=(0.05, 0.1, 0.2, 0.5, 1),
                ylabel=f"test error: mean and range of {seeds} seeds",
            ),
        ],
    )


def _masked(rest: Rest, mask: Any) -> Any:
    """Weights under a mask, rescaled or not, so that both are one program."""
    pair = masking.rescale(rest.weights, mask), masking.apply(rest.weights, mask)
    return jax.tree.map(lambda r, a: jnp.where(rest.rescaled, r, a), *pair)


def _loss(scores: Any, rest: Rest, x: Array, y: Array) -> tuple[Array, Rest]:
    """Under a sample of the mask, and with a new key for the next."""
    key, sample = jax.random.split(rest.key)
    soft = supermask.soft_mask(scores, rounded=rest.rounded, key=sample)
    value = _train.cross_entropy(MODEL.logits(_masked(rest, soft), x), y)
    return value, rest._replace(key=key)


def _predict(member: _train.Member, x: Array, *, sampled: bool) -> Array:
    """Logits under a sample of the mask, or under the rounded one."""
    key = jax.random.split(member.rest.key, 1)[0] if sampled else None
    mask = supermask.mask(member.params, key=key)
    return MODEL.logits(_masked(member.rest, mask), x)


def _members(
    data: Data, optimizer: optax.GradientTransformation, keys: Array
) -> _train.Member:
    """Each rung of the ladder for each seed, which has the same weights on all."""

    def init(key: Array, constant: Array, *rung: Array) -> _train.Member:
        draw, chance = jax.random.split(key)
        weights = MODEL.fresh(draw, data.x_train)
        signed = initializer.signed_deviation(weights)
        weights = jax.tree.map(lambda s, w: jnp.where(constant, s, w), signed, weights)
        scores = supermask.init(weights)
        return _train.begin(optimizer, scores, Rest(weights, *rung, chance))

    rungs = zip(*LADDER.values(), strict=True)
    rungs = [jnp.repeat(jnp.array(values), len(keys)) for values in rungs]
    return _train.draw(init, jnp.tile(keys, len(LADDER)), *rungs)


def _with_key(members: _train.Member, key: Array) -> _train.Member:
    keys = jax.random.split(key, len(members.rest.key))
    return members._replace(rest=members.rest._replace(key=keys))


def _of_rungs(values: Array) -> dict[str, np.ndarray]:
    """Values of all members [rungs * seeds] by rung."""
    return dict(zip(LADDER, np.asarray(values).reshape(len(LADDER), -1), strict=True))


DEMO = Demo("supermask", "learned supermasks (Zhou et al. 2019)", run, seconds=5)
