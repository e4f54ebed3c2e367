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


def stored(name: str) -> Callable[[type[_T]], type[_T]]:
    """Decorate a NamedTuple or a dataclass that is a pytree.

    A dataclass becomes a pytree by it; its static fields are what JSON knows, and
    tuples. Functions of such values can be exported and serialized by `jax.export`.

    Args:
        name: What the type is called in what is stored, which later versions have to
            read: its public name.
    """

    def register(cls: type[_T]) -> type[_T]:
        if not dataclasses.is_dataclass(cls):
            return export.register_namedtuple_serialization(cls, serialized_name=name)
        jax.tree_util.register_dataclass(cls)
        export.register_pytree_node_serialization(
            cls,
            serialized_name=name,
            serialize_auxdata=lambda static: json.dumps(static).encode(),
            deserialize_auxdata=lambda data: _as_tuples(json.loads(data)),
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


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
