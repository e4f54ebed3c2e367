"""Whether parameters are as masks in an optimizer's state leave them."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from maskjax import packing
from maskjax._core import checks, dtypes, trees
from maskjax._core.trees import Array, Params
from maskjax.optim._state import MaskWarning, by_paths, found


def check(
    opt_state: optax.OptState, params: Params, start: Params | None = None
) -> None:
    """Raise if removed weights are not zero, or frozen ones not as they were.

    `keep_sparse`, `prune`, `set_` and `rigl` decide about what is added to parameters.
    A transformation behind them, or a wrapper around them, may add something else, and
    parameters may come from elsewhere, as an average does. Nothing looks at that in
    every step, because counting takes longer than the step of an optimizer. Call this
    after the first steps, before you evaluate, or before you save.

    Args:
        opt_state: The state of an optimizer after a step, with a transformation of this
            module in it. Before the first step nothing is checked.
        params: The parameters after that step, or an average of them.
        start: The parameters given to `init`, if there are frozen ones to compare.

    Returns:
        None. It returns if all is right.

    Raises:
        ValueError: If weights that a mask removes are not zero, or, with `start`,
            differ where `mask_updates` freezes them (-0.0 from 0.0 too, and subnormal
            ones that an addition made 0): each parameter with how many. Or if nothing
            can be checked without `start`, or trees do not fit.

    Warns:
        MaskWarning: Instead, under `jit`, from a callback while the step runs.

    Example:
        >>> optimizer = optax.chain(optim.prune(0.5), optax.adamw(0.1))  # wrong order
        >>> params = {"w": jnp.array([[1.0, 2.0]])}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> params = optax.apply_updates(params, updates)
        >>> try:
        ...     optim.check(state, params)
        ... except ValueError as error:
        ...     print(str(error).splitlines()[-1])
          w: 1 of 1 removed
    """
    fn = "maskjax.optim.check"
    counts: dict[str, tuple[Any, Any]] = {}
    useful = False
    for state in found(opt_state, fn=fn):
        frozen = state.count is None
        if frozen and start is None:
            continue
        useful = True
        mask = by_paths(params, state.mask, fn=fn)
        pairs = checks.masked(params, mask, fn=fn)
        if frozen:
            names = ("params", "start")
            checks.same_shapes(params, start, fn=fn, names=names, is_leaf=None)
        olds = jax.tree.leaves(start) if frozen else [None] * len(pairs)
        kind = "frozen" if frozen else "removed"
        for path, (p, m), old in zip(trees.paths(params), pairs, olds, strict=True):
            if m is not None:
                with dtypes.counting(np.size(p)):
                    wrong, all_ = _differing(p, m, old, state.count)
                counts[f"{path}: %s of %s {kind}"] = wrong, all_
    if not useful:
        raise ValueError(
            f"`{fn}` needs `start`, the parameters that `init` was given: the masks in "
            "this state only freeze."
        )
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(counts))
    if not traced:
        _tell(jax.device_get(counts), fn=fn)
    else:
        jax.debug.callback(lambda found: _warn(found, fn=fn), counts)


@jax.jit
def _differing(
    param: Array, mask: Any, old: Array | None, count: Array | None
) -> tuple[Array, Array]:
    """How many removed entries are not 0, or not the old ones, and how many there are.

    None are before the first step.
    """
    dtype = dtypes.counts(param.size)
    out = ~jnp.broadcast_to(packing.unpack_leaf(mask), param.shape)
    if old is None:
        apart = dtypes.nonzero(param) & (jnp.any(jnp.asarray(count) > 0))
    else:
        apart = dtypes.bits(param) != dtypes.bits(old)
    return jnp.sum(out & apart, dtype=dtype), jnp.sum(out, dtype=dtype)


def _message(counts: dict[str, tuple[Any, Any]], *, fn: str) -> str | None:
    lines = [f"  {text % found}" for text, found in counts.items() if found[0].any()]
    if not lines:
        return None
    return (
        f"`{fn}` finds parameters that are not as their masks leave them. A "
        "transformation behind the one with the mask, or a wrapper around it, changes "
        "them (the page on optax says which order is right), or they are others: not "
        "zero if removed, not as at the start if frozen:\n" + "\n".join(lines)
    )


def _tell(counts: dict[str, tuple[Any, Any]], *, fn: str) -> None:
    message = _message(counts, fn=fn)
    if message:
        raise ValueError(message)


def _warn(counts: dict[str, tuple[Any, Any]], *, fn: str) -> None:
    message = _message(jax.tree.map(np.asarray, counts), fn=fn)
    if message:
        warnings.warn(message, MaskWarning, stacklevel=2)
