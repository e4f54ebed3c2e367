"""Every complaint about arguments, made while tracing.

Array values are never read, but for a bank's counter that is not traced (`known`).
Functions take `fn`, the public name to blame. Complaints about leaves are collected,
so that one error names all of them by path.
"""

import math
import numbers
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maskjax._core import trees
from maskjax._core.packed import PackedMask


def raise_all(
    complaints: Iterable[str | None], needs: str, kind: type[Exception] = ValueError
) -> None:
    """Raise one error that lists every complaint, unless there is none."""
    lines = [line for line in complaints if line]
    if lines:
        raise listing(lines, needs, kind)


def listing(
    lines: Iterable[str], needs: str, kind: type[Exception] = ValueError
) -> Exception:
    """The error that says what was needed and lists what came."""
    return kind(needs + ", got:\n" + "\n".join(f"  {line}" for line in lines))


def chosen(
    params: trees.Params, where: trees.Predicate, *, fn: str, name: str = "where"
) -> list[bool]:
    """For each leaf whether `where` chooses it; they must be floating, and some."""
    predicate(where, fn=fn, name=name)
    named = trees.named_leaves(params)
    picks = [bool(where(path, leaf)) for path, leaf in named]
    picked = [each for each, pick in zip(named, picks, strict=True) if pick]
    raise_all(
        (f"{p}: {kind_of(leaf)}" for p, leaf in picked if not is_floating(leaf)),
        f"`{fn}` needs every leaf that `{name}` chooses to be a floating array "
        "(`& where.floating` leaves the others alone)",
        TypeError,
    )
    if not any(picks):
        raise ValueError(
            f"`{fn}` needs `{name}` to choose at least one leaf, but {where!r} chooses "
            f"none of: {', '.join(path for path, _ in named) or 'an empty tree'}."
        )
    return picks


def chosen_leaves(
    params: trees.Params, where: trees.Predicate, *, fn: str, name: str = "where"
) -> trees.Params:
    """The tree with `None` for every leaf that `where` does not choose."""
    picks = chosen(params, where, fn=fn, name=name)
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        [leaf if pick else None for leaf, pick in zip(leaves, picks, strict=True)]
    )


def floating_scores(scores: trees.Scores, *, fn: str, name: str = "scores") -> None:
    """Scores are floating arrays or `None`, and not all `None`."""
    leaves, _ = trees.mask_leaves(scores)
    given = [(path, leaf) for path, leaf in leaves if leaf is not None]
    raise_all(
        (f"{p}: {kind_of(leaf)}" for p, leaf in given if not is_floating(leaf)),
        f"`{fn}` needs every leaf of `{name}` to be a floating array or None",
        TypeError,
    )
    if not given:
        raise ValueError(f"`{fn}` needs `{name}` with at least one leaf, got none.")


def matched(
    tree: Any,
    other: Any,
    *,
    fn: str,
    names: tuple[str, str],
    is_leaf: Callable[[Any], bool] | None = None,
) -> list[tuple[trees.Path, Any, Any]]:
    """Leaves of two trees of one structure, paired; `other` may hold `None` at leaves.

    Raises:
        ValueError: If the structures differ, naming the paths that are in one only.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    try:
        others = treedef.flatten_up_to(other)
    except ValueError as error:
        mine = {trees.path_string(path) for path, _ in leaves}
        theirs = {path for path, _ in trees.mask_leaves(other)[0]}
        complaints = [
            *(f"only in `{names[0]}`: {path}" for path in sorted(mine - theirs)),
            *(f"only in `{names[1]}`: {path}" for path in sorted(theirs - mine)),
        ]
        raise listing(
            complaints or [str(error)],
            f"`{fn}` needs `{names[0]}` and `{names[1]}` of the same structure",
        ) from error
    return [
        (trees.path_string(path), leaf, extra)
        for (path, leaf), extra in zip(leaves, others, strict=True)
    ]


def mask_of(
    mask: trees.Mask,
    params: trees.Params,
    *,
    fn: str,
    names: tuple[str, str],
    is_leaf: Callable[[Any], bool] | None = None,
) -> list[tuple[trees.Path, Any, Any]]:
    """Parameters paired with mask leaves; axes of the mask are the parameter's or 1."""
    pairs = matched(params, mask, fn=fn, names=names, is_leaf=is_leaf)

    def complaint(path: str, param: Any, leaf: Any) -> str | None:
        if leaf is None or param is None or fits(leaf.shape, np.shape(param)):
            return None
        return f"{path}: {names[1]} {leaf.shape}, {names[0]} {np.shape(param)}"

    raise_all(
        (f"{p}: {kind_of(m)}" for p, _, m in pairs if m is not None and not shaped(m)),
        f"`{fn}` needs every leaf of `{names[1]}` to be an array or None",
        TypeError,
    )
    raise_all(
        (complaint(*pair) for pair in pairs),
        f"`{fn}` needs every leaf of `{names[1]}` shaped like its parameter, or 1 "
        "where entries share a decision",
    )
    return pairs


