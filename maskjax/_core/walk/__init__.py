"""Follow parameters through a traced function to where they meet the data.

`where.traced`, `score.input_norms`, `calibration` and `report.flops` ask which dot
products and convolutions a parameter enters, along which axes, and what it meets there.
The walk visits the equations of `jax.make_jaxpr` in order. Each value has a trail for
each parameter that it is made of: which axes of the value run along which axes of the
parameter (`_trails`). What an equation does with them depends on its primitive:

  * `_moves.MOVES`, `CUTS`: entries stay, go or change places, or a part is cut out
  * `_meetings.CONTRACTIONS`: the parameter meets the other operand
  * `_bodies`: the walk goes on inside (`jit`, `remat`, custom derivatives, `scan`,
    `cond`, `while`); `_loop` does so where values are needed

After any other primitive the axes are unknown. A value that depends on the inputs is
data: the parameters that went into it are not followed further, except rows that data
chooses. For statistics of the data the function is evaluated on the way (`_measures`).
There, what cannot be followed entry by entry is an error.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from maskjax._core import checks, trees
from maskjax._core.axes import Axes
from maskjax._core.trees import Array, Params
from maskjax._core.walk import _canonical, _follow, _parts, _roles
from maskjax._core.walk._roles import Answer

__all__ = ["Answer", "flops", "roles", "squares", "statistics"]


def squares(
    apply: Callable[..., Any],
    params: Params,
    inputs: Sequence[Any],
    picks: Sequence[bool],
    *,
    fn: str,
    weights: Array | None = None,
) -> dict[int, Array]:
    """Sums of squares of the data that the entries of each picked leaf meet.

    Returns:
        Arrays of the parameter's rank, with length 1 along axes whose entries meet the
        same data.

    Raises:
        ValueError: That names the leaves without any.
    """
    found = _follow.found(
        apply, params, inputs, picks, fn=fn, mode="squares", weights=weights
    )
    _measured(found, params, picks, weights, fn=fn)
    shapes = [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(params)]
    return {i: _parts.over(sums, shapes[i]) for i, sums in found.sums.items()}


def statistics(
    apply: Callable[..., Any],
    params: Params,
    inputs: Sequence[Any],
    axes: Sequence[Axes | None],
    *,
    gram: bool,
    fn: str,
    weights: Array | None = None,
) -> dict[int, Array]:
    """Sums of squares, or Gram matrices, of the data that each kernel meets.

    Args:
        apply: `(params, *inputs) -> output`.
        params: Tree of arrays.
        inputs: The data.
        axes: For each leaf the roles of its axes, or `None` if it is left alone.
        gram: Whether to compute Gram matrices.
        fn: The public function that errors blame.
        weights: For the rows of data.

    Returns:
        [*stack, groups, d] or [*stack, groups, d, d] for each leaf that has axes. The
        groups are equal parts of its outputs, which meet inputs of their own.

    Raises:
        ValueError: That names the leaves whose entries do not meet such data.
    """
    picks = [each is not None for each in axes]
    found = _follow.found(
        apply,
        params,
        inputs,
        picks,
        fn=fn,
        mode="grams" if gram else "squares",
        weights=weights,
        axes=axes,
    )
    _measured(found, params, picks, weights, fn=fn)
    out, faults = {}, {}
    for i, leaf in enumerate(jax.tree.leaves(params)):
        own = axes[i]
        if own is not None:
            done = _canonical.sums(found.sums[i], own, leaf.shape, gram=gram)
            (faults if isinstance(done, str) else out)[i] = done
    needs = (
        f"`{fn}` needs kernels that meet data at every index of their stack, the same "
        "at all of their outputs or at all of a group"
    )
    _raise(faults, params, needs)
    return out


def _measured(
    found: _follow.Found,
    params: Params,
    picks: Sequence[bool],
    weights: Array | None,
    *,
    fn: str,
) -> None:
    """Raise an error that names the picked leaves without sums."""
    ends = {
        i: found.obstacles.get(i, found.ends.get(i, "is not used"))
        for i, pick in enumerate(picks)
        if pick and (i in found.obstacles or i not in found.sums)
    }
    _raise(
        ends,
        params,
        f"`{fn}` needs `where` to choose kernels, which meet the inputs in dot "
        "products or convolutions, entry by entry (`& ~where.matching('bias')`, say, "
        "leaves others alone)",
    )
    if weights is not None:
        shape = tuple(weights.shape)
        misfits = {
            i: f"weights {shape}, data {met}" for i, met in found.misfits.items()
        }
        needs = (
            f"`{fn}` needs `weights` with the leading axes of what every kernel meets"
        )
        _raise(misfits, params, needs)


def flops(
    apply: Callable[..., Any], params: Params, inputs: Sequence[Any], *, fn: str
) -> dict[int, int]:
    """`Found.flops` for each leaf that is part of a contraction."""
    every = [True] * len(jax.tree.leaves(params))
    found = _follow.found(apply, params, inputs, every, fn=fn, mode="flops")
    needs = f"`{fn}` needs dot products and convolutions that can be counted"
    _raise(found.obstacles, params, needs)
    return found.flops


def roles(
    apply: Callable[..., Any],
    params: Params,
    inputs: Sequence[Any],
    *,
    fn: str,
    every_kernel: bool = True,
) -> list[tuple[str, Answer]]:
    """For each leaf its path, whether it is a kernel, and the roles of its axes.

    Raises:
        ValueError: If there are no inputs, or, with `every_kernel`, a leaf called
            `kernel` is in no contraction.
    """
    named = trees.named_leaves(params)
    every = [checks.shaped(leaf) for _, leaf in named]
    found = _follow.found(apply, params, inputs, every, fn=fn, mode="roles")
    told = _roles.answers(found, named, fn=fn, every_kernel=every_kernel)
    return [(path, answer) for (path, _), answer in zip(named, told, strict=True)]


def _raise(faults: dict[int, str], params: Params, needs: str) -> None:
    """Raise if there are faults, and name the leaves by their paths."""
    if faults:
        paths = trees.paths(params)
        lines = (f"{paths[i]}: {why}" for i, why in sorted(faults.items()))
        raise checks.listing(lines, needs)
