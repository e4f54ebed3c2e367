"""Pictures of masks: how much they keep, and how much they have in common."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import lax

from maskjax import packing
from maskjax._core import checks, dtypes, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Mask, Params
from maskjax.report import _drawing, _tree
from maskjax.report._counts import counts_of, density

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW = 12  # a heat map of so many masks has room for every number
_LINE, _LARGEST = 0.14, 12.0  # inches of a label's line, and of a side with labels


def overlaps(stack: Mask) -> np.ndarray:
    """The overlap of every two masks of a stack.

    Args:
        stack: A stack of K masks with concrete leaves, boolean or packed.

    Returns:
        [K, K]: `algebra.overlap` of each pair, |a and b| / |a or b|. It is 1 for two
        masks that keep nothing.

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


@_drawing.in_no_trace
def plot_density(mask: Mask, params: Params) -> Figure:
    """A bar for each parameter that carries a mask: the fraction that is kept.

    Args:
        mask: A mask with concrete leaves, boolean or packed.
        params: The parameters it is for.

    Returns:
        A matplotlib figure, as high as there are bars; layers are in the order of their
        numbers. The dashed line is the density over all these parameters.

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
    counts = counts_of(mask, params, fn=fn)
    counts = [counts[i] for i in _tree.in_order([count.path for count in counts])]
    bars = [(c.path, c.kept, c.size) for c in counts if c.kept is not None]
    paths, kept, sizes = zip(*bars, strict=True) if bars else ((), (), ())
    lengths = [density(*pair) for pair in zip(kept, sizes, strict=True)]
    every = density(sum(kept), sum(sizes))
    figure, axes = _drawing.figure(
        fn,
        f"Density of masked parameters, {every:.4f} overall",
        width=4 + _drawing.width_of(paths),
        height=1.2 + 0.25 * len(bars),
    )
    axes.barh(range(len(bars)), lengths, tick_label=paths)
    if bars:
        axes.set_ylim(len(bars) - 0.5, -0.5)  # the first parameter on top
    axes.axvline(every, color="black", linestyle="--")
    axes.set(xlim=(0, 1), xlabel="density (fraction kept)")
    return figure


def plot_history(
    densities: Mapping[str, Sequence[float] | Array] | Sequence[float] | Array,
    *,
    steps: Sequence[float] | Array | None = None,
) -> Figure:
    """Density during training.

    Args:
        densities: A line [T], or a dict {label: line}.
        steps: [T], the step of each value. `None`: 0, 1, 2, ...

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If values are traced.
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
    figure, axes = _drawing.figure(fn, "Density during training")
    _drawing.colors(axes, len(lines))
    for label, line in lines.items():
        axes.plot(range(len(line)) if steps is None else steps, line, label=label)
    _drawing.legend(figure, axes, lines)
    if steps is None or np.issubdtype(np.asarray(steps).dtype, np.integer):
        axes.locator_params(axis="x", integer=True)  # there is no step 0.25
    axes.set_ylim(bottom=0)
    axes.set(xlabel="step", ylabel="density (fraction kept)")
    return figure


def plot_overlap(stack: Mask, labels: Sequence[str] | None = None) -> Figure:
    """The overlap of every two masks of a stack, as a heat map.

    Args:
        stack: A stack of K masks with concrete leaves, boolean or packed.
        labels: K names of the masks. `None`: 0, 1, 2, ...

    Returns:
        A matplotlib figure of `overlaps`. Up to 12 masks, each cell shows its number.
        Of more than 85 labels some are left out, so that the others can be read.

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
    numbers, named = size <= _FEW, labels is not None
    side = max(3.5, (0.45 if numbers else 0.0) * size)  # inches
    if named and not numbers:
        side = min(max(side, _LINE * size), _LARGEST)
    room = _drawing.width_of(names) if named else 0.0
    figure, axes = _drawing.figure(
        fn, "Overlap of masks", width=side + 1.5 + room, height=side + 1 + room
    )
    figure.colorbar(
        axes.imshow(matrix, vmin=0, vmax=1), label="overlap, |a and b| / |a or b|"
    )
    if named or numbers:
        every = math.ceil(size * _LINE / side)  # labels that do not overlap
        places, shown = range(0, size, every), names[::every]
        points = 10.0 if numbers else 8.0
        rotation = 90 if named else 0
        axes.set_xticks(places, shown, rotation=rotation, fontsize=points)
        axes.set_yticks(places, shown, fontsize=points)
    if numbers:
        for (row, column), value in np.ndenumerate(matrix):
            color = "black" if value > 0.5 else "white"  # on yellow, on purple
            shown = f"{value:.2f}"
            axes.text(column, row, shown, color=color, ha="center", va="center")
    return figure


@_drawing.in_no_trace
def _overlaps(stack: Mask, *, fn: str) -> np.ndarray:
    checks.boolean(stack, fn=fn, name="stack")
    checks.packed(stack, fn=fn, stacked=True)
    checks.members(stack, fn=fn)
    _drawing.concrete(stack, fn=fn, what="a stack with values")
    leaves, _ = trees.mask_leaves(stack)
    most = max(leaf.size for _, leaf in leaves if leaf is not None)
    with dtypes.counting(most):
        counts = jax.device_get(_shared(stack, dtypes.counts(most)))
    both = np.sum([np.asarray(n, np.int64) for n in counts], axis=0)
    kept = np.diagonal(both)
    either = kept[:, None] + kept[None] - both
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


@functools.partial(jax.jit, static_argnums=1)
def _shared(stack: Mask, dtype: Any) -> list[Array]:
    """For each leaf, how many entries each mask shares with each other one, [K, K]."""
    packed, _ = trees.mask_leaves(jax.vmap(packing.pack)(stack))
    leaves = [leaf for _, leaf in packed if leaf is not None]

    def shared(leaf: PackedMask, own: PackedMask) -> Array:
        both = PackedMask(leaf.bits & own.bits[None], leaf.shape)
        return packing.population(both, dtype)

    def with_all(member: list[PackedMask]) -> list[Array]:
        return list(map(shared, leaves, member))

    return lax.map(with_all, leaves)  # memory for K pairs of masks, not for K * K
