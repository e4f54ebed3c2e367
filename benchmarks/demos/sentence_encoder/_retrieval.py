"""Lines that look for the texts that they are from, by their embeddings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import _encoder, _sentences

MEASURES = "recall", "MRR", "cosine"


class Retrieval(NamedTuple):
    """Pairs of a line and a text, and what the dense network makes of them."""

    embed: Callable[[Any], np.ndarray]  # unit vectors [2 N, D] of parameters
    dense: np.ndarray  # [2 N, D]: of the lines, then of the texts

    def measured(self, params: Any) -> dict[str, float]:
        """How well lines find their texts, and how far embeddings have moved."""
        found = self.embed(params)
        lines, texts = np.split(found, 2)
        alike = lines @ texts.T
        ranks = 1 + (alike > np.diag(alike)[:, None]).sum(1)
        cosine = (found * self.dense).sum(1).mean()
        found = (ranks == 1).mean(), (1 / ranks).mean(), cosine
        return dict(zip(MEASURES, map(float, found), strict=True))


def of(network: _encoder.Network, count: int, rows: int, length: int) -> Retrieval:
    """So many pairs, in batches of `rows` texts of at most `length` tokens."""
    pairs = _sentences.scipy_pairs(count)
    tokens = network.tokens(pairs.lines + pairs.texts, length)
    batches = list(_encoder.batches(tokens, rows, length))
    places = np.argsort(np.concatenate([chosen for chosen, _ in batches]))
    one = jax.jit(network.apply)

    def embed(params: Any) -> np.ndarray:
        vectors = [one(params, ids)[: len(chosen)] for chosen, ids in batches]
        return np.concatenate(vectors)[places]

    return Retrieval(embed, embed(network.params))
