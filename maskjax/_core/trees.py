"""Walking trees of parameters and masks together, with paths a person can read."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from maskjax._core.packed import PackedMask

Array = jax.Array
# Trees are any pytrees; the names say what their leaves are.
Params = Any  # arrays
Mask = Any  # None, boolean arrays, or `packing.PackedMask`; True keeps
SoftMask = Any  # None, or floating arrays
Scores = Any  # None, or floating arrays; higher is kept
Density = float | Array  # the fraction kept, in [0, 1]
Path = str
Predicate = Callable[[Path, Any], bool]


def path_string(path: Sequence[Any], separator: str = "/") -> Path:
    """A key path as `encoder/dense/kernel`, without NNX's trailing `value`."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(tuple(path), simple=True, separator=separator)


def paths(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Path]:
    """The path of every leaf. Slow: for messages, and for predicates that read them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return [path_string(path) for path, _ in leaves]


def named_leaves(params: Params) -> list[tuple[Path, Any]]:
    """The leaves of a tree of parameters with their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [(path_string(path), leaf) for path, leaf in leaves]


def nearest(path: Path, others: Iterable[Path]) -> Path | None:
    """The first of those paths that end most like one; `None` if there are none."""
    own = path.split("/")[::-1]

    def alike(other: Path) -> int:
        pairs = zip(own, other.split("/")[::-1], strict=False)
        return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])

    return max(others, key=alike, default=None)


def is_mask_leaf(x: Any) -> bool:
    """Where to stop in a mask: at `None`, and at packed masks."""
    return x is None or isinstance(x, PackedMask)


def mask_leaves(mask: Mask) -> tuple[list[tuple[Path, Any]], Any]:
    """The leaves of a mask (or of scores), `None` among them, and its structure."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(mask, is_leaf=is_mask_leaf)
    return [(path_string(path), leaf) for path, leaf in leaves], treedef


def is_single(x: Any) -> bool:
    """Whether something is one leaf, and not a tree of them."""
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(x))


def map_mask(function: Callable, mask: Mask, *rest: Any) -> Any:
    """Map over a mask's leaves that are not `None`; the others stay `None`."""
    return jax.tree.map(
        lambda leaf, *others: None if leaf is None else function(leaf, *others),
        mask,
        *rest,
        is_leaf=is_mask_leaf,
    )
