"""What a person wants to see: tables and pictures of masks, and of predictions.

>>> params = {"dense": {"kernel": jnp.ones((10, 10)), "bias": jnp.ones(10)}}
>>> scores = score.random(params, key=jax.random.key(0))
>>> print(report.table(select.top_k(scores, density=0.1), params))
parameter     shape    kept  total  density  sparsity
dense/bias    10          -     10        -         -
dense/kernel  10 x 10    10    100   0.1000    0.9000
all masked               10    100   0.1000    0.9000
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax import lax

from maskjax import algebra, packing
from maskjax._core import checks, trees, walk
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Mask, Params
from maskjax.report import _drawing
from maskjax.report._diagrams import plot_reliability, plot_risk_coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "flops",
    "overlaps",
    "plot_density",
    "plot_history",
    "plot_overlap",
    "plot_reliability",
    "plot_risk_coverage",
    "table",
]

_FEW = 12  # masks of which a heat map has room for every number


def flops(apply: Callable[..., Any], params: Params, *inputs: Any) -> Params:
    """The floating-point operations that each parameter takes part in.

    Counted from shapes, without running anything: two for each multiplication in a dot
    product or convolution of the parameter, on padding too, and for the whole batch.

    Args:
        apply: `(params, *inputs) -> output`.
        params: Tree of arrays or `jax.ShapeDtypeStruct`s.
        *inputs: Arrays or `jax.ShapeDtypeStruct`s: a batch of one, to count for one.

    Returns:
        A tree like `params` of Python integers; None for what is in no contraction.

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


def overlaps(stack: Mask) -> np.ndarray:
    """The overlap of every two masks of a stack.

    Args:
        stack: A stack of K masks with concrete leaves, boolean or packed.

    Returns:
        [K, K]: `algebra.overlap`, |a and b| / |a or b|, which is 1 on the diagonal, for
        masks that keep nothing too.

    Raises:
        TypeError: If the stack is traced, or a leaf is neither boolean nor packed.
        ValueError: If the leaves disagree about K.

    Example:
        >>> stack = {"w": jnp.array([[True, True, False], [True, False, False]])}
        >>> print(report.overlaps(stack))
        [[1.  0.5]
         [0.5 1. ]]
    """
    return _overlaps(stack, fn="maskjax.report.overlaps")


def plot_density(mask: Mask, params: Params) -> "Figure":
    """A bar for each parameter that carries a mask: how much of it is kept.

    Args:
        mask: A mask with concrete leaves, boolean or packed.
        params: The parameters it is for.

    Returns:
        A matplotlib figure (of no pyplot window); the dashed line is at the density of
        all of them.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If the mask is traced, or a leaf is neither boolean nor packed.
        ValueError: If the mask does not fit `params`.

    Example:
        >>> mask = {"w": jnp.array([[True, False]]), "b": None}
        >>> params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
        >>> (bar,) = report.plot_density(mask, params).axes[0].patches
        >>> print(bar.get_width())
        0.5
    """
    fn = "maskjax.report.plot_density"
    counts = _counts(mask, params, fn=fn)
    bars = [(c.path, c.kept, c.size) for c in counts if c.kept is not None]
    paths, kept, sizes = zip(*bars, strict=True) if bars else ((), (), ())
    lengths = [_density(*pair) for pair in zip(kept, sizes, strict=True)]
    figure, axes = _drawing.figure(fn, height=1.2 + 0.25 * len(bars))
    axes.barh(range(len(bars)), lengths, tick_label=paths)
    axes.invert_yaxis()  # the first parameter on top
    axes.axvline(_density(sum(kept), sum(sizes)), color="black", linestyle="--")
    axes.set(xlim=(0, 1), xlabel="density (fraction kept)")
    return figure


def plot_history(
    densities: Mapping[str, Sequence[float] | Array] | Sequence[float] | Array,
    *,
    steps: Sequence[float] | Array | None = None,
) -> "Figure":
    """Density through training.

    Args:
        densities: {label: [T]}, a line for each label, or one line, [T].
        steps: [T], where the values stand; 0, 1, 2, ... by default.

    Returns:
        A matplotlib figure (of no pyplot window).

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If there are traced values.
        ValueError: If a line is not [T], or not as long as `steps`.

    Example:
        >>> figure = report.plot_history({"kernel": [1.0, 0.8]}, steps=[0, 10])
        >>> figure.axes[0].lines[0].get_ydata()
        array([1. , 0.8])
    """
    fn = "maskjax.report.plot_history"
    _drawing.concrete((densities, steps), fn=fn, what="`densities` with values")
    named = _drawing.labeled(densities)
    lines = {label: np.asarray(line, float) for label, line in named.items()}
    length = None if steps is None else len(steps)
    checks.raise_all(
        (
            f"{label or 'densities'}: shape {line.shape}"
            for label, line in lines.items()
            if line.ndim != 1 or len(line) != (len(line) if steps is None else length)
        ),
        f"`{fn}` needs every line of `densities` of shape "
        + ("[T]" if steps is None else f"({length},), like `steps`"),
    )
    figure, axes = _drawing.figure(fn)
    for label, line in lines.items():
        axes.plot(range(len(line)) if steps is None else steps, line, label=label)
    _drawing.legend(axes, lines)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="step", ylabel="density (fraction kept)")
    return figure


