"""Flax Linen's part of the test bed: `NETWORKS`, and GPT as one can build it."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.real_networks import (
    LOOKUP,
    POSITIONS,
    Network,
    network,
    shape,
    tokens,
    under,
)

DENSE = {"kernel": "inputs outputs", "bias": None}
NORM = {"scale": None, "bias": None}
STATISTICS = {"mean": None, "var": None}
CONV = {"kernel": "window window inputs outputs", "bias": None}
SPLIT = {"kernel": "inputs outputs outputs", "bias": None}  # into heads
JOIN = {"kernel": "inputs inputs outputs", "bias": None}


def of(module: nn.Module, *inputs: Any, roles: Any, whole: bool = False) -> Network:
    """A network of one module; `whole` keeps its collections apart."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(module.init, key, *inputs)
    if whole:
        return network(params, module.apply, inputs, roles)
    apply = lambda params, *inputs: module.apply({"params": params}, *inputs)  # noqa: E731
    return network(params["params"], apply, inputs, roles)


# GPT.


class Attention(nn.Module):
    """Four queries share two keys."""

    @nn.compact
    def __call__(self, h):
        query = nn.DenseGeneral((4, 3), name="query")(h)
        key = nn.DenseGeneral((2, 3), name="key")(h)
        value = nn.DenseGeneral((2, 3), name="value")(h)
        h = jax.nn.dot_product_attention(query, key, value)
        return nn.DenseGeneral(12, axis=(-2, -1), name="out")(h)


class Block(nn.Module):
    grouped: bool = False

    @nn.compact
    def __call__(self, h, _=None):
        mask = nn.make_causal_mask(h[..., 0])
        x = nn.LayerNorm(name="ln_1")(h)
        if self.grouped:
            h += Attention(name="attention")(x)
        else:
            attention = nn.MultiHeadDotProductAttention(2, name="attention")
            h += attention(x, mask=mask)
        x = nn.gelu(nn.Dense(14, name="up")(nn.LayerNorm(name="ln_2")(h)))
        return h + nn.Dense(h.shape[-1], name="down")(x), None


class Layers(nn.Module):
    """Three blocks, unrolled or scanned, once or in two groups."""

    how: str
    grouped: bool = False

    @nn.compact
    def __call__(self, h, _=None):
        if self.how == "unrolled":
            for i in range(3):
                h, _ = Block(self.grouped, name=f"block_{i}")(h)
            return h
        if self.how == "nested":
            return scanned(Inner, 5)(name="groups")(h, None)[0]
        block = nn.remat(Block) if self.how == "remat" else Block
        return scanned(block, 3)(self.grouped, name="blocks")(h, None)[0]


class Inner(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        return scanned(Block, 3)(name="blocks")(h, None)


def scanned(module, length):
    """The same layers one after another."""
    return nn.scan(
        module,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=length,
    )


class Gpt(nn.Module):
    how: str = "unrolled"
    width: int = 10
    tied: bool = False

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(22, self.width, name="wte")
        if self.tied:
            positions = nn.Embed(7, self.width, name="wpe")(jnp.arange(7))
        else:
            init = nn.initializers.normal()
            positions = self.param("pos_embedding", init, (7, self.width))
        h = Layers(self.how, self.width == 12, name="layers")(embed(ids) + positions)
        h = nn.LayerNorm(name="ln_f")(h)
        return embed.attend(h) if self.tied else nn.Dense(22, name="head")(h)


BLOCK = {
    **under("ln_1", NORM),
    **under("attention/query", SPLIT),
    **under("attention/key", SPLIT),
    **under("attention/value", SPLIT),
    **under("attention/out", JOIN),
    **under("ln_2", NORM),
    **under("up", DENSE),
    **under("down", DENSE),
}
LAYERS = {
    "unrolled": under("layers/block_[012]", BLOCK),
    "scanned": under("layers/blocks", BLOCK, "stack"),
    "remat": under("layers/blocks", BLOCK, "stack"),
    "nested": under("layers/groups/blocks", BLOCK, "stack stack"),
}
ENDS = {"wte/embedding": LOOKUP, **under("ln_f", NORM)}


def gpt(how="unrolled", width=10, *, tied=False):
    head = {} if tied else under("head", DENSE)
    positions = {"wpe/embedding" if tied else "pos_embedding": POSITIONS}
    roles = {**ENDS, **positions, **LAYERS[how], **head}
    return of(Gpt(how, width, tied), tokens(2, 7), roles=roles)


# The layers of the regression: a scale for each layer is of rank 2.


class Residual(nn.Module):
    @nn.compact
    def __call__(self, h, _=None):
        return h + nn.Dense(h.shape[-1])(nn.LayerNorm()(h)), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(scanned(Residual, 4)(name="layers")(x, None)[0])


def residual():
    roles = {
        **under("layers/Dense_0", DENSE, "stack"),
        **under("layers/LayerNorm_0", NORM),
        **under("head", DENSE),
    }
    return of(Stack(), shape(2, 6), roles=roles)


# Images and sequences.


class ConvNorm(nn.Module):
    width: int
    window: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (self.window, self.window), name="conv")(x)
        return nn.BatchNorm(use_running_average=True, name="bn")(x)


class ResBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.relu(ConvNorm(7, name="first")(x))
        return nn.relu(ConvNorm(5, name="second")(h) + x), None


class ResNet(nn.Module):
    scan: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(ConvNorm(5, name="stem")(x))
        if self.scan:
            x, _ = scanned(ResBlock, 2)(name="blocks")(x, None)
        else:
            x, _ = ResBlock(name="block")(x)
        x = ConvNorm(13, 1, name="wide")(x)
        return nn.Dense(11, name="head")(x.mean((1, 2)))