def same_shapes(
    first: Any,
    second: Any,
    *,
    fn: str,
    names: tuple[str, str],
    is_leaf: Callable[[Any], bool] | None = trees.is_mask_leaf,
) -> list[tuple[trees.Path, Any, Any]]:
    """Leaves of two masks (or scores) that agree in structure, `None`s and shapes."""
    pairs = matched(first, second, fn=fn, names=names, is_leaf=is_leaf)

    def shape(leaf: Any) -> Any:
        return None if leaf is None else np.shape(leaf)

    raise_all(
        (
            f"{path}: {names[0]} {shape(a)}, {names[1]} {shape(b)}"
            for path, a, b in pairs
            if shape(a) != shape(b)
        ),
        f"`{fn}` needs `{names[0]}` and `{names[1]}` of the same shapes",
    )
    return pairs


def alike(network: Any, given: Any, *, fn: str, name: str) -> None:
    """A tree has the network's structure, shapes and dtypes."""
    pairs = matched(network, given, fn=fn, names=("network", name))
    kinds = [(path, *map(kind_of, pair)) for path, *pair in pairs]
    raise_all(
        (f"{path}: {mine}, network {own}" for path, own, mine in kinds if own != mine),
        f"`{fn}` needs `{name}` of the network's shapes and dtypes",
    )


def boolean(
    mask: trees.Mask, *, fn: str, name: str = "mask", or_soft: bool = False
) -> None:
    """Every leaf is `None`, boolean, or packed; or floating, if it may be."""

    def fine(leaf: Any) -> bool:
        if leaf is None or isinstance(leaf, PackedMask):
            return True
        return shaped(leaf) and leaf.dtype == bool or or_soft and is_floating(leaf)

    kind = "boolean or floating" if or_soft else "boolean"
    raise_all(
        (f"{p}: {kind_of(m)}" for p, m in trees.mask_leaves(mask)[0] if not fine(m)),
        f"`{fn}` needs every leaf of `{name}` to be a {kind} array or None",
        TypeError,
    )


def floating(array: Any, *, fn: str, name: str) -> None:
    """One floating array."""
    if not is_floating(array):
        raise TypeError(
            f"`{fn}` needs `{name}` as a floating array, got {kind_of(array)}."
        )


def of_shape(array: Any, shape: tuple[int, ...], *, fn: str, name: str) -> None:
    """An array has the shape that another asks for."""
    if array.shape != shape:
        raise ValueError(f"`{fn}` needs `{name}` of shape {shape}, got {array.shape}.")


def unit_interval(value: Any, *, fn: str, name: str) -> None:
    """A Python number in [0, 1], or a floating scalar array that is not looked at."""
    if isinstance(value, jax.Array):
        if value.shape:
            raise ValueError(
                f"`{fn}` needs `{name}` as a scalar, got an array of shape "
                f"{value.shape}. Map over it with `jax.vmap`."
            )
        return
    if not is_number(value):
        raise TypeError(
            f"`{fn}` needs `{name}` as a number in [0, 1], got {kind_of(value)}."
        )
    if math.isnan(value) or not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"`{fn}` needs `{name}` in [0, 1], got {value}.")


def not_negative(value: Any, *, fn: str, name: str) -> None:
    """A finite Python number from 0 on, or a scalar array that is not looked at."""
    if isinstance(value, jax.Array) and not value.shape:
        return
    if not is_number(value):
        raise TypeError(f"`{fn}` needs `{name}` as a number, got {kind_of(value)}.")
    if not 0.0 <= float(value) < math.inf:
        raise ValueError(f"`{fn}` needs `{name}` finite and at least 0, got {value}.")


