"""How much a mask keeps of each parameter, as numbers."""

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maskjax import packing
from maskjax._core import axes as _axes
from maskjax._core import checks, dtypes, layout, trees
from maskjax._core.axes import Axes
from maskjax._core.trees import Array, Mask, Params, Predicate
from maskjax.report import _drawing


class Count(NamedTuple):
    """How much a mask keeps of one parameter."""

    path: str
    shape: tuple[int, ...]
    size: int
    kept: int | None  # None without a mask


class Stack(NamedTuple):
    """How much a mask keeps of each layer of one parameter."""

    lengths: tuple[int, ...]  # of the axes that stack
    shape: tuple[int, ...]  # of one layer
    kept: np.ndarray | None  # of the lengths; None without a mask
    nonzero: np.ndarray | None = None  # of the lengths; None without values

    @property
    def size(self) -> int:
        """The entries of one layer."""
        return math.prod(self.shape)


class Entry(NamedTuple):
    """What a table says of one parameter, or of one layer of a stack."""

    path: str
    shape: str
    kept: int | None  # None without a mask
    nonzero: int | None  # None without values
    size: int
    flops: int | None
    densities: tuple[float, float] | None = None  # of its layers, lowest and highest
    layers: tuple["Entry", ...] | None = None  # None where they are not asked for

    @property
    def flops_kept(self) -> int | None:
        """The operations of the kept entries, in exact integers."""
        if self.flops is None or self.kept is None:
            return None
        return self.flops * self.kept // max(self.size, 1)


def entries(
    mask: Mask,
    params: Params,
    flops: Params | None,
    where: Predicate,
    *,
    layers: bool,
    fn: str,
) -> list[Entry]:
    """What there is to say of each parameter and, with `layers`, of its layers."""
    counts = counts_of(mask, params, fn=fn)
    work = [None] * len(counts)
    if flops is not None:
        names = ("params", "flops")
        work = [f for *_, f in checks.matched(params, flops, fn=fn, names=names)]
    stacks = _stacks(mask, params, where, fn=fn)
    if layers:
        stacks = _with_nonzero(stacks, params, where, fn=fn)
    found = []
    for count, own, done, stack in zip(
        counts, _nonzero(params), work, stacks, strict=True
    ):
        shape, ends, own_layers = times(count.shape), None, None
        if stack is not None:
            shape = times((*stack.lengths, f"({times(stack.shape)})"))
            ends = _ends(stack)
            own_layers = _of_layers(count.path, stack, done) if layers else None
        told = (count.path, shape, count.kept, own, count.size, done)
        found.append(Entry(*told, ends, own_layers))
    return found


def times(shape: Iterable[Any]) -> str:
    """A shape as text."""
    return " x ".join(map(str, shape))


def _stacks(
    mask: Mask, params: Params, where: Predicate, *, fn: str
) -> list[Stack | None]:
    """The layers of each parameter that is a stack; `None` if not, or not known."""
    checks.predicate(where, fn=fn)
    treedef = jax.tree.structure(params)
    named = trees.named_leaves(params)
    needed = [checks.shaped(leaf) for _, leaf in named]
    every = _axes.asked(where, named, needed, fn=fn)
    known: list[Axes | None] = []
    for told, (_, leaf) in zip(every, named, strict=True):
        fits = isinstance(told, Axes) and told.rank == len(leaf.shape)
        known.append(told if isinstance(told, Axes) and fits and told.stack else None)
    masks = treedef.flatten_up_to(mask)
    axes = {i: a for i, a in enumerate(known) if a is not None}
    asked = {i: masks[i] for i in axes if masks[i] is not None}
    over = tuple((i, layout.of_one(axes[i])) for i in asked)
    most = max((leaf.size for leaf in asked.values()), default=0)
    with dtypes.counting(most):
        kept = jax.device_get(_kept_by_layer(asked, over, dtypes.counts(most)))
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    return [
        None if a is None else _stack(a, shapes[i], masks[i], kept.get(i))
        for i, a in enumerate(known)
    ]


def unknown(mask: Mask, params: Params, where: Predicate, *, fn: str) -> list[str]:
    """The paths of masked parameters that may be stacks, as their axes are unknown."""
    named = trees.named_leaves(params)
    masks = jax.tree.structure(params).flatten_up_to(mask)
    needed = [
        each is not None and layout.may_stack(where, *one)
        for each, one in zip(masks, named, strict=True)
    ]
    every = _axes.asked(where, named, needed, fn=fn)
    return [
        path
        for (path, leaf), told, need in zip(named, every, needed, strict=True)
        if need and not (isinstance(told, Axes) and told.rank == len(leaf.shape))
    ]


