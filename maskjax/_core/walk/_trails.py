"""Which entries of a parameter a value is made of, axis by axis.

A value of shape (6, 8) that is a reshape of a parameter (6, 2, 4) has the label
`(Factor(0, 6, 1),)` on its first axis and `(Factor(1, 2, 1), Factor(2, 4, 1))` on its
second: an axis runs, row-major, along the product of its factors.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

STRANGE = -1  # the axis of a factor that runs along no axis of the parameter


class Factor(NamedTuple):
    """A part of an axis.

    Attributes:
        axis: The parameter's axis that it runs along, or `STRANGE`.
        size: Its length.
        stride: How far one step goes along the parameter's axis. It is negative if it
            goes backwards, and 0 if it is not known which entry is where.
        start: How far along the parameter's axis its first entry is.
        low: How many of its first places have no entry of the parameter.
        high: How many of its last places.
        cut: Whether it is a part of what the axis was, or has places without entries.
    """

    axis: int
    size: int
    stride: int
    start: int = 0
    low: int = 0
    high: int = 0
    cut: bool = False

    @property
    def entries(self) -> int:
        """At how many of its places there is an entry."""
        return self.size - self.low - self.high

    def part(self, start: int, size: int, step: int = 1) -> "Factor":
        """So many of its places from one on."""
        places = range(start, start + size * step, step)
        low = sum(place < self.low for place in places[: self.low])
        high = sum(place >= self.size - self.high for place in places[-self.high :])
        high = high if self.high else 0
        first = start + low * step - self.low
        return self._replace(
            size=size,
            stride=self.stride * step,
            start=self.start + first * self.stride,
            low=low,
            high=high,
            cut=True,
        )

    def within(self, start: int, size: int) -> "Factor":
        """It as a part of a longer axis, from one place on."""
        high = self.high + size - start - self.size
        return self._replace(size=size, low=self.low + start, high=high, cut=True)

    def reversed(self) -> "Factor":
        """The same places backwards."""
        last = self.start + (max(self.entries, 1) - 1) * self.stride
        return self._replace(
            stride=-self.stride, start=last, low=self.high, high=self.low
        )

    def somewhere(self, size: int | None = None) -> "Factor":
        """It with entries at places that are not known."""
        size = self.size if size is None else size
        return Factor(self.axis, size, 0, cut=True)


Label = tuple[Factor, ...]


class Trail(NamedTuple):
    """What a value is made of, for one parameter.

    Attributes:
        axes: A label for each axis of the value, or `None` where all are lost.
        gone: Axes of the parameter that the value has no part of, with the role that
            they had there: "stack" (one index of it), "lookup" (an index that depends
            on data), "product" (contracted with something else than data).
        lost: The primitive after which it is not known which entry is where.
        product: Whether it is a contraction with something else than data.
        at: Pairs of an axis of the parameter and how far along it all entries are, not
            counting what labels say: the index that was taken of it.
    """

    axes: tuple[Label, ...] | None
    gone: frozenset[tuple[str, int]] = frozenset()
    lost: str | None = None
    product: bool = False
    at: frozenset[tuple[int, int]] = frozenset()

    @property
    def partial(self) -> bool:
        """Whether some of the parameter's axes are contracted already."""
        return self.product and (
            self.axes is None or any(how == "product" for how, _ in self.gone)
        )


def whole(shape: Sequence[int]) -> Trail:
    """The trail of a parameter itself."""
    return Trail(tuple((Factor(i, n, 1),) for i, n in enumerate(shape)))


def strange(size: int) -> Label:
    """The label of an axis that no axis of the parameter runs along."""
    return (Factor(STRANGE, size, 0),) if size != 1 else ()


