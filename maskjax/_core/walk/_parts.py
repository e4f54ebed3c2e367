"""Parts of a parameter that share sums over data, put together at the end.

A part's sums have one axis for each of its factors, of the factor's length, or of
length 1 if the entries along it share them, and perhaps others after those.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from maskjax._core import rows
from maskjax._core.trees import Array
from maskjax._core.walk._trails import Factor, split

Factors = tuple[Factor, ...]


class Part(NamedTuple):
    """Which entries of a parameter share sums.

    Attributes:
        factors: Of the parameter, in its order, all of them forward.
        at: As in `Trail`.
        lengths: Of the axes of the sums: those of the factors, or 1, then others.
        source: What the sums are of, if they are of some entries along an axis that
            share them, so that others that share them too are found.
        copy: How many parts with this source are for the same entries already.
    """

    factors: Factors
    at: frozenset[tuple[int, int]]
    lengths: tuple[int, ...]
    source: Hashable = None
    copy: int = 0

    def on(self, axis: int) -> list[int]:
        """The factors on an axis of the parameter, by number."""
        return [i for i, factor in enumerate(self.factors) if factor.axis == axis]

    def shared(self, axis: int) -> bool:
        """Whether all the entries that there are along an axis share sums."""
        return all(self.lengths[i] == 1 for i in self.on(axis))

    def places(self, axis: int) -> np.ndarray:
        """Where along an axis of the parameter the entries are, in the part's order."""
        found = np.array([dict(self.at).get(axis, 0)])
        for i in self.on(axis):
            factor = self.factors[i]
            steps = factor.start + factor.stride * np.arange(factor.size)
            found = (found[:, None] + steps[None]).ravel()
        return found

    def covers(self, axis: int, length: int) -> bool:
        """Whether there are all entries along an axis of the parameter, in order."""
        found = self.places(axis)
        return len(found) == length and bool((found == np.arange(length)).all())


Sums = dict[Part, Array]


def joined(sums: Sums, shape: Sequence[int]) -> Sums:
    """Sums of parts that together are all of an axis, made one.

    Args:
        sums: Of a parameter.
        shape: The parameter's.
    """
    for join in (_shared, _tiled):
        for axis, length in enumerate(shape):
            if not all(part.covers(axis, length) for part in sums):
                sums = _one_along(sums, axis, length, join)
    return sums


def _one_along(sums: Sums, axis: int, length: int, join: Callable[..., Any]) -> Sums:
    """Parts that differ in their places along one axis alone, made one if they can."""
    alike: dict[Any, list[Part]] = {}
    for part in sums:
        on = set(part.on(axis))
        others = [i for i in range(len(part.lengths)) if i not in on]
        key = (
            tuple(f for i, f in enumerate(part.factors) if i not in on),
            frozenset(pair for pair in part.at if pair[0] != axis),
            tuple(part.lengths[i] for i in others),
            part.source if join is _shared else None,
        )
        alike.setdefault(key, []).append(part)
    out: Sums = {}
    for parts in alike.values():
        done = None
        if not all(part.covers(axis, length) for part in parts):
            done = join({part: sums[part] for part in parts}, axis, length)
        for part, array in (done or {part: sums[part] for part in parts}).items():
            known = out.get(part)
            out[part] = array if known is None else known + array.astype(known.dtype)
    return out


def _shared(sums: Sums, axis: int, length: int) -> Sums | None:
    """Parts that share sums, each of which is there as often as the others."""
    first = next(iter(sums))
    if first.source is None or not all(part.shared(axis) for part in sums):
        return None
    places = np.concatenate([part.places(axis) for part in sums])
    counts = np.bincount(places, minlength=length)
    if len(counts) > length or counts.min() != counts.max():
        return None
    array = sums[first] if counts[0] == 1 else sums[first] * int(counts[0])
    whole = _along_all(first, axis, length, 1)._replace(source=first.source)
    return {whole: _moved(first, array, axis, 1)}


