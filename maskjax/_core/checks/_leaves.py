"""Checks of trees: their leaves are matched once, then every rule is asked of each.

A rule looks at the leaves that lie at one place of the trees, and returns what is wrong
with them in words, or None. Only if something is wrong are paths looked up.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import trees
from maskjax._core.checks._devices import apart, meeting, summed
from maskjax._core.checks._flat import flat
from maskjax._core.checks._kinds import (
    fits,
    is_floating,
    kind_of,
    listing,
    none_of,
    shaped,
)
from maskjax._core.checks._structure import PLAIN, apart_at, hint_of_ranks, spread
from maskjax._core.checks._values import floating, predicate
from maskjax._core.packed import PackedMask

Rule = Callable[..., str | None]
Stop = Callable[[Any], bool] | None


def rows(
    tree: Any, *others: Any, fn: str, names: Sequence[str] = (), is_leaf: Stop = None
) -> list[tuple[Any, ...]]:
    """The leaves of trees of one structure, matched; others may hold None at leaves.

    Raises:
        ValueError: If the structures differ, naming the paths that are in one only, or
            if leaves at one place were put on different devices.
    """
    leaves, treedef = flat(tree, fn=fn, is_leaf=is_leaf)
    columns = [leaves]
    for other, name in zip(others, names[1:], strict=True):
        try:
            columns.append(treedef.flatten_up_to(other))
        except ValueError as error:
            flat(other, fn=fn)
            needs = f"`{fn}` needs `{names[0]}` and `{name}` of the same structure"
            lines = apart_at(tree, other, (names[0], name), is_leaf)
            raise listing(lines or [str(error)], needs) from error
    found = list(zip(*columns, strict=True))
    if others:
        every(lambda *row: apart(row, names), found, tree, meeting(fn), is_leaf=is_leaf)
    for one in (tree, *others):
        summed(one, fn=fn)
    return found


def every(
    rule: Rule,
    found: list[tuple[Any, ...]],
    tree: Any,
    needs: str,
    kind: type[Exception] = ValueError,
    is_leaf: Stop = None,
) -> None:
    """Raise one error for all rows that break a rule, each named by its path."""
    faults = [rule(*row) for row in found]
    if any(faults):
        named = zip(trees.paths(tree, is_leaf), faults, strict=True)
        lines = (f"{path or 'the root'}: {fault}" for path, fault in named if fault)
        raise listing(lines, needs, kind)


def chosen(
    params: trees.Params, where: trees.Predicate, *, fn: str, name: str = "where"
) -> list[bool]:
    """Whether `where` chooses each leaf; those must be floating, and at least one."""
    predicate(where, fn=fn, name=name)
    summed(params, fn=fn)
    named = trees.named_leaves(params)
    picks = [where(path, leaf) for path, leaf in named]
    _check_answers(picks, params, where, fn=fn, name=name)

    def not_floating(leaf: Any, pick: bool) -> str | None:  # noqa: FBT001
        return kind_of(leaf) if pick and not is_floating(leaf) else None

    leaves = [leaf for _, leaf in named]
    every(
        not_floating,
        list(zip(leaves, picks, strict=True)),
        params,
        f"`{fn}` needs every leaf that `{name}` chooses to be a floating array "
        "(`& where.floating` leaves the others alone)",
        TypeError,
    )
    if not any(picks):
        hint = " Print what `where.traced` returned: it has the reason for each leaf."
        raise ValueError(
            f"`{fn}` needs `{name}` to choose at least one leaf, but {where!r} chooses "
            f"{none_of(named)}."
            f"{hint if getattr(where, 'traces', False) else ''}"
        )
    return picks


def _check_answers(
    picks: list[Any], params: Any, where: trees.Predicate, *, fn: str, name: str
) -> None:
    """A predicate says True or False: `str.find` says -1, which counts as true."""

    def no_answer(pick: Any) -> str | None:
        return None if isinstance(pick, bool | np.bool_) else kind_of(pick)

    needs = f"`{fn}` needs `{name}` to return True or False, but {where!r} returns"
    every(no_answer, [(pick,) for pick in picks], params, needs, TypeError)


def chosen_leaves(
    params: trees.Params, where: trees.Predicate, *, fn: str, name: str = "where"
) -> trees.Params:
    """The tree with None for every leaf that `where` does not choose."""
    picks = chosen(params, where, fn=fn, name=name)
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        [leaf if pick else None for leaf, pick in zip(leaves, picks, strict=True)]
    )


def floating_scores(scores: trees.Scores, *, fn: str, name: str = "scores") -> None:
    """Scores are floating arrays or None, and not all None."""
    found = rows(scores, fn=fn, is_leaf=trees.is_mask_leaf)

    def not_floating(leaf: Any) -> str | None:
        return None if leaf is None or is_floating(leaf) else kind_of(leaf)

    needs = f"`{fn}` needs every leaf of `{name}` to be a floating array or None"
    every(not_floating, found, scores, needs, TypeError, trees.is_mask_leaf)
    if all(leaf is None for (leaf,) in found):
        raise ValueError(f"`{fn}` needs `{name}` with at least one leaf, got none.")


def matched(
    tree: Any, other: Any, *, fn: str, names: tuple[str, str], is_leaf: Stop = None
) -> list[tuple[trees.Path, Any, Any]]:
    """`rows` of two trees, with the path of each; for those who use all the paths."""
    found = rows(tree, other, fn=fn, names=names, is_leaf=is_leaf)
    return [
        (path, *row)
        for path, row in zip(trees.paths(tree, is_leaf), found, strict=True)
    ]


def masked(
    params: trees.Params,
    mask: trees.Mask,
    *,
    fn: str,
    names: tuple[str, str] = ("params", "mask"),
    soft: bool = False,
    is_leaf: Stop = None,
) -> list[tuple[Any, Any]]:
    """Parameters paired with the leaves of one mask that fits them.

    A leaf is None, boolean, packed, or, if `soft`, floating, or what `spread` takes.
    """
    how: Any = {"fn": fn, "names": names, "is_leaf": is_leaf}
    try:
        found = rows(params, mask, **how)
    except ValueError:
        if spread(params, mask) is mask:
            boolean(spread(mask, mask), fn=fn, name=names[1], or_soft=soft)
            raise
        found = rows(params, spread(params, mask), **how)
    if any(type(leaf) in PLAIN for _, leaf in found):
        found = rows(params, spread(params, mask), **how)
    leaves = [(leaf,) for _, leaf in found]
    _check_kind(leaves, params, is_leaf, names[1], fn, soft=soft)
    _check_bits(leaves, params, is_leaf, fn=fn, stacked=False)
    _check_fits(found, params, is_leaf, fn=fn, names=names)
    return found  # type: ignore[return-value]


def shaped_like(
    params: Any, mask: Any, *, fn: str, names: tuple[str, str], is_leaf: Stop = None
) -> list[tuple[Any, Any]]:
    """Parameters paired with None or arrays whose axes are the parameter's or 1."""
    found = rows(params, mask, fn=fn, names=names, is_leaf=is_leaf)

    def no_array(param: Any, leaf: Any) -> str | None:
        return None if leaf is None or shaped(leaf) else kind_of(leaf)

    needs = f"`{fn}` needs every leaf of `{names[1]}` to be an array or None"
    every(no_array, found, params, needs, TypeError, is_leaf)
    _check_fits(found, params, is_leaf, fn=fn, names=names)
    return found  # type: ignore[return-value]