def plot_overlap(stack: Mask, labels: Sequence[str] | None = None) -> "Figure":
    """The overlap of every two masks of a stack, as a heat map.

    Args:
        stack: A stack of K masks with concrete leaves, boolean or packed.
        labels: K names of the masks; 0, 1, 2, ... by default.

    Returns:
        A matplotlib figure (of no pyplot window) of `overlaps`.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If the stack is traced, or a leaf is neither boolean nor packed.
        ValueError: If the leaves disagree about K, or there are not K labels.

    Example:
        >>> stack = {"w": jnp.array([[True, True, False], [True, False, False]])}
        >>> figure = report.plot_overlap(stack, labels=["first", "second"])
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['first', 'second']
    """
    fn = "maskjax.report.plot_overlap"
    matrix = _overlaps(stack, fn=fn)
    size = len(matrix)
    names = [str(name) for name in (range(size) if labels is None else labels)]
    if len(names) != size:
        raise ValueError(f"`{fn}` needs `labels` for {size} masks, got {len(names)}.")
    figure, axes = _drawing.figure(fn)
    figure.colorbar(axes.imshow(matrix, vmin=0, vmax=1), label="overlap")
    if labels is not None or size <= _FEW:
        axes.set_xticks(range(size), names, rotation=90 if labels is not None else 0)
        axes.set_yticks(range(size), names)
    if size <= _FEW:
        for (row, column), value in np.ndenumerate(matrix):
            color = "black" if value > 0.5 else "white"  # on yellow, on purple
            shown = f"{value:.2f}"
            axes.text(column, row, shown, color=color, ha="center", va="center")
    return figure


def table(mask: Mask, params: Params, flops: Params | None = None) -> str:
    """How much a mask keeps of each parameter, as text.

    Args:
        mask: A mask with concrete leaves, boolean or packed.
        params: The parameters it is for.
        flops: From `flops`: a tree like `params` of integers, None where unknown.

    Returns:
        A table: path, shape, entries kept and in all, density (fraction kept) and
        sparsity (fraction removed); with `flops` also how many are kept, in proportion
        to the entries, and in all. What is unknown, as for a parameter without a mask,
        is `-`. The last line sums over parameters with a mask.

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
    try:
        from rich import console
        from rich import table as rich_table
    except ImportError as error:
        raise ImportError(_drawing.NEEDS.format(fn, "rich")) from error

    counts = _counts(mask, params, fn=fn)
    work = [None] * len(counts)
    if flops is not None:
        names = ("params", "flops")
        work = [f for *_, f in checks.matched(params, flops, fn=fn, names=names)]
    titles = ["parameter", "shape", "kept", "total", "density", "sparsity"]
    rows, sums = [], [0, 0, 0, 0]
    for count, done in zip(counts, work, strict=True):
        shown = " x ".join(map(str, count.shape))
        numbers = [count.kept, count.size, _share(done, count), done]
        rows.append((count.path, shown, *_shown(*numbers)))
        if count.kept is not None:
            sums = [a + (b or 0) for a, b in zip(sums, numbers, strict=True)]
    rows.append(("all masked", "", *_shown(*sums)))
    if flops is not None:
        titles += ["flops kept", "flops"]

    drawn = rich_table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, title in enumerate(titles):
        drawn.add_column(title, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row[: len(titles)])
    file = io.StringIO()
    plain = {"color_system": None, "force_jupyter": False, "force_terminal": False}
    console.Console(file=file, width=10_000, markup=False, **plain).print(drawn)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


class _Count(NamedTuple):
    path: str
    shape: tuple[int, ...]
    size: int
    kept: int | None  # None without a mask


def _counts(mask: Mask, params: Params, *, fn: str) -> list[_Count]:
    checks.boolean(mask, fn=fn)
    checks.packed(mask, fn=fn, stacked=False)
    _drawing.concrete(mask, fn=fn, what="a mask with values")
    counts = []
    names = ("params", "mask")
    for path, param, leaf in checks.mask_of(mask, params, fn=fn, names=names):
        shape = np.shape(param)
        kept = None if leaf is None else int(algebra.count({"": leaf}, {"": param}))
        counts.append(_Count(path, shape, math.prod(shape), kept))
    return counts


def _density(kept: int, size: int) -> float:
    return kept / size if size else math.nan


def _share(flops: int | None, count: _Count) -> int | None:
    """The part of the operations that the kept entries do."""
    if flops is None or count.kept is None:
        return None
    return flops * count.kept // max(count.size, 1)


def _shown(
    kept: int | None, size: int, flops_kept: int | None, flops: int | None
) -> list[str]:
    ratios = ["-", "-"]
    if kept is not None:
        density = _density(kept, size)
        ratios = [f"{density:.4f}", f"{1 - density:.4f}"]
    whole = ["-" if n is None else f"{n:,}" for n in (kept, size, flops_kept, flops)]
    return [*whole[:2], *ratios, *whole[2:]]


def _overlaps(stack: Mask, *, fn: str) -> np.ndarray:
    checks.boolean(stack, fn=fn, name="stack")
    checks.packed(stack, fn=fn, stacked=True)
    checks.members(stack, fn=fn)
    _drawing.concrete(stack, fn=fn, what="a stack with values")
    packed, _ = trees.mask_leaves(jax.vmap(packing.pack)(stack))
    leaves = [leaf for _, leaf in packed if leaf is not None]

    def with_all(member: list[PackedMask]) -> list[Array]:
        """For each leaf the entries that each mask, [K], shares with one of them."""
        return [
            packing.population(PackedMask(leaf.bits & own.bits[None], leaf.shape))
            for leaf, own in zip(leaves, member, strict=True)
        ]

    counts = [np.asarray(n, np.int64) for n in lax.map(with_all, leaves)]
    both = np.sum(counts, axis=0)
    kept = np.diagonal(both)
    either = kept[:, None] + kept[None] - both
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))