def at_least(
    value: Any, least: int, *, fn: str, name: str, traceable: bool = False
) -> None:
    """A whole number that is not too small; or an array, if it may be, as it is."""
    if traceable and isinstance(value, jax.Array):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`{fn}` needs `{name}` as a whole number, got {kind_of(value)}."
        )
    if value < least:
        raise ValueError(f"`{fn}` needs `{name}` of at least {least}, got {value}.")


def known(value: Any) -> int | None:
    """A counter's value, unless it is traced or has axes."""
    if isinstance(value, Tracer) or np.ndim(value):
        return None
    return int(value)


def counter(value: Any, most: int, *, fn: str, name: str) -> None:
    """An integer in [0, most], as far as that is known."""
    if not jnp.issubdtype(value.dtype, jnp.integer) or value.ndim:
        raise TypeError(f"`{fn}` needs `{name}` as an integer, got {kind_of(value)}.")
    number = known(value)
    if number is not None and not 0 <= number <= most:
        raise ValueError(f"`{fn}` needs `{name}` in [0, {most}], got {number}.")


def typed_key(key: Any, *, fn: str) -> None:
    """One key made by `jax.random.key`."""
    if not is_typed_key(key):
        raise TypeError(
            f"`{fn}` needs `key` as a typed key, from `jax.random.key(seed)`, got "
            f"{kind_of(key)}."
        )
    if key.shape:
        raise ValueError(
            f"`{fn}` needs `key` as a single key, got keys of shape {key.shape}. Map "
            "over them with `jax.vmap`."
        )


def one_of(value: Any, options: Sequence[str], *, fn: str, name: str) -> None:
    """One of a few words."""
    if value not in options:
        words = " or ".join(repr(option) for option in options)
        raise ValueError(f"`{fn}` needs `{name}` as {words}, got {value!r}.")


def predicate(where: Any, *, fn: str, name: str = "where") -> None:
    """A function that chooses leaves, and not a name of theirs."""
    if callable(where):
        return
    hint = "Write `where.kernels`, for example."
    if isinstance(where, str):
        hint = f"Write `where.matching({where!r})`."
    raise TypeError(
        f"`{fn}` needs `{name}` as a function `(path, leaf) -> bool`, got "
        f"{kind_of(where)}. {hint}"
    )


def structure(value: Any, *, fn: str, name: str = "structure") -> None:
    """A value of `maskjax.structure`, and neither its class nor a name for it."""
    parts = ("complaint", "pool", "spread")
    if not isinstance(value, type) and all(hasattr(value, part) for part in parts):
        return
    written = {"Block": "Block((4, 4))", "NofM": "NofM(2, 4)"}
    instead = "structure.Units()`, `structure.Block((4, 4))` or `structure.NofM(2, 4)"
    got = kind_of(value)
    if isinstance(value, type):
        got = f"the class `{value.__name__}`"
        own = "structure." if value.__module__ == "maskjax.structure" else ""
        instead = own + written.get(value.__name__, f"{value.__name__}()")
    elif pattern := re.fullmatch(r"(\d+):(\d+)", str(value)):
        instead = f"structure.NofM({pattern[1]}, {pattern[2]})"
    raise TypeError(
        f"`{fn}` needs `{name}` as a value of `maskjax.structure`, got {got}. Write "
        f"`{instead}`."
    )


def is_typed_key(value: Any) -> bool:
    """Whether something is keys made by `jax.random.key`, any number of them."""
    return isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    )


