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
    """A predicate that is equal to another when both read the same."""

    name: str
    test: Predicate = dataclasses.field(compare=False)

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


#: Floating leaves of rank 2 or more: dense and convolution kernels, embeddings. What
#: every library of the field prunes by default.
kernels: Predicate = _Where(
    "where.kernels", lambda _, leaf: checks.is_floating(leaf) and len(leaf.shape) >= 2
)

#: Every leaf. An integer leaf among them is an error where a mask is made, since it
#: can't be scored: `where.floating` passes over those.
everything: Predicate = _Where("where.everything", lambda _, leaf: True)

#: Every floating leaf, of any rank.
floating: Predicate = _Where("where.floating", lambda _, leaf: checks.is_floating(leaf))


#: Running statistics of normalization, by the names that Flax gives them: the whole
#: collection `batch_stats` in Linen, `mean` and `var` in NNX.
statistics: Predicate = _Where(
    "where.statistics",
    lambda path, _: re.search("(^|/)(batch_stats/|mean$|var$)", path) is not None,
)


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
    return _Where(
        f"where.matching({regex!r})",
        lambda path, _: re.search(regex, path) is not None,
    )


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
    return _Where(
        f"where.ndim_at_least({n})",
        lambda _, leaf: checks.shaped(leaf) and len(leaf.shape) >= n,
    )
