"""A trained sentence encoder, pruned without any training: what its kernels meet tells.

The first lines of SciPy's docstrings look for the texts that they are from, by
embeddings of all-MiniLM-L6-v2. Only the kernels of its layers are pruned. They are
calibrated on docstrings of scikit-learn, which each seed draws anew. Recall is the share
of lines that find their text first, and MRR the mean of 1 / rank; "cosine" is between
the embeddings of the pruned network and of the dense one. With `--quick` the network is
a small one with random weights, and needs no package.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _encoder, _pictures, _sentences
from benchmarks._registry import Context, Demo, Outcome
from benchmarks._rows import rows
from maskjax import masking, score, select, structure

SMALL = _encoder.Sizes(2, 32, 4, 64, words=1000, length=64)
PAIRS, TEXTS = (60, 600, 600), (16, 256, 256)
LENGTH = 64  # tokens of a text that is embedded
CALIBRATED = 128  # tokens of one of calibration
ROWS = 64, 32  # lines in a batch of either
SEEDS = 2, 1, 3
DENSITIES = (0.5, 0.3), (0.5, 0.3), (0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
PATTERN = structure.NofM(2, 4)
Measured = dict[str, float]


class Retrieval(NamedTuple):
    """Lines and texts that belong together, as batches, and the dense embeddings."""

    embed: Callable[[Any], np.ndarray]  # unit vectors [2 N, D] of parameters
    dense: np.ndarray  # [2 N, D]: of the lines, then of the texts

    def measured(self, params: Any) -> Measured:
        """How well lines find their texts, and how far embeddings have moved."""
        found = self.embed(params)
        lines, texts = np.split(found, 2)
        likeness = lines @ texts.T
        ranks = 1 + (likeness > np.diag(likeness)[:, None]).sum(1)
        return {
            "recall": float((ranks == 1).mean()),
            "MRR": float((1 / ranks).mean()),
            "cosine": float((found * self.dense).sum(1).mean()),
        }


def retrieval(network: _encoder.Network, count: int) -> Retrieval:
    """So many pairs, and what the network makes of them."""
    pairs = _sentences.scipy_pairs(count)
    tokens = network.tokens(pairs.lines + pairs.texts, LENGTH)
    batches = list(_encoder.batches(tokens, ROWS[0], LENGTH))
    one = jax.jit(network.apply)

    def embed(params: Any) -> np.ndarray:
        # All are asked for before the first is read.
        found = [(rows, one(params, ids)) for rows, ids in batches]
        places = np.concatenate([rows for rows, _ in found])
        vectors = [np.asarray(x)[: len(rows)] for rows, x in found]
        return np.concatenate(vectors)[np.argsort(places)]

    return Retrieval(embed, embed(network.params))
