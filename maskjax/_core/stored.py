"""Types of ours that other libraries store: in exported functions, in checkpoints."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import export

_T = TypeVar("_T")

_dataclasses: list[type] = []
_listeners: list[Callable[[type], None]] = []


def stored(name: str, *, static: type | None = None) -> Callable[[type[_T]], type[_T]]:
    """Decorate a NamedTuple or a dataclass that is a pytree.

    A dataclass becomes a pytree by it; its static fields are what JSON knows, and
    tuples. Functions of such values can be exported and serialized by `jax.export`.

    Args:
        name: What the type is called in what is stored, which later versions have to
            read: its public name.
        static: Another dataclass, of which static fields may be.
    """

    def told(value: Any) -> Any:
        if static is None or not isinstance(value, static):
            raise TypeError(f"{type(value).__name__} can't be stored")
        return dataclasses.asdict(value)  # type: ignore[call-overload]

    def read(value: Any) -> Any:
        if isinstance(value, dict) and static is not None:
            return static(**value)
        return tuple(map(read, value)) if isinstance(value, list) else value

    def register(cls: type[_T]) -> type[_T]:
        if not dataclasses.is_dataclass(cls):
            return export.register_namedtuple_serialization(cls, serialized_name=name)
        jax.tree_util.register_dataclass(cls)
        export.register_pytree_node_serialization(
            cls,
            serialized_name=name,
            serialize_auxdata=lambda fields: json.dumps(fields, default=told).encode(),
            deserialize_auxdata=lambda data: read(json.loads(data)),
        )
        _dataclasses.append(cls)
        for listener in _listeners:
            listener(cls)
        return cls

    return register


def on_each(listener: Callable[[type], None]) -> None:
    """Call a function with each dataclass that is stored: those to come, too."""
    for cls in _dataclasses:
        listener(cls)
    _listeners.append(listener)
