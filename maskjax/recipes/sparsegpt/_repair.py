"""The repair of what a mask of any origin leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from maskjax import packing
from maskjax._core import checks, placement
from maskjax._core.trees import Array, Density, Mask, Params
from maskjax.recipes.sparsegpt import _kernels, _leaf
from maskjax.recipes.sparsegpt._kernels import Kernel
from maskjax.recipes.sparsegpt._leaf import How, Task
from maskjax.recipes.sparsegpt._result import Pruned, finished


def repair(
    params: Params,
    mask: Mask,
    stats: Any,
    *,
    damping: Density = 0.01,
    block: int = 128,
) -> Pruned:
    """Let the weights that a mask keeps make up for those that it removes.

    For masks by any rule, such as magnitude or Wanda. It is the update of `prune`
    without its choice.

    Args:
        params: Tree of arrays.
        mask: A mask of `params`, packed or not: True keeps. `None` for leaves that are
            left alone.
        stats: What each kernel meets, with Gram matrices, for all leaves with a mask.
        damping: As in `prune`.
        block: How many inputs are swept at once. It changes how long that takes, and
            the result by rounding only.

    Returns:
        The parameters, the mask with an entry for each weight, and the damping. Leaves
        without a mask are passed through uncopied.

    Raises:
        TypeError: If the mask is not boolean, a kernel not floating, or an argument of
            another kind.
        ValueError: If the trees do not fit, or a kernel with a mask has no Gram matrix,
            or one that can't be used, or weights that are inf or nan, also if the mask
            removes them. What is traced is treated as in `prune`.

    Example:
        >>> from maskjax import calibration
        >>> apply = lambda params, x: x @ params["w"]
        >>> params = {"w": jnp.array([[1.0], [2.0]])}
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> stats = calibration.init(apply, params, x)
        >>> stats = calibration.update(apply, stats, params, x)
        >>> mask = {"w": jnp.array([[False], [True]])}
        >>> sparsegpt.repair(params, mask, stats, damping=0.0).params["w"].ravel()
        Array([0. , 2.5], dtype=float32)
    """
    fn = "maskjax.recipes.sparsegpt.repair"
    checks.not_negative(damping, fn=fn, name="damping")
    checks.at_least(block, 1, fn=fn, name="block")
    masks = [m for _, m in checks.masked(params, mask, fn=fn)]
    picks = [m is not None for m in masks]
    if not any(picks):
        raise ValueError(f"`{fn}` needs `mask` with at least one leaf, got none.")
    kernels = _kernels.of(params, stats, picks, fn=fn)
    tasks = [
        Task(kernel.w, kernel.stats.sums, _entries(masks, kernel), damping)
        for kernel in kernels
    ]
    hows = [How.of(kernel.stats, block) for kernel in kernels]
    return finished(params, kernels, _leaf.run(tasks, hows), fn=fn)


def _entries(masks: Sequence[Any], kernel: Kernel) -> Array:
    """The mask of a kernel with a boolean for each weight."""
    mask = packing.unpack_leaf(masks[kernel.place])
    return jnp.broadcast_to(placement.alike(mask, kernel.w), kernel.w.shape)
