"""SparseGPT in float64, with the inverse and the rank-1 updates of arXiv:2301.00774.

Weights are [out, d] here, as in the paper.
"""

from fractions import Fraction

import numpy as np


def shares(keep, live, block, size):
    """How many of its weights each block keeps, in whole numbers.

    Args:
        keep: How many all blocks keep together.
        live: [d], whether each input fires.
        block: How many inputs a block has.
        size: How many weights an input has.
    """

    def parts(count, flags):
        total = max(int(flags.sum()), 1)
        ends = [int(flags[: i + block].sum()) for i in range(0, len(flags), block)]
        rounded = [int(Fraction(count * end, total) + Fraction(1, 2)) for end in ends]
        return np.diff([0, *rounded])

    first = min(keep, size * int(live.sum()))
    return parts(first, live) + parts(keep - first, ~live)


def best(scores, count):
    """True for the highest entries of each row, and the first of equal ones."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    keep = np.zeros(scores.shape, bool)
    np.put_along_axis(keep, order, np.True_, axis=1)
    return keep


def prune(w, gram, *, block, damping=0.01, counts=None, each=False, nm=None, mask=None):
    """The weights that are left, [out, d], and the mask.

    Args:
        w: [out, d].
        gram: [d, d].
        block: How many inputs are decided on at once.
        damping: Of the diagonal, as a multiple of its mean.
        counts: How many weights each block keeps.
        each: Whether these are of each output.
        nm: (n, m): of every m inputs of an output, n are kept.
        mask: [out, d], or `None` to find it.
    """
    w, gram, d = w.astype(float), gram.astype(float), w.shape[1]
    live = np.diag(gram) > 0
    mean = np.diag(gram)[live].mean() if live.any() else 1.0
    gram[~live, ~live] = mean
    upper = np.linalg.cholesky(np.linalg.inv(gram + damping * mean * np.eye(d))).T

    def scores(first, last):
        own = np.s_[first:last]
        cost = np.abs(w[:, own]) / np.diag(upper)[own]
        # What never fires is below all else, the smaller the lower.
        return np.where(live[own], cost, -1 / (1 + np.abs(w[:, own])))

    keep = np.ones(w.shape, bool) if mask is None else mask
    for n, first in enumerate(range(0, d, block)):
        last = min(first + block, d)
        if counts is not None:
            found = scores(first, last)
            if not each:
                found = found.T.reshape(1, -1)
            chosen = best(found, counts[n])
            if not each:
                chosen = chosen.reshape(last - first, -1).T
            keep[:, first:last] = chosen
        for j in range(first, last):
            if nm and j % nm[1] == 0:
                keep[:, j : j + nm[1]] = best(scores(j, j + nm[1]), nm[0])
            left = np.where(keep[:, j], w[:, j], 0)
            error = (w[:, j] - left) / upper[j, j]
            w[:, j:] -= np.outer(error, upper[j, j:])
            w[:, j] = left
    return w, keep


def output_error(w, other, gram):
    """The squared error of the outputs that these rows of inputs give, in all."""
    change = (np.asarray(w) - np.asarray(other)).astype(float)
    return np.einsum("oi,ij,oj->", change, gram.astype(float), change)