def _check_fits(
    found: list[tuple[Any, ...]],
    tree: Any,
    stop: Stop,
    *,
    fn: str,
    names: tuple[str, str],
) -> None:
    def misfit(param: Any, leaf: Any) -> str | None:
        if leaf is None or param is None or fits(leaf.shape, np.shape(param)):
            return None
        return f"{names[1]} {leaf.shape}, {names[0]} {np.shape(param)}"

    needs = (
        f"`{fn}` needs every leaf of `{names[1]}` shaped like its parameter, or 1 "
        "where entries share a decision"
    )
    every(misfit, found, tree, needs + hint_of_ranks(found), ValueError, stop)


def floating_where_masked(
    found: list[tuple[Any, Any]], params: trees.Params, *, fn: str, name: str
) -> None:
    """Every parameter that has a mask is floating."""

    def not_floating(param: Any, leaf: Any) -> str | None:
        return None if leaf is None or is_floating(param) else kind_of(param)

    needs = f"`{fn}` needs every leaf of `{name}` that has a mask to be floating"
    every(not_floating, found, params, needs, TypeError)


def same_shapes(
    first: Any,
    second: Any,
    *,
    fn: str,
    names: tuple[str, str],
    is_leaf: Stop = trees.is_mask_leaf,
) -> list[tuple[Any, Any]]:
    """Leaves of two masks (or scores) that agree in structure, Nones and shapes."""
    found = rows(first, second, fn=fn, names=names, is_leaf=is_leaf)

    def shape(leaf: Any) -> Any:
        return None if leaf is None else np.shape(leaf)

    def differs(a: Any, b: Any) -> str | None:
        if shape(a) == shape(b):
            return None
        return f"{names[0]} {shape(a)}, {names[1]} {shape(b)}"

    needs = f"`{fn}` needs `{names[0]}` and `{names[1]}` of the same shapes"
    every(differs, found, first, needs, ValueError, is_leaf)
    return found  # type: ignore[return-value]


