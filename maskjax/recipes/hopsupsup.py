"""HopSupSup: masks kept in a Hopfield network, whose size does not grow (NeurIPS 2020).

Wortsman et al., "Supermasks in Superposition", arXiv:2006.14769, section 3.5.

Algorithm (numbers match the comments below):
  1. learn a mask of activations for each task (`supsup.step`): of the scale, all ones,
     of norms without bias, so that what it removes is 0, also after a ReLU or Swish
  2. store it, z = +-1 of d entries, in a matrix psi [d, d] for each layer
  3. given T batches of an unknown task, begin with scores at the mean of all z
  4. with batch t descend by the scores, straight through the mask s = +-1, from
     (1 - t / T) * objective + strength * t / T * energy, energy = sum of -s' psi s / 2
The paper's text stores by Hebb's rule, its code by one like Storkey's, our default. A
psi of 4 d^2 bytes holds fewer than d masks: a `bank` of their bits is always smaller.

    >>> from maskjax.recipes import hopsupsup
    >>> a, b = {"scale": jnp.array([True, False])}, {"scale": jnp.array([False, True])}
    >>> memory = hopsupsup.store(hopsupsup.store(hopsupsup.init(a), a), b)
    >>> network, x = {"scale": jnp.ones(2)}, jnp.array(4 * [[[9.0, 0.0]]])
    >>> entropy = lambda p, x: superposition.entropy(x * p["scale"][None])
    >>> hopsupsup.recover(entropy, network, memory, x, optimizer=optax.sgd(9.0)).mask
    {'scale': Array([ True, False], dtype=bool)}
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskjax import estimator, masking, packing, select
from maskjax._core import checks
from maskjax._core.trees import Array, Mask, Params, Scores, SoftMask, map_mask

__all__ = ["Memory", "Recovery", "energy", "init", "recover", "store"]


class Memory(NamedTuple):
    """Stored masks, in space that does not depend on how many; a pytree.

    Attributes:
        psi: [d, d], float32 and symmetric, for each leaf of d entries, else `None`.
        sums: int32 in one mask's shapes: how many more masks keep an entry than remove.
        learned: int32, how many masks were stored.
    """

    psi: Any
    sums: Any
    learned: Array


class Recovery(NamedTuple):
    """What was recovered, and how; a pytree.

    Attributes:
        mask: The last of the path.
        path: A stack of T: the masks after each step.
        objectives: [T], before each step; so are the `energies`.
    """

    mask: Mask
    path: Mask
    objectives: Array
    energies: Array


def init(mask: Mask) -> Memory:
    """A memory without a mask.

    Args:
        mask: One of those to come, of which only the shapes are looked at.

    Returns:
        The memory: 4 d^2 bytes for a leaf of d entries.

    Raises:
        TypeError: If a leaf is neither boolean nor packed.
        ValueError: If all are `None`.

    Example:
        >>> hopsupsup.init({"scale": jnp.ones(3, bool)}).psi["scale"].shape
        (3, 3)
    """
    fn = "maskjax.recipes.hopsupsup.init"
    checks.boolean(mask, fn=fn)
    if not jax.tree.leaves(mask):
        raise ValueError(f"`{fn}` needs `mask` with at least one leaf, got none.")
    psi = map_mask(lambda m: jnp.zeros((m.size, m.size), jnp.float32), mask)
    sums = map_mask(lambda m: jnp.zeros(m.shape, jnp.int32), mask)
    return Memory(psi, sums, jnp.zeros((), jnp.int32))


def store(
    memory: Memory, mask: Mask, *, rule: Literal["storkey", "hebbian"] = "storkey"
) -> Memory:
    """A memory with one mask more; a step of `lax.scan` over a stack.

    Args:
        memory: The memory.
        mask: What to store: True keeps. It may be packed.
        rule: "hebbian" adds z z' / d; "storkey" (z z' - I - z h' - h z') / d, where
            h = psi z, so that masks that are alike disturb each other less.

    Returns:
        The memory.

    Raises:
        TypeError: If a leaf of the mask is neither boolean nor packed.
        ValueError: If the mask does not fit the memory, or there is no such rule.

    Example:
        >>> mask = {"scale": jnp.array([True, False])}
        >>> hopsupsup.store(hopsupsup.init(mask), mask, rule="hebbian").psi["scale"][0]
        Array([ 0.5, -0.5], dtype=float32)
    """
    fn = "maskjax.recipes.hopsupsup.store"
    checks.one_of(rule, ("storkey", "hebbian"), fn=fn, name="rule")
    checks.boolean(mask, fn=fn)

    def learned(z: Array, psi: Array) -> Array:  # 2.
        new = jnp.outer(z, z)
        if rule == "storkey":
            cross = jnp.outer(z, jnp.matmul(psi, z, precision="highest"))
            # In this order psi is symmetric to the bit.
            new -= jnp.eye(z.size, dtype=z.dtype) + (cross + cross.T)
        return psi + new / z.size

    z = _signs(memory, mask, fn)
    psi = map_mask(lambda z, psi: learned(z.ravel(), psi), z, memory.psi)
    sums = map_mask(lambda z, total: total + z.astype(jnp.int32), z, memory.sums)
    return Memory(psi, sums, memory.learned + 1)


def energy(memory: Memory, mask: Mask | SoftMask) -> Array:
    """The sum over layers of -s' psi s / 2, s = 2 mask - 1: low for stored masks.

    Args:
        memory: The memory.
        mask: A mask, or a soft one, which gradients reach.

    Returns:
        A scalar, float32.

    Raises:
        ValueError: If the mask does not fit the memory.

    Example:
        >>> mask = {"scale": jnp.array([True, False])}
        >>> memory = hopsupsup.store(hopsupsup.init(mask), mask, rule="hebbian")
        >>> print(hopsupsup.energy(memory, mask))
        -1.0
    """
    signs = jax.tree.leaves(_signs(memory, mask, "maskjax.recipes.hopsupsup.energy"))
    pairs = zip(map(jnp.ravel, signs), jax.tree.leaves(memory.psi), strict=True)
    sums = [jnp.vdot(s, jnp.matmul(psi, s, precision="highest")) for s, psi in pairs]
    return -jnp.stack(sums).sum() / 2


def recover(
    objective: Callable[..., Array],
    params: Params,
    memory: Memory,
    *batches: Any,
    optimizer: optax.GradientTransformation,
    strength: float | Array = 1.5e-3,
) -> Recovery:
    """The stored mask that fits data of an unknown task, found by gradient descent.

    Args:
        objective: `(params, *batch) -> scalar`: the `superposition.entropy` of logits.
        params: Tree of arrays, the same for all tasks.
        memory: The masks.
        *batches: Trees of arrays [T, B, ...]: a batch for each step.
        optimizer: Of the scores. The paper's, for d = 2048 and T near 30:
            `optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(500, 0.9))`.
        strength: The weight of the energy at the last step.

    Returns:
        The mask, and how it was found. It need not be one of those stored.

    Raises:
        ValueError: If the memory does not fit `params`, or a batch or T is empty.

    Example:
        >>> memory = hopsupsup.init({"scale": jnp.array([True, False])})
        >>> data = {"scale": jnp.ones(2)}, memory, jnp.ones((3, 1, 2))
        >>> total = lambda params, x: (x @ params["scale"]).sum()
        >>> hopsupsup.recover(total, *data, optimizer=optax.sgd(1.0)).energies.shape
        (3,)
    """
    fn = "maskjax.recipes.hopsupsup.recover"
    checks.mask_of(memory.sums, params, fn=fn, names=("params", "memory"))
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
    if len({s[:1] for s in shapes}) != 1 or any(s == () or 0 in s for s in shapes):
        raise ValueError(f"`{fn}` needs batches [T, B, ...], not empty, got {shapes}.")

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
    shares = jnp.arange(1, shapes[0][0] + 1, dtype=jnp.float32) / shapes[0][0]
    carry = scores, optimizer.init(scores)
    (scores, _), found = jax.lax.scan(step, carry, (shares, batches))
    return Recovery(select.threshold(scores, at=0.0), *found)


def _signs(memory: Memory, mask: Any, fn: str) -> Any:
    checks.same_shapes(memory.sums, mask, fn=fn, names=("memory", "mask"))
    checks.packed(mask, fn=fn, stacked=False)
    return map_mask(lambda m: 2 * packing.unpack_leaf(m).astype(jnp.float32) - 1, mask)
