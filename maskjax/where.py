"""Which parameters carry a mask, and what their axes mean.

A predicate is any function `(path, leaf) -> bool`; paths read `encoder/dense/kernel`
in every framework. The predicates here combine with `&`, `|` and `~`, with each other
and with plain functions. They also know, or can be told, the roles of a leaf's axes.

- `kernels` (the default everywhere): by name and rank, what is contracted with data.
- `traced(apply, params, *inputs)`: exactly what is, and along which axes.
- `matching(regex, axes="stack inputs outputs")`: by path, and by hand.
- `embeddings`, `statistics`, `floating`, `everything`, `ndim_at_least(n)`.

    >>> encoder = where.matching(r"^encoder/") & where.kernels
    >>> encoder("encoder/dense/kernel", jnp.ones((2, 3)))
    True
    >>> encoder("encoder/dense/bias", jnp.ones(3))
    False
    >>> print(encoder.axes("encoder/dense/kernel", jnp.ones((2, 3))))
    inputs outputs

Roles are asked for where a result depends on them: fan-in, `structure`, `scope="layer"`
and `"output"`, `allocation.erk`. Where they are needed and not known, the error says
which leaf it is and how to tell. `a & b` and `a | b` believe the stronger of two
sources: what was told, then what was traced, then names.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from maskjax._core import axes as _axes
from maskjax._core import checks
from maskjax._core.axes import Axes, Told
from maskjax._core.trees import Predicate

__all__ = [
    "Axes",
    "embeddings",
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
    tell: Callable[[str, Any], Told] = dataclasses.field(
        default=_axes.convention, compare=False
    )

    def __post_init__(self) -> None:
        # So that `help(where.kernels)` says which leaves it chooses.
        doc = self.doc or f"The leaves that `{self.name}` chooses."
        object.__setattr__(self, "__doc__", doc)

    def __call__(self, path: str, leaf: Any) -> bool:
        return self.test(path, leaf)

    def axes(self, path: str, leaf: Any) -> Told:
        """The roles of a leaf's axes, or a sentence that says why they are unknown."""
        return self.tell(path, leaf)

    def __and__(self, other: Predicate) -> "_Where":
        return _both(self, other)

    def __rand__(self, other: Predicate) -> "_Where":
        return _both(other, self)

    def __or__(self, other: Predicate) -> "_Where":
        return _either(self, other)

    def __ror__(self, other: Predicate) -> "_Where":
        return _either(other, self)

    def __invert__(self) -> "_Where":
        return _Where(
            f"~{self!r}", lambda path, leaf: not _says(self, path, leaf), "", self.tell
        )

    def __repr__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True, repr=False)
class _Traced(_Where):
    """A predicate that was found by tracing; equal if it found the same."""

    found: tuple[tuple[str, Told], ...] = ()

    def __str__(self) -> str:
        width = max((len(path) for path, _ in self.found), default=0)
        return "\n".join(
            f"{path:{width}}  {told if isinstance(told, Axes) else f'({told})'}"
            for path, told in self.found
        )


def _says(where: Predicate, path: str, leaf: Any) -> bool:
    """What a predicate answers, which has to be True or False."""
    answer = where(path, leaf)
    if not isinstance(answer, bool | np.bool_):
        raise TypeError(
            f"`where` needs to return True or False, but {where!r} returns "
            f"{checks.kind_of(answer)} for {path!r}."
        )
    return bool(answer)


def _both(a: Predicate, b: Predicate) -> _Where:
    return _Where(
        f"({a!r} & {b!r})",
        lambda path, leaf: _says(a, path, leaf) and _says(b, path, leaf),
        "",
        _strongest(a, b),
    )


def _either(a: Predicate, b: Predicate) -> _Where:
    return _Where(
        f"({a!r} | {b!r})",
        lambda path, leaf: _says(a, path, leaf) or _says(b, path, leaf),
        "",
        _strongest(a, b),
    )


def _strongest(a: Predicate, b: Predicate) -> Callable[[str, Any], Told]:
    return lambda path, leaf: _axes.strongest(
        _axes.of(a, path, leaf), _axes.of(b, path, leaf), path
    )


kernels: Predicate = _Where(
    "where.kernels",
    _axes.is_kernel,
    "Kernels of dense layers, attention and convolutions, by their names and rank.\n\n"
    "Leaves of 2 axes or more, but no bias, scale, mean, variance, embedding or LoRA "
    "factor, and nothing of a normalization. The axes of a kernel of rank 2 are "
    "(inputs, outputs). Those of rank 3 and more are known where the path tells: "
    "convolutions, and Flax's attention. `weight` is chosen too, but its axes are "
    "unknown: Equinox and PyTorch have (out, in). Complex and integer kernels are "
    "chosen, so that functions can say that they cannot mask them.",
)

embeddings: Predicate = _Where(
    "where.embeddings",
    _axes.is_embedding,
    "Tables whose rows are looked up, by their names: fan-in 1.",
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


def matching(regex: str, *, axes: str | None = None) -> Predicate:
    """Leaves by path: those that a regular expression matches.

    Args:
        regex: A regular expression, as for `re.search`: it may be found anywhere in
            the path. `^` and `$` stand for the ends of the path.
        axes: What the axes of these leaves mean, one word for each in order: `stack`
            (layers, members, experts), `window` (of a convolution), `inputs`,
            `outputs`. It is believed before anything that is traced or a convention.

    Returns:
        A predicate that combines with `&`, `|` and `~`.

    Raises:
        TypeError: If `axes` is not a string.
        ValueError: If the expression is malformed, or a word of `axes` is no role.

    Example:
        >>> where.matching("dense_[01]/kernel$")("net/dense_1/kernel", jnp.ones((2, 2)))
        True
        >>> equinox = where.matching("weight$", axes="outputs inputs") & where.kernels
        >>> equinox.axes("layers/0/weight", jnp.ones((4, 3))).fan_in((4, 3))
        3
    """
    fn = "maskjax.where.matching"
    try:
        re.compile(regex)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"`{fn}` needs a regular expression, got {regex!r} ({error})."
        ) from error
    test = lambda path, _: re.search(regex, path) is not None  # noqa: E731
    if axes is None:
        return _Where(f"where.matching({regex!r})", test)
    if not isinstance(axes, str):
        raise TypeError(
            f"`{fn}` needs `axes` as a string with a word for each axis, such as "
            f"'stack inputs outputs', got {checks.kind_of(axes)}."
        )
    strange = [word for word in axes.split() if word not in _axes.ROLES]
    if strange or not axes.split():
        raise ValueError(
            f"`{fn}` needs `axes` with one of the words {', '.join(_axes.ROLES)} for "
            f"each axis, got {axes!r}."
        )
    told = _axes.parsed(axes)
    return _Where(
        f"where.matching({regex!r}, axes={axes!r})",
        test,
        "",
        lambda path, leaf: told if test(path, leaf) else _axes.convention(path, leaf),
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