def same_kinds(first: Any, second: Any, *, fn: str, names: tuple[str, str]) -> None:
    """Leaves of two masks are of one dtype, and both packed or both not."""

    def kind(leaf: Any) -> str:
        if isinstance(leaf, PackedMask):
            return f"packed {leaf.bits.shape}"
        return "None" if leaf is None else f"{leaf.dtype}"

    def differs(a: Any, b: Any) -> str | None:
        return None if kind(a) == kind(b) else f"{kind(a)} and {kind(b)}"

    found = rows(first, second, fn=fn, names=names, is_leaf=trees.is_mask_leaf)
    needs = f"`{fn}` needs `{names[0]}` and `{names[1]}` of the same kind"
    every(differs, found, first, needs, ValueError, trees.is_mask_leaf)


def alike(network: Any, given: Any, *, fn: str, name: str) -> None:
    """A tree has the network's structure, shapes and dtypes."""

    def differs(own: Any, mine: Any) -> str | None:
        own, mine = kind_of(own), kind_of(mine)
        return None if own == mine else f"{mine}, network {own}"

    found = rows(network, given, fn=fn, names=("network", name))
    needs = f"`{fn}` needs `{name}` of the network's shapes and dtypes"
    every(differs, found, network, needs)


def boolean(
    mask: trees.Mask, *, fn: str, name: str = "mask", or_soft: bool = False
) -> None:
    """Every leaf is None, boolean, or packed; or, if `or_soft`, floating."""
    found = rows(mask, fn=fn, is_leaf=trees.is_mask_leaf)
    _check_kind(found, mask, trees.is_mask_leaf, name, fn, soft=or_soft)


def _check_kind(
    found: list[tuple[Any, ...]],
    tree: Any,
    stop: Stop,
    name: str,
    fn: str,
    *,
    soft: bool,
) -> None:
    def wrong(leaf: Any) -> str | None:
        if leaf is None or isinstance(leaf, PackedMask):
            return None
        fine = shaped(leaf) and leaf.dtype == bool or soft and is_floating(leaf)
        return None if fine else kind_of(leaf)

    kind = "boolean or floating" if soft else "boolean"
    needs = f"`{fn}` needs every leaf of `{name}` to be a {kind} array or None"
    every(wrong, found, tree, needs, TypeError, stop)


