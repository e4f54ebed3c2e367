"""Scores from the inputs that each kernel meets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maskjax._core import checks, trees
from maskjax._core.trees import Params, Predicate, Scores
from maskjax.calibration import Statistics
from maskjax.score._objective import wide
from maskjax.where import kernels


def wanda(params: Params, input_norms: Params, *, where: Predicate = kernels) -> Scores:
    """The absolute value of each parameter times the norm of the inputs that it meets.

    Args:
        params: Tree of arrays.
        input_norms: From `input_norms` or `calibration.norms`: a tree like `params`.
            Each axis of a leaf has the parameter's length or 1. Leaves that `where`
            does not choose may be `None`.
        where: Which leaves are scored.

    Returns:
        Scores |w| * norm. The paper ranks them within each output: that is scope
        "output" of `select.top_k`, for kernels of any layout. In scope "leaf" it is
        another method. `recipes.sparsegpt.repair` lets what is kept make up for what
        is not.

    Raises:
        TypeError: If a chosen leaf or its norms are not floating; if they are
            `calibration.Statistics`, the error tells how to get norms.
        ValueError: If the norms do not fit `params`, or `where` chooses nothing.

    Example:
        >>> params = {"w": jnp.array([[3.0, 1.0], [-4.0, 1.0]])}
        >>> norms = {"w": jnp.array([[2.0], [1.0]])}
        >>> score.wanda(params, norms)["w"]
        Array([[6., 2.],
               [4., 1.]], dtype=float32)
        >>> scores = score.wanda(params, norms)
        >>> select.top_k(scores, density=0.5, scope="output")["w"]
        Array([[ True,  True],
               [False, False]], dtype=bool)
        >>> select.top_k(scores, density=0.5, structure=structure.NofM(1, 2))["w"]
        Array([[ True,  True],
               [False, False]], dtype=bool)

    References:
        Sun et al., "A Simple and Effective Pruning Approach for Large Language Models",
        ICLR 2024. arXiv:2306.11695.
    """
    fn, names = "maskjax.score.wanda", ("params", "input_norms")
    picks = checks.chosen(params, where, fn=fn)
    _refuse_statistics(input_norms, fn=fn)
    pairs = checks.shaped_like(params, input_norms, fn=fn, names=names)
    checks.every(
        lambda pair, pick: (
            checks.kind_of(pair[1])
            if pick and not checks.is_floating(pair[1])
            else None
        ),
        list(zip(pairs, picks, strict=True)),
        params,
        f"`{fn}` needs every leaf of `input_norms` that `where` chooses to be floating",
        TypeError,
    )
    return jax.tree.structure(params).unflatten(
        [
            jnp.abs(wide(w)) * norms.astype(wide(w).dtype) if pick else None
            for (w, norms), pick in zip(pairs, picks, strict=True)
        ]
    )


def _refuse_statistics(given: Any, *, fn: str) -> None:
    """Raise if a tree holds the statistics that norms are made from."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        given, is_leaf=lambda x: isinstance(x, Statistics)
    )
    checks.raise_all(
        (
            f"{trees.path_string(path)}: {type(leaf).__name__}"
            for path, leaf in leaves
            if isinstance(leaf, Statistics)
        ),
        f"`{fn}` needs `input_norms` as arrays, `calibration.norms(stats)` for `stats`",
        TypeError,
    )


def input_norms(
    apply: Callable[..., Any],
    params: Params,
    *inputs: Any,
    where: Predicate = kernels,
    weights: ArrayLike | None = None,
) -> Params:
    """The L2 norm of every input feature of each kernel, over batch and positions.

    The function is traced, and each kernel is followed to the dot products and
    convolutions where it meets data. This works for every framework, and is meant to
    be compiled: `jax.jit(functools.partial(score.input_norms, apply))(params, x)`.

    Args:
        apply: `(params, *inputs) -> output`. Products in the backward pass of a
            gradient are not counted.
        params: Tree of arrays.
        *inputs: The data. Everything else that `apply` uses counts as a constant.
        where: Which leaves are kernels.
        weights: How much each row of the data counts, [batch] or [batch, positions],
            not negative: a factor for the squares of the row, 0 for padding, as in
            `calibration.update`. Its axes are the leading axes of what every kernel
            meets. `None` counts each row once.

    Returns:
        A tree like `params`, `None` for leaves that are not chosen. A norm has the
        kernel's rank, is float32 or float64, and has length 1 along axes that are not
        contracted: (in, 1) for a dense kernel (in, out), (1, in) for (out, in), and
        (kh, kw, in, 1) for a convolution, whose entries meet what their place of the
        window reaches. An axis of experts keeps its length, and so do the outputs of a
        grouped convolution, because each meets inputs of its own. A kernel that is used
        twice gets the norm over both uses. For many batches see `calibration`.

    Raises:
        TypeError: If `apply` is no function, a chosen leaf not floating, or `weights`
            are no real numbers.
        ValueError: If `where` chooses nothing, there are no inputs, the inputs of a
            chosen leaf can't be found (it is in no contraction, its entries are mixed
            on the way, or it is used in a loop other than `scan`),
            `weights` do not fit the leading axes of what it meets, or are negative or
            not finite, unless they are traced: then the norms are nan.

    Example:
        >>> x = jnp.array([[3.0, 1.0], [4.0, 0.0]])
        >>> net = lambda params, x: x @ params["w"]
        >>> score.input_norms(net, {"w": jnp.ones((2, 5))}, x)["w"].ravel()
        Array([5., 1.], dtype=float32)
    """
    # Imported here, because the types of jaxprs add 4 % to the time to import JAX.
    from maskjax._core import walk

    fn = "maskjax.score.input_norms"
    picks = checks.chosen(params, where, fn=fn)
    rows = None if weights is None else checks.row_weights(weights, fn=fn)
    squares = walk.squares(apply, params, inputs, picks, fn=fn, weights=rows)
    norms = [jnp.sqrt(squares[i]) if pick else None for i, pick in enumerate(picks)]
    return jax.tree.structure(params).unflatten(norms)
