"""Equinox's part of the test bed: `NETWORKS`, whose kernels are (out, in, ...)."""

import functools

import equinox as eqx
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

LINEAR = {"weight": "outputs inputs", "bias": None}
NORM = {"weight": None, "bias": None}
CONV = {"weight": "outputs inputs window window", "bias": None}


def split(build):
    """Parameters as shapes, and what is left of a module."""
    shapes = eqx.filter_eval_shape(build, jax.eval_shape(lambda: jax.random.key(0)))
    return eqx.partition(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct))


def of(build, *inputs, roles, stack=0) -> Network:
    """A network of what `build(key)` makes, over a batch of its inputs."""
    params, static = split(build)

    def apply(params, *inputs):
        return jax.vmap(eqx.combine(params, static))(*inputs)

    return network(params, apply, inputs, roles, stack)


# GPT.


class Attention(eqx.Module):
    """Four queries share two keys."""

    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.query = eqx.nn.Linear(10, 12, key=keys[0])
        self.key = eqx.nn.Linear(10, 6, key=keys[1])
        self.value = eqx.nn.Linear(10, 6, key=keys[2])
        self.out = eqx.nn.Linear(12, 10, key=keys[3])

    def __call__(self, h):
        query = jax.vmap(self.query)(h).reshape(7, 4, 3)
        key = jax.vmap(self.key)(h).reshape(7, 2, 3)
        value = jax.vmap(self.value)(h).reshape(7, 2, 3)
        h = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return jax.vmap(self.out)(h.reshape(7, 12))


class Block(eqx.Module):
    ln_1: eqx.nn.LayerNorm
    attention: eqx.Module
    ln_2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key, *, grouped=False):
        keys = jax.random.split(key, 3)
        self.ln_1 = eqx.nn.LayerNorm(10)
        self.attention = (
            Attention(keys[0])
            if grouped
            else eqx.nn.MultiheadAttention(2, 10, qk_size=4, vo_size=3, key=keys[0])
        )
        self.ln_2 = eqx.nn.LayerNorm(10)
        self.up = eqx.nn.Linear(10, 14, key=keys[1])
        self.down = eqx.nn.Linear(14, 10, key=keys[2])

    def __call__(self, h):
        x = jax.vmap(self.ln_1)(h)
        if isinstance(self.attention, Attention):
            h += self.attention(x)
        else:
            h += self.attention(x, x, x, mask=jnp.tril(jnp.ones((7, 7), bool)))
        x = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.ln_2)(h)))
        return h + jax.vmap(self.down)(x)


class Gpt(eqx.Module):
    """Three blocks, a list of them or scanned."""

    wte: eqx.nn.Embedding
    positions: jax.Array
    blocks: list[Block] | Block
    ln_f: eqx.nn.LayerNorm
    head: eqx.nn.Linear | None

    def __init__(self, key, *, scan=False, tied=False, grouped=False):
        keys = jax.random.split(key, 5)
        self.wte = eqx.nn.Embedding(22, 10, key=keys[0])
        self.positions = jnp.zeros((7, 10))
        make = functools.partial(Block, grouped=grouped)
        self.blocks = (
            eqx.filter_vmap(make)(keys[1:4]) if scan else [make(k) for k in keys[1:4]]
        )
        self.ln_f = eqx.nn.LayerNorm(10)
        self.head = None if tied else eqx.nn.Linear(10, 22, key=keys[4])

    def __call__(self, ids):
        h = jax.vmap(self.wte)(ids) + self.positions
        if isinstance(self.blocks, list):
            for block in self.blocks:
                h = block(h)
        else:
            arrays, static = eqx.partition(self.blocks, eqx.is_array)
            step = lambda h, p: (eqx.combine(p, static)(h), None)  # noqa: E731
            h = jax.lax.scan(step, h, arrays)[0]
        h = jax.vmap(self.ln_f)(h)
        return h @ self.wte.weight.T if self.head is None else jax.vmap(self.head)(h)


def gpt(*, scan=False, tied=False, grouped=False):
    names = ("query", "key", "value", "out")
    attention = (
        {k: v for name in names for k, v in under(name, LINEAR).items()}
        if grouped
        # Without biases, by default.
        else {"*_proj/weight": "outputs inputs"}
    )
    block = {
        **under("ln_1", NORM),
        **under("attention", attention),
        **under("ln_2", NORM),
        **under("up", LINEAR),
        **under("down", LINEAR),
    }
    layers = under("blocks", block, "stack") if scan else under("blocks/[012]", block)
    head = {} if tied else under("head", LINEAR)
    ends = {"wte/weight": LOOKUP, "positions": POSITIONS, **under("ln_f", NORM)}
    build = functools.partial(Gpt, scan=scan, tied=tied, grouped=grouped)
    return of(build, tokens(2, 7), roles={**ends, **layers, **head})


# Images and sequences.


