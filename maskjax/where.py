"""Which parameters carry a mask: predicates on a leaf's path and value.

A predicate is any function `(path, leaf) -> bool`; paths read `encoder/dense/kernel`
in every framework. Those here are values, equal when they say the same, and combine
with `&`, `|` and `~`.

    >>> encoder = where.matching(r"^encoder/") & where.kernels
    >>> encoder("encoder/dense/kernel", jnp.ones((2, 3)))
    True
    >>> encoder("encoder/dense/bias", jnp.ones(3))
    False
"""

import dataclasses
import re
from typing import Any

from maskjax import _checks
from maskjax._tree import Predicate

__all__ = [
    "everything",
    "floating",
    "kernels",
    "matching",
    "ndim_at_least",
]


class _Where:
    """The operators that predicates share."""

    def __and__(self, other: Predicate) -> "_And":
        return _And(self, other)  # pyright: ignore[reportArgumentType] subclasses call

    def __or__(self, other: Predicate) -> "_Or":
        return _Or(self, other)  # pyright: ignore[reportArgumentType] subclasses call

    def __rand__(self, other: Predicate) -> "_And":
        return _And(other, self)  # pyright: ignore[reportArgumentType] subclasses call

    def __ror__(self, other: Predicate) -> "_Or":
        return _Or(other, self)  # pyright: ignore[reportArgumentType] subclasses call

    def __invert__(self) -> "_Not":
        return _Not(self)  # pyright: ignore[reportArgumentType] subclasses call


@dataclasses.dataclass(frozen=True)
class _And(_Where):
    left: Predicate
    right: Predicate

    def __call__(self, path: str, leaf: Any) -> bool:
        return self.left(path, leaf) and self.right(path, leaf)

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"


@dataclasses.dataclass(frozen=True)
class _Or(_Where):
    left: Predicate
    right: Predicate

    def __call__(self, path: str, leaf: Any) -> bool:
        return self.left(path, leaf) or self.right(path, leaf)

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"


@dataclasses.dataclass(frozen=True)
class _Not(_Where):
    inner: Predicate

    def __call__(self, path: str, leaf: Any) -> bool:
        return not self.inner(path, leaf)

    def __repr__(self) -> str:
        return f"~{self.inner!r}"


@dataclasses.dataclass(frozen=True)
class _Everything(_Where):
    def __call__(self, path: str, leaf: Any) -> bool:
        return True

    def __repr__(self) -> str:
        return "where.everything"


@dataclasses.dataclass(frozen=True)
class _Floating(_Where):
    def __call__(self, path: str, leaf: Any) -> bool:
        return _checks.is_floating(leaf)

    def __repr__(self) -> str:
        return "where.floating"


@dataclasses.dataclass(frozen=True)
class _NdimAtLeast(_Where):
    n: int

    def __call__(self, path: str, leaf: Any) -> bool:
        return _checks.shaped(leaf) and len(leaf.shape) >= self.n

    def __repr__(self) -> str:
        return f"where.ndim_at_least({self.n})"


@dataclasses.dataclass(frozen=True)
class _Kernels(_Where):
    def __call__(self, path: str, leaf: Any) -> bool:
        return _checks.is_floating(leaf) and len(leaf.shape) >= 2

    def __repr__(self) -> str:
        return "where.kernels"


@dataclasses.dataclass(frozen=True)
class _Matching(_Where):
    regex: str

    def __call__(self, path: str, leaf: Any) -> bool:
        return re.search(self.regex, path) is not None

    def __repr__(self) -> str:
        return f"where.matching({self.regex!r})"


#: Floating leaves of rank 2 or more: dense and convolution kernels, embeddings. What
#: every library of the field prunes by default.
kernels: Predicate = _Kernels()

#: Every leaf. An integer leaf among them is an error where a mask is made, since it
#: can't be scored: `where.floating` passes over those.
everything: Predicate = _Everything()

#: Every floating leaf, of any rank.
floating: Predicate = _Floating()


def matching(regex: str) -> Predicate:
    """The leaves whose path a regular expression finds, anywhere in it.

    Args:
        regex: A regular expression, as for `re.search`. `^` and `$` tie it to the ends
            of the path.

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
    return _Matching(regex)


def ndim_at_least(n: int) -> Predicate:
    """The leaves with at least n axes, of any dtype.

    Args:
        n: The smallest rank that is chosen.

    Returns:
        A predicate that combines with `&`, `|` and `~`.

    Example:
        >>> where.ndim_at_least(1)("bias", jnp.ones(3))
        True
    """
    return _NdimAtLeast(n)
