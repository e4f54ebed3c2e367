"""Equinox's networks to be compacted: `NETWORKS`. Kernels are (outputs, inputs)."""

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.compaction_zoo import specimen, under
from tests.real_equinox import split
from tests.real_networks import shape, tokens


def of(build, *inputs, words, sizes):
    """A specimen of what `build(key)` makes, over a batch of its inputs."""
    params, static = split(build)

    def apply(params, *inputs):
        return jax.vmap(eqx.combine(params, static))(*inputs)

    return specimen(params, apply, inputs, words, sizes)


def linear(name, ins, outs):
    """A linear layer between two groups, "." for none."""
    return {f"{name}/weight": f"{outs} {ins}", f"{name}/bias": outs}


def conv(name, ins, outs):
    """A convolution between two groups; its bias has axes of 1."""
    return {f"{name}/weight": f"{outs} {ins} . .", f"{name}/bias": f"{outs} . ."}


class Mlp(eqx.Module):
    mlp: eqx.nn.MLP

    def __init__(self, key):
        self.mlp = eqx.nn.MLP(5, 3, 8, 2, key=key)

    def __call__(self, x):
        return self.mlp(x)


def mlp():
    words = {
        **linear("mlp/layers/0", ".", "a"),
        **linear("mlp/layers/1", "a", "b"),
        **linear("mlp/layers/2", "b", "."),
    }
    return of(Mlp, shape(2, 5), words=words, sizes={"a": 8, "b": 8})


class Cnn(eqx.Module):
    """Convolutions, pooling, and one long vector."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.first = eqx.nn.Conv2d(3, 5, 3, padding=1, key=keys[0])
        self.second = eqx.nn.Conv2d(5, 7, 3, stride=2, padding=1, key=keys[1])
        self.pool = eqx.nn.MaxPool2d(2, 1)
        self.hidden = eqx.nn.Linear(7 * 3 * 2, 8, key=keys[2])
        self.head = eqx.nn.Linear(8, 4, key=keys[3])

    def __call__(self, x):
        x = jax.nn.relu(self.first(x))
        x = self.pool(jax.nn.relu(self.second(x)))
        return self.head(jax.nn.relu(self.hidden(x.ravel())))


def cnn():
    words = {
        **conv("first", ".", "a"),
        **conv("second", "a", "b"),
        **linear("hidden", "b", "c"),
        **linear("head", "c", "."),
    }
    sizes = {"a": 5, "b": 7, "c": 8}
    return of(Cnn, shape(2, 3, 8, 6), words=words, sizes=sizes)


class RmsBlock(eqx.Module):
    norm_1: eqx.nn.RMSNorm
    attention: eqx.nn.MultiheadAttention
    norm_2: eqx.nn.RMSNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.norm_1 = eqx.nn.RMSNorm(10)
        self.attention = eqx.nn.MultiheadAttention(
            4, 10, qk_size=5, vo_size=3, use_query_bias=True, key=keys[0]
        )
        self.norm_2 = eqx.nn.RMSNorm(10)
        self.up = eqx.nn.Linear(10, 14, key=keys[1])
        self.down = eqx.nn.Linear(14, 10, key=keys[2])

    def __call__(self, h):
        x = jax.vmap(self.norm_1)(h)
        h += self.attention(x, x, x, mask=jnp.tri(7, dtype=bool))
        x = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm_2)(h)))
        return h + jax.vmap(self.down)(x)


class Gpt(eqx.Module):
    """Norms without a mean, so that the stream between blocks may shrink."""

    embed: eqx.nn.Embedding
    blocks: RmsBlock
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 5)
        self.embed = eqx.nn.Embedding(22, 10, key=keys[0])
        self.blocks = eqx.filter_vmap(RmsBlock)(keys[1:4])
        self.head = eqx.nn.Linear(10, 22, key=keys[4])

    def __call__(self, ids):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        step = lambda h, p: (eqx.combine(p, static)(h), None)  # noqa: E731
        h = jax.lax.scan(step, jax.vmap(self.embed)(ids), arrays)[0]
        return jax.vmap(self.head)(h)


def gpt():
    block = {
        "norm_[12]/*": "r",
        "attention/query_proj/*weight": "h+d r",
        "attention/query_proj/bias": "h+d",
        "attention/key_proj/weight": "h+d r",
        "attention/value_proj/weight": "h+e r",
        "attention/output_proj/weight": "r h+e",
        **linear("up", "r", "f"),
        **linear("down", "f", "r"),
    }
    words = {
        "embed/weight": ". r",
        **under("blocks", block, "."),
        **linear("head", "r", "."),
    }
    inner = {"h": (3, 4), "d": (3, 5), "e": (3, 3), "f": (3, 14)}
    return of(Gpt, tokens(2, 7), words=words, sizes={"r": 10, **inner})


NETWORKS = {"mlp": mlp, "cnn": cnn, "gpt_rms": gpt}