def packed(mask: trees.Mask, *, fn: str, stacked: bool | None) -> None:
    """Packed leaves fit their shapes; they are a stack, or not, or either (None)."""
    found = rows(mask, fn=fn, is_leaf=trees.is_mask_leaf)
    _check_bits(found, mask, trees.is_mask_leaf, fn=fn, stacked=stacked)


def _check_bits(
    found: list[tuple[Any, ...]],
    tree: Any,
    stop: Stop,
    *,
    fn: str,
    stacked: bool | None,
) -> None:
    def wrong(leaf: Any) -> str | None:
        if not isinstance(leaf, PackedMask):
            return None
        bits, words = leaf.bits, PackedMask.words(leaf.shape)
        if bits.dtype != jnp.uint32 or bits.shape[len(leaf.lead) :] != words:
            return (
                f"{kind_of(bits)} for shape {leaf.shape}, which takes uint32 of shape "
                f"{words}"
            )
        if stacked and not leaf.lead:
            return "one mask, not a stack (`jax.vmap(packing.pack)(stack)`)"
        if stacked is False and leaf.lead:
            return f"a stack of masks, {leaf.lead}"
        return None

    needs = f"`{fn}` needs packed masks whose bits fit their shapes"
    every(wrong, found, tree, needs, ValueError, stop)


def packed_stack(stack: trees.Mask, *, fn: str) -> int:
    """Every leaf is None or packed, K masks each; returns K."""
    found = rows(stack, fn=fn, is_leaf=trees.is_mask_leaf)

    def not_packed(leaf: Any) -> str | None:
        fine = leaf is None or isinstance(leaf, PackedMask)
        return None if fine else kind_of(leaf)

    needs = (
        f"`{fn}` needs every leaf of `stack` packed (`jax.vmap(packing.pack)(stack)`)"
    )
    every(not_packed, found, stack, needs, TypeError, trees.is_mask_leaf)
    _check_bits(found, stack, trees.is_mask_leaf, fn=fn, stacked=True)
    return members(stack, fn=fn)


def members(stack: trees.Mask, *, fn: str, name: str = "stack") -> int:
    """How many masks a stack holds; its leaves must agree."""
    found = rows(stack, fn=fn, is_leaf=trees.is_mask_leaf)

    def no_array(leaf: Any) -> str | None:
        return None if leaf is None or shaped(leaf) else kind_of(leaf)

    def length(leaf: Any) -> int | None:
        axes = leaf.lead if isinstance(leaf, PackedMask) else leaf.shape
        return axes[0] if axes else None

    def said(leaf: Any) -> str | None:
        if isinstance(leaf, PackedMask) and not leaf.lead:
            return f"one mask {leaf.shape}; pack a stack by `jax.vmap(packing.pack)`"
        return None if leaf is None else str(length(leaf))

    needs = f"`{fn}` needs every leaf of `{name}` to be an array or None"
    every(no_array, found, stack, needs, TypeError, trees.is_mask_leaf)
    lengths = {length(leaf) for (leaf,) in found if leaf is not None}
    if not lengths:
        raise ValueError(f"`{fn}` needs `{name}` with at least one leaf, got none.")
    if None in lengths or len(lengths) > 1:
        needs = f"`{fn}` needs every leaf of `{name}` with the same number of members"
        every(said, found, stack, needs, ValueError, trees.is_mask_leaf)
    (size,) = lengths
    if not size:
        raise ValueError(f"`{fn}` needs `{name}` with at least one member, got none.")
    return size  # type: ignore[return-value]


def coefficients(coefficients: Any, stack: trees.Mask, *, fn: str) -> None:
    """One floating coefficient for each member of a stack."""
    floating(coefficients, fn=fn, name="coefficients")
    size = members(stack, fn=fn)
    if coefficients.shape != (size,):
        raise ValueError(
            f"`{fn}` needs `coefficients` of shape ({size},), one for each member, got "
            f"{coefficients.shape}."
        )
