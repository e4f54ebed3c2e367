"""Types of ours that other libraries store: in exported functions, in checkpoints."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax import export

_T = TypeVar("_T")

_dataclasses: list[type] = []
_listeners: list[Callable[[type], None]] = []


def stored(name: str, *, holds: Sequence[type] = ()) -> Callable[[type[_T]], type[_T]]:
    """Decorate a NamedTuple or a dataclass that is a pytree.

    A dataclass becomes a pytree by it; its static fields are what JSON knows, tuples,
    and some dataclasses. Functions of such values can be exported and serialized by
    `jax.export`.

    Args:
        name: What the type is called in what is stored, which later versions have to
            read: its public name.
        holds: The dataclasses that static fields may be.
    """
    known = {cls.__name__: cls for cls in holds}

    def made(read: dict[str, Any]) -> Any:
        """A dataclass, of what `_plain` made of it."""
        [*names] = read
        if len(names) != 1 or names[0] not in known:
            return read
        return known[names[0]](**{k: _as_tuples(v) for k, v in read[names[0]].items()})

    def written(static: Any) -> bytes:
        return json.dumps(static, default=_plain).encode()

    def register(cls: type[_T]) -> type[_T]:
        if not dataclasses.is_dataclass(cls):
            _name_types(cls)
            return export.register_namedtuple_serialization(cls, serialized_name=name)
        jax.tree_util.register_dataclass(cls)
        export.register_pytree_node_serialization(
            cls,
            serialized_name=name,
            serialize_auxdata=written,
            deserialize_auxdata=lambda x: _as_tuples(json.loads(x, object_hook=made)),
        )
        _dataclasses.append(cls)
        for listener in _listeners:
            listener(cls)
        return cls

    return register


def _name_types(cls: Any) -> None:
    """Let `help` say `mask: 'Mask'` of a NamedTuple, not `ForwardRef('Mask')`."""
    shown = cls.__new__.__annotations__
    for name, kind in shown.items():
        shown[name] = getattr(kind, "__forward_arg__", kind)


def on_each(listener: Callable[[type], None]) -> None:
    """Call a function with each dataclass that is stored: those to come, too."""
    for cls in _dataclasses:
        listener(cls)
    _listeners.append(listener)


def _plain(value: Any) -> dict[str, Any]:
    return {type(value).__name__: dataclasses.asdict(value)}


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
