"""Scores from data in closed form: linear models, chains of layers, loops."""

import numpy as np


def gradient(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the mean over examples of |x w - y|**2 / 2."""
    return x.T @ (x @ w - y) / len(x)


def snip(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|g * w|."""
    return np.abs(gradient(w, x, y) * w)


def taylor(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(g * w)**2."""
    return (gradient(w, x, y) * w) ** 2


def grasp(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """w * (H g); H is x^T x / n for every output."""
    return w * (x.T @ x @ gradient(w, x, y) / len(x))


def fisher(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """w**2 / 2 times the mean of squared gradients, one example after the other."""
    total = np.zeros_like(w)
    for row, target in zip(x, y, strict=True):
        total += np.outer(row, row @ w - target) ** 2
    return w**2 / 2 * total / len(x)


def synflow(kernels: list[np.ndarray], rows: int) -> list[np.ndarray]:
    """Of a chain of layers without biases: what flows in, through, and out."""
    scores = []
    for i, kernel in enumerate(kernels):
        into = np.ones(kernels[0].shape[0])
        for before in kernels[:i]:
            into = into @ np.abs(before)
        out = np.ones(kernels[-1].shape[1])
        for after in kernels[:i:-1]:
            out = np.abs(after) @ out
        scores.append(rows * into[:, None] * np.abs(kernel) * out)
    return scores


def feature_norms(x: np.ndarray, axis: int) -> np.ndarray:
    """The norm of each feature along an axis, one after the other."""
    return np.array([np.sqrt((part**2).sum()) for part in np.moveaxis(x, axis, 0)])


def convolution_flops(
    image: tuple[int, ...], kernel: tuple[int, ...], stride: int, groups: int
) -> int:
    """Twice the multiplications of a convolution without padding, one by one."""
    rows, height, width, _ = image
    high, wide, features, outputs = kernel
    assert outputs % groups == 0
    count = 0
    for _ in range(rows * outputs):
        for _ in range(0, height - high + 1, stride):
            for _ in range(0, width - wide + 1, stride):
                count += high * wide * features
    return 2 * count
