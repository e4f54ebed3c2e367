"""Numbers predicted with how sure they are, in the four ways of `_members`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks import _members, _train
from benchmarks._members import (
    DROPOUT,
    ENSEMBLE,
    MASKSEMBLES,
    NETWORKS,
    SINGLE,
    Training,
)
from benchmarks._shift import Numbers
from maskjax import metrics, stacking
from maskjax.recipes import deep_ensemble, mc_dropout

WIDTHS = (50, 2)  # a mean, and what a variance is made of
# As the authors of MC-dropout search, though in the unit of standardized targets.
PRECISIONS, LENGTH_SCALE, HELD_OUT_SHARE = (0.5, 1.0, 2.0, 4.0), 0.01, 0.2
SAMPLES = 100  # masks of MC-dropout
PARTS = ("x_train", "y_train", "x_test")


class Normals(NamedTuple):
    """What members predict: means and variances [J, M, N]."""

    means: np.ndarray
    variances: np.ndarray


class _Data(NamedTuple):
    """Of each problem: inputs and targets to learn, inputs to be asked about."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray


def learn(
    problems: Sequence[Numbers], training: Training, *, precision: float | None = None
) -> dict[str, Normals]:
    """What each way predicts of each problem [J], one network being the first of five.

    The problems are standardized, of equal shapes. All but MC-dropout predict a
    variance. Its noise has a precision, in the unit of the standardized targets: given
    or, of `PRECISIONS`, the best for a fifth of the samples, which is held out.
    """
    parts = ([getattr(each, name) for each in problems] for name in PARTS)
    data = _Data(*map(np.stack, parts))
    several = _gaussian(ENSEMBLE, training, data, networks=NETWORKS)
    few = _gaussian(MASKSEMBLES, training, data, networks=1)
    return {
        SINGLE: Normals(*(leaf[:, :1] for leaf in several)),
        DROPOUT: _dropout(training, data, precision),
        MASKSEMBLES: few,
        ENSEMBLE: several,
    }


def scores(found: dict[str, Normals], problems: Sequence[Numbers]) -> dict[str, Any]:
    """RMSE and log-likelihood [J], in the problems' own unit, each way."""
    y = jnp.stack([jnp.asarray(each.y_test) for each in problems])
    unit = np.array([each.deviation for each in problems])

    def of_way(normals: Normals) -> dict[str, np.ndarray]:
        means, variances = (jnp.asarray(leaf).swapaxes(0, 1) for leaf in normals)
        error = np.sqrt(((normals.means.mean(1) - y) ** 2).mean(1))
        nll = metrics.mixture_nll(means, variances, y).mean(1)
        return {"rmse": error * unit, "log_likelihood": -np.asarray(nll) - np.log(unit)}

    return {way: of_way(normals) for way, normals in found.items()}


def _gaussian(way: str, training: Training, data: _Data, *, networks: int) -> Normals:
    def loss(outputs: Array, y: Array) -> Array:
        return deep_ensemble.gaussian_loss(outputs, y[:, None]).mean()

    def fit_and_ask(job: Any) -> tuple[Array, Array]:
        begun, (x, y, x_test), key = job
        variables = _members.fit(way, training, loss, begun, x, y, key=key)
        alone = SINGLE if way == ENSEMBLE else way
        outputs = _members.ask(alone, variables, x_test, rate=0.0, key=key)
        return deep_ensemble.gaussian(outputs)

    data = _Data(*(np.repeat(leaf, networks, axis=0) for leaf in data))
    rows = _members.orders(len(data.x), data.x.shape[1], training, seed=1)
    found = _each(way, fit_and_ask, data, rows)
    # Of a problem, members of its networks one after the other.
    shape = len(data.x) // networks, -1, data.x_test.shape[1]
    return Normals(*(leaf.reshape(shape) for leaf in found))


def _dropout(training: Training, data: _Data, precision: float | None) -> Normals:
    """With the weight decay that a precision asks for."""
    jobs, samples, _ = data.x.shape
    taus = np.array(PRECISIONS if precision is None else (precision,), np.float32)
    kept = samples - round(HELD_OUT_SHARE * samples)
    counts = (samples,) if len(taus) == 1 else (samples, kept)

    def loss(outputs: Array, y: Array) -> Array:
        return jnp.mean((outputs[:, 0] - y) ** 2) / 2

    def fit_and_ask(job: Any) -> Array:
        begun, (x, y, asked), key, decay = job

        def penalty(params: Any) -> Array:
            kernels = (layer["kernel"] for layer in params.values())
            return decay * sum((kernel**2).sum() for kernel in kernels)

        fits, asks = jax.random.split(key)
        how = {"key": fits, "penalty": penalty}
        variables = _members.fit(DROPOUT, training, loss, begun, x, y, **how)
        how = {"rate": training.rate, "members": SAMPLES, "batch_size": None}
        return _members.ask(DROPOUT, variables, asked, key=asks, **how)[..., 0]

    # Every precision, on all samples and without those held out, as one program: as
    # many steps for all.
    shape = jobs, len(taus), len(counts)
    how = {"rate": training.rate, "length_scale": LENGTH_SCALE, "precision": taus}
    decay = [mc_dropout.weight_decay(samples=count, **how) for count in counts]
    longer = training._replace(epochs=2 * training.epochs)
    rows = [_members.orders(jobs, count, longer, seed=1) for count in counts]
    rows = np.stack([each[:, : rows[0].shape[1] // 2] for each in rows], axis=1)
    rows = rows[:, None]
    every = _Data(data.x, data.y, np.concatenate([data.x, data.x_test], axis=1))
    means = _each(
        DROPOUT,
        fit_and_ask,
        _Data(*(np.repeat(leaf, len(taus) * len(counts), axis=0) for leaf in every)),
        np.broadcast_to(rows, (*shape, *rows.shape[3:])).reshape(-1, *rows.shape[3:]),
        np.broadcast_to(np.stack(decay, axis=1), shape).astype(np.float32).ravel(),
    ).reshape(*shape, SAMPLES, -1)

    held = jnp.moveaxis(jnp.asarray(means[:, :, -1, :, kept:samples]), 2, 0)
    noise = jnp.broadcast_to(1 / taus[:, None], held.shape)
    y = jnp.broadcast_to(data.y[:, None, kept:], held.shape[1:])
    best = np.asarray(metrics.mixture_nll(held, noise, y).mean(-1).argmin(-1))
    means = means[np.arange(jobs), best, 0, :, samples:]
    return Normals(means, np.broadcast_to(1 / taus[best, None, None], means.shape))


def _each(way: str, fit_and_ask: Any, data: _Data, rows: np.ndarray, *more: Any) -> Any:
    """Networks of all jobs, one after the other, in one program."""
    count, _, features = data.x.shape
    variables = {
        "params": _train.glorot(np.random.default_rng(0), (features, *WIDTHS), count),
        "masks": _members.masks(way, count, WIDTHS, key=jax.random.key(0)),
    }
    keys = jax.random.split(jax.random.key(1), count)
    jobs = (variables, rows), tuple(data), keys, *more
    run = jax.jit(lambda jobs: stacking.map(fit_and_ask, jobs, batch_size=1))
    return jax.device_get(run(jax.tree.map(jnp.asarray, jobs)))
