"""Where arrays are that meet each other."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer

from maskjax._core.packed import PackedMask


def apart(leaves: tuple[Any, ...], names: Sequence[str]) -> str | None:
    """What is wrong if arrays that were put on devices are not on the same ones."""
    found = [(name, _devices(leaf)) for name, leaf in zip(names, leaves, strict=True)]
    found = [(name, devices) for name, devices in found if devices]
    if all(devices == found[0][1] for _, devices in found):
        return None
    return ", ".join(f"{name} on {_listed(devices)}" for name, devices in found)


def _devices(leaf: Any) -> frozenset[Any]:
    array = leaf.bits if isinstance(leaf, PackedMask) else leaf
    if not isinstance(array, jax.Array) or isinstance(array, Tracer):
        return frozenset()
    return frozenset(array.sharding.device_set if array.committed else ())


def _listed(devices: frozenset[Any]) -> str:
    ids = sorted(device.id for device in devices)
    if len(ids) > 8:
        return f"{len(ids)} devices from {ids[0]} to {ids[-1]}"
    return f"device{'s' * (len(ids) > 1)} {', '.join(map(str, ids))}"
