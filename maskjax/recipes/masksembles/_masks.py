"""Masks on features."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from maskjax._core import checks
from maskjax._core.stored import stored
from maskjax._core.trees import Array
from maskjax.recipes.masksembles._family import Family, family
from maskjax.recipes.masksembles._shuffle import shuffled

_FN = "maskjax.recipes.masksembles."


@stored("maskjax.recipes.masksembles.Plan")
class Plan(NamedTuple):
    """What masks will be like with any key; Python numbers.

    Attributes:
        ones: m, the number of ones of each mask.
        asked: The mean fraction of a mask's ones that another mask should have too:
            1 / scale.
        achieved: What that fraction will be; nan for one member.
        distinct: How many masks will differ.
    """

    ones: int
    asked: float
    achieved: float
    distinct: int


def plan(channels: int, *, members: int = 4, scale: float = 2.0) -> Plan:
    """How many ones masks will have, and how much they will overlap: 1.

    Args:
        channels: C, at least 1.
        members: N, at least 1.
        scale: s, at least 1; with 1 masks keep everything. The paper: up to 6.

    Returns:
        The plan.

    Raises:
        TypeError: If a count is not a whole Python number, or the scale not a number.
        ValueError: If a count is below 1, or the scale is below 1 or not finite.

    Example:
        >>> masksembles.plan(64, members=4, scale=2.0)
        Plan(ones=34, asked=0.5, achieved=0.5, distinct=4)
        >>> masksembles.plan(5, members=2, scale=8.0).achieved  # 3 of 5, twice
        0.333...
    """
    found = planned(channels, members, scale, fn=_FN + "plan")
    ones, pairs = int(found.rows[0].sum()), math.comb(members, 2)
    achieved = found.shared / (pairs * ones) if pairs else math.nan
    return Plan(ones, 1 / scale, achieved, found.distinct)


def masks(channels: int, *, members: int = 4, scale: float = 2.0, key: Array) -> Array:
    """Masks on features, as planned by `plan`: 1.

    Args:
        channels: C, at least 1.
        members: N, at least 1.
        scale: s, at least 1; with 1 masks keep everything.
        key: A typed key.

    Returns:
        [N, C], boolean: True keeps.

    Raises:
        TypeError: If a count is not a whole Python number, the scale not a number, or
            the key not typed.
        ValueError: If a count is below 1, or the scale is below 1 or not finite.

    Example:
        >>> drawn = masksembles.masks(10, scale=3.0, key=jax.random.key(0))
        >>> drawn.sum(1), bool(drawn.any(0).all())
        (Array([4, 4, 4, 4], dtype=int32), True)
    """
    fn = _FN + "masks"
    checks.typed_key(key, fn=fn)
    found = planned(channels, members, scale, fn=fn)
    return shuffled(found.rows, np.int32(found.distinct), key)


def planned(channels: int, members: int, scale: float, *, fn: str) -> Family:
    """The family of masks for these numbers, once they are checked."""
    for value, name in ((channels, "channels"), (members, "members")):
        count(value, fn=fn, name=name)
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


def count(value: Any, *, fn: str, name: str) -> None:
    """Raise unless a value is a whole Python number of at least 1."""
    if isinstance(value, jax.Array):
        raise TypeError(f"`{fn}` needs `{name}` as a Python number, got an array.")
    checks.at_least(value, 1, fn=fn, name=name)
