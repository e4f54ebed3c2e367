"""The choice of what goes, and the repair of what stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np

from maskjax._core import checks
from maskjax._core.trees import Density, Params, Predicate, Scores
from maskjax.recipes.sparsegpt import _counts, _kernels, _leaf
from maskjax.recipes.sparsegpt._kernels import Kernel
from maskjax.recipes.sparsegpt._leaf import How, Task
from maskjax.recipes.sparsegpt._result import Pruned, finished
from maskjax.select._leaves import Leaves
from maskjax.select._quota import as_meant
from maskjax.structure import Entries, NofM

Scope = Literal["layer", "output"]


def prune(
    params: Params,
    stats: Any,
    *,
    density: Density | Scores | None = None,
    structure: Entries | NofM | None = None,
    scope: Scope = "layer",
    damping: Density = 0.01,
    block: int = 128,
    where: Predicate | None = None,
) -> Pruned:
    """Choose which weights go, and let those that stay make up for them.

    Args:
        params: Tree of arrays.
        stats: What each kernel meets, with Gram matrices: from `calibration.update`.
            `None` for leaves that are left alone.
        density: The fraction of each kernel to keep, in [0, 1]: a number, a scalar
            array that may be traced, or a tree of them like `params`, such as
            `allocation.owl` returns; for stacked layers also an array of a number for
            each layer. With `NofM(n, m)` leave it out, or pass at least n / m.
        structure: `Entries()`, any weights, is the default. `NofM(n, m)` keeps exactly
            n of every m consecutive inputs of each output, within each place of a
            convolution's window.
        scope: "layer" keeps `round(density * n)` of the n weights of each kernel,
            halves rounded up; each layer of a stack is a kernel. "output" does so for
            each output.
        damping: What is added to the diagonal of each Gram matrix, as a multiple of the
            diagonal's mean. May be traced.
        block: How many inputs are decided on at once. Each block has its share of the
            weights that are kept. It has no influence on N:M patterns.
        where: Which kernels to prune; `None`: all that have statistics. It is not asked
            what the axes mean: the statistics know. `storage.save_params` and `select`
            do ask, so pass them `where.traced(apply, params, *inputs)` if names do not
            tell.

    Returns:
        The parameters, the mask, and the damping that was used. Leaves that are not
        pruned are passed through uncopied. Kernels and masks are sharded as the kernels
        were; under `jit` on a mesh of Auto axes the compiler decides, unless
        `out_shardings` says.

    Raises:
        TypeError: If `density` is missing or not a number, a kernel is not floating, or
            an argument is of another kind.
        ValueError: If `stats` does not fit `params`, a kernel has no Gram matrix, or
            one that, damped, has no Cholesky factor; if `calibration.check` refuses
            `stats`; if weights of a kernel are inf or nan; if `density` is outside
            [0, 1] or nan; or if m does not divide the inputs of a kernel. Traced values
            are not looked at: of a matrix that is not finite, or has no factor,
            `damping` in the result is infinite; inputs whose sum of squares is not
            above 0 never fire; and of an output with a weight that is inf or nan, the
            weights that stay after it are so too.

    Example:
        >>> from maskjax import calibration
        >>> apply = lambda params, x: x @ params["w"]
        >>> params = {"w": jnp.array([[1.0], [2.0]])}
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> stats = calibration.init(apply, params, x)
        >>> stats = calibration.update(apply, stats, params, x)
        >>> pruned = sparsegpt.prune(params, stats, density=0.5, damping=0.0)
        >>> pruned.mask["w"].ravel(), pruned.params["w"].ravel()
        (Array([False,  True], dtype=bool), Array([0. , 2.5], dtype=float32))
    """
    fn = "maskjax.recipes.sparsegpt.prune"
    checks.one_of(scope, get_args(Scope), fn=fn, name="scope")
    checks.not_negative(damping, fn=fn, name="damping")
    checks.at_least(block, 1, fn=fn, name="block")
    picks = None if where is None else checks.chosen(params, where, fn=fn)
    pattern = _pattern(structure, fn=fn)
    kernels = _kernels.of(params, stats, picks, fn=fn)
    shares = _shares(params, kernels, density, structure, fn=fn)
    each = scope == "output"
    hows = [How.of(kernel.stats, block, pattern, each=each) for kernel in kernels]
    tasks = [
        Task(kernel.w, kernel.stats.sums, _choice(kernel, share, how), damping)
        for kernel, share, how in zip(kernels, shares, hows, strict=True)
    ]
    return finished(params, kernels, _leaf.run(tasks, hows), fn=fn)


def _choice(kernel: Kernel, share: Any, how: How) -> Any:
    """How many weights each block of a kernel keeps, unless a pattern decides."""
    if share is None or not kernel.w.size:
        return None
    how_far: dict[str, Any] = {"block": how.block, "each": how.each}
    return _counts.of_blocks(share, kernel.stats.sums, how.layout, **how_far)


def _pattern(structure: Any, *, fn: str) -> tuple[int, int] | None:
    """The n and m of a pattern; `None` for weights one by one."""
    if structure is None:
        return None
    checks.structure(structure, fn=fn)
    if isinstance(structure, Entries):
        return None
    if not isinstance(structure, NofM) or structure.axis != "inputs":
        raise ValueError(
            f"`{fn}` needs `structure` as `Entries()` or `NofM(n, m)` along "
            f"inputs, got {structure!r}."
        )
    return structure.n, structure.m


def _shares(
    params: Params, kernels: Sequence[Kernel], density: Any, structure: Any, *, fn: str
) -> list[Any]:
    """The density of each kernel; `None` where a pattern decides."""
    chosen: list[Any] = [None] * len(jax.tree.leaves(params))
    for kernel in kernels:
        chosen[kernel.place] = kernel.w
    tree = jax.tree.structure(params).unflatten(chosen)
    told = _kernels.Told({k.path: k.stats.axes for k in kernels})
    leaves = Leaves(tree, "layer", structure or Entries(), told, fn=fn)
    if not isinstance(structure, NofM):
        if density is None:
            raise TypeError(f"`{fn}` needs `density`, or `structure` as `NofM(n, m)`.")
        return leaves.shares(density, name="density")
    if density is not None:
        _check(leaves, density, structure, fn=fn)
    return [None] * len(kernels)


def _check(leaves: Leaves, density: Any, structure: NofM, *, fn: str) -> None:
    """A pattern keeps n of every m inputs, as it does in `select`, not fewer."""
    n, m = structure.n, structure.m
    shares = leaves.shares(density, name="density")
    checks.raise_all(
        (
            f"{path}: {share}"
            for path, share in zip(leaves.paths(), shares, strict=True)
            if isinstance(share, jax.Array)
            or any(as_meant(one) * m < n for one in np.ravel(share).tolist())
        ),
        f"`{fn}` needs `density` as a number of at least {n}/{m} with `{structure!r}`, "
        f"which keeps {n} of every {m} inputs (or leave it out)",
    )
