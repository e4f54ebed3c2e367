"""Flax NNX's part of the test bed: `NETWORKS`, split and merged inside `apply`."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tests.real_linen import CONV, CONV1D, DENSE, JOIN, NORM, SPLIT, STATISTICS
from tests.real_networks import (
    LOOKUP,
    POSITIONS,
    Network,
    network,
    shape,
    tokens,
    under,
)

PARAMS = (nnx.Param, nnx.BatchStat)


def of(build, *inputs, roles, stack=0) -> Network:
    """A network of what `build(rngs)` makes; the rest of its state is made anew."""
    graph, params, _ = nnx.split(
        nnx.eval_shape(lambda: build(nnx.Rngs(0))), PARAMS, ...
    )

    def apply(params, *inputs):
        _, _, rest = nnx.split(build(nnx.Rngs(0)), PARAMS, ...)
        return nnx.merge(graph, params, rest)(*inputs)

    return network(params, apply, inputs, roles, stack)


# GPT.


class Block(nnx.Module):
    def __init__(self, width, shared, *, rngs):
        self.ln_1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            4 if shared else 2, width, num_kv_heads=2, decode=False, rngs=rngs
        )
        self.ln_2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 14, rngs=rngs)
        self.down = nnx.Linear(14, width, rngs=rngs)

    def __call__(self, h):
        h += self.attention(self.ln_1(h), mask=nnx.make_causal_mask(h[..., 0]))
        return h + self.down(nnx.gelu(self.up(self.ln_2(h))))


class Gpt(nnx.Module):
    """Three blocks, a list of them or scanned."""

    def __init__(self, rngs, *, scan=False, tied=False, width=10):
        self.wte = nnx.Embed(22, width, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((7, width)))
        make = functools.partial(Block, width, width == 12)
        if scan:
            stack = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: make(rngs=rngs)))
            self.blocks = stack(rngs)
        else:
            self.blocks = nnx.List([make(rngs=rngs) for _ in range(3)])
        self.ln_f = nnx.LayerNorm(width, rngs=rngs)
        self.head = None if tied else nnx.Linear(width, 22, rngs=rngs)

    def __call__(self, ids):
        h = self.wte(ids) + self.positions[...]
        if isinstance(self.blocks, nnx.List):
            for block in self.blocks:
                h = block(h)
        else:
            h = nnx.scan(lambda h, block: block(h), in_axes=(nnx.Carry, 0),
                         out_axes=nnx.Carry)(h, self.blocks)  # fmt: skip
        h = self.ln_f(h)
        return self.head(h) if self.head else self.wte.attend(h)


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
ENDS = {"wte/embedding": LOOKUP, "positions": POSITIONS, **under("ln_f", NORM)}


def gpt(*, scan=False, tied=False, width=10):
    layers = under("blocks", BLOCK, "stack") if scan else under("blocks/[012]", BLOCK)
    head = {} if tied else under("head", DENSE)
    build = functools.partial(Gpt, scan=scan, tied=tied, width=width)
    return of(build, tokens(2, 7), roles={**ENDS, **layers, **head})


# Images and sequences.


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(4, 5, (3, 3), rngs=rngs)
        self.bn_1 = nnx.BatchNorm(5, use_running_average=True, rngs=rngs)
        self.first = nnx.Conv(5, 7, (3, 3), rngs=rngs)
        self.bn_2 = nnx.BatchNorm(7, use_running_average=True, rngs=rngs)
        self.second = nnx.Conv(7, 5, (3, 3), rngs=rngs)
        self.head = nnx.Linear(5, 11, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn_1(self.stem(x)))
        h = nnx.relu(self.bn_2(self.first(x)))
        return self.head((x + self.second(h)).mean((1, 2)))


def resnet():
    # Of modules called `stem`, `first`, `second`, names do not tell what they are.
    roles = {
        **under("stem", CONV),
        **under("first", CONV),
        **under("second", CONV),
        **under("bn_[12]", {**NORM, **STATISTICS}),
        **under("head", DENSE),
    }
    return of(ResNet, shape(2, 8, 8, 4), roles=roles)


class Convolutions(nnx.Module):
    def __init__(self, rngs):
        self.depthwise_conv = nnx.Conv(6, 6, (3, 3), feature_group_count=6, rngs=rngs)
        self.grouped_conv = nnx.Conv(6, 10, (3, 3), feature_group_count=2, rngs=rngs)
        self.conv = nnx.Conv(10, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        return self.conv(self.grouped_conv(self.depthwise_conv(x)))


class Text(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(5, 8, (3,), rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)))


class Recurrent(nnx.Module):
    def __init__(self, rngs, *, gru):
        cell = nnx.GRUCell if gru else nnx.OptimizedLSTMCell
        self.rnn = nnx.RNN(cell(5, 7, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x))


def recurrent(*, gru):
    roles = {
        "rnn/cell/dense_[ih]/kernel": "inputs outputs",
        "rnn/cell/dense_[ih]/bias": None,
        **under("head", DENSE),
    }
    build = functools.partial(Recurrent, gru=gru)
    return of(build, shape(2, 4, 5), roles=roles)


# Factors, experts and members.


class Lora(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.LoRALinear(5, 7, lora_rank=2, rngs=rngs)
        self.second = nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


def lora():
    roles = {
        **under("first", DENSE),
        "first/lora/lora_[ab]": "inputs outputs",
        **under("second", DENSE),
    }
    return of(Lora, shape(2, 5), roles=roles)


class Mlp(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(5, 7, rngs=rngs)
        self.norm = nnx.LayerNorm(7, rngs=rngs)
        self.down = nnx.Linear(7, 5, rngs=rngs)

    def __call__(self, x):
        return self.down(self.norm(nnx.relu(self.up(x))))


class Cnn(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 7, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(7, use_running_average=True, rngs=rngs)
        self.head = nnx.Linear(7, 11, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.bn(self.conv(x))).mean((1, 2)))


class Experts(nnx.Module):
    """Each expert is an MLP, and sees the tokens that are sent to it."""

    def __init__(self, rngs):
        self.router = nnx.Linear(5, 3, rngs=rngs)
        self.experts = nnx.split_rngs(splits=3)(nnx.vmap(Mlp))(rngs)

    def __call__(self, x):
        gate = jax.nn.softmax(self.router(x))
        sent = jax.nn.one_hot(gate.argmax(-1), 3, axis=0)[..., None] * x[None]
        out = nnx.vmap(lambda expert, x: expert(x))(self.experts, sent)
        return jnp.einsum("te,etd->td", gate, out)


MLP = {
    **under("up", DENSE, "stack"),
    **under("norm", NORM),
    **under("down", DENSE, "stack"),
}
CNN = {
    **under("conv", CONV, "stack"),
    **under("bn", {**NORM, **STATISTICS}),
    **under("head", DENSE, "stack"),
}


def ensemble(build, x, roles):
    """Five members, which see the same data."""
    many = nnx.split_rngs(splits=5)(nnx.vmap(build))
    shapes = nnx.eval_shape(lambda: many(nnx.Rngs(0)))
    graph, params = nnx.split(shapes, PARAMS)
    return network(
        params, lambda params, x: nnx.merge(graph, params)(x), (x,), roles, stack=1
    )


NETWORKS = {
    "gpt": gpt,
    "gpt_scanned": functools.partial(gpt, scan=True),
    "gpt_tied": functools.partial(gpt, tied=True),
    "gpt_grouped": functools.partial(gpt, width=12),
    "gpt_grouped_scanned": functools.partial(gpt, scan=True, width=12),
    "resnet": resnet,
    "convolutions": lambda: of(
        Convolutions,
        shape(2, 8, 8, 6),
        roles=under("*conv", CONV),
    ),
    "text": lambda: of(
        Text,
        shape(2, 9, 5),
        roles={**under("conv", CONV1D), **under("head", DENSE)},
    ),
    "lstm": functools.partial(recurrent, gru=False),
    "gru": functools.partial(recurrent, gru=True),
    "lora": lora,
    "experts": lambda: of(
        Experts,
        shape(11, 5),
        roles={**under("router", DENSE), **under("experts", MLP)},
    ),
    "mlps": lambda: ensemble(Mlp, shape(2, 5), MLP),
    "cnns": lambda: ensemble(Cnn, shape(2, 8, 8, 4), CNN),
}
