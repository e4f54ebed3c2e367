"""What the walk carries from equation to equation, and what it notes on the way."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from maskjax._core.trees import Array
from maskjax._core.walk._trails import Trail

Mode = Literal["roles", "flops", "squares", "grams"]


class Value(NamedTuple):
    """A value of the traced function.

    Attributes:
        leaves: The parameters that it is made of, by number. They are not followed into
            what depends on data, except rows that data chooses.
        data: Whether it depends on the inputs.
        array: `None` where only shapes are walked.
    """

    leaves: dict[int, Trail]
    data: bool
    array: Any = None


class Meeting(NamedTuple):
    """A contraction of a parameter.

    Attributes:
        leaf: The parameter's number.
        roles: Pairs of an axis of the parameter and a role that it has here.
        gone: As in `Trail`.
        unknown: Why the roles are not known, if so.
        partial: Whether it is here as a part of a product with something else.
        beside: Other parameters that are here as they are, added to it, say.
        rows: Whether constants chose rows of it.
    """

    leaf: int
    roles: frozenset[tuple[int, str]]
    gone: frozenset[tuple[str, int]]
    unknown: str | None = None
    partial: bool = False
    beside: frozenset[int] = frozenset()
    rows: bool = False


@dataclasses.dataclass
class Found:
    """What the walk found out about each parameter, by the parameter's number.

    Attributes:
        flops: Two for each multiplication of one of its entries.
        sums: Sums of squares, or Gram matrices, of the data that meet its entries: for
            each kind of parts of it (`_sums`) their total.
        obstacles: Why the data that it meets can't be measured or counted.
        ends: Where it was lost without meeting data in a contraction.
        misfits: The shape of data that row weights do not fit.
        meetings: Its contractions with data.
        products: Its contractions with parameters and constants, and whether the other
            operand has parameters in it.
        touched: What else it met data as, with the names of the primitives.
        made: What was computed from data, by a key, beside the data themselves.
    """

    flops: dict[int, int] = dataclasses.field(default_factory=dict)
    sums: dict[int, dict[Any, Array]] = dataclasses.field(default_factory=dict)
    obstacles: dict[int, str] = dataclasses.field(default_factory=dict)
    ends: dict[int, str] = dataclasses.field(default_factory=dict)
    misfits: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    meetings: set[Meeting] = dataclasses.field(default_factory=set)
    products: set[tuple[Meeting, bool]] = dataclasses.field(default_factory=set)
    touched: set[tuple[int, Trail, str]] = dataclasses.field(default_factory=set)
    made: dict[Any, tuple[Any, Any]] = dataclasses.field(default_factory=dict)

    def absorb(self, other: "Found") -> None:
        """Take over what was found from shapes in a part of the function."""
        for leaf, count in other.flops.items():
            self.flops[leaf] = self.flops.get(leaf, 0) + count
        self.obstacles.update(other.obstacles)
        self.ends.update(other.ends)
        self.meetings |= other.meetings
        self.products |= other.products
        self.touched |= other.touched

    def once(self, key: Any, data: Any, make: Callable[[], Any]) -> Any:
        """What was made of data, or is made now.

        Args:
            key: Tells what is made of what; it has the `id` of the data, which are kept
                so that nothing else gets the same one.
            data: An array.
            make: Makes it.
        """
        if key not in self.made:
            self.made[key] = data, make()
        return self.made[key][1]

    def clear(self) -> None:
        """Forget everything."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).clear()


@dataclasses.dataclass
class Walk:
    """A walk through one function.

    Attributes:
        shapes: Of the parameters.
        mode: What is asked for. "squares" and "grams" evaluate the function on the way.
            "flops" counts the equations of gradients too.
        follow: Walks through a jaxpr.
        weights: For the rows of data, if given.
        axes: The roles of the parameters' axes, for "grams".
        found: The notes.
        times: How often the equations at hand are run.
        inside: The conditional or loop around them, which makes that unknown.
    """

    shapes: Sequence[tuple[int, ...]]
    mode: Mode
    follow: Callable[..., list[Value]]
    weights: Array | None = None
    axes: Sequence[Any] = ()
    found: Found = dataclasses.field(default_factory=Found)
    times: int = 1
    inside: str | None = None

    @property
    def evaluates(self) -> bool:
        """Whether the function is evaluated on the way."""
        return self.mode in ("squares", "grams")