def _stack(axes: Axes, shape: tuple[int, ...], leaf: Any, kept: Any) -> Stack:
    one = layout.of_one(axes)
    lengths = tuple(shape[axis] for axis in sorted(axes.stack))
    found = Stack(lengths, tuple(shape[axis] for axis in one), None)
    if kept is None:
        return found
    # A decision that entries share counts for each of them.
    decisions = math.prod(leaf.shape[axis] for axis in one)
    each = np.asarray(kept, np.int64) * (found.size // max(decisions, 1))
    return found._replace(kept=np.broadcast_to(each, lengths))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _kept_by_layer(
    leaves: dict[int, Any], over: tuple[tuple[int, tuple[int, ...]], ...], dtype: Any
) -> dict[int, Array]:
    """How many decisions of each layer are True."""
    return {
        i: jnp.sum(packing.unpack_leaf(leaves[i]), axis=axes, dtype=dtype)
        for i, axes in over
    }


def _ends(stack: Stack) -> tuple[float, float] | None:
    """The lowest and the highest density of layers."""
    if stack.kept is None or not stack.kept.size:
        return None
    low, high = stack.kept.min(), stack.kept.max()
    return density(int(low), stack.size), density(int(high), stack.size)


def _of_layers(path: str, stack: Stack, flops: int | None) -> tuple[Entry, ...]:
    """An entry for each layer; operations are those of all layers, in equal parts."""
    found = []
    for index in np.ndindex(*stack.lengths):
        kept = None if stack.kept is None else int(stack.kept[index])
        own = None if stack.nonzero is None else int(stack.nonzero[index])
        done = None if flops is None else flops // math.prod(stack.lengths)
        name = f"{path}[{', '.join(map(str, index))}]"
        found.append(Entry(name, times(stack.shape), kept, own, stack.size, done))
    return tuple(found)


def counts_of(mask: Mask, params: Params, *, fn: str) -> list[Count]:
    """How much a mask keeps of each parameter."""
    mask = checks.spread(params, mask)
    checks.boolean(mask, fn=fn)
    checks.packed(mask, fn=fn, stacked=False)
    _drawing.concrete(mask, fn=fn, what="a mask with values")
    names = ("params", "mask")
    pairs = checks.shaped_like(params, mask, fn=fn, names=names)
    kept = packing.kept_by_leaf({i: leaf for i, (_, leaf) in enumerate(pairs)})
    counts, paths = [], trees.paths(params)
    for i, (param, leaf) in enumerate(pairs):
        shape = np.shape(param)
        size, own = math.prod(shape), None
        if leaf is not None:  # a decision that entries share counts for each of them
            own = int(kept[i]) * (size // max(leaf.size, 1))
        counts.append(Count(paths[i], shape, size, own))
    return counts


def _not_zero(params: Params) -> dict[int, Any]:
    """Where each parameter that has values is not zero."""
    found = {
        i: leaf
        for i, leaf in enumerate(jax.tree.leaves(params))
        if isinstance(leaf, jax.Array | np.ndarray) and not isinstance(leaf, Tracer)
        if jnp.issubdtype(leaf.dtype, jnp.number)
    }
    return _nonzero_entries(found)


@jax.jit
def _nonzero_entries(leaves: dict[int, Any]) -> dict[int, Array]:
    return {i: dtypes.nonzero(leaf) for i, leaf in leaves.items()}


def _nonzero(params: Params) -> list[int | None]:
    """How many entries of each parameter are not zero; `None` without values."""
    found = packing.kept_by_leaf(_not_zero(params))
    at = range(jax.tree.structure(params).num_leaves)
    return [int(found[i]) if i in found else None for i in at]


def _with_nonzero(
    stacks: list[Stack | None], params: Params, where: Predicate, *, fn: str
) -> list[Stack | None]:
    """The stacks with how many entries of each layer are not zero."""
    here = _not_zero(params)
    masks = [
        here.get(i) if stack is not None else None for i, stack in enumerate(stacks)
    ]
    mask = jax.tree.structure(params).unflatten(masks)
    found = _stacks(mask, params, where, fn=fn)
    return [
        None if stack is None else stack._replace(nonzero=one.kept if one else None)
        for stack, one in zip(stacks, found, strict=True)
    ]


def density(kept: int, size: int) -> float:
    """The fraction kept; nan of nothing."""
    return kept / size if size else math.nan
