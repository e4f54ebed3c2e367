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
and `"output"`, `allocation.erk`. Unknown ones are an error that says how to tell them.
`a & b` and `a | b` believe the stronger source: told, then traced (on those leaves that
were there), then names. Equally strong ones that disagree leave the axes unknown.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from maskjax._core import axes as _axes
from maskjax._core import checks, trees
from maskjax._core.axes import Axes, Told
from maskjax._core.trees import Params, Predicate

if TYPE_CHECKING:
    from maskjax._core import walk

__all__ = [
    "Axes",
    "embeddings",
    "everything",
    "floating",
    "kernels",
    "matching",
    "ndim_at_least",
    "statistics",
    "traced",
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

    # Whether it knows a path; `None` if it answers for every path without knowing it.
    knows: Callable[[str, Any], bool | None] = dataclasses.field(
        default=lambda path, leaf: None, compare=False
    )
    traces: bool = dataclasses.field(default=False, compare=False)  # a part of it does

    def __post_init__(self) -> None:
        # So that `help(where.kernels)` says which leaves it chooses.
        doc = self.doc or f"The leaves that `{self.name}` chooses."
        object.__setattr__(self, "__doc__", doc)

    def __call__(self, path: str, *leaf: Any) -> bool:
        if len(leaf) != 1:
            raise TypeError(f"`{self!r}` takes a leaf. {checks.IN_HYPERPARAMETERS}.")
        return self.test(path, *leaf)

    def axes(self, path: str, leaf: Any) -> Told:
        """The roles of a leaf's axes, or a sentence that says why they are unknown."""
        return self.tell(path, leaf)

    def __and__(self, other: Predicate) -> _Where:
        return _combined(self, other, "&", stop=False)

    def __rand__(self, other: Predicate) -> _Where:
        return _combined(other, self, "&", stop=False)

    def __or__(self, other: Predicate) -> _Where:
        return _combined(self, other, "|", stop=True)

    def __ror__(self, other: Predicate) -> _Where:
        return _combined(other, self, "|", stop=True)

    def __invert__(self) -> _Where:
        def test(path: str, leaf: Any) -> bool:
            answer = self(path, leaf)
            return not answer if _is_bool(answer) else answer

        name = f"~{self!r}"
        return _Where(name, test, "", self.tell, self.knows, self.traces)

    def __repr__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True, repr=False)
class _Traced(_Where):
    """A predicate that was found by tracing; equal if it found the same."""

    found: tuple[tuple[str, walk.Answer], ...] = ()

    def __str__(self) -> str:
        width = max((len(path) for path, *_ in self.found), default=0)
        return "\n".join(
            f"{path:{width}}  {_line(answer)}" for path, answer in self.found
        )


def _line(answer: walk.Answer) -> str:
    kernel, told = answer
    if isinstance(told, str):
        return f"unknown  ({told})" if kernel else f"({told})"
    if told.lookup:
        return f"{told}  (looked up)"
    if not told.rank:
        return "(it has no axes)"
    return str(told) if kernel else f"{told}  (no kernel)"


def _combined(a: Predicate, b: Predicate, sign: str, *, stop: bool) -> _Where:
    """`a & b`, or `a | b` that stops at true; a predicate has no say on strange paths.

    What is neither True nor False is handed on, for the function that is called to
    complain about: it knows its own name, and every path.
    """
    traces = any(isinstance(each, _Where) and each.traces for each in (a, b))

    def sides(path: str, leaf: Any) -> list[Predicate]:
        known = [_knows(each, path, leaf) for each in (a, b)] if traces else []
        if False not in known:
            return [a, b]
        strange, other = (a, b) if known[0] is False else (b, a)
        # If nobody knows the path, the error is that of the stranger, asked last.
        return [other] if True in known else [other, strange]

    def test(path: str, leaf: Any) -> bool:
        answer = not stop
        for each in sides(path, leaf):
            answer = each(path, leaf)
            if not _is_bool(answer) or bool(answer) is stop:
                break
        return answer

    def tell(path: str, leaf: Any) -> Told:
        told = (_axes.of(each, path, leaf) for each in sides(path, leaf))
        return functools.reduce(_axes.strongest, told)

    def knows(path: str, leaf: Any) -> bool | None:
        known = {_knows(each, path, leaf) for each in (a, b)}
        return True in known or (False if False in known else None)

    return _Where(f"({a!r} {sign} {b!r})", test, "", tell, knows, traces)


def _knows(where: Predicate, path: str, leaf: Any) -> bool | None:
    return where.knows(path, leaf) if isinstance(where, _Where) else None


def _is_bool(answer: Any) -> bool:
    return isinstance(answer, bool | np.bool_)


kernels: Predicate = _Where(
    "where.kernels",
    _axes.is_kernel,
    "Kernels of dense layers, attention and convolutions, by their names and rank.\n\n"
    "Leaves of 2 axes or more, but no bias, scale, mean, variance, embedding, learned "
    "token or LoRA factor, and nothing of a normalization. Names are read by whole "
    "words, from the last to the first. The axes of a kernel of rank 2 are (inputs, "
    "outputs). Those of rank 3 and more are known where the path tells: convolutions, "
    "and Flax's attention. `weight` is chosen too, but its axes are unknown: Equinox "
    "and PyTorch have (out, in). Complex and integer kernels are chosen, so that "
    "functions can say that they cannot mask them.",
    knows=lambda path, leaf: True,
)

