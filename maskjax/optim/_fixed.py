"""Masks that stay as they are: weights frozen, or kept at zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskjax._core import checks
from maskjax._core.trees import Mask, Params
from maskjax.optim._state import MaskState, fitted, held
from maskjax.optim._steps import Transformation, is_function, params_given
from maskjax.optim._updates import frozen, zeroing


def mask_updates(mask: Mask | Callable[[Params], Mask]) -> Transformation:
    """Freeze what a mask removes: entries with False never change, bit for bit.

    Their updates become -0.0, the one number that changes nothing when it is added,
    whatever the transformations before it computed. Only subnormal parameters (below
    1.2e-38 in float32 and bfloat16) become 0 where XLA's addition rounds them to it, as
    it may on CPU: no update can prevent that.

    Args:
        mask: A mask, boolean or packed: True trains, False freezes; a `None` leaf
            trains. True and False may stand for whole leaves and subtrees, as in
            `optax.masked`. Or a function from parameters to a mask, called by `init`.

    Returns:
        A transformation, to be the last of a chain.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If the mask has no leaf, or does not fit the parameters or the
            updates.

    Example:
        >>> mask = {"w": jnp.array([[True, False]])}
        >>> optimizer = optax.chain(optax.adamw(0.1), optim.mask_updates(mask))
        >>> params = {"w": jnp.array([[1.0, 1.0]])}
        >>> optimizer.update(params, optimizer.init(params), params)[0]
        {'w': Array([[-0.10000934, -0.        ]], dtype=float32)}
    """
    fn = "maskjax.optim.mask_updates"

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
        del params
        return frozen(updates, held(state, fn=fn), fn=fn), state

    return Transformation(_holding(mask, fn=fn), update)


def keep_sparse(mask: Mask | Callable[[Params], Mask]) -> Transformation:
    """Keep parameters sparse: parameters plus updates are exactly masked.

    Gradients are left as they are, so the optimizers before it see the dense gradient.

    Args:
        mask: A mask, boolean or packed: True keeps; a `None` leaf is left alone. True
            and False may stand for whole leaves and subtrees. Or a function from
            parameters to a mask, called by `init`, which prunes in one shot.

    Returns:
        A transformation, to be the last of a chain. Its `update` needs `params`.
        Removed parameters become zero if they are finite.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If the mask has no leaf, or does not fit the parameters or the
            updates, or if `update` is called without `params`.

    Example:
        >>> mask = {"w": jnp.array([[True, False]])}
        >>> optimizer = optax.chain(optax.sgd(0.5), optim.keep_sparse(mask))
        >>> params = {"w": jnp.array([[1.0, 1.0]])}
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> optax.apply_updates(params, updates)
        {'w': Array([[0.5, 0. ]], dtype=float32)}
    """
    fn = "maskjax.optim.keep_sparse"

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> Any:
        params_given(params, fn=fn)
        count = jnp.asarray(optax.safe_increment(state.count))
        mask = held(state, fn=fn)
        return zeroing(updates, params, mask, fn=fn), MaskState(state.mask, count)

    return Transformation(_holding(mask, fn=fn, counted=True), update)


def _holding(
    mask: Mask | Callable[[Params], Mask], *, fn: str, counted: bool = False
) -> Any:
    """The `init` of a transformation whose mask stays."""

    def init(params: Params) -> MaskState:
        given = checks.spread(params, mask(params) if is_function(mask) else mask)
        given = fitted(params, given)
        checks.masked(params, given, fn=fn)
        if not jax.tree.leaves(given) and jax.tree.leaves(params):
            raise ValueError(f"`{fn}` needs a mask with at least one leaf, got none.")
        # A copy, because a loop that donates the state would delete the user's mask.
        own = jax.tree.map(jnp.copy, given)
        return MaskState(own, jnp.zeros((), jnp.int32) if counted else None)

    return init
