"""Masks as text: how much is kept, and of how much work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from maskjax import packing
from maskjax._core import blame, checks, walk
from maskjax._core.trees import Mask, Params, Predicate
from maskjax.report import _drawing, _text, _tree
from maskjax.report._counts import Entry, density, entries, times, unknown
from maskjax.structure import Groups
from maskjax.where import kernels

_MANY = 40  # rows that a screen shows


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
    tree: bool | None = None,
    depth: int | None = None,
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
        tree: Whether the parts of paths get indented rows with the sums of what is
            below them, and layers that differ only in a number one row for all,
            `layers/[0..11]`. `None`: with more than 40 parameters, unless each layer
            gets a row.
        depth: How many parts of a path the tree shows, as in `flax.nnx.tabulate`;
            `None`: all. It makes the table a tree.

    Returns:
        A table with a row for each parameter: path, shape, entries kept, entries in
        total, density (fraction kept) and sparsity (fraction removed). If parameters
        have values, a column `nonzero` has how many of them are not zero: what is kept
        if the mask is applied, more if removed weights came back. With `flops`,
        also how many operations are kept, in proportion to the entries, and how many
        there are. If the layers of a stack differ, a column `layers` has the lowest and
        the highest density of its layers. What is unknown is `-`. The last row sums
        over parameters with a mask.

        A tree fits into 80 columns in most networks: it has no `sparsity`, leaves
        shapes out rather than be wider, and says below the table if more or fewer
        entries are not zero than are kept. A row for several layers has the shape of
        one of them, sums over all, and the lowest and the highest density of a layer.
        A part of the network sums over its parameters with a mask, if there are any.
        The last row, `all parameters`, counts parameters without a mask as kept.

    Raises:
        ImportError: If rich is not installed.
        TypeError: If the mask is traced, a leaf is neither boolean nor packed,
            `structure` something else, or `where` not a function.
        ValueError: If the mask, `flops` or the groups do not fit `params`, `depth` is
            less than 1 or given with `tree=False`, or `where` was traced without some
            of their paths (`| where.kernels` lets names tell those).

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

        Repeated layers in one row, and one level of the tree:

        >>> layer = {"kernel": jax.ShapeDtypeStruct((2, 2), "float32")}
        >>> params = {"layers": [layer, layer], "head": layer}
        >>> half, none = jnp.array([[True, False]]), jnp.array([[False, False]])
        >>> masks = {"layers": [{"kernel": half}, {"kernel": none}], "head": None}
        >>> print(report.table(masks, params, tree=True))
        parameter              shape  kept  total  density     layers
        head/kernel            2 x 2     -      4        -          -
        layers/[0..1]/kernel   2 x 2     2      8   0.2500  0.00-0.50
        all masked                       2      8   0.2500          -
        all parameters                   6     12   0.5000          -
        >>> print(report.table(masks, params, depth=1))
        parameter       shape  kept  total  density
        head                      -      4        -
        layers                    2      8   0.2500
        all masked                2      8   0.2500
        all parameters            6     12   0.5000
    """
    fn = "maskjax.report.table"
    _drawing.require("rich", fn)
    if depth is not None:
        checks.at_least(depth, 1, fn=fn, name="depth")
        if tree is False:
            raise ValueError(f"`{fn}` needs a tree for `depth`, got `tree=False`.")
    mask = checks.spread(params, mask)
    found = entries(mask, params, flops, where, layers=layers, fn=fn)
    if tree is None:
        tree = depth is not None or (len(found) > _MANY and not layers)
    work = flops is not None
    if tree:
        text = _tree.text(found, depth=depth, fold=not layers, flops=work)
    else:
        text = _one_by_one(found, flops=work)
    where_unknown = unknown(mask, params, where, fn=fn) if layers else []
    if where_unknown:
        text += (
            f"\nThe axes of {', '.join(where_unknown)} are unknown, and may stack "
            "layers. Pass `where=where.traced(apply, params, *inputs)`."
        )
    if structure is None:
        return text
    return f"{text}\n\n{_of_groups(mask, structure, fn=fn)}"


def _one_by_one(found: list[Entry], *, flops: bool) -> str:
    """A row for each parameter, or for each of its layers."""
    rows, sums = [], [0, 0, 0, 0, 0]
    for entry in found:
        shown = (entry,) if entry.layers is None else entry.layers
        for one in shown:
            span = "-"
            if one.densities and one.densities[0] < one.densities[1]:
                span = "{:.4f} to {:.4f}".format(*one.densities)
            rows.append((one.path, one.shape, *_cells(_numbers(one)), span))
        if entry.kept is not None:
            sums = [a + (b or 0) for a, b in zip(sums, _numbers(entry), strict=True)]
    rows.append(("all masked", "", *_cells(sums), "-"))
    titles = ["parameter", "shape", "kept", "nonzero", "total", "density", "sparsity"]
    titles += ["flops kept", "flops", "layers"]
    needed = {"flops kept": flops, "flops": flops}
    needed["nonzero"] = any(entry.nonzero is not None for entry in found)
    needed["layers"] = any(row[-1] != "-" for row in rows)
    return _text.columns(titles, rows, [needed.get(title, True) for title in titles])


def _numbers(entry: Entry) -> tuple[int | None, ...]:
    kept, nonzero, size = entry.kept, entry.nonzero, entry.size
    return kept, nonzero, size, entry.flops_kept, entry.flops


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
        layers = times(group.stack) or "-"
        rows.append((group.name, layers, span, f"{group.size:,}", f"{part:.4f}"))
    return _text.columns(["group", "layers", "kept", "units", "density"], rows)


def _cells(numbers: Sequence[int | None]) -> list[str]:
    kept, _, size, *_ = numbers
    ratios = ["-", "-"]
    if kept is not None:
        fraction = density(kept, size or 0)
        ratios = [f"{fraction:.4f}", f"{1 - fraction:.4f}"]
    whole = list(map(_text.whole, numbers))
    return [*whole[:3], *ratios, *whole[3:]]
