"""Which parameters carry a mask: predicates on a leaf's path and value.

A predicate is any function `(path, leaf) -> bool`; paths read `encoder/dense/kernel`
in every framework. The predicates here combine with `&`, `|` and `~`, with each other
and with plain functions.

- `kernels` (the default everywhere): floating leaves of rank 2 or more.
- `floating`, `everything`, `ndim_at_least(n)`: by dtype and rank.
- `matching(regex)`: by path. `statistics`: running means and variances.

    >>> encoder = where.matching(r"^encoder/") & where.kernels
    >>> encoder("encoder/dense/kernel", jnp.ones((2, 3)))
    True
    >>> encoder("encoder/dense/bias", jnp.ones(3))
    False
"""

import dataclasses
import re
from typing import Any

from maskjax._core import checks
from maskjax._core.trees import Predicate

__all__ = [
    "everything",
    "floating",
    "kernels",
    "matching",
    "ndim_at_least",
    "statistics",
]


@dataclasses.dataclass(frozen=True)
class _Where:
    """A predicate. Two are equal if their names are, which tell all that they do."""

    name: str
    test: Predicate = dataclasses.field(compare=False)
    doc: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        # So that `help(where.kernels)` says which leaves it chooses.
        doc = self.doc or f"The leaves that `{self.name}` chooses."
        object.__setattr__(self, "__doc__", doc)

    def __call__(self, path: str, leaf: Any) -> bool:
        return self.test(path, leaf)

    def __and__(self, other: Predicate) -> "_Where":
        return _both(self, other)

    def __rand__(self, other: Predicate) -> "_Where":
        return _both(other, self)

    def __or__(self, other: Predicate) -> "_Where":
        return _either(self, other)

    def __ror__(self, other: Predicate) -> "_Where":
        return _either(other, self)

    def __invert__(self) -> "_Where":
        return _Where(f"~{self!r}", lambda path, leaf: not self(path, leaf))

    def __repr__(self) -> str:
        return self.name


def _both(a: Predicate, b: Predicate) -> _Where:
    return _Where(
        f"({a!r} & {b!r})", lambda path, leaf: a(path, leaf) and b(path, leaf)
    )


def _either(a: Predicate, b: Predicate) -> _Where:
    return _Where(f"({a!r} | {b!r})", lambda path, leaf: a(path, leaf) or b(path, leaf))


kernels: Predicate = _Where(
    "where.kernels",
    lambda _, leaf: checks.is_floating(leaf) and len(leaf.shape) >= 2,
    "Floating leaves of rank 2 or more: dense and convolution kernels, embeddings.",
)

everything: Predicate = _Where(
    "where.everything",
    lambda _, leaf: True,
    "Every leaf. Integer leaves cannot be scored; `where.floating` leaves them out.",
)

floating: Predicate = _Where(
    "where.floating",
    lambda _, leaf: checks.is_floating(leaf),
    "Every floating leaf, of any rank.",
)

statistics: Predicate = _Where(
    "where.statistics",
    lambda path, _: re.search("(^|/)(batch_stats/|mean$|var$)", path) is not None,
    "Running statistics of normalization, by Flax's names: the collection "
    "`batch_stats` in Linen, `mean` and `var` in NNX.",
)


def matching(regex: str) -> Predicate:
    """Leaves by path: those that a regular expression matches.

    Args:
        regex: A regular expression, as for `re.search`: it may be found anywhere in
            the path. `^` and `$` stand for the ends of the path.

    Returns:
        A predicate that combines with `&`, `|` and `~`.

    Raises:
        ValueError: If the expression is malformed.

    Example:
        >>> where.matching("dense_[01]/kernel$")("net/dense_1/kernel", jnp.ones((2, 2)))
        True
    """
    try:
        re.compile(regex)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"`maskjax.where.matching` needs a regular expression, got {regex!r} "
            f"({error})."
        ) from error
    return _Where(
        f"where.matching({regex!r})",
        lambda path, _: re.search(regex, path) is not None,
    )


def ndim_at_least(n: int) -> Predicate:
    """The leaves with at least n axes, of any dtype.

    Args:
        n: The lowest rank to choose.

    Returns:
        A predicate that combines with `&`, `|` and `~`.

    Example:
        >>> where.ndim_at_least(1)("bias", jnp.ones(3))
        True
    """
    return _Where(
        f"where.ndim_at_least({n})",
        lambda _, leaf: checks.shaped(leaf) and len(leaf.shape) >= n,
    )
