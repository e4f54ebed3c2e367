"""Masks as text: how much is kept, and of how much work."""

import io
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from maskjax import algebra
from maskjax._core import checks, trees, walk
from maskjax._core.trees import Array, Mask, Params
from maskjax.report import _drawing


class Count(NamedTuple):
    """How much a mask keeps of one parameter."""

    path: str
    shape: tuple[int, ...]
    size: int
    kept: int | None  # None without a mask


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


def table(mask: Mask, params: Params, flops: Params | None = None) -> str:
    """How much a mask keeps of each parameter, as text.

    Args:
        mask: A mask with concrete leaves, boolean or packed.
        params: The parameters it is for.
        flops: From `flops`: a tree like `params` of integers, `None` where unknown.

    Returns:
        A table with a row for each parameter: path, shape, entries kept, entries in
        total, density (fraction kept) and sparsity (fraction removed). With `flops`,
        also how many operations are kept, in proportion to the entries, and how many
        there are. What is unknown is `-`. The last row sums over parameters with a
        mask.

    Raises:
        ImportError: If rich is not installed.
        TypeError: If the mask is traced, or a leaf is neither boolean nor packed.
        ValueError: If the mask or `flops` does not fit `params`.

    Example:
        >>> units = {"w": jnp.array([[True, False]])}
        >>> print(report.table(units, {"w": jnp.ones((3, 2))}))
        parameter   shape  kept  total  density  sparsity
        w           3 x 2     3      6   0.5000    0.5000
        all masked            3      6   0.5000    0.5000
    """
    fn = "maskjax.report.table"
    _drawing.require("rich", fn)
    counts = counts_of(mask, params, fn=fn)
    work = [None] * len(counts)
    if flops is not None:
        names = ("params", "flops")
        work = [f for *_, f in checks.matched(params, flops, fn=fn, names=names)]
    titles = ["parameter", "shape", "kept", "total", "density", "sparsity"]
    rows, sums = [], [0, 0, 0, 0]
    for count, done in zip(counts, work, strict=True):
        shape = " x ".join(map(str, count.shape))
        numbers = [count.kept, count.size, _share(done, count), done]
        rows.append((count.path, shape, *_cells(*numbers)))
        if count.kept is not None:
            sums = [a + (b or 0) for a, b in zip(sums, numbers, strict=True)]
    rows.append(("all masked", "", *_cells(*sums)))
    if flops is not None:
        titles += ["flops kept", "flops"]
    return _text(titles, rows)


def counts_of(mask: Mask, params: Params, *, fn: str) -> list[Count]:
    """How much a mask keeps of each parameter."""
    checks.boolean(mask, fn=fn)
    checks.packed(mask, fn=fn, stacked=False)
    _drawing.concrete(mask, fn=fn, what="a mask with values")
    names = ("params", "mask")
    pairs = checks.shaped_like(params, mask, fn=fn, names=names)
    kept = _kept({i: leaf for i, (_, leaf) in enumerate(pairs)})
    counts, paths = [], trees.paths(params)
    for i, (param, leaf) in enumerate(pairs):
        shape = np.shape(param)
        size, own = math.prod(shape), None
        if leaf is not None:  # a decision that entries share counts for each of them
            own = int(kept[i]) * (size // max(leaf.size, 1))
        counts.append(Count(paths[i], shape, size, own))
    return counts


@jax.jit
def _kept(leaves: dict[int, Any]) -> dict[int, Array]:
    """How many decisions of each leaf are True; one program for a whole mask."""
    return {i: algebra.count({"": leaf}) for i, leaf in leaves.items()}


def density(kept: int, size: int) -> float:
    """The fraction kept; nan of nothing."""
    return kept / size if size else math.nan


def _share(flops: int | None, count: Count) -> int | None:
    """The operations of the kept entries, in exact integers."""
    if flops is None or count.kept is None:
        return None
    return flops * count.kept // max(count.size, 1)


def _cells(
    kept: int | None, size: int, flops_kept: int | None, flops: int | None
) -> list[str]:
    ratios = ["-", "-"]
    if kept is not None:
        fraction = density(kept, size)
        ratios = [f"{fraction:.4f}", f"{1 - fraction:.4f}"]
    whole = ["-" if n is None else f"{n:,}" for n in (kept, size, flops_kept, flops)]
    return [*whole[:2], *ratios, *whole[2:]]


def _text(titles: list[str], rows: Iterable[tuple[str, ...]]) -> str:
    """Rows under titles, the first two columns to the left and the others right."""
    from rich import console, table

    drawn = table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, title in enumerate(titles):
        drawn.add_column(title, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row[: len(titles)])
    file = io.StringIO()
    plain = {"color_system": None, "force_jupyter": False, "force_terminal": False}
    console.Console(file=file, width=10_000, markup=False, **plain).print(drawn)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
