"""Compiled programs for trees whose leaves are not all arrays, as those of Equinox."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax

from maskjax._core import checks


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """A tree without its arrays: its structure, and its other leaves by number."""

    treedef: Any
    others: tuple[tuple[int, Hashable], ...]

    def filled(self, arrays: list[Any]) -> Any:
        """The tree with arrays."""
        others, rest = dict(self.others), iter(arrays)
        count = self.treedef.num_leaves
        return self.treedef.unflatten(
            [others[i] if i in others else next(rest) for i in range(count)]
        )


def split(tree: Any) -> tuple[list[Any], Skeleton]:
    """The arrays of a tree, and the rest."""
    leaves, treedef = jax.tree.flatten(tree)
    arrays = [leaf for leaf in leaves if checks.shaped(leaf)]
    others = [(i, leaf) for i, leaf in enumerate(leaves) if not checks.shaped(leaf)]
    return arrays, Skeleton(treedef, tuple(others))


def compiled(function: Callable[..., Any], static: Hashable, **options: Any) -> Any:
    """`function(static, *arrays)` compiled, once for all equal values of `static`.

    A value that cannot be hashed gets a program of its own.
    """
    try:
        hash(static)
    except TypeError:
        return jax.jit(lambda *args: function(static, *args), **options)
    program = _PROGRAMS.setdefault(
        function, jax.jit(function, static_argnums=0, **_moved(options))
    )
    return lambda *args: program(static, *args)


_PROGRAMS: dict[Callable[..., Any], Any] = {}


def _moved(options: dict[str, Any]) -> dict[str, Any]:
    """Numbers of donated arguments, counted with the static one."""
    given = options.get("donate_argnums")
    return options if given is None else {**options, "donate_argnums": given + 1}
