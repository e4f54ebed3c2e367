"""Modules that a package imports when they are first asked for (PEP 562)."""

import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType


def attributes(
    package: str, public: Sequence[str]
) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`.

    Both are for run time only. Type checkers read imports under `TYPE_CHECKING`
    instead: a `__getattr__` would make them take any misspelled name for a module.

    Args:
        package: Its name, `__name__`.
        public: All public names. Those that the package does not define are modules.
    """

    def get(name: str) -> ModuleType:
        if name not in public:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}",
                name=name,
                obj=sys.modules[package],  # Python suggests a name of its own
            )
        return importlib.import_module(f"{package}.{name}")

    def names() -> list[str]:
        own = vars(sys.modules[package])
        return sorted({*public, *(name for name in own if name.startswith("__"))})

    return get, names
