"""Sizes that the networks of both sides share, and what they are shown."""

from collections.abc import Iterator

import numpy as np

BATCH = 4
IMAGE = (32, 32, 3)
WIDTHS = (64, 128, 256, 512)  # of ResNet18's four stages, two blocks each
STEM, LAST = 32, 1280  # of MobileNet
# Width, stride and expansion of each block: MobileNetV2's, fewer of them.
INVERTED = (
    *((16, 1, 1), (24, 1, 6), (24, 1, 6), (32, 2, 6), (32, 1, 6)),
    *((64, 2, 6), (64, 1, 6), (96, 1, 6), (160, 2, 6), (160, 1, 6), (320, 1, 6)),
)
VOCABULARY, DIM, LAYERS, HEADS, CONTEXT = 1024, 256, 4, 8, 128  # of the GPT


def residual() -> Iterator[tuple[str, int, int]]:
    """Name, width and stride of each block of ResNet18."""
    for i, width in enumerate(WIDTHS):
        for j in range(2):
            yield f"block{i}_{j}", width, 2 if i and not j else 1


def inverted() -> Iterator[tuple[str, int, int, int]]:
    """Name, width, stride and expansion of each block of MobileNet."""
    for i, sizes in enumerate(INVERTED):
        yield f"block{i}", *sizes


def inputs(network: str, batch: int = BATCH) -> np.ndarray:
    """A batch: images [B, 32, 32, 3], or tokens [B, CONTEXT]."""
    rng = np.random.default_rng(0)
    if network == "GPT":
        return rng.integers(0, VOCABULARY, (batch, CONTEXT)).astype(np.int32)
    return rng.standard_normal((batch, *IMAGE)).astype(np.float32)


# How half is taken of every group of units.
WAYS: dict[str, tuple[str, ...]] = {
    "ResNet18": ("half of every group",),
    "MobileNet": ("half of every group",),
    "GPT": (
        "half of the heads, not the residual stream",
        "half of the heads",
        "half of the channels of heads",
        "half of the heads, half of their channels",
    ),
}
