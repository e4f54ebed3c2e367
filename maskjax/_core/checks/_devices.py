"""Where arrays are that meet each other, and that what they hold is summed up."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding

from maskjax._core import trees
from maskjax._core.checks._flat import flat
from maskjax._core.checks._kinds import listing
from maskjax._core.packed import PackedMask


class _Place(NamedTuple):
    """The devices of an array: which, and in which order if there is one."""

    devices: frozenset[Any]
    order: tuple[Any, ...] | None


def together(*, fn: str, **given: Any) -> None:
    """All arrays are on the same devices, as far as they were put on some.

    For a function that is one program for all leaves: a leaf on each device, as stages
    of a pipeline are, will not do.

    Args:
        fn: The public function that errors blame.
        **given: Trees, by what that function calls them; not all leaves are arrays.
    """
    places = [_place(leaf) for leaf in flat(given, fn=fn)[0]]
    if not _alike(places):
        names = (path for path, _ in trees.named_leaves(given))
        found: dict[str, list[str]] = {}
        for name, place in zip(names, places, strict=True):
            if place:
                found.setdefault(_listed(place), []).append(name)
        lines = [f"{', '.join(names)}: {where}" for where, names in found.items()]
        raise listing(
            lines,
            f"`{fn}` needs all its arrays on the same devices in the same order "
            "(`jax.device_put`); call it for leaves on other devices by themselves",
        )
    summed(given, fn=fn)


def beside(tree: Any, *, fn: str, name: str = "params", **given: Any) -> None:
    """Each leaf of a tree is where other arrays are, as far as they were put anywhere.

    For a function of each leaf by itself: leaves need not be on the same devices.
    """
    for other, value in given.items():
        place = _place(value)
        if not place:
            continue
        lines = [
            f"{path}: {name} on {_listed(here)}, {other} on {_listed(place)}"
            for path, leaf in trees.named_leaves(tree)
            if (here := _place(leaf)) and not _alike([here, place])
        ]
        if lines:
            raise listing(lines, meeting(fn))
    summed(tree, fn=fn)


def apart(leaves: tuple[Any, ...], names: Sequence[str]) -> str | None:
    """What is wrong if arrays that were put on devices are not on the same ones."""
    arrays = [leaf.bits if isinstance(leaf, PackedMask) else leaf for leaf in leaves]
    places = [_place(array) for array in arrays]
    if _alike(places):
        return None
    found = zip(names, places, strict=True)
    return ", ".join(f"{name} on {_listed(place)}" for name, place in found if place)


def meeting(fn: str) -> str:
    """What a function needs of leaves that meet."""
    return f"`{fn}` needs leaves that meet on the same devices (`jax.device_put`)"


def summed(tree: Any, *, fn: str) -> None:
    """No array of an Explicit mesh is unreduced, or reduced."""
    if not any(map(_unfinished, flat(tree, fn=fn)[0])):
        return
    raise listing(
        (
            f"{path}: {jax.typeof(leaf).sharding.spec}"
            for path, leaf in trees.named_leaves(tree)
            if _unfinished(leaf)
        ),
        f"`{fn}` needs arrays that are neither unreduced nor reduced "
        "(`jax.sharding.reshard` first)",
    )


def _unfinished(leaf: Any) -> bool:
    """Whether a type says that an array is yet to be summed, or was for gradients."""
    if not isinstance(leaf, jax.Array):
        return False
    # The type of an array with values takes long to make.
    traced = isinstance(leaf, Tracer)
    sharding: Any = jax.typeof(leaf).sharding if traced else leaf.sharding  # type: ignore[attr-defined]
    if not isinstance(sharding, NamedSharding):
        return False
    return bool(sharding.spec.unreduced or sharding.spec.reduced)


def _place(leaf: Any) -> _Place | None:
    """Where an array was put, if anywhere."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return None
    if not leaf.committed:
        return None
    return _place_of(leaf.sharding)


@functools.lru_cache(maxsize=1024)
def _place_of(sharding: Any) -> _Place:
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    order = None if mesh is None else tuple(mesh.devices.flat)  # type: ignore[union-attr]
    return _Place(frozenset(sharding.device_set), order)


def _alike(places: Iterable[_Place | None]) -> bool:
    found = [place for place in places if place]
    orders = {place.order for place in found if place.order}
    return len({place.devices for place in found}) < 2 and len(orders) < 2


def _listed(place: _Place) -> str:
    ids = [device.id for device in place.order or ()]
    ids = ids or sorted(device.id for device in place.devices)
    if len(ids) > 8:
        return f"{len(ids)} devices from {ids[0]} to {ids[-1]}"
    return f"device{'s' * (len(ids) > 1)} {', '.join(map(str, ids))}"
