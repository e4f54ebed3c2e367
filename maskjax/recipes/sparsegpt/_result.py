"""What comes back, and the refusal of matrices that could not be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from maskjax._core import checks
from maskjax._core.stored import stored
from maskjax._core.trees import Mask, Params
from maskjax.recipes.sparsegpt._kernels import Kernel
from maskjax.recipes.sparsegpt._leaf import Done


@stored("maskjax.recipes.sparsegpt.Pruned")
class Pruned(NamedTuple):
    """A pruned network; a pytree.

    Attributes:
        params: The parameters. Weights that the mask removes are 0, and the others of
            their output make up for them. Leaves without a mask are the arrays that
            came in.
        mask: A mask of `params`: True keeps, `None` for leaves that were left alone.
        damping: For each kernel with a mask [*stack], or [*stack, groups] for a grouped
            convolution: what was added to the diagonal of its Gram matrix, as a
            multiple of the mean of the diagonal. Infinite if none helped: then the Gram
            matrix was not used, and the kernel is pruned by magnitude alone.
    """

    params: Params
    mask: Mask
    damping: Any


def finished(
    params: Params, kernels: Sequence[Kernel], done: Sequence[Done], *, fn: str
) -> Pruned:
    """The trees, once it is certain that all matrices could be used, if it is known."""
    lines = [
        f"{kernel.path}: no damping makes its Gram matrix positive definite"
        for kernel, found in zip(kernels, done, strict=True)
        if checks.is_readable(found.damping) and np.any(np.isinf(found.damping))
    ]
    checks.raise_all(lines, f"`{fn}` needs Gram matrices that are positive")
    leaves, treedef = jax.tree.flatten(params)
    mask: list[Any] = [None] * len(leaves)
    used: list[Any] = [None] * len(leaves)
    for kernel, found in zip(kernels, done, strict=True):
        leaves[kernel.place] = found.w
        mask[kernel.place], used[kernel.place] = found.mask, found.damping
    return Pruned(*map(treedef.unflatten, (leaves, mask, used)))
