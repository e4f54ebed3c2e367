"""Numbers predicted with how sure they are, in the four ways of `_members`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _members
from benchmarks._members import DROPOUT, ENSEMBLE, MASKSEMBLES, NETWORKS, SINGLE
from benchmarks._shift import Numbers
from maskjax import metrics
from maskjax.recipes import deep_ensemble, mc_dropout

HIDDEN = 50
# As the authors of MC-dropout search, though in the unit of standardized targets.
PRECISIONS, LENGTH_SCALE, HELD_OUT_SHARE = (0.5, 1.0, 2.0, 4.0), 0.01, 0.2
SAMPLES = 100  # masks of MC-dropout


class Normals(NamedTuple):
    """What members predict: means and variances [M, N]."""

    means: jax.Array
    variances: jax.Array


def learn(
    training: _members.Training,
    x: jax.Array,
    y: jax.Array,
    x_test: jax.Array,
    *,
    precision: float | None = None,
    key: jax.Array,
) -> dict[str, Normals]:
    """Trained on x [N, D] and y [N], and asked about x_test [K, D], each way.

    All but MC-dropout predict a variance of their own. Its noise has a precision: given
    or, of `PRECISIONS`, what a fifth of the samples, held out for that, likes best.
    """
    few, stacked, dropped, chosen = jax.random.split(key, 4)
    found = {
        MASKSEMBLES: _gaussian(MASKSEMBLES, training, x, y, x_test, key=few),
        ENSEMBLE: _ensemble(training, x, y, x_test, key=stacked),
        DROPOUT: _dropout(
            training,
            x,
            y,
            x_test,
            _chosen(training, x, y, key=chosen) if precision is None else precision,
            key=dropped,
        ),
    }
    found[SINGLE] = jax.tree.map(lambda leaf: leaf[:1], found[ENSEMBLE])
    return {way: found[way] for way in _members.WAYS}


def scores(found: dict[str, Normals], numbers: Numbers) -> dict[str, Any]:
    """RMSE and log-likelihood [...] of `numbers`, in their own unit, each way.

    Args:
        found: Of standardized numbers.
        numbers: These.
    """
    y = jnp.asarray(numbers.y_test)

    def of_way(normals: Normals) -> dict[str, Any]:
        error = jnp.sqrt(jnp.mean((normals.means.mean(0) - y) ** 2))
        nll = metrics.mixture_nll(normals.means, normals.variances, y).mean()
        return {
            "rmse": float(error) * numbers.deviation,
            "log_likelihood": -float(nll) - np.log(numbers.deviation),
        }

    return {way: of_way(normals) for way, normals in found.items()}


def _gaussian(way: str, training: _members.Training, *data: Any, key: Any) -> Normals:
    *_, x_test = data
    variables = _train(way, training, *data[:2], keys=key)
    outputs = _members.ask(way, variables, x_test, rate=0.0, key=key, batch_size=None)
    return _normals(outputs)


def _ensemble(training: _members.Training, *data: Any, key: Any) -> Normals:
    x, y, x_test = data
    draws, fits = (jax.random.split(k, NETWORKS) for k in jax.random.split(key))
    begin = functools.partial(_members.start, ENSEMBLE, (HIDDEN, 2), x.shape[1])
    each = deep_ensemble.init(lambda key: begin(key=key), keys=draws)
    fit = functools.partial(_members.fit, ENSEMBLE, training, _gaussian_loss)
    each = deep_ensemble.train(fit, each, x, y, keys=fits)
    first = jax.tree.map(lambda mask: mask[0], each["masks"])  # of ones
    variables = {"params": each["params"], "masks": first}
    return _normals(
        _members.ask(ENSEMBLE, variables, x_test, rate=0.0, key=key, batch_size=None)
    )


def _train(way: str, training: _members.Training, x: Any, y: Any, *, keys: Any) -> Any:
    draws, fits = jax.random.split(keys)
    begun = _members.start(way, (HIDDEN, 2), x.shape[1], key=draws)
    return _members.fit(way, training, _gaussian_loss, begun, x, y, key=fits)


def _normals(outputs: jax.Array) -> Normals:
    mean, variance = deep_ensemble.gaussian(outputs)
    return Normals(mean[..., 0], variance[..., 0])


def _gaussian_loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return deep_ensemble.gaussian_loss(outputs, y[:, None]).mean()


def _chosen(training: _members.Training, x: Any, y: Any, *, key: Any) -> jax.Array:
    """The precision that held-out samples like best."""
    kept = len(x) - round(HELD_OUT_SHARE * len(x))
    taus = jnp.asarray(PRECISIONS)

    def likelihood(tau: jax.Array) -> jax.Array:
        data = x[:kept], y[:kept], x[kept:]
        normals = _dropout(training, *data, tau, key=key)
        return -metrics.mixture_nll(normals.means, normals.variances, y[kept:]).mean()

    return taus[jnp.argmax(jax.vmap(likelihood)(taus))]


def _dropout(
    training: _members.Training, x: Any, y: Any, x_test: Any, tau: Any, *, key: Any
) -> Normals:
    """With the weight decay that a precision asks for."""
    draws, fits, asks = jax.random.split(key, 3)
    decay = mc_dropout.weight_decay(
        rate=training.rate, length_scale=LENGTH_SCALE, samples=len(x), precision=tau
    )

    def penalty(params: Any) -> jax.Array:
        return decay * sum((layer["kernel"] ** 2).sum() for layer in params.values())

    def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((outputs[:, 0] - y) ** 2)

    variables = _members.start(DROPOUT, (HIDDEN, 1), x.shape[1], key=draws)
    how = {"key": fits, "penalty": penalty}
    variables = _members.fit(DROPOUT, training, loss, variables, x, y, **how)
    how = {"rate": training.rate, "members": SAMPLES, "batch_size": None}
    means = _members.ask(DROPOUT, variables, x_test, key=asks, **how)[..., 0]
    return Normals(means, jnp.full_like(means, 1 / tau))