embeddings: Predicate = _Where(
    "where.embeddings",
    _axes.is_embedding,
    "Tables of embeddings, by their names.\n\n"
    "Rows of tables of rank 2 are looked up, so that the fan-in is 1. Tables of "
    "positions are chosen too, but their axes are unknown, because some are added as "
    "they are.",
    knows=lambda path, leaf: True,
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
    knows=lambda path, leaf: True,
)


def traced(
    apply: Callable[..., Any], params: Params, *inputs: Any, stack: int = 0
) -> Predicate:
    """The leaves that meet data in a dot product or convolution, and along which axes.

    The function is traced, and each parameter is followed through it to where it meets
    data: exact for every framework and every layout, without running anything. Use
    it where names do not tell: Equinox, stacked layers, models of your own.

    Args:
        apply: `(params, *inputs) -> output`. Its output is not looked at, so that the
            loss, a gradient or a whole step of training will do.
        params: Tree of arrays or `jax.ShapeDtypeStruct`s, as they are masked later.
        *inputs: The data: arrays or `jax.ShapeDtypeStruct`s. Everything else that
            `apply` uses counts as constant. Pass masks and random keys by closure:
            parameters that are multiplied with an input are not followed further. With
            NNX, rebuild the rest of the model inside of `apply`:
            `nnx.merge(graph, params, rest, copy=True)`.
        stack: How many leading axes of every leaf count members of an ensemble. Then
            `apply` is for one member, and is traced without these axes.

    Returns:
        A predicate that chooses kernels: leaves that have an axis that is contracted
        with data, but no embeddings, whose rows are looked up. It is hashable, and
        `print` shows a line for each leaf. An axis is `stack` if a loop or a batched
        product goes over it. The axes of a leaf in two contradictory roles (as w and
        its transpose) are unknown, whatever its name is. So are those of a leaf that
        meets other parameters or constants first, and data after that:
        `k @ (tokens @ w).T` may be a kernel w of learned tokens, or a kernel of two
        factors. Such a leaf is chosen only if its name says so, as `kernel` and
        `weight` do; for Flax's `kernel` the name tells the axes too. With
        `| where.kernels`, names decide on all of these.

    Raises:
        TypeError: If `stack` is not a whole number.
        ValueError: If there are no inputs, a leaf called `kernel` is in no contraction,
            or meets constants in all of them as all other leaves do, or `stack` is
            negative or more than a leaf has. The predicate itself raises one for a path
            that was not traced, unless another that it is combined with knows it.

    Example:
        >>> model = {"w": jnp.ones((5, 3)), "b": jnp.ones(5)}
        >>> apply = lambda params, x: x @ params["w"].T + params["b"]
        >>> print(where.traced(apply, model, jnp.ones((1, 3))))
        b  outputs  (no kernel)
        w  outputs inputs
    """
    # Imported here, because the types of jaxprs add 4 % to the time to import JAX.
    from maskjax._core import walk

    fn = "maskjax.where.traced"
    checks.at_least(stack, 0, fn=fn, name="stack")
    checks.flat(params, fn=fn)
    params = _unstacked(params, stack, fn) if stack else params
    found = tuple(
        (path, answer._replace(told=_axes.of_members(answer.told, stack)))
        for path, answer in walk.roles(apply, params, inputs, fn=fn)
    )
    known = dict(found)

    def of(path: str) -> walk.Answer:
        if path not in known:
            near = trees.nearest(path, known)
            near = "" if near is None else f"; what was traced has {near!r}"
            raise ValueError(
                f"`{fn}` needs the paths of the `params` that were traced, got "
                f"{path!r}. Trace the tree that carries masks{near}."
            )
        return known[path]

    # Names tell predicates apart, also those that are made with `&` and `|`.
    digest = hashlib.sha256(repr(found).encode()).hexdigest()[:12]
    return _Traced(
        f"where.traced(...{digest})",
        lambda path, _: of(path).kernel,
        "",
        lambda path, _: of(path).told,
        lambda path, _: path in known,
        traces=True,
        found=found,
    )


def _unstacked(params: Params, stack: int, fn: str) -> Params:
    """The shapes of one member."""
    checks.every(
        lambda leaf, _: (
            checks.kind_of(leaf)
            if checks.shaped(leaf) and len(leaf.shape) < stack
            else None
        ),
        [(leaf, None) for leaf in jax.tree.leaves(params)],
        params,
        f"`{fn}` needs every leaf to have the axes that `stack` ({stack}) counts",
    )

    def own(leaf: Any) -> Any:
        shaped = checks.shaped(leaf)
        return jax.ShapeDtypeStruct(leaf.shape[stack:], leaf.dtype) if shaped else leaf

    return jax.tree.map(own, params)


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
    knows = lambda path, leaf: test(path, leaf) or None  # noqa: E731
    if axes is None:
        return _Where(f"where.matching({regex!r})", test, knows=knows)
    if not isinstance(axes, str):
        raise TypeError(
            f"`{fn}` needs `axes` as a string with a word for each axis, such as "
            f"'stack inputs outputs', got {checks.kind_of(axes)}."
        )
    if not axes.split() or {*axes.split()} - {*_axes.ROLES}:
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
        knows,
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
