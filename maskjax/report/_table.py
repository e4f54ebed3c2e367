"""Masks as text: how much is kept, and of how much work."""

import functools
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maskjax import packing
from maskjax._core import axes as _axes
from maskjax._core import blame, checks, dtypes, layout, trees, walk
from maskjax._core.axes import Axes
from maskjax._core.trees import Array, Mask, Params, Predicate
from maskjax.report import _drawing
from maskjax.structure import Groups
from maskjax.where import kernels


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


def flops(apply: Callable[..., Any], params: Params, *inputs: Any) -> Params:
    """The floating-point operations that each parameter takes part in.

    They are counted from shapes, without running anything: two for each multiplication
    in a dot product or convolution, for the whole batch. Padding counts too.

    Args:
        apply: `(params, *inputs) -> output`.
        params: Tree of arrays or `jax.ShapeDtypeStruct`s.
        *inputs: Arrays or `jax.ShapeDtypeStruct`s. Use a batch of 1 to count for one
            example.

    Returns:
        A tree like `params` of Python integers; `None` for parameters that are in no
        contraction.

    Raises:
        ValueError: If there are no inputs, or a parameter is in a contraction that
            can't be counted, as in `jax.lax.cond` or a loop of unknown length.

    Example:
        >>> net = lambda params, x: x @ params["w"] + params["b"]
        >>> params = {"w": jnp.ones((3, 5)), "b": jnp.ones(5)}
        >>> report.flops(net, params, jax.ShapeDtypeStruct((1, 3), "float32"))
        {'b': None, 'w': 30}
    """
    counted = walk.flops(apply, params, inputs, fn="maskjax.report.flops")
    treedef = jax.tree.structure(params)
    return treedef.unflatten([counted.get(i) for i in range(treedef.num_leaves)])


@_drawing.in_no_trace
def table(
    mask: Mask,
    params: Params,
    flops: Params | None = None,
    *,
    structure: Groups | None = None,
    where: Predicate = kernels,
    layers: bool = False,
) -> str:
    """How much a mask keeps of each parameter, as text.

    Args:
        mask: A mask with concrete leaves, boolean or packed, or plain booleans that
            stand for whole leaves and subtrees.
        params: The parameters it is for, or their shapes.
        flops: From `flops`: a tree like `params` of integers, `None` where unknown.
        structure: Groups of units: a second table has how many units of each are kept,
            in each layer of a stack from the fewest to the most.
        where: Which axes stack layers: the shape of 12 layers is `12 x (64 x 256)`. It
            chooses no parameters. Those whose axes are unknown are shown as they are.
        layers: Whether each layer of a stack gets a row of its own, `path[index]`,
            instead of one for all. A line below the table names the masked parameters
            that may be stacks, but whose axes are unknown.

    Returns:
        A table with a row for each parameter: path, shape, entries kept, entries in
        total, density (fraction kept) and sparsity (fraction removed). If parameters
        have values, a column `nonzero` has how many of them are not zero: what is kept
        if the mask is applied, more if removed weights came back. With `flops`,
        also how many operations are kept, in proportion to the entries, and how many
        there are. If the layers of a stack differ, a column `layers` has the lowest and
        the highest density of its layers. What is unknown is `-`. The last row sums
        over parameters with a mask.

    Raises:
        ImportError: If rich is not installed.
        TypeError: If the mask is traced, a leaf is neither boolean nor packed,
            `structure` something else, or `where` not a function.
        ValueError: If the mask, `flops` or the groups do not fit `params`, or `where`
            was traced without some of their paths (`| where.kernels` lets names tell
            those).

    Example:
        >>> units = {"w": jnp.array([[True, False]])}
        >>> print(report.table(units, {"w": jnp.ones((3, 2))}))
        parameter   shape  kept  nonzero  total  density  sparsity
        w           3 x 2     3        6      6   0.5000    0.5000
        all masked            3        6      6   0.5000    0.5000
        >>> told = where.matching("w", axes="stack inputs outputs")
        >>> layers = {"w": jnp.array([True, False, False, True]).reshape(2, 2, 1)}
        >>> layers["w"] = layers["w"].at[1].set(False)
        >>> shape = jax.ShapeDtypeStruct((2, 2, 1), "float32")
        >>> print(report.table(layers, {"w": shape}, where=told))
        parameter   shape        kept  total  density  sparsity            layers
        w           2 x (2 x 1)     1      4   0.2500    0.7500  0.0000 to 0.5000
        all masked                  1      4   0.2500    0.7500                 -
    """
    fn = "maskjax.report.table"
    _drawing.require("rich", fn)
    mask = checks.spread(params, mask)
    counts = counts_of(mask, params, fn=fn)
    work = [None] * len(counts)
    if flops is not None:
        names = ("params", "flops")
        work = [f for *_, f in checks.matched(params, flops, fn=fn, names=names)]
    alive = _nonzero(params)
    stacks = _stacks(mask, params, where, fn=fn)
    if layers:
        stacks = _with_nonzero(stacks, params, where, fn=fn)
    spans = [None if stack is None else _span(stack) for stack in stacks]
    rows, sums = [], [0, 0, 0, 0, 0]
    for count, own, done, stack, span in zip(
        counts, alive, work, stacks, spans, strict=True
    ):
        numbers = [count.kept, own, count.size, _share(done, count), done]
        if layers and stack is not None:
            rows += _layer_rows(count.path, stack, done)
        else:
            shape = _times(count.shape)
            if stack is not None:
                shape = _times((*stack.lengths, f"({_times(stack.shape)})"))
            rows.append((count.path, shape, *_cells(*numbers), span or "-"))
        if count.kept is not None:
            sums = [a + (b or 0) for a, b in zip(sums, numbers, strict=True)]
    rows.append(("all masked", "", *_cells(*sums), "-"))
    titles = ["parameter", "shape", "kept", "nonzero", "total", "density", "sparsity"]
    titles += ["flops kept", "flops", "layers"]
    shown = {"flops kept": flops is not None, "flops": flops is not None}
    shown["nonzero"] = any(own is not None for own in alive)
    shown["layers"] = not layers and any(spans)
    at = [i for i, title in enumerate(titles) if shown.get(title, True)]
    text = _text([titles[i] for i in at], [[row[i] for i in at] for row in rows])
    unknown = _unknown(mask, params, where, fn=fn) if layers else []
    if unknown:
        text += (
            f"\nThe axes of {', '.join(unknown)} are unknown, and may stack layers. "
            "Pass `where=where.traced(apply, params, *inputs)`."
        )
    if structure is None:
        return text
    return f"{text}\n\n{_of_groups(mask, structure, fn=fn)}"