def _tiled(sums: Sums, axis: int, length: int) -> Sums | None:
    """Parts that lie side by side."""
    places = [part.places(axis) for part in sums]
    order = np.argsort(np.concatenate(places))
    if not np.array_equal(np.concatenate(places)[order], np.arange(length)):
        return None
    first = next(iter(sums))
    place = sum(factor.axis < axis for factor in first.factors)
    # Neighbors that share sums all along are groups, as large as can be.
    runs = all(part.shared(axis) for part in sums)
    runs = runs and all((np.diff(own) == 1).all() for own in places)
    size = math.gcd(*map(len, places)) if runs else 1
    arrays = [
        _moved(part, array, axis, len(own) // size)
        for (part, array), own in zip(sums.items(), places, strict=True)
    ]
    whole = jnp.concatenate(arrays, axis=place)
    order = order[::size] // size
    if (order != np.arange(len(order))).any():
        whole = rows.taken(whole, order, place)
    part = _along_all(first, axis, length, length // size)
    if size > 1:
        part, whole = _in_groups(part, whole, place, size)
    return {part: whole}


def _in_groups(part: Part, array: Array, place: int, size: int) -> tuple[Part, Array]:
    """A part whose one factor on an axis falls into groups that share sums."""
    factors, lengths = list(part.factors), list(part.lengths)
    outer, inner = split(factors[place], factors[place].size // size)
    factors[place : place + 1] = [outer, inner or outer]
    lengths.insert(place + 1, 1)
    new = part._replace(factors=tuple(factors), lengths=tuple(lengths))
    return new, jnp.expand_dims(array, place + 1)


def _along_all(part: Part, axis: int, length: int, count: int) -> Part:
    """A part with one factor that is all of an axis."""
    on = part.on(axis)
    place = sum(factor.axis < axis for factor in part.factors)
    factors = [f for f in part.factors if f.axis != axis]
    lengths = [n for i, n in enumerate(part.lengths) if i not in on]
    factors.insert(place, Factor(axis, length, 1))
    lengths.insert(place, count)
    at = frozenset(pair for pair in part.at if pair[0] != axis)
    return Part(tuple(factors), at, tuple(lengths))


def _moved(part: Part, array: Array, axis: int, count: int) -> Array:
    """Sums with one axis, of a length, for all the factors on an axis.

    The length is 1 or that of groups of neighbors if they share sums.
    """
    on = part.on(axis)
    place = sum(factor.axis < axis for factor in part.factors)
    end, full = place + len(on), list(array.shape)
    if not part.shared(axis):
        full[place:end] = [part.factors[i].size for i in on]
    array = jnp.broadcast_to(array, full)
    full[place:end] = [math.prod(full[place:end])]
    array = array.reshape(full)
    full[place] = count
    return jnp.broadcast_to(array, full)


def onto(part: Part, array: Array, shape: Sequence[int]) -> Array:
    """Sums for the entries of a parameter: 0 for entries that are in no part.

    Args:
        part: Which entries they belong to.
        array: The sums.
        shape: The parameter's.

    Returns:
        Of the parameter's rank, with length 1 along axes that share a sum.
    """
    for axis, length in enumerate(shape):
        shares = part.shared(axis) and part.covers(axis, length)
        places = part.places(axis)
        count = 1 if shares else len(places)
        array = _moved(part, array, axis, count)
        if not shares and not part.covers(axis, length):
            inverse = np.full(length, len(places))
            inverse[places] = np.arange(len(places))
            array = rows.taken(array, inverse, axis, fill=True)
        part = _along_all(part, axis, length, array.shape[axis])
    return array


def over(sums: Sums, shape: Sequence[int]) -> Array:
    """All the sums of a parameter together, of its rank."""
    parts = [onto(part, array, shape) for part, array in joined(sums, shape).items()]
    total = parts[0]
    for part in parts[1:]:
        total = total + part.astype(total.dtype)
    return total
