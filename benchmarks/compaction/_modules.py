"""The three networks of `_linen` in torch, with the same names and sizes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.compaction import _sizes


class Block(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = _conv(width_in, width, 3, stride), _norm(width)
        self.conv2, self.norm2 = _conv(width, width, 3), _norm(width)
        self.shortcut = stride > 1
        if self.shortcut:
            self.conv3, self.norm3 = _conv(width_in, width, 1, stride), _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, width, H / stride, W / stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut:
            x = self.norm3(self.conv3(x))
        return functional.relu(x + y)


class ResNet18(nn.Module):
    """For images of 32 x 32, without the pooling after the first layer."""

    def __init__(self):
        super().__init__()
        width = _sizes.WIDTHS[0]
        self.conv, self.norm = _conv(3, width, 3), _norm(width)
        self.blocks = []
        for name, wide, stride in _sizes.residual():
            self.add_module(name, Block(width, wide, stride))
            self.blocks.append(name)
            width = wide
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 32, 32] to [B, 10]."""
        x = functional.relu(self.norm(self.conv(x)))
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.head(x.mean((2, 3)))


class Inverted(nn.Module):
    """An inverted residual: widen, depthwise, narrow."""

    def __init__(self, width_in: int, width: int, stride: int, expand: int):
        super().__init__()
        wide = width_in * expand
        self.expand, self.shortcut = expand, stride == 1 and width == width_in
        if expand > 1:
            self.conv1, self.norm1 = _conv(width_in, wide, 1), _norm(wide)
        self.conv2, self.norm2 = _conv(wide, wide, 3, stride, wide), _norm(wide)
        self.conv3, self.norm3 = _conv(wide, width, 1), _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, width, H / stride, W / stride]."""
        y = x
        if self.expand > 1:
            y = functional.relu6(self.norm1(self.conv1(y)))
        y = functional.relu6(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return x + y if self.shortcut else y


class MobileNet(nn.Module):
    """MobileNetV2's blocks, fewer of them."""

    def __init__(self):
        super().__init__()
        width = _sizes.STEM
        self.conv, self.norm = _conv(3, width, 3), _norm(width)
        self.blocks = []
        for name, wide, stride, expand in _sizes.inverted():
            self.add_module(name, Inverted(width, wide, stride, expand))
            self.blocks.append(name)
            width = wide
        self.conv_last = _conv(width, _sizes.LAST, 1)
        self.norm_last = _norm(_sizes.LAST)
        self.head = nn.Linear(_sizes.LAST, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 32, 32] to [B, 10]."""
        x = functional.relu6(self.norm(self.conv(x)))
        for name in self.blocks:
            x = getattr(self, name)(x)
        x = functional.relu6(self.norm_last(self.conv_last(x)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Causal, with a layer each for queries, keys and values.

    Written as Torch-Pruning needs it: sizes are read from the layers, the number of
    heads is an attribute to be set after pruning, and the scale is a constant.
    """

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (d // heads) ** -0.5
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        b, t, _ = x.shape

        def heads(layer):
            return layer(x).view(b, t, self.heads, -1).transpose(1, 2)

        q, k, v = heads(self.query), heads(self.key), heads(self.value)
        scores = q @ k.transpose(-1, -2) * self.scale
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -1e9).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(b, t, -1))


class Layer(nn.Module):
    """A block of a transformer, normalized first."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(d), Attention(d, heads)
        self.norm2, self.up, self.down = (
            nn.LayerNorm(d),
            nn.Linear(d, 4 * d),
            nn.Linear(4 * d, d),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        x = x + self.attention(self.norm1(x))
        y = functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.down(y)


class GPT(nn.Module):
    """Four layers, eight heads, a head of its own (not tied)."""

    def __init__(self):
        super().__init__()
        d = _sizes.DIM
        self.embed = nn.Embedding(_sizes.VOCABULARY, d)
        self.position = nn.Embedding(_sizes.CONTEXT, d)
        self.layers = [f"layer{i}" for i in range(_sizes.LAYERS)]
        for name in self.layers:
            self.add_module(name, Layer(d, _sizes.HEADS))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, _sizes.VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, CONTEXT] to [B, CONTEXT, VOCABULARY]."""
        x = self.embed(tokens) + self.position(torch.arange(_sizes.CONTEXT))
        for name in self.layers:
            x = getattr(self, name)(x)
        return self.head(self.norm(x))


NETWORKS: dict[str, type[nn.Module]] = {
    "ResNet18": ResNet18,
    "MobileNet": MobileNet,
    "GPT": GPT,
}


def inputs(network: str, batch: int = _sizes.BATCH) -> Tensor:
    """`_sizes.inputs`, with the channels of images where torch has them."""
    x = torch.from_numpy(_sizes.inputs(network, batch))
    return x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x.long()


def _conv(width_in, width, size, stride=1, groups=1):
    return nn.Conv2d(
        width_in, width, size, stride, size // 2, groups=groups, bias=False
    )


def _norm(width):
    return nn.BatchNorm2d(width)