def _of_groups(mask: Mask, groups: Groups, *, fn: str) -> str:
    """How many units of each group a mask keeps, as text."""
    if not isinstance(groups, Groups):
        raise TypeError(
            f"`{fn}` needs `structure` as `structure.Groups`, got {groups!r}."
        )
    with blame.instead_of("maskjax.structure.Groups.kept", fn):
        flags = jax.device_get(groups.kept(packing.unpack(mask)))
    rows = []
    for group in groups:
        kept = np.sum(flags[group.name], axis=-1)
        low, high = int(np.min(kept)), int(np.max(kept))
        span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        part = density(int(np.sum(kept)), flags[group.name].size)
        layers = _times(group.stack) or "-"
        rows.append((group.name, layers, span, f"{group.size:,}", f"{part:.4f}"))
    return _text(["group", "layers", "kept", "units", "density"], rows)


def _times(shape: Iterable[Any]) -> str:
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


def _unknown(mask: Mask, params: Params, where: Predicate, *, fn: str) -> list[str]:
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


def _span(stack: Stack) -> str | None:
    """The lowest and the highest density of layers, if they differ."""
    if stack.kept is None or not stack.kept.size:
        return None
    low, high = (
        density(int(n), stack.size) for n in (stack.kept.min(), stack.kept.max())
    )
    return f"{low:.4f} to {high:.4f}" if low < high else None


def _layer_rows(path: str, stack: Stack, flops: int | None) -> list[tuple[str, ...]]:
    """A row for each layer; operations are those of all layers, in equal parts."""
    rows = []
    for index in np.ndindex(*stack.lengths):
        kept = None if stack.kept is None else int(stack.kept[index])
        own = None if stack.nonzero is None else int(stack.nonzero[index])
        done = None if flops is None else flops // math.prod(stack.lengths)
        count = Count(
            f"{path}[{', '.join(map(str, index))}]", stack.shape, stack.size, kept
        )
        cells = _cells(kept, own, count.size, _share(done, count), done)
        rows.append((count.path, _times(count.shape), *cells, "-"))
    return rows


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


def _share(flops: int | None, count: Count) -> int | None:
    """The operations of the kept entries, in exact integers."""
    if flops is None or count.kept is None:
        return None
    return flops * count.kept // max(count.size, 1)


def _cells(
    kept: int | None,
    nonzero: int | None,
    size: int,
    flops_kept: int | None,
    flops: int | None,
) -> list[str]:
    ratios = ["-", "-"]
    if kept is not None:
        fraction = density(kept, size)
        ratios = [f"{fraction:.4f}", f"{1 - fraction:.4f}"]
    numbers = (kept, nonzero, size, flops_kept, flops)
    whole = ["-" if n is None else f"{n:,}" for n in numbers]
    return [*whole[:3], *ratios, *whole[3:]]


def _text(titles: list[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows under titles, the first two columns to the left and the others right."""
    from rich import console, table

    drawn = table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, title in enumerate(titles):
        drawn.add_column(title, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    file = io.StringIO()
    plain = {"color_system": None, "force_jupyter": False, "force_terminal": False}
    console.Console(file=file, width=10_000, markup=False, **plain).print(drawn)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
