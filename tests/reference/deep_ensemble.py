"""Deep ensembles in NumPy: a regression network with its gradient by hand."""

import numpy as np

Arrays = dict[str, np.ndarray]


def softplus(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, z)


def forward(p: Arrays, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden features, means and raw variances of `relu(x @ a) @ b + bias`."""
    hidden = np.maximum(x @ p["a"], 0)
    out = hidden @ p["b"] + p["bias"]
    half = out.shape[-1] // 2
    return hidden, out[:, :half], out[:, half:]


def loss(p: Arrays, x: np.ndarray, y: np.ndarray, floor: float = 1e-6) -> float:
    """Mean of log(var) / 2 + (y - mean)^2 / (2 var)."""
    _, mean, raw = forward(p, x)
    var = softplus(raw) + floor
    return float(np.mean(np.log(var) / 2 + (y - mean) ** 2 / (2 * var)))


def gradients(p: Arrays, x: np.ndarray, y: np.ndarray, floor: float = 1e-6) -> Arrays:
    hidden, mean, raw = forward(p, x)
    var = softplus(raw) + floor
    by_mean = (mean - y) / var / y.size
    by_var = (1 / (2 * var) - (y - mean) ** 2 / (2 * var**2)) / y.size
    by_out = np.concatenate([by_mean, by_var / (1 + np.exp(-raw))], 1)
    by_hidden = (by_out @ p["b"].T) * (hidden > 0)
    return {"a": x.T @ by_hidden, "b": hidden.T @ by_out, "bias": by_out.sum(0)}


def train(p: Arrays, x: np.ndarray, y: np.ndarray, steps: np.ndarray, lr: float):
    """Gradient descent on the samples of each step."""
    for which in steps:
        slopes = gradients(p, x[which], y[which])
        p = {name: p[name] - lr * slopes[name] for name in p}
    return p


def mixture(means: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The paper's formulas: mean squares less the squared mean."""
    means, variances = means.astype(np.float64), variances.astype(np.float64)
    mean = means.mean(0)
    return mean, (variances + means**2).mean(0) - mean**2