def sized(label: Label, size: int) -> Label | None:
    """The label of an axis after a part was cut out of it, or more put to it.

    `None` if that cuts through several factors.
    """
    if any(f.axis == STRANGE and (f.low or f.high) for f in label):
        return None
    long = [factor for factor in label if factor.size != 1]
    if not long:
        # A new axis, along which things were stacked, or several of one slice.
        return tuple(f.somewhere(size) for f in label[:1]) or strange(size)
    first, *rest = long
    below = 1
    for factor in rest:
        below *= factor.size
    if below and size % below == 0:
        return (first.somewhere(size // below), *rest)
    if size and below % size == 0:
        cut = sized(tuple(rest), size)
        return None if cut is None else (first.somewhere(1), *cut)
    return None


def anywhere(label: Label) -> Label:
    """The label of an axis of which it is not known which entry is where."""
    return tuple(f.somewhere() if f.size != 1 else f for f in label)


def part(label: Label, start: int, size: int, step: int = 1) -> Label | None:
    """The label of so many places of an axis from one on, or `None` if it has none."""
    long = [factor for factor in label if factor.size != 1]
    if not long or not size:
        return label if size == 1 else None
    first, *rest = long
    below = math.prod(factor.size for factor in rest)
    if below == 1:
        return (first.part(start, size, step),)
    if step != 1:
        return None
    if start % below == 0 and size % below == 0:
        return (first.part(start // below, size // below), *rest)
    row = start // below
    if (start + size - 1) // below != row:
        return None
    cut = part(tuple(rest), start - row * below, size)
    return None if cut is None else (first.part(row, 1), *cut)


def within(label: Label, start: int, size: int) -> Label | None:
    """The label of an axis that an axis is a part of, from one place on."""
    long = [factor for factor in label if factor.size != 1]
    if not long:  # a new axis, along which things were stacked
        alone = label[0] if label else Factor(STRANGE, 1, 0)
        return (alone.within(start, size),) if len(label) < 2 else None
    first, *rest = long
    below = math.prod(factor.size for factor in rest)
    if not below or start % below or size % below:
        return None
    return (first.within(start // below, size // below), *rest)


def joined(label: Sequence[Factor]) -> Label:
    """Neighbors made one where they run on."""
    out: list[Factor] = []
    for factor in label:
        if out and out[-1].axis == factor.axis:
            last = out[-1]
            runs = last.stride == factor.size * factor.stride != 0
            whole = not (factor.low or factor.high)
            if whole and (runs or last.axis == STRANGE):
                size, start = factor.size, last.start + factor.start
                low, high = last.low * size, last.high * size
                cut, size = last.cut or factor.cut, last.size * size
                axis, stride = factor.axis, factor.stride
                out[-1] = Factor(axis, size, stride, start, low, high, cut)
                continue
        out.append(factor)
    return tuple(out)


def reshaped(axes: Sequence[Label], out: Sequence[int]) -> tuple[Label, ...] | None:
    """The labels after a reshape, or `None` if it cuts through a factor.

    Factors of length 1 stay where there is an axis of length 1 for them, and go to a
    neighbor otherwise, unless they are slices.
    """
    if 0 in out or any(factor.size == 0 for label in axes for factor in label):
        return None
    stream = [factor for label in axes for factor in label][::-1]
    labels: list[list[Factor]] = []
    for place, size in enumerate(out):
        label: list[Factor] = []
        if size == 1 and stream and stream[-1].size == 1:
            label.append(stream.pop())
        while size > 1:
            if not stream:
                return None
            factor = stream.pop()
            if size % factor.size and factor.size % size == 0:
                outer, inner = split(factor, size)
                if inner is None:
                    return None
                stream.append(inner)
                factor = outer
            if size % factor.size:
                return None
            size //= factor.size
            if factor.size > 1 or not factor.cut:
                label.append(factor)
        free = place + 1 < len(out) and out[place + 1] == 1
        while not free and stream and stream[-1].size == 1:
            factor = stream.pop()
            if not factor.cut:
                label.append(factor)
        labels.append(label)
    if stream and any(factor.size > 1 for factor in stream):
        return None
    return tuple(joined(label) for label in labels)


def split(factor: Factor, size: int) -> tuple[Factor, Factor | None]:
    """A factor as an outer one of a size and an inner one; `None` if it can't be."""
    rest = factor.size // size
    if factor.low % rest or factor.high % rest:
        if factor.axis == STRANGE:
            return factor, None
        return factor.somewhere(size), factor.somewhere(rest)
    outer = factor._replace(
        size=size,
        stride=factor.stride * rest,
        low=factor.low // rest,
        high=factor.high // rest,
    )
    return outer, factor._replace(size=rest, start=0, low=0, high=0)


def merged(one: Trail, other: Trail, name: str) -> Trail:
    """The trail of a value that a primitive makes of two parts of one parameter."""
    if one == other:
        return one
    gone, product = one.gone | other.gone, one.product or other.product
    if one.axes is None or other.axes is None:
        return Trail(None, gone, one.lost or other.lost or name, product)
    at = one.at | other.at
    axes: list[Label] = []
    known, rest = (other, one) if one.lost and not other.lost else (one, other)
    # A kernel stays in place if it is divided by its norm, or held against a threshold
    # that is one of its entries, but not if a part of it is added.
    exact = (
        rest.gone <= known.gone
        and rest.at <= known.at
        or not any(
            factor.axis != STRANGE for label in rest.axes or () for factor in label
        )
    )
    for a, b in zip(one.axes, other.axes, strict=True):
        real = [label for label in (a, b) if any(f.axis != STRANGE for f in label)]
        if len(real) == 2 and a != b:
            if [f[:2] for f in a if f.size > 1] != [f[:2] for f in b if f.size > 1]:
                return Trail(None, gone, name, product)
            exact = False
        axes.append(real[0] if real else a)
    exact = exact and tuple(axes) == known.axes
    if exact:
        lost = known.lost
    else:
        lost = one.lost or other.lost or name
        axes = [anywhere(label) for label in axes]
    left = {factor.axis for label in axes for factor in label}
    gone = frozenset(pair for pair in gone if pair[1] not in left)
    return Trail(tuple(axes), gone, lost, product, known.at if exact else at)