def resnet(*, scan=False):
    unit = {**under("conv", CONV), **under("bn", NORM)}
    pair = {**under("first", unit), **under("second", unit)}
    block = ("blocks", pair, "stack") if scan else ("block", pair)
    params = {
        **under("stem", unit),
        **under(*block),
        **under("wide", unit),
        **under("head", DENSE),
    }
    roles = {**under("params", params), **under("batch_stats", {"*": None})}
    return of(ResNet(scan), shape(2, 8, 8, 4), roles=roles, whole=True)


class Convolutions(nn.Module):
    """Depthwise, grouped, transposed and with an oblong window."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), feature_group_count=6, name="depthwise_conv")(x)
        x = nn.Conv(10, (3, 3), feature_group_count=2, name="grouped_conv")(x)
        x = nn.Conv(7, (5, 2), name="oblong_conv")(x)
        return nn.ConvTranspose(4, (3, 3), strides=(2, 2))(x)


class Text(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.relu(nn.Conv(8, (3,))(x)))


class Recurrent(nn.Module):
    gru: bool

    @nn.compact
    def __call__(self, x):
        cell = nn.GRUCell(7) if self.gru else nn.LSTMCell(7)
        return nn.Dense(3, name="head")(nn.RNN(cell, name="rnn")(x))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.WeightNorm(nn.Dense(7))(x)))


def normed():
    roles = {
        **under("Dense_[01]", DENSE),
        "WeightNorm_0/Dense_1/kernel/scale": None,
    }
    return of(Normed(), shape(2, 5), roles=roles)


# Experts and members.


class Experts(nn.Module):
    """Each expert sees the tokens that are sent to it, the others as zeros."""

    @nn.compact
    def __call__(self, x):
        gate = jax.nn.softmax(nn.Dense(3, name="router")(x))
        sent = jax.nn.one_hot(gate.argmax(-1), 3, axis=0)[..., None] * x[None]
        init = nn.initializers.lecun_normal(batch_axis=0)
        up = self.param("up_kernel", init, (3, 5, 7))
        down = self.param("down_kernel", init, (3, 7, 5))
        h = nn.relu(jnp.einsum("etd,edf->etf", sent, up))
        return jnp.einsum("te,etd->td", gate, jnp.einsum("etf,efd->etd", h, down))


def experts():
    stacked = "stack inputs outputs"
    roles = {
        **under("router", DENSE),
        "up_kernel": stacked,
        "down_kernel": stacked,
    }
    return of(Experts(), shape(11, 5), roles=roles)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.LayerNorm()(nn.relu(nn.Dense(7)(x))))


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(7, (3, 3))(x))
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(11)(x.mean((1, 2)))


def ensemble(module, x, roles, *, shared):
    """Five members, which see the same data or data of their own."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 5))
    params = jax.eval_shape(jax.vmap(module.init, (0, None)), keys, x)
    if shared:
        return network(params, module.apply, (x,), roles, stack=1)
    own = shape(5, *x.shape)
    return network(params, jax.vmap(module.apply), (own,), roles)


def mlps(*, shared):
    roles = {
        **under("params/Dense_[01]", DENSE, "stack"),
        **under("params/LayerNorm_0", NORM),
    }
    return ensemble(Mlp(), shape(2, 4), roles, shared=shared)


def cnns(*, shared):
    roles = {
        **under("params/Conv_0", CONV, "stack"),
        **under("params/BatchNorm_0", NORM),
        **under("batch_stats/BatchNorm_0", STATISTICS),
        **under("params/Dense_0", DENSE, "stack"),
    }
    return ensemble(Cnn(), shape(2, 8, 8, 4), roles, shared=shared)


def recurrent(*, gru):
    gates = "[ih][rzn]" if gru else "[ih][ifgo]"
    name = "GRUCell_0" if gru else "LSTMCell_0"
    roles = {
        f"{name}/{gates}/kernel": "inputs outputs",
        f"{name}/{gates}/bias": None,
        **under("head", DENSE),
    }
    return of(Recurrent(gru), shape(2, 4, 5), roles=roles)


CONV1D = {"kernel": "window inputs outputs", "bias": None}
NETWORKS = {
    "gpt": gpt,
    "gpt_scanned": functools.partial(gpt, "scanned"),
    "gpt_remat": functools.partial(gpt, "remat"),
    "gpt_nested": functools.partial(gpt, "nested"),
    "gpt_tied": functools.partial(gpt, tied=True),
    "gpt_grouped": functools.partial(gpt, width=12),
    "gpt_grouped_scanned": functools.partial(gpt, "scanned", 12),
    "residual_scanned": residual,
    "resnet": resnet,
    "resnet_scanned": functools.partial(resnet, scan=True),
    "convolutions": lambda: of(
        Convolutions(),
        shape(2, 8, 8, 6),
        roles={
            **under("*_conv", CONV),
            **under("ConvTranspose_0", CONV),
        },
    ),
    "text": lambda: of(
        Text(),
        shape(2, 9, 5),
        roles={**under("Conv_0", CONV1D), **under("Dense_0", DENSE)},
    ),
    "lstm": functools.partial(recurrent, gru=False),
    "gru": functools.partial(recurrent, gru=True),
    "weight_norm": normed,
    "experts": experts,
    "mlps": functools.partial(mlps, shared=True),
    "mlps_apart": functools.partial(mlps, shared=False),
    "cnns": functools.partial(cnns, shared=True),
    "cnns_apart": functools.partial(cnns, shared=False),
}
