"""Three networks in Flax Linen; `_modules` has the same in torch, layer by layer.

Layers have the same names and sizes on both sides. Paddings are written out, because
"SAME" pads differently where the stride is 2, and epsilons are torch's.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.compaction import _sizes

Array = jax.Array
CONTEXT = _sizes.CONTEXT


class Block(nn.Module):
    """A basic block of a ResNet."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] to [B, H / stride, W / stride, width]."""
        y = _conv(self.width, 3, self.stride, name="conv1")(x)
        y = nn.relu(_norm("norm1")(y))
        y = _norm("norm2")(_conv(self.width, 3, name="conv2")(y))
        if self.stride > 1:
            x = _norm("norm3")(_conv(self.width, 1, self.stride, name="conv3")(x))
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """For images of 32 x 32, without the pooling after the first layer."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, 32, 32, 3] to [B, 10]."""
        x = nn.relu(_norm("norm")(_conv(_sizes.WIDTHS[0], 3, name="conv")(x)))
        for name, width, stride in _sizes.residual():
            x = Block(width, stride, name=name)(x)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class Inverted(nn.Module):
    """An inverted residual: widen, depthwise, narrow."""

    width: int
    stride: int
    expand: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] to [B, H / stride, W / stride, width]."""
        wide = x.shape[-1] * self.expand
        y = x
        if self.expand > 1:
            y = nn.relu6(_norm("norm1")(_conv(wide, 1, name="conv1")(y)))
        y = _conv(wide, 3, self.stride, groups=wide, name="conv2")(y)
        y = nn.relu6(_norm("norm2")(y))
        y = _norm("norm3")(_conv(self.width, 1, name="conv3")(y))
        return x + y if x.shape == y.shape else y


class MobileNet(nn.Module):
    """MobileNetV2's blocks, fewer of them."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, 32, 32, 3] to [B, 10]."""
        x = nn.relu6(_norm("norm")(_conv(_sizes.STEM, 3, name="conv")(x)))
        for name, width, stride, expand in _sizes.inverted():
            x = Inverted(width, stride, expand, name=name)(x)
        x = nn.relu6(_norm("norm_last")(_conv(_sizes.LAST, 1, name="conv_last")(x)))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class Attention(nn.Module):
    """Causal, with a layer each for queries, keys and values."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, T, D] to [B, T, D]."""
        (b, t, d), scale = x.shape, (x.shape[-1] // self.heads) ** -0.5

        def layer(name):
            return nn.Dense(d, name=name)(x).reshape(b, t, self.heads, -1)

        q, k, v = map(layer, ("query", "key", "value"))
        scores = jnp.einsum("bthc,bshc->bhts", q, k) * scale
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e9)
        mixed = jnp.einsum("bhts,bshc->bthc", nn.softmax(scores), v)
        return nn.Dense(d, name="out")(mixed.reshape(b, t, d))


class Layer(nn.Module):
    """A block of a transformer, normalized first."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, T, D] to [B, T, D]."""
        d = x.shape[-1]
        normed = nn.LayerNorm(epsilon=1e-5, name="norm1")(x)
        x = x + Attention(self.heads, name="attention")(normed)
        y = nn.LayerNorm(epsilon=1e-5, name="norm2")(x)
        y = nn.gelu(nn.Dense(4 * d, name="up")(y))
        return x + nn.Dense(d, name="down")(y)


class GPT(nn.Module):
    """Four layers, eight heads, a head of its own (not tied)."""

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """[B, CONTEXT] to [B, CONTEXT, VOCABULARY]."""
        x = nn.Embed(_sizes.VOCABULARY, _sizes.DIM, name="embed")(tokens)
        x = x + nn.Embed(CONTEXT, _sizes.DIM, name="position")(jnp.arange(CONTEXT))
        for i in range(_sizes.LAYERS):
            x = Layer(_sizes.HEADS, name=f"layer{i}")(x)
        x = nn.LayerNorm(epsilon=1e-5, name="norm")(x)
        return nn.Dense(_sizes.VOCABULARY, use_bias=False, name="head")(x)


NETWORKS: dict[str, type[nn.Module]] = {
    "ResNet18": ResNet18,
    "MobileNet": MobileNet,
    "GPT": GPT,
}


def _conv(width: int, size: int, stride: int = 1, *, name: str, groups: int = 1) -> Any:
    return nn.Conv(
        width,
        (size, size),
        (stride, stride),
        padding=[(size // 2, size // 2)] * 2,
        feature_group_count=groups,
        use_bias=False,
        name=name,
    )


def _norm(name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=name)
