"""Gradients through a hard choice: the mask forward, the scores backward.

>>> scores = {"w": jnp.array([3.0, 1.0])}
>>> kept = lambda s: (estimator.top_k(s, density=0.5)["w"] * jnp.array([5.0, 7.0]))
>>> kept(scores), jax.grad(lambda s: kept(s).sum())(scores)["w"]
(Array([5., 0.], dtype=float32), Array([5., 7.], dtype=float32))
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from maskjax import packing, select
from maskjax._core import checks, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Array, Density, Scores, SoftMask
from maskjax.structure import Entries, Structure

__all__ = ["bernoulli", "straight_through", "threshold", "top_k"]


def straight_through(hard: Any, soft: Any) -> SoftMask:
    """A hard choice forward, a soft one backward.

    The value is exactly `hard`, whatever `soft` holds, inf and nan included;
    derivatives of any order are those of `soft`.

    Args:
        hard: A mask, or any tree of arrays.
        soft: A tree of floating leaves of the same structure and shapes.

    Returns:
        The values of `hard` in the dtypes of `soft`.

    Raises:
        TypeError: If a leaf of `soft` is not floating.
        ValueError: If the trees differ in structure or shapes.

    Example:
        >>> def f(x):
        ...     return estimator.straight_through(jnp.round(x), x**2)
        >>> f(jnp.float32(1.6)), jax.grad(f)(jnp.float32(1.6))
        (Array(2., dtype=float32), Array(3.2, dtype=float32))

    References:
        Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons
        for Conditional Computation". arXiv:1308.3432, section 4.
    """
    fn = "maskjax.estimator.straight_through"
    checks.floating_scores(soft, fn=fn, name="soft")
    hard = trees.map_mask(_unpacked, hard)
    checks.same_shapes(soft, hard, fn=fn, names=("soft", "hard"))
    return trees.map_mask(lambda s, h: _pass_through(h, s), soft, hard)


def top_k(
    scores: Scores,
    *,
    density: Density | Scores,
    scope: select.Scope = "leaf",
    structure: Structure = Entries(),
) -> SoftMask:
    """The mask of the highest scores, with the identity as its derivative.

    Removed entries receive gradients too, which is how they come back. Where entries
    are decided together the gradient goes through the mean of their scores.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone.
        density: As in `select.top_k`.
        scope: As in `select.top_k`.
        structure: As in `select.top_k`.

    Returns:
        A soft mask of exact 0s and 1s in the scores' dtypes.

    Raises:
        TypeError: As in `select.top_k`.
        ValueError: As in `select.top_k`.

    Example:
        >>> estimator.top_k({"w": jnp.array([3.0, 1.0, 2.0])}, density=0.34)
        {'w': Array([1., 0., 0.], dtype=float32)}

    References:
        Ramanujan et al., arXiv:1911.13299, section 3.
    """
    hard = select.top_k(scores, density=density, scope=scope, structure=structure)
    soft = trees.map_mask(
        lambda s: structure.spread(structure.pool(s)).astype(s.dtype), scores
    )
    return straight_through(hard, soft)


def threshold(scores: Scores, *, at: ArrayLike = 0.0) -> SoftMask:
    """The mask of scores that reach a threshold, with the identity as its derivative.

    Args:
        scores: Tree of floating leaves, `None` where a parameter is left alone.
        at: Entries with `score >= at` are kept. May be traced.

    Returns:
        A soft mask of exact 0s and 1s in the scores' dtypes.

    Raises:
        TypeError: If a leaf is not floating.

    Example:
        >>> estimator.threshold({"w": jnp.array([-1.0, 0.0, 2.0])})
        {'w': Array([0., 1., 1.], dtype=float32)}

    References:
        Mallya et al., "Piggyback", ECCV 2018. arXiv:1801.06519, section 3.
    """
    checks.floating_scores(scores, fn="maskjax.estimator.threshold")
    return straight_through(select.threshold(scores, at=at), scores)


def bernoulli(logits: Scores, *, key: Array) -> SoftMask:
    """A sample of the mask with probabilities sigmoid(logits), differentiable in them.

    Args:
        logits: Tree of floating leaves, `None` where a parameter is left alone.
        key: A typed key; every leaf gets its own.

    Returns:
        A soft mask of exact 0s and 1s in the logits' dtypes; its derivative is that of
        the sigmoid.

    Raises:
        TypeError: If a leaf is not floating, or the key is not a typed key.

    Example:
        >>> logits = {"w": jnp.array([-99.0, 0.0, 99.0])}
        >>> estimator.bernoulli(logits, key=jax.random.key(0))["w"][::2]
        Array([0., 1.], dtype=float32)

    References:
        Zhou et al., arXiv:1905.01067, section 5.1.
    """
    fn = "maskjax.estimator.bernoulli"
    checks.typed_key(key, fn=fn)
    checks.floating_scores(logits, fn=fn, name="logits")
    soft = trees.map_mask(jax.nn.sigmoid, logits)
    hard = select.bernoulli(jax.lax.stop_gradient(soft), key=key)
    return straight_through(hard, soft)


def _unpacked(leaf: Any) -> Any:
    return packing.unpack_leaf(leaf) if isinstance(leaf, PackedMask) else leaf


@jax.custom_jvp
def _pass_through(hard: Array, soft: Array) -> Array:
    # Not soft + stop_gradient(hard - soft), which rounds, and is nan where soft is inf.
    return jnp.asarray(hard).astype(soft.dtype)


@_pass_through.defjvp
def _pass_through_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    hard, soft = primals
    return _pass_through(hard, soft), tangents[1]
