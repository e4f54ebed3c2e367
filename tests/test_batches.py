"""Whether a function mixes the samples of a batch, told while it is traced."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskjax._core import batches

X = np.ones((2, 4, 4, 8), np.float32)
APART = {
    "layer norm": nn.LayerNorm(),
    "group norm": nn.GroupNorm(4),
    "instance norm": nn.InstanceNorm(),
    "running statistics": nn.BatchNorm(use_running_average=True),
    "pooling": lambda x: nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1),
    "attention": nn.MultiHeadDotProductAttention(2),
    "convolution": nn.Conv(3, (3, 3)),
    "recurrent": nn.RNN(nn.GRUCell(3)),
    "one by one": lambda x: jax.lax.map(lambda row: row / row.sum(), x),
    "merged axes": lambda x: nn.softmax(x.reshape(-1, 8)).reshape(x.shape).sum((1, 2)),
    "switch": lambda x: jax.lax.cond(jnp.ones((), bool), jnp.sin, jnp.cos, x),
    "mean loss": lambda x: (x**2).mean(),
    "weighted loss": lambda x: (x[:, 0] * x[:, 1]).sum() / x[:, 0].sum(),
    "one image only": lambda x: x.reshape(4, 4, 8),
}
MIXED = {
    "batch norm": nn.BatchNorm(use_running_average=False),
    "batch norm in a call": jax.jit(lambda x: x - x.mean(0, keepdims=True)),
    "largest of all": lambda x: x / x.max(),
    "merged axes": lambda x: x.reshape(-1, 8) - x.reshape(-1, 8).mean(0)[None],
    "ranks": lambda x: jnp.argsort(x, axis=0),
    "running sum": lambda x: jnp.cumsum(x, 0),
    "Gram matrix": lambda x: nn.softmax(x[:, 0, 0] @ x[:, 0, 0].T),
    "loop over samples": lambda x: jax.lax.scan(lambda c, r: (c + r, c), x[0], x)[1],
    "a later step": lambda x: jax.lax.fori_loop(
        0, 3, lambda _, c: (c[0] - c[1], c[0].sum()), (x, 0.0)
    )[0],
    "a branch": lambda x: jax.lax.cond(
        jnp.ones((), bool), lambda x: x - x.sum(), lambda x: x, x
    ),
    "segments": lambda x: x[:, 0, 0, :1] * jax.ops.segment_sum(
        x[:, 0, 0], jnp.zeros(x.shape[0], int), 5
    ).sum(),
    "normalized loss": lambda x: ((x - x.mean(0, keepdims=True)) ** 2).mean(),
}  # fmt: skip


def is_told(function):
    """Whether there is a warning; modules of Flax have parameters and state."""
    params = ()
    run = lambda _, x: function(x)  # noqa: E731
    if isinstance(function, nn.Module):
        params = jax.eval_shape(function.init, jax.random.key(0), X)
        run = lambda params, x: function.apply(params, x, mutable=["batch_stats"])[0]  # noqa: E731
    many = jax.ShapeDtypeStruct((batches._PRIMES[0], *X.shape[1:]), X.dtype)
    if function is not APART["one image only"]:
        jax.eval_shape(run, params, many)  # or else there would be nothing to tell
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        batches.told_if_mixed(
            run, params, [X], fn="f", gives="`g` one at a time", cure="Don't."
        )
    said = [str(each.message) for each in found]
    assert all(
        text.startswith("`f` gives `g` one at a time, but it mixes") for text in said
    )
    return bool(said)


@pytest.mark.parametrize("name", APART)
def test_samples_that_stay_apart_are_no_matter(name):
    assert not is_told(APART[name])


@pytest.mark.parametrize("name", MIXED)
def test_samples_that_are_mixed_are_told(name):
    assert is_told(MIXED[name])


def test_as_many_features_as_traced_samples_are_no_samples():
    wide = jax.ShapeDtypeStruct((2, batches._PRIMES[0]), "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches.told_if_mixed(
            lambda _, x: jax.nn.softmax(x), (), [wide], fn="f", gives="", cure=""
        )
