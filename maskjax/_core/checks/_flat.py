"""The leaves of a tree whose dicts JAX can sort."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from maskjax._core import trees
from maskjax._core.checks._kinds import kind_of, listing


def flat(
    tree: Any, *, fn: str, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[list[Any], Any]:
    """The leaves and the structure of a tree.

    Raises:
        TypeError: If the keys of a dict can't be sorted, as JAX does; it is named.
    """
    try:
        return jax.tree.flatten(tree, is_leaf=is_leaf)
    except (TypeError, ValueError) as error:  # dicts of JAX, and those of Flax
        lines = _unsortable(tree, ())
        if not lines:
            raise
        needs = (
            f"`{fn}` needs dicts whose keys can be sorted (all strings, or all whole "
            "numbers)"
        )
        raise listing(lines, needs, TypeError) from error


def _unsortable(node: Any, path: tuple[Any, ...]) -> list[str]:
    try:
        found = jax.tree_util.tree_flatten_with_path(node, lambda x: x is not node)[0]
    except (TypeError, ValueError):
        keys = isinstance(node, Mapping) and f"keys {', '.join(map(repr, node))}"
        return [f"{trees.path_string(path) or 'the root'}: {keys or kind_of(node)}"]
    return [line for p, child in found if p for line in _unsortable(child, path + p)]