class Convolutions(eqx.Module):
    """Plain, depthwise, grouped, and a layer on top."""

    layers: list

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.layers = [
            eqx.nn.Conv2d(4, 6, 3, padding=1, key=keys[0]),
            eqx.nn.Conv2d(6, 6, 3, padding=1, groups=6, key=keys[1]),
            eqx.nn.Conv2d(6, 10, 5, padding=2, groups=2, key=keys[2]),
            lambda x: jax.nn.relu(x).mean((1, 2)),
            eqx.nn.Linear(10, 11, key=keys[3]),
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Text(eqx.Module):
    conv: eqx.nn.Conv1d
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv1d(5, 8, 3, key=keys[0])
        self.head = eqx.nn.Linear(8, 4, key=keys[1])

    def __call__(self, x):
        return self.head(jax.nn.relu(self.conv(x)).mean(1))


class Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell | eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, key, *, gru):
        keys = jax.random.split(key)
        make = eqx.nn.GRUCell if gru else eqx.nn.LSTMCell
        self.cell = make(5, 7, key=keys[0])
        self.head = eqx.nn.Linear(7, 3, key=keys[1])

    def __call__(self, x):
        zeros = jnp.zeros(7)
        gru = isinstance(self.cell, eqx.nn.GRUCell)
        start = zeros if gru else (zeros, zeros)
        end = jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, x)[0]
        return self.head(end if gru else end[0])


def recurrent(*, gru):
    roles = {
        "cell/weight_[ih]h": "outputs inputs",
        "cell/bias*": None,
        **under("head", LINEAR),
    }
    build = functools.partial(Recurrent, gru=gru)
    return of(build, shape(2, 4, 5), roles=roles)


class Normed(eqx.Module):
    first: eqx.nn.WeightNorm
    second: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first = eqx.nn.WeightNorm(eqx.nn.Linear(5, 7, key=keys[0]))
        self.second = eqx.nn.Linear(7, 3, key=keys[1])

    def __call__(self, x):
        return self.second(jax.nn.relu(self.first(x)))


# Experts and members.


class Mlp(eqx.Module):
    up: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    down: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.up = eqx.nn.Linear(5, 7, key=keys[0])
        self.norm = eqx.nn.LayerNorm(7)
        self.down = eqx.nn.Linear(7, 5, key=keys[1])

    def __call__(self, x):
        return self.down(self.norm(jax.nn.relu(self.up(x))))


class Cnn(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(4, 8, 3, key=keys[0])
        self.norm = eqx.nn.GroupNorm(2, 8)
        self.head = eqx.nn.Linear(8, 11, key=keys[1])

    def __call__(self, x):
        return self.head(jax.nn.relu(self.norm(self.conv(x))).mean((1, 2)))


class Experts(eqx.Module):
    """Each expert is an MLP, and sees the tokens that are sent to it."""

    router: eqx.nn.Linear
    experts: Mlp

    def __init__(self, key):
        keys = jax.random.split(key)
        self.router = eqx.nn.Linear(5, 3, key=keys[0])
        self.experts = eqx.filter_vmap(Mlp)(jax.random.split(keys[1], 3))

    def __call__(self, x):
        gate = jax.nn.softmax(jax.vmap(self.router)(x))
        sent = jax.nn.one_hot(gate.argmax(-1), 3, axis=0)[..., None] * x[None]
        run = eqx.filter_vmap(lambda expert, x: jax.vmap(expert)(x))
        return jnp.einsum("te,etd->td", gate, run(self.experts, sent))


MLP = {
    **under("up", LINEAR, "stack"),
    **under("norm", NORM),
    **under("down", LINEAR, "stack"),
}
CNN = {
    **under("conv", CONV, "stack"),
    **under("norm", NORM),
    **under("head", LINEAR, "stack"),
}


def ensemble(build, x, roles):
    """Five members, which see the same data."""
    many = lambda key: eqx.filter_vmap(build)(jax.random.split(key, 5))  # noqa: E731
    return of(many, x, roles=roles, stack=1)


NETWORKS = {
    "gpt": gpt,
    "gpt_scanned": functools.partial(gpt, scan=True),
    "gpt_tied": functools.partial(gpt, tied=True),
    "gpt_grouped": functools.partial(gpt, grouped=True),
    "gpt_grouped_scanned": functools.partial(gpt, scan=True, grouped=True),
    "convolutions": lambda: of(
        Convolutions,
        shape(2, 4, 8, 8),
        roles={**under("layers/[012]", CONV), **under("layers/4", LINEAR)},
    ),
    "text": lambda: of(
        Text,
        shape(2, 5, 9),
        roles={
            "conv/weight": "outputs inputs window",
            "conv/bias": None,
            **under("head", LINEAR),
        },
    ),
    "lstm": functools.partial(recurrent, gru=False),
    "gru": functools.partial(recurrent, gru=True),
    "weight_norm": lambda: of(
        Normed,
        shape(2, 5),
        roles={
            **under("first/layer", LINEAR),
            "first/g": None,
            **under("second", LINEAR),
        },
    ),
    "experts": lambda: of(
        Experts,
        shape(2, 11, 5),
        roles={**under("router", LINEAR), **under("experts", MLP)},
    ),
    "mlps": lambda: ensemble(Mlp, shape(2, 5), MLP),
    "cnns": lambda: ensemble(Cnn, shape(2, 4, 8, 8), CNN),
}
