"""Flax NNX's networks to be compacted: `NETWORKS`."""

import functools

import jax.numpy as jnp
from flax import nnx

from tests.compaction_zoo import specimen, under
from tests.compaction_zoo.linen import conv, dense, norm
from tests.real_networks import shape

PARAMS = (nnx.Param, nnx.BatchStat)


def of(build, *inputs, words, sizes, train=False):
    """A specimen of what `build(rngs)` makes; trained, new statistics come out too."""
    graph, params, _ = nnx.split(
        nnx.eval_shape(lambda: build(nnx.Rngs(0))), PARAMS, ...
    )

    def run(params, *inputs, train=train):
        _, _, rest = nnx.split(build(nnx.Rngs(0)), PARAMS, ...)
        net = nnx.merge(graph, params, rest)
        if not train:
            return net(*inputs)
        net.train()
        return net(*inputs), nnx.state(net, nnx.BatchStat)

    other = {}
    if train:
        predict = functools.partial(run, train=False)
        other = {"predict": predict, "state": True}
    return specimen(params, run, inputs, words, sizes, **other)


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.second = nnx.Linear(8, 7, rngs=rngs)
        self.head = nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
        x = self.norm(nnx.relu(self.first(x)))
        return self.head(nnx.gelu(self.second(x)))


def mlp():
    words = {
        **dense("first", ".", "a"),
        **norm("norm", "a"),
        **dense("second", "a", "b"),
        **dense("head", "b", "."),
    }
    return of(Mlp, shape(2, 5), words=words, sizes={"a": 8, "b": 7})


class Cnn(nnx.Module):
    """A residual block; statistics are of the batch while it is trained."""

    def __init__(self, rngs):
        batch_norm = functools.partial(
            nnx.BatchNorm, use_running_average=True, rngs=rngs
        )
        self.stem = nnx.Conv(4, 5, (3, 3), rngs=rngs)
        self.bn_0 = batch_norm(5)
        self.first = nnx.Conv(5, 7, (3, 3), rngs=rngs)
        self.bn_1 = batch_norm(7)
        self.second = nnx.Conv(7, 5, (3, 3), rngs=rngs)
        self.bn_2 = batch_norm(5)
        self.head = nnx.Linear(5, 11, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn_0(self.stem(x)))
        h = nnx.relu(self.bn_1(self.first(x)))
        x = nnx.relu(x + self.bn_2(self.second(h)))
        return self.head(x.mean((1, 2)))


def cnn(*, train=False):
    kinds = ("scale", "bias", "mean", "var")
    words = {
        **conv("stem", ".", "a"),
        **conv("first", "a", "b"),
        **conv("second", "b", "a"),
        **under("bn_[02]", dict.fromkeys(kinds, "a")),
        **under("bn_1", dict.fromkeys(kinds, "b")),
        **dense("head", "a", "."),
    }
    sizes = {"a": 5, "b": 7}
    return of(Cnn, shape(2, 6, 6, 4), words=words, sizes=sizes, train=train)


class Mixer(nnx.Module):
    """Tokens and channels are mixed in turn."""

    def __init__(self, rngs):
        self.embed = nnx.Linear(4, 7, rngs=rngs)
        self.norm = nnx.RMSNorm(7, rngs=rngs)
        self.token_up = nnx.Linear(6, 8, rngs=rngs)
        self.token_down = nnx.Linear(8, 6, rngs=rngs)
        self.channel_up = nnx.Linear(7, 9, rngs=rngs)
        self.channel_down = nnx.Linear(9, 7, rngs=rngs)
        self.head = nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
        h = self.embed(x)
        y = jnp.swapaxes(self.norm(h), 1, 2)
        y = self.token_down(nnx.gelu(self.token_up(y)))
        h += jnp.swapaxes(y, 1, 2)
        h += self.channel_down(nnx.gelu(self.channel_up(h)))
        return self.head(h.mean(1))


def mixer():
    """The 6 tokens are the inputs' and stay."""
    words = {
        **dense("embed", ".", "r"),
        "norm/scale": "r",
        **dense("token_up", ".", "t"),
        **dense("token_down", "t", "."),
        **dense("channel_up", "r", "c"),
        **dense("channel_down", "c", "r"),
        **dense("head", "r", "."),
    }
    return of(Mixer, shape(2, 6, 4), words=words, sizes={"r": 7, "t": 8, "c": 9})


NETWORKS = {
    "mlp": mlp,
    "cnn": cnn,
    "cnn_train": functools.partial(cnn, train=True),
    "mixer": mixer,
}
