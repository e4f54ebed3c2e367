"""The server of FedPM, on lists of boolean arrays and in float64.

(Isik, Pase et al., arXiv:2209.15328: Bayesian aggregation.)
"""

import numpy as np


class Server:
    """Beta(a, b) for each weight, as the paper has it."""

    def __init__(
        self, shape: tuple[int, ...], *, prior: float, reset_every: int, least: float
    ):
        self.p = np.full(shape, 0.5)
        self.prior, self.reset_every, self.least = prior, reset_every, least
        self.rounds = 0

    def round(self, masks: list[np.ndarray]) -> np.ndarray:
        """The probabilities after the masks of one round."""
        if self.rounds % self.reset_every == 0:
            self.a = np.full(self.p.shape, self.prior)
            self.b = np.full(self.p.shape, self.prior)
        self.rounds += 1
        for mask in masks:
            self.a += mask
            self.b += 1 - mask.astype(int)
        if (self.a + self.b > 2 * self.prior).all():
            mode = (self.a - 1) / (self.a + self.b - 2)
            self.p = np.clip(mode, self.least, 1 - self.least)
        return self.p


def entropy(p: np.ndarray) -> float:
    """The mean binary entropy, in bits."""
    p = np.clip(np.float64(p), 1e-300, 1)
    q = np.clip(1 - p, 1e-300, 1)
    return float(-(p * np.log2(p) + q * np.log2(q)).mean())
