"""Networks that tests of recipes train: a small one, and two with batch normalization.

`network` is `relu(x @ a + bias) @ b @ head`, its parameters `drawn`. The others are
trained by `training`. `linen()` and `of_nnx()` return what it needs: parameters with
statistics, how to split and join these, `(params, rest, x, y) -> (loss, rest)`, and
`(all, x) -> out`. Inputs are [B, 5], outputs [B, 3] of a layer `head`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from maskjax import optim, where

HEAD = where.matching("head")
SHAPES = {"a": (5, 8), "b": (8, 6), "bias": (8,), "head": (6, 3)}


def network(p, x):
    return jax.nn.relu(x @ p["a"] + p["bias"][None]) @ p["b"] @ p["head"]


def loss(p, x, y):
    return jnp.mean((network(p, x) - y) ** 2)


def drawn(*, seed=0):
    rng = np.random.default_rng(seed)
    return {
        n: jnp.asarray(rng.normal(size=s) / 3, "float32") for n, s in SHAPES.items()
    }


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(7, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(7)(nn.relu(x))))


@functools.cache
def linen():
    net = Linen()
    init = jax.jit(net.init, static_argnames="train")
    start = init(jax.random.key(0), np.ones((2, 5), "f4"), train=False)

    def loss(params, rest, x, y):
        out, new = net.apply(
            {"params": params, **rest}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.mean((out - y) ** 2), new

    def split(params):
        rest = dict(params)
        return rest.pop("params"), rest

    def join(params, rest):
        return {"params": params, **rest}

    return start, split, join, loss, lambda p, x: net.apply(p, x, train=False)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 7, rngs=rngs)
        self.norm = nnx.BatchNorm(7, momentum=0.5, rngs=rngs)
        self.second = nnx.Linear(7, 7, rngs=rngs)
        self.head = nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x, *, train):
        x = self.norm(self.first(x), use_running_average=not train)
        return self.head(nnx.relu(self.second(nnx.relu(x))))


@functools.cache
def of_nnx():
    graph, start = nnx.split(nnx.jit(lambda: Nnx(nnx.Rngs(0)))())

    def loss(params, rest, x, y):
        net = nnx.merge(graph, params, rest, copy=True)
        out = net(x, train=True)
        return jnp.mean((out - y) ** 2), nnx.state(net, nnx.BatchStat)

    def split(state):
        return nnx.split_state(state, nnx.Param, nnx.BatchStat)

    def say(state, x):
        return nnx.merge(graph, state, copy=True)(x, train=False)

    return start, split, nnx.merge_state, loss, say


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05, weight_decay=0.1),
}

# Frameworks, optimizers, and whether updates are masked: if they are not, only what a
# recipe restores is undone.
RUNS = [
    (linen, "adamw", False),
    (of_nnx, "adamw", True),
    *(
        pytest.param(framework, name, masked, marks=pytest.mark.slow)
        for framework in (linen, of_nnx)
        for name in OPTIMIZERS
        for masked in (True, False)
    ),
]


def training(framework, name, *, masked):
    """Where a network begins, `(params, mask, x, y) -> params`, and what it then says.

    Args:
        framework: `linen` or `of_nnx`.
        name: Of `OPTIMIZERS`.
        masked: Whether updates are masked.
    """
    start, split, join, loss, apply = framework()

    def train(params, mask, x, y):
        inner = optim.mask_updates(split(mask)[0]) if masked else optax.identity()
        optimizer = optax.chain(OPTIMIZERS[name], inner)

        def step(carry, _):
            params, rest, opt_state = carry
            slopes, rest = jax.grad(loss, has_aux=True)(params, rest, x, y)
            with jax.numpy_dtype_promotion("standard"):  # which Adam needs
                updates, opt_state = optimizer.update(slopes, opt_state, params)
            return (optax.apply_updates(params, updates), rest, opt_state), None

        params, rest = split(params)
        begun = params, rest, optimizer.init(params)
        params, rest, _ = jax.lax.scan(step, begun, length=4)[0]
        return join(params, rest)

    return start, train, apply


def means(tree):
    """The running means, of Linen or NNX."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    strip = jax.tree_util.GetAttrKey("value")
    names = [[key for key in path if key != strip] for path, _ in leaves]
    return [
        leaf
        for name, (_, leaf) in zip(names, leaves, strict=True)
        if jax.tree_util.keystr(name, simple=True).endswith("mean")
    ]
