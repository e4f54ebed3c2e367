"""The search for a stored mask by gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskjax import estimator, masking, select
from maskjax._core import checks
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params, Scores, map_mask
from maskjax.recipes.hopsupsup._memory import Memory, energy


@stored("maskjax.recipes.hopsupsup.Recovery")
class Recovery(NamedTuple):
    """The mask after the last step, and how it was found; a pytree.

    Attributes:
        mask: The mask.
        path: A stack of T: the masks after each step.
        objectives: [T], before each step; so are the `energies`.
    """

    mask: Mask
    path: Mask
    objectives: Array
    energies: Array


def recover(
    objective: Callable[..., Array],
    params: Params,
    memory: Memory,
    *batches: Any,
    optimizer: optax.GradientTransformation,
    strength: float | Array = 1.5e-3,
) -> Recovery:
    """Search for the stored mask that fits data of an unknown task.

    Args:
        objective: `(params, *batch) -> scalar`, low for the right mask: for example the
            `superposition.logit_entropy` of the outputs.
        params: Tree of arrays, the same for all tasks.
        memory: The stored masks.
        *batches: Trees of arrays [T, B, ...], one batch for each step.
        optimizer: Moves the scores. The paper's, for d = 2048 and T near 30:
            `optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(500, 0.9))`.
        strength: The coefficient of the energy at the last step.

    Returns:
        The mask, and how it was found. It may be none of those stored.

    Raises:
        ValueError: If the memory does not fit `params`, or a batch or T is empty.

    Example:
        >>> mask, x = {"s": jnp.array([True, False])}, jnp.array(4 * [[[9.0, 0.0]]])
        >>> memory = hopsupsup.store(hopsupsup.init(mask), mask)
        >>> entropy = lambda p, x: superposition.logit_entropy(x * p["s"][None])
        >>> trees = {"s": jnp.ones(2)}, memory
        >>> hopsupsup.recover(entropy, *trees, x, optimizer=optax.sgd(9.0)).mask
        {'s': Array([ True, False], dtype=bool)}
    """
    fn = "maskjax.recipes.hopsupsup.recover"
    checks.shaped_like(params, memory.sums, fn=fn, names=("params", "memory"))
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
    if len({s[:1] for s in shapes}) != 1 or any(s == () or 0 in s for s in shapes):
        raise ValueError(f"`{fn}` needs batches [T, B, ...], not empty, got {shapes}.")

    steps = shapes[0][0]

    @jax.jit
    def search(params: Params, memory: Memory, batches: Any, strength: Any) -> Recovery:
        def total(scores: Scores, share: Array, batch: Any) -> tuple[Array, Any]:
            mask = estimator.threshold(scores, at=0.0)
            value = objective(masking.apply(params, mask), *batch).astype(jnp.float32)
            stored = energy(memory, mask)
            return (1 - share) * value + share * strength * stored, (value, stored)

        def step(carry: Any, now: Any) -> tuple[Any, Any]:  # 4.
            scores, opt_state = carry
            gradients, found = jax.grad(total, has_aux=True)(scores, *now)
            updates, opt_state = optimizer.update(gradients, opt_state, scores)
            scores = optax.apply_updates(scores, updates)
            return (scores, opt_state), (select.threshold(scores, at=0.0), *found)

        most = jnp.maximum(memory.learned, 1).astype(jnp.float32)
        scores = map_mask(lambda n: n.astype(jnp.float32) / most, memory.sums)  # 3.
        shares = jnp.arange(1, steps + 1, dtype=jnp.float32) / steps
        start = scores, optimizer.init(scores)
        (scores, _), found = jax.lax.scan(step, start, (shares, batches))
        return Recovery(select.threshold(scores, at=0.0), *found)

    return search(params, memory, batches, strength)
