"""How many masks have each column.

Column counts determine how much masks overlap: a column that k masks have is shared by
k (k - 1) / 2 pairs. A tally says how many columns have each count: `tally[k - 1]`
columns are in k masks.
"""

import math

import numpy as np


def column_counts(members: int, channels: int, total: int, target: float) -> np.ndarray:
    """Counts [C] in 1 to N, with an exact sum and the overlap nearest to the target.

    They are near to what N independent draws would give, because those are binomial.

    Args:
        members: N.
        channels: C.
        total: The sum of the counts: all ones of all masks.
        target: The overlap, summed over all pairs of masks.
    """
    if total == members * channels:
        return np.full(channels, members)
    tally = _binomial(members, channels, total, target)
    tally = _with_sum(tally, total, target)
    return np.repeat(np.arange(1, members + 1), _with_overlap(tally, target))


def _overlap(tally: np.ndarray) -> int:
    k = np.arange(1, len(tally) + 1)
    return int((tally * k * (k - 1) // 2).sum())


def _binomial(members: int, channels: int, total: int, target: float) -> np.ndarray:
    """Columns that each of N masks has with probability p, without the empty ones.

    p follows from the overlap that is asked for. Rounded, with C columns in all.
    """
    pairs = math.comb(members, 2)
    p = min(max(target / max(pairs * total / members, 1), 1e-6), 1 - 1e-6)
    log = [
        math.lgamma(members + 1) - math.lgamma(k + 1) - math.lgamma(members - k + 1)
        for k in range(1, members + 1)
    ]
    k = np.arange(1, members + 1)
    log = np.array(log) + k * math.log(p) + (members - k) * math.log1p(-p)
    chance = np.exp(log - log.max())
    exact = channels * chance / chance.sum()
    tally = np.floor(exact).astype(np.int64)
    missing = channels - tally.sum()
    tally[np.argsort(tally - exact, kind="stable")[:missing]] += 1
    return tally


def _with_sum(tally: np.ndarray, total: int, target: float) -> np.ndarray:
    """Columns get or lose a one, until there are `total`.

    Each step takes the column that brings the overlap nearest to its share of what is
    still to go.
    """
    k = np.arange(1, len(tally) + 1)
    while short := total - int((tally * k).sum()):
        way = 1 if short > 0 else -1
        gains = k if way > 0 else 1 - k
        usable = (tally > 0) & (k + way >= 1) & (k + way <= len(tally))
        wanted = (target - _overlap(tally)) / abs(short)
        i = np.flatnonzero(usable)[np.argmin(abs(gains[usable] - wanted))]
        tally[i] -= 1
        tally[i + way] += 1
    return tally


def _with_overlap(tally: np.ndarray, target: float) -> np.ndarray:
    """Columns give a one to others, while that brings the overlap nearer to the target.

    A step may change the overlap by no more than it must, so that counts stay alike;
    the limit grows if no allowed step helps.
    """
    index = np.arange(len(tally))
    change = index[None, :] - index[:, None] + 1  # rows give, columns take
    limit = 1.0
    while gap := target - _overlap(tally):
        limit = max(limit, 2 * abs(gap) / tally.sum())
        usable = (tally[:, None] > 0) & (tally[None, :] > 0) & (abs(change) <= limit)
        usable &= (index > 0)[:, None] & (index < index[-1])[None, :]
        usable &= ~np.eye(len(tally), dtype=bool) | (tally > 1)[:, None]
        left = np.where(usable, abs(gap - change), np.inf)
        give, take = np.unravel_index(np.argmin(left), left.shape)
        if left[give, take] < abs(gap):
            np.subtract.at(tally, [give, take], 1)
            np.add.at(tally, [give - 1, take + 1], 1)
        elif limit < len(tally):
            limit += 1
        else:
            break
    return tally
