"""The networks of each way, what they are asked, and what they say."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _members, _shift, _tasks, _train
from benchmarks._members import ENSEMBLE, NETWORKS, SINGLE, Training
from benchmarks._registry import Context
from maskjax import metrics
from maskjax.recipes import deep_ensemble

SEEDS, MNIST_PIXELS = 5, 28 * 28
HIDDEN = {"mnist": (200, 200, 200), "digits": (100, 100, 100)}
# What MC-dropout drops: as Gal & Ghahramani do on MNIST, and about what a member of
# Masksembles lacks.
RATE = 0.5
EPOCHS = {"mnist": (10, 5, 20), "digits": (10, 6, 40)}
BATCH_SIZES = {"mnist": (64, 128, 128), "digits": (64, 64, 64)}
ANGLES = tuple(range(0, 91, 15))
ELSEWHERE = 2_000  # at most so many images that are turned, or unknown
VALIDATION_SHARE = 0.1
TEMPERED = "one network, temperature fitted"


class Problem(NamedTuple):
    """Images as rows, scaled."""

    x: np.ndarray  # to learn
    y: np.ndarray
    validation: tuple[np.ndarray, np.ndarray]  # to fit temperatures to
    test: tuple[np.ndarray, np.ndarray]
    turned: np.ndarray  # [A * N, D], of the first N of the test
    unknown: np.ndarray  # of no class that is learned
    what: str  # these are
    widths: tuple[int, ...]
    training: Training


class Told(NamedTuple):
    """Probabilities [M, S, N, C] of members, for each part of a problem."""

    test: np.ndarray
    turned: np.ndarray
    unknown: np.ndarray


def problem_of(context: Context) -> Problem:
    """What is learned, and what is asked."""
    data = context.data
    large = np.prod(data.shape) >= MNIST_PIXELS
    if context.omniglot is None:
        part = _shift.held_out(data)
        data, unknown = part.known, part.unknown
        what = f"classes {', '.join(map(str, _shift.HELD_OUT))} of {data.name}"
    else:
        unknown = _shift.drawings(context.omniglot, data.shape)
        what = f"drawings of {context.omniglot.name}"
    rng = np.random.default_rng(0)
    unknown = unknown[rng.permutation(len(unknown))[:ELSEWHERE]]
    mean, deviation = data.x_train.mean(), data.x_train.std()

    def rows(images: np.ndarray) -> np.ndarray:
        scaled = (images - mean) / deviation
        return scaled.reshape(-1, images.shape[-2] * images.shape[-1])

    some = data.x_test[:ELSEWHERE]
    held = round(VALIDATION_SHARE * len(data.x_train))
    x, y = rows(data.x_train), data.y_train
    kind = "mnist" if large else "digits"
    how = (context.pick(each[kind]) for each in (EPOCHS, BATCH_SIZES))
    return Problem(
        x[:-held],
        y[:-held],
        (x[-held:], y[-held:]),
        (rows(data.x_test), data.y_test),
        rows(np.stack([_tasks.turned(some, angle) for angle in ANGLES])),
        rows(unknown),
        what,
        (*HIDDEN[kind], int(data.y_train.max()) + 1),
        Training(*how, 1e-3, RATE),
    )


def masks_of(problem: Problem, way: str) -> Any:
    """The masks that a way begins with, for each seed."""
    return _members.masks(way, SEEDS, problem.widths, key=jax.random.key(0))


def learned(problem: Problem, way: str, others: dict[str, Any]) -> Any:
    """Parameters and masks [S, ...]; parameters [S, M, ...] of ensembles.

    One network is the first of each ensemble, which is not trained again. The others
    begin with its weights, and see the images in its order.
    """
    masks = masks_of(problem, way)
    if way == SINGLE:
        first = jax.tree.map(lambda w: w[:, 0], others[ENSEMBLE]["params"])
        return {"params": first, "masks": masks}
    count = SEEDS * NETWORKS
    widths = (problem.x.shape[1], *problem.widths)
    params = _train.glorot(np.random.default_rng(0), widths, count)
    rows = _members.orders(count, len(problem.x), problem.training, seed=1)
    every = masks
    if way == ENSEMBLE:
        every = jax.tree.map(lambda mask: mask.repeat(NETWORKS, axis=0), masks)
    else:
        params, rows = jax.tree.map(lambda leaf: leaf[::NETWORKS], (params, rows))
    fit = functools.partial(_members.fit, way, problem.training, _train.cross_entropy)
    # One network at a time: kernels are large enough, and it compiles sooner.
    train = jax.jit(functools.partial(deep_ensemble.train, fit, batch_size=1))
    begun = {"params": params, "masks": every}, rows
    keys = jax.random.split(jax.random.key(1), len(rows))
    trained = train(begun, problem.x, problem.y, keys=keys)
    if way != ENSEMBLE:
        return trained
    apart = lambda leaf: leaf.reshape(SEEDS, NETWORKS, *leaf.shape[1:])  # noqa: E731
    return {"params": jax.tree.map(apart, trained["params"]), "masks": masks}


def asked(problem: Problem, way: str, variables: Any) -> np.ndarray:
    """Logits [M, S, N, C] of all images: validation, test, turned and unknown."""
    parts = problem.validation[0], problem.test[0], problem.turned, problem.unknown
    keys = jax.random.split(jax.random.key(2), SEEDS)

    @jax.jit
    def ask(each: Any, x: jax.Array) -> jax.Array:
        def seed(one: Any) -> jax.Array:
            return _members.ask(way, one[0], x, rate=RATE, key=one[1])

        return jax.lax.map(seed, each)

    return np.moveaxis(np.asarray(ask((variables, keys), np.concatenate(parts))), 0, 1)


@jax.jit
def mean(probs: jax.Array) -> jax.Array:
    """What members say on average."""
    return probs.mean(0)


def told_by(problem: Problem, logits: dict[str, Any]) -> tuple[dict[str, Told], Any]:
    """Probabilities, and the temperatures [S] that are fitted to one network."""
    held = len(problem.validation[0])
    ends = np.cumsum([len(problem.test[0]), len(problem.turned)])
    mine = logits[SINGLE]
    fitted = np.asarray(metrics.temperature(mine[0, :, :held], problem.validation[1]))
    tempered = {TEMPERED: jnp.asarray(mine) / fitted[:, None, None]}
    order = {SINGLE: logits[SINGLE]} | tempered | logits
    softmax = jax.jit(jax.nn.softmax)
    return {
        way: Told(*np.split(np.asarray(softmax(each[:, :, held:])), ends, axis=2))
        for way, each in order.items()
    }, fitted
