"""A residual network and a GPT of any widths, and how one network is trained.

What is learned is `params`, {"params": ...}, and what else changes is `rest`, the batch
statistics, so that `params | rest` are a module's `variables`. `x` are images
[B, H, W, C] or characters [B, T]; `y` are labels [B] or [B, T].
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _train

Array = jax.Array
Step = Callable[..., tuple[Any, Any, Array]]
STATISTICS = "batch_stats"
INIT = nn.initializers.normal(0.3)


class Block(nn.Module):
    """Two convolutions 3 x 3, or a bottleneck of three, beside a shortcut."""

    width: int
    out: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Features [B, H / stride, W / stride, out] of features [B, H, W, C]."""
        bottleneck, strides = self.out != self.width, (self.stride, self.stride)
        ends = (1, 3, 1) if bottleneck else (3, 3)
        y = x
        for i, size in enumerate(ends):
            last, first = i == len(ends) - 1, i == (1 if bottleneck else 0)
            width = self.out if last else self.width
            how = {"strides": strides if first else 1, "use_bias": False}
            y = nn.Conv(width, (size, size), name=f"conv_{i}", **how)(y)
            y = norm(train, name=f"norm_{i}")(y)
            y = y if last else nn.relu(y)
        if self.stride > 1 or x.shape[-1] != self.out:
            how = {"strides": strides, "use_bias": False}
            x = nn.Conv(self.out, (1, 1), name="conv_shortcut", **how)(x)
            x = norm(train, name="norm_shortcut")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network with batch normalization (He et al., 2016)."""

    widths: tuple[int, ...] = (64, 128, 256, 512)  # of each stage
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    expansion: int = 1  # 4 with bottlenecks
    large: bool = False  # images, whose size the first layers divide by 4
    classes: int = 10

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Logits [B, classes] of images [B, H, W, C]."""
        size, strides = ((7, 7), 2) if self.large else ((3, 3), 1)
        x = nn.Conv(self.widths[0], size, strides, use_bias=False, name="conv")(x)
        x = nn.relu(norm(train, name="norm")(x))
        if self.large:
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for i, width in enumerate(self.widths):
            for j in range(self.blocks[i]):
                stride = 2 if i and not j else 1
                block = Block(width, width * self.expansion, stride, name=f"b{i}_{j}")
                x = block(x, train=train)
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


class GPT(nn.Module):
    """A decoder with learned positions, and norms first (Radford et al., 2019)."""

    vocabulary: int
    width: int = 256
    heads: int = 4
    head_width: int = 64
    hidden: int = 1024
    layers: int = 4
    length: int = 128  # the most characters
    scan: bool = False  # whether layers are steps of a loop, and their kernels stacked

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Logits [B, T, vocabulary] of the character after each of [B, T]."""
        del train
        shape = self.length, self.width
        place = self.param("positions", INIT, shape)[: x.shape[1]]
        x = nn.Embed(self.vocabulary, self.width, embedding_init=INIT, name="embed")(x)
        x = x + place[None]
        how = self.heads, self.head_width, self.hidden
        if self.scan:
            each = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            layers = nn.scan(Layer, length=self.layers, **each)
            x, _ = layers(*how, name="layers")(x, None)
        else:
            for i in range(self.layers):
                x = decoded(x, *how, str(i))
        return nn.Dense(self.vocabulary, name="head")(nn.LayerNorm(name="norm")(x))


class Layer(nn.Module):
    """One layer of a decoder, as a step of a loop."""

    heads: int
    head_width: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array, _: None) -> tuple[Array, None]:
        """Features [B, T, D] of features [B, T, D]."""
        return decoded(x, self.heads, self.head_width, self.hidden, ""), None


def decoded(x: Array, heads: int, head_width: int, hidden: int, number: str) -> Array:
    """Features after one layer, whose parameters have its number in their names."""
    norm = nn.LayerNorm(name=f"norm_a{number}")
    x = x + attention(norm(x), heads, head_width, name=f"attention{number}")
    y = nn.LayerNorm(name=f"norm_b{number}")(x)
    y = nn.gelu(nn.Dense(hidden, name=f"up{number}")(y))
    return x + nn.Dense(x.shape[-1], name=f"down{number}")(y)


def attention(x: Array, heads: int, head_width: int, name: str) -> Array:
    """What each position of [B, T, D] makes of those before it."""
    shape = heads, head_width
    q, k, v = (nn.DenseGeneral(shape, name=f"{name}_{part}")(x) for part in "qkv")
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * head_width**-0.5
    seen = jnp.tril(jnp.ones(scores.shape[2:], bool))
    weights = nn.softmax(jnp.where(seen, scores, -jnp.inf))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    out = nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name=f"{name}_out")
    return out(mixed)


def norm(train: bool, name: str) -> nn.BatchNorm:  # noqa: FBT001
    """Batch normalization, whose statistics follow within a hundred steps."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)


def resnet(share: float = 1, **sizes: Any) -> ResNet:
    """A residual network that has this share of its channels everywhere."""
    net = ResNet(**sizes)
    return net.clone(widths=tuple(round(share * w) for w in net.widths))


def gpt(share: float = 1, **sizes: Any) -> GPT:
    """A GPT with this share of its width, heads, their width and hidden units."""
    net = GPT(**sizes)
    names = "width", "heads", "head_width", "hidden"
    return net.clone(**{name: round(share * getattr(net, name)) for name in names})


def fresh(net: nn.Module, x: Any, seed: int = 0) -> Any:
    """Variables at random."""
    return _init(net)(jax.random.key(seed), x[:1])


@functools.cache
def _init(net: nn.Module) -> Callable[[Array, Any], Any]:
    """Compiled once: random bits take longer to compile than a step of training."""
    return jax.jit(lambda key, x: net.init(key, x, train=False))


def apart(variables: Any) -> tuple[Any, Any]:
    """What is learned, and the rest."""
    rest = {name: variables[name] for name in variables if name == STATISTICS}
    return {"params": variables["params"]}, rest


def logits(net: nn.Module) -> Callable[[Any, Array], Array]:
    """The function `(variables, x) -> logits`, with the statistics as they are."""
    return lambda variables, x: net.apply(variables, x, train=False)


def valued(net: nn.Module) -> Callable[[Any, Array, Array], tuple[Array, Any]]:
    """The function `(variables, x, y) -> (loss, rest)`, with a batch's statistics."""

    def value(variables: Any, x: Array, y: Array) -> tuple[Array, Any]:
        out, rest = net.apply(variables, x, train=True, mutable=[STATISTICS])
        return _train.cross_entropy(out, y), dict(rest)

    return value


def descent(net: nn.Module, optimizer: optax.GradientTransformation) -> Step:
    """The training step `(variables, opt_state, x, y) -> (variables, opt_state, loss)`.

    Parameters come first, as functions have them that can be made small.
    """
    value = valued(net)

    def step(variables: Any, opt_state: Any, x: Array, y: Array) -> tuple[Any, ...]:
        params, rest = apart(variables)
        whole = lambda params: value(params | rest, x, y)  # noqa: E731
        (found, rest), slopes = jax.value_and_grad(whole, has_aux=True)(params)
        updates, opt_state = optimizer.update(slopes, opt_state, params)
        return optax.apply_updates(params, updates) | rest, opt_state, found

    return step


def with_rest(mask: Any, variables: Any) -> Any:
    """A mask of parameters as one of variables, which leaves statistics alone."""
    return mask | jax.tree.map(lambda _: None, apart(variables)[1])


def parameters(tree: Any) -> int:
    """How many numbers a tree has."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