def is_number(value: Any) -> bool:
    """Whether something is a real Python number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def shaped(leaf: Any) -> bool:
    """Whether a leaf is an array of any kind."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array of real floating numbers."""
    return shaped(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def fits(shape: tuple[int, ...], param: tuple[int, ...]) -> bool:
    """Whether every axis is the parameter's or 1."""
    return len(shape) == len(param) and all(
        a in (1, b) for a, b in zip(shape, param, strict=True)
    )


def kind_of(leaf: Any) -> str:
    """What a leaf is, for a message."""
    if shaped(leaf):
        return f"{leaf.dtype} array of shape {tuple(leaf.shape)}"
    return f"{type(leaf).__name__} {leaf!r}"


def packed(mask: trees.Mask, *, fn: str, stacked: bool | None) -> None:
    """Packed leaves fit their shapes; they are a stack, or not, or either (None)."""

    def complaint(path: str, leaf: PackedMask) -> str | None:
        bits = leaf.bits
        words = PackedMask.words(leaf.shape)
        if bits.dtype != jnp.uint32 or not bits.ndim or bits.shape[-1] != words:
            return (
                f"{path}: {kind_of(bits)} for shape {leaf.shape}, which takes {words} "
                "words of uint32"
            )
        if stacked and bits.ndim < 2:
            return f"{path}: one mask, not a stack (`jax.vmap(packing.pack)(stack)`)"
        if stacked is False and bits.ndim > 1:
            return f"{path}: a stack of masks, {bits.shape[:-1]}"
        return None

    leaves, _ = trees.mask_leaves(mask)
    raise_all(
        (complaint(p, leaf) for p, leaf in leaves if isinstance(leaf, PackedMask)),
        f"`{fn}` needs packed masks whose bits fit their shapes",
    )


def packed_stack(stack: trees.Mask, *, fn: str) -> None:
    """Every leaf is packed, K masks each, or `None`; and some are."""
    leaves, _ = trees.mask_leaves(stack)
    raise_all(
        (
            f"{path}: {kind_of(leaf)}"
            for path, leaf in leaves
            if leaf is not None and not isinstance(leaf, PackedMask)
        ),
        f"`{fn}` needs every leaf of `stack` packed (`jax.vmap(packing.pack)(stack)`)",
        TypeError,
    )
    packed(stack, fn=fn, stacked=True)
    members(stack, fn=fn)


def members(stack: trees.Mask, *, fn: str) -> int:
    """How many masks a stack holds; its leaves must agree."""
    lengths, leaves = {}, trees.mask_leaves(stack)[0]
    raise_all(
        (f"{p}: {kind_of(m)}" for p, m in leaves if m is not None and not shaped(m)),
        f"`{fn}` needs every leaf of `stack` to be an array or None",
        TypeError,
    )
    for path, leaf in leaves:
        array = leaf.bits if isinstance(leaf, PackedMask) else leaf
        scalar = isinstance(leaf, PackedMask) and array.ndim < 2
        if array is not None:
            lengths[path] = array.shape[0] if array.ndim and not scalar else None
    if not lengths:
        raise ValueError(f"`{fn}` needs `stack` with at least one leaf, got none.")
    if None in lengths.values() or len(set(lengths.values())) > 1:
        raise_all(
            (f"{path}: {length}" for path, length in lengths.items()),
            f"`{fn}` needs every leaf of `stack` with the same number of members",
        )
    size = next(iter(lengths.values()))
    if not size:
        raise ValueError(f"`{fn}` needs `stack` with at least one member, got none.")
    return size


def weights(weights: Any, stack: trees.Mask, *, fn: str) -> None:
    """One floating weight for each member of a stack."""
    floating(weights, fn=fn, name="weights")
    size = members(stack, fn=fn)
    if weights.shape != (size,):
        raise ValueError(
            f"`{fn}` needs `weights` of shape ({size},), one for each member, got "
            f"{weights.shape}."
        )


def own_keys(keys: Any, *, fn: str) -> None:
    """Typed keys [M], and no two the same, as far as that is known."""
    if not is_typed_key(keys):
        raise TypeError(
            f"`{fn}` needs `keys` as typed keys, one for each member, from "
            f"`jax.random.split(key, members)`, got {kind_of(keys)}."
        )
    if keys.ndim != 1 or not keys.size:
        raise ValueError(
            f"`{fn}` needs `keys` of shape (members,), got shape {keys.shape}."
        )
    if isinstance(keys, Tracer):
        return
    with jax.ensure_compile_time_eval():  # inside of a `jit` too
        data = np.asarray(jax.random.key_data(keys))
    _, first, which = np.unique(data, axis=0, return_index=True, return_inverse=True)
    raise_all(
        (
            f"members {first[k]} and {i} have one key"
            for i, k in enumerate(which.ravel())
            if first[k] != i
        ),
        f"`{fn}` needs a key of its own for each member",
    )
