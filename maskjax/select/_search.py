"""The k largest of many floats, exactly and without sorting.

Algorithm (numbers match the comments below):
  1. read each float as an integer key of the same order
  2. start from an interval of keys that contains the k-th largest
  3. narrow it: count how many entries reach a few pivots, in each pass over the data
  4. among entries equal to the k-th largest, find the first ones by position, likewise

Counting is a reduction. It copies nothing across leaves (their counts are added),
gathers nothing across devices (scalars are all-reduced), takes a traced k, and maps
over members.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from maskjax._core.trees import Array
from maskjax.select._entries import Data
from maskjax.select._keys import order_key
from maskjax.select._narrow import narrow
from maskjax.select._quota import Quota


def top_k(
    leaves: Sequence[Array],
    alive: Sequence[Array | None],
    held: Sequence[Array | None],
    quotas: Sequence[Quota],
    kinds: Sequence[int],
    *,
    joint: bool,
    absolute: bool = False,
    guess: Sequence[Array] | None = None,
    rows: Sequence[int] | None = None,
) -> tuple[list[Array], list[Array]]:
    """Mark the largest entries, an exact number; among equal entries, the first win.

    Args:
        leaves: Floating arrays of any shapes.
        alive: For each leaf, a boolean array of its shape, True for the entries that
            count, or None if all of them do.
        held: Likewise, True for the entries above all others, whatever their scores.
        quotas: For each search, how many of the entries that count it keeps.
        kinds: For each leaf, a number; those of one number are sharded alike.
        joint: True for one search over all leaves in order, False for one per leaf.
        absolute: Whether absolute values are ranked.
        guess: For each search, a scalar close to its last kept score.
        rows: For each leaf, how many of its first axes count searches: each index of
            these axes is one. The leaf's quota and guess may have their shape then, and
            its scalars do.

    Returns:
        For each leaf, a boolean array of its shape, True for the chosen; and a scalar
        of its dtype that separates: nothing chosen is below it, nothing else above.
    """
    rows = rows or [0] * len(leaves)
    # A leaf with rows is searched by itself, so that its rows stay on their devices.
    groups = [[i for i, n in enumerate(rows) if not n]]
    groups += [[i] for i, n in enumerate(rows) if n]
    found: dict[int, tuple[Array, Array]] = {}
    for ids in filter(None, groups):
        own = [*range(len(quotas))] if joint else ids
        data = Data(
            [leaves[i] for i in ids],
            [alive[i] for i in ids],
            [held[i] for i in ids],
            kinds=[kinds[i] for i in ids],
            joint=joint,
            absolute=absolute,
            rows=rows[ids[0]],
        )
        flags, cuts = _top_k(
            data,
            [quotas[i] for i in own],
            None if guess is None else [guess[i] for i in own],
        )
        found |= zip(ids, zip(flags, cuts, strict=True), strict=True)
    flags, cuts = zip(*(found[i] for i in range(len(leaves))), strict=True)
    return list(flags), list(cuts)


def _top_k(
    data: Data, quotas: Sequence[Quota], guess: Sequence[Array] | None
) -> tuple[list[Array], list[Array]]:
    whole, sizes = data.whole()  # 2.
    counts = [q.of(n) for q, n in zip(quotas, sizes, strict=True)]
    k = data.placed(data.vector(counts))
    first = None
    if guess is not None:
        numbers = data.vector([one.astype(data.real) for one in guess])
        first = _around(data.placed(numbers), data)
    found = narrow(  # 3. and 4.
        data.reaching,
        whole,
        k,
        last_position=data.last_position(),
        key=data.key_of,
        first=first,
    )
    answer = found.answer(k)
    return data.chosen(found, answer), data.cutoffs(found, answer)


def _around(guess: Array, data: Data) -> list[Array]:
    """Pivots at a guess and at relative distances of about 2**-11 and 2**-6."""
    center = data.unsigned(order_key(guess, None))
    steps = [1 << (jnp.finfo(guess.dtype).nmant - bits) for bits in (11, 6)]
    return [center, *(center + s for s in steps), *(center - s for s in steps)]
