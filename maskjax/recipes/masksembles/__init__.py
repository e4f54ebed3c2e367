"""Masksembles: one network under a few fixed masks (Durasov et al., CVPR 2021).

arXiv:2012.08334. Between a single network (scale 1), MC-dropout (many members) and an
ensemble (a scale without overlap).

Algorithm (numbers match the comments below):
  1. of N masks of C features, each has m = C / (s (1 - (1 - 1 / s)^N)) ones, rounded
     down; two of them share m / s on average
  2. masks stand where dropout would, after hidden layers, and never change
  3. in training each sample passes through one mask; there is no rescaling
  4. all members predict; their mean is the prediction, their spread its uncertainty

Departures from the paper:
  * the authors draw m of m * s places until the masks happen to cover C of them, and
    may fail. Here how many masks have each feature is set beforehand, near to what that
    draw gives, so that all is exact: ones, cover and mean overlap, the last to the
    nearest whole number (see `plan`). Which masks a feature is in is random
  * m is larger where N * m would not cover the features
  * masks are not equal while different ones are left

As masks on features they live in `layers`; on the input rows of kernels, `init`, they
are any stack of masks. With as many ones each, members are thinner networks of one
shape: `thin`.

    >>> from maskjax.recipes import masksembles
    >>> x, params = jnp.ones((2, 3)), {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 1))}
    >>> net = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> after, key = where.matching("b"), jax.random.key(0)
    >>> stack = masksembles.init(params, where=after, key=key)
    >>> stacking.predict(net, params, stack, x).ravel()
    Array([12., 12., 12., 12., 12., 12., 12., 12.], dtype=float32)
    >>> thin = masksembles.thin(params, stack, links={"b": ["a"]})
    >>> thin.params["a"].shape, masksembles.predict(net, thin, x).shape
    ((4, 3, 4), (4, 2, 1))
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import checks, trees
from maskjax._core.trees import Array, Mask, Params, Predicate
from maskjax.recipes.masksembles._family import Family, family, shuffled
from maskjax.recipes.masksembles._thin import Thin, predict, thin

__all__ = [
    "Plan",
    "Thin",
    "at_random",
    "in_chunks",
    "init",
    "masks",
    "plan",
    "predict",
    "rows",
    "thin",
]

_FN = "maskjax.recipes.masksembles"


class Plan(NamedTuple):
    """What masks will be like, whatever the key; Python numbers.

    Attributes:
        ones: m, of each mask.
        asked: The mean share of a mask's ones that another has too: 1 / scale.
        achieved: What it will be, nan for one member.
        distinct: How many masks will differ.
    """

    ones: int
    asked: float
    achieved: float
    distinct: int


def plan(channels: int, *, members: int = 4, scale: float = 2.0) -> Plan:
    """How many ones masks will have, and how much they will share.

    Args:
        channels: C, at least 1.
        members: N, at least 1.
        scale: s, at least 1, which gives masks of ones. The paper: up to 6.

    Returns:
        The plan.

    Raises:
        TypeError: If a count is no whole Python number, or the scale no number.
        ValueError: If a count is below 1, or the scale is, or is not finite.

    Example:
        >>> masksembles.plan(64, members=4, scale=2.0)
        Plan(ones=34, asked=0.5, achieved=0.5, distinct=4)
        >>> masksembles.plan(5, members=2, scale=8.0).achieved  # 3 of 5, twice
        0.333...
    """
    found = _family(channels, members, scale, fn=f"{_FN}.plan")
    ones, pairs = int(found.rows[0].sum()), math.comb(members, 2)
    achieved = found.shared / (pairs * ones) if pairs else math.nan
    return Plan(ones, 1 / scale, achieved, found.distinct)


def masks(channels: int, *, members: int = 4, scale: float = 2.0, key: Array) -> Array:
    """Masks on features, as `plan` says: 1.

    Args:
        channels: As in `plan`.
        members: As in `plan`.
        scale: As in `plan`.
        key: A typed key.

    Returns:
        [N, C], boolean: True keeps.

    Raises:
        TypeError: As in `plan`, or if the key is not typed.
        ValueError: As in `plan`.

    Example:
        >>> drawn = masksembles.masks(10, scale=3.0, key=jax.random.key(0))
        >>> drawn.sum(1), bool(drawn.any(0).all())
        (Array([4, 4, 4, 4], dtype=int32), True)
    """
    fn = f"{_FN}.masks"
    checks.typed_key(key, fn=fn)
    found = _family(channels, members, scale, fn=fn)
    return shuffled(jnp.asarray(found.rows), jnp.int32(found.distinct), key)


def init(
    params: Params,
    *,
    where: Predicate,
    members: int = 4,
    scale: float = 2.0,
    key: Array,
) -> Mask:
    """Masks on the input rows of kernels, which is to mask the features they meet.

    Args:
        params: Tree of arrays, of which shapes are looked at.
        where: The kernels that follow a masked layer, [..., C, out] in Flax. Each gets
            masks of its own, member i of one going with member i of the others.
        members: As in `plan`.
        scale: As in `plan`.
        key: A typed key; every leaf gets its own.

    Returns:
        A stack of N masks, leaves [N, 1, ..., C, 1], for `stacking.predict`.

    Raises:
        TypeError: As in `masks`, or if a chosen leaf is not floating.
        ValueError: As in `masks`, or if `where` chooses nothing, or no kernel.

    Example:
        >>> params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
        >>> stack = masksembles.init(
        ...     params, where=where.matching("b"), key=jax.random.key(0)
        ... )
        >>> stack["a"], stack["b"].shape
        (None, (4, 8, 1))
    """
    fn = f"{_FN}.init"
    checks.typed_key(key, fn=fn)
    chosen = checks.chosen_leaves(params, where, fn=fn)
    flat = [(p, x) for p, x in trees.named_leaves(chosen) if x.ndim < 2]
    checks.raise_all(
        (f"{path}: {checks.kind_of(leaf)}" for path, leaf in flat),
        f"`{fn}` needs `where` to choose kernels, of 2 axes or more",
    )
    leaves, treedef = jax.tree.flatten(chosen)
    how = {"members": members, "scale": scale}
    return treedef.unflatten(
        rows(masks(leaf.shape[-2], **how, key=jax.random.fold_in(key, i)), leaf)
        for i, leaf in enumerate(leaves)
    )


def rows(masks: Array, kernel: Array) -> Array:
    """Masks on features as masks on the input rows of the kernel that meets them.

    Args:
        masks: [N, C].
        kernel: [..., C, out], or [k * C, out] after k places of C channels each were
            flattened, channels last.

    Returns:
        [N, 1, ..., C, 1], or [N, k * C, 1].

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> masksembles.rows(jnp.array([[True, False]]), jnp.ones((4, 3)))[0, :, 0]
        Array([ True, False,  True, False], dtype=bool)
    """
    fits = masks.ndim == 2 and masks.size and kernel.ndim >= 2
    if not fits or kernel.shape[-2] % masks.shape[1]:
        raise ValueError(
            f"`{_FN}.rows` needs `masks` [N, C] and `kernel` [..., k * C, out], got "
            f"{masks.shape} and {kernel.shape}."
        )
    whole = jnp.tile(masks, (1, kernel.shape[-2] // masks.shape[1]))
    return whole.reshape(len(masks), *(1,) * (kernel.ndim - 2), -1, 1)


def in_chunks(batch: int, *, members: int) -> Array:
    """The member of each sample in training, in runs: 3.

    Args:
        batch: B, at least 1, of samples that were shuffled. Any number will do: members
            get as many each, or one more.
        members: N.

    Returns:
        [B], int32, in [0, N), ascending.

    Raises:
        TypeError: If a count is no whole Python number.
        ValueError: If a count is below 1.

    Example:
        >>> masksembles.in_chunks(5, members=2)
        Array([0, 0, 0, 1, 1], dtype=int32)
    """
    for value, name in ((batch, "batch"), (members, "members")):
        _count(value, fn=f"{_FN}.in_chunks", name=name)
    return jnp.asarray(np.arange(batch) * members // batch, jnp.int32)


def at_random(batch: int, *, members: int, key: Array) -> Array:
    """The member of each sample in training, at random, but as many for each: 3.

    Args:
        batch: As in `in_chunks`.
        members: As in `in_chunks`.
        key: A typed key. Another for each step, or samples keep their members.

    Returns:
        [B], int32, in [0, N). Which members get one more is random, too.

    Raises:
        TypeError: As in `in_chunks`, or if the key is not typed.
        ValueError: As in `in_chunks`.

    Example:
        >>> assigned = masksembles.at_random(6, members=3, key=jax.random.key(0))
        >>> jnp.bincount(assigned)
        Array([2, 2, 2], dtype=int32)
    """
    fn = f"{_FN}.at_random"
    checks.typed_key(key, fn=fn)
    for value, name in ((batch, "batch"), (members, "members")):
        _count(value, fn=fn, name=name)
    order, names = jax.random.split(key)
    chunks = jax.random.permutation(order, in_chunks(batch, members=members))
    return jax.random.permutation(names, jnp.arange(members, dtype=jnp.int32))[chunks]


def _family(channels: int, members: int, scale: float, *, fn: str) -> Family:
    for value, name in ((channels, "channels"), (members, "members")):
        _count(value, fn=fn, name=name)
    if not checks.is_number(scale):
        raise TypeError(
            f"`{fn}` needs `scale` as a Python number, got {checks.kind_of(scale)}."
        )
    if not 1 <= scale < math.inf:
        raise ValueError(f"`{fn}` needs `scale` of at least 1, finite, got {scale}.")
    # 1 - (1 - 1 / s)^N, without cancellation where s is large.
    covered = -math.expm1(members * math.log1p(-1 / scale)) if scale > 1 else 1.0
    ones = math.floor(channels / (scale * covered) + 1e-9)
    ones = min(max(ones, -(-channels // members)), channels)
    return family(members, channels, ones, math.comb(members, 2) * ones / scale)


def _count(value: Any, *, fn: str, name: str) -> None:
    if isinstance(value, jax.Array):
        raise TypeError(f"`{fn}` needs `{name}` as a Python number, got an array.")
    checks.at_least(value, 1, fn=fn, name=name)
