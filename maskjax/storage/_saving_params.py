"""From parameters and their mask to files, one leaf at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskjax._core import axes, checks, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Mask, Params, Predicate
from maskjax.select import _plan
from maskjax.select._leaves import is_tree
from maskjax.storage import _disk, _sparse, _writing
from maskjax.storage._disk import StrPath
from maskjax.storage._header import Header, Leaf, jsonable, layout
from maskjax.storage._saving import require_here
from maskjax.storage._sparse import Param, Pattern
from maskjax.structure import Entries, Groups, NofM, Structure
from maskjax.where import kernels


class _Row(NamedTuple):
    """A leaf to save: `value` is None where the parameters have None."""

    path: trees.Path
    value: Any
    mask: Any


def save_params(
    path: StrPath,
    params: Params,
    mask: Mask,
    *,
    structure: Structure | Any = Entries(),
    where: Predicate = kernels,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write masked parameters to one file: the values that are kept, and the mask.

    What is saved is `maskjax.apply(params, mask)`: values that the mask removes are not
    written, even if they are not 0. A leaf with a mask takes `density * bits + 1` bits
    an entry, where `bits` is what a value takes: 10.6 for float32 at a density of 0.3.
    A leaf without a mask is stored whole. The header takes some 400 bytes a leaf.

    An N:M pattern may take less, if `structure` tells of it. Then the file holds the
    place of each kept value, in ceil(log2 M) bits, instead of one bit for each entry,
    where that is smaller: half a bit an entry for 1:4. (2:4 takes one bit either way.)

    Leaves are written one at a time: this takes memory for the kept values and the
    boolean mask of the largest, and for the leaf if it is on other devices. If anything
    fails, a file that was there before is unchanged.

    Args:
        path: The file, `*.safetensors` by convention. One that exists is replaced.
        params: Tree of arrays of any dtype of JAX but keys; those of less than a byte
            take one. `None` is kept as it is.
        mask: A mask of the same structure, as `maskjax.apply` takes it: boolean or
            packed leaves, with axes of 1 where entries share a decision; True, False or
            `None` may stand for whole leaves and subtrees.
        structure: What the mask was selected with, or a tree of that like `params`,
            with `None` where it does not matter. Only `structure.NofM` makes a
            difference: every group has to keep exactly n.
        where: What the axes mean, as in `select.top_k`. Asked only where a structure
            names roles. Masks of `recipes.sparsegpt` may need `where.traced(apply,
            params, *inputs)` here although `sparsegpt.prune` did not: that reads the
            axes from its statistics.
        metadata: A dict from strings to JSON values, to be saved too.

    Returns:
        None. The file is on disk when the function returns.

    Raises:
        TypeError: If `path` is no path; if a leaf of `params` is no array, is a key, or
            is traced; if a leaf of the mask is not boolean; if the keys of a dict can't
            be sorted; if `structure` is no value of `maskjax.structure`; or if the
            metadata are not JSON.
        ValueError: If the mask does not fit `params`, a leaf does not keep exactly n of
            every m, the axes of a leaf are needed and unknown, or other processes hold
            a part of a leaf. Bad leaves are named by path.
        StorageError: If the file can't be written.

    Example:
        >>> import tempfile
        >>> params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.ones(2)}
        >>> mask = {"w": jnp.array([[True, False], [False, True]]), "b": None}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     storage.save_params(f"{folder}/net.safetensors", params, mask)
        ...     loaded, mask = storage.load_params(f"{folder}/net.safetensors")
        >>> loaded
        {'b': Array([1., 1.], dtype=float32), 'w': Array([[1., 0.],
               [0., 4.]], dtype=float32)}
    """
    fn = "maskjax.storage.save_params"
    _disk.require_path(path, fn=fn)
    found = _described(_rows(params, mask, fn), structure, where, fn)
    header = Header(
        "params",
        layout(params, fn, "params"),
        [Leaf(row.path) for row, _ in found],
        1,
        jsonable(metadata, fn),
        params=[],
    )

    def signed(sums: Mapping[str, str]) -> Header:
        facts = []
        for i, (_, param) in enumerate(found):
            parts = {} if param is None else param.parts()
            own = {part: sums[_sparse.name_of(header, i, part)] for part in parts}
            facts.append(param and param._replace(sha256=own).facts())
        return header._replace(params=facts)

    specs = {
        _sparse.name_of(header, i, part): spec
        for i, (_, param) in enumerate(found)
        for part, spec in (param.parts() if param else {}).items()
    }
    turns = [
        functools.partial(_octets, header, i, row, param)
        for i, (row, param) in enumerate(found)
        if param is not None
    ]
    _writing.replace(
        path, lambda file: _writing.fill_in_turn(file, signed, specs, turns)
    )


def _octets(header: Header, i: int, row: _Row, param: Param) -> dict[str, np.ndarray]:
    """The bytes of a leaf's tensors by their names."""
    value = np.asarray(_on_host(row.value), jnp.dtype(param.dtype))
    keep = None if row.mask is None else _booleans(row.mask)
    parts = _sparse.encoded(param, value, keep)
    return {_sparse.name_of(header, i, part): octets for part, octets in parts.items()}


def _on_host(x: Any) -> np.ndarray:
    """An array in the host's memory, which its owner does not keep there."""
    if isinstance(x, jax.Array):
        shards = [shard.data for shard in x.addressable_shards]
        x = jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)
    return np.asarray(x)


def _booleans(mask: Any) -> np.ndarray:
    if isinstance(mask, PackedMask):
        return _sparse.booleans(_on_host(mask.bits), mask.shape)
    return _on_host(mask)


def _rows(params: Params, mask: Mask, fn: str) -> list[_Row]:
    """The leaves, with those of the mask; all of it checked."""

    def complaint(path: str, leaf: Any) -> str | None:
        if isinstance(leaf, PackedMask):
            return f"{path}: a packed mask, which `maskjax.storage.save` saves"
        fine = leaf is None or checks.shaped(leaf) and _sparse.is_known(leaf.dtype)
        return None if fine else f"{path}: {checks.kind_of(leaf)}"

    for tree in (params, mask):
        checks.flat(tree, fn=fn)
    named, _ = trees.mask_leaves(params)
    checks.raise_all(
        itertools.starmap(complaint, named),
        f"`{fn}` needs every leaf of `params` as an array of numbers or booleans "
        "(`jax.random.key_data` makes one of keys, `equinox.filter(module, "
        "equinox.is_array)` leaves out what is none)",
        TypeError,
    )
    for tree, name in ((params, "params"), (mask, "mask")):
        require_here(tree, fn, name)
    masks = iter(checks.masked(params, mask, fn=fn))
    rows = [
        _Row(path, value, None if value is None else next(masks)[1])
        for path, value in named
    ]
    checks.raise_all(
        (
            row.path
            for row in rows
            if isinstance(row.mask, PackedMask)
            and _disk.strays(_on_host(row.mask.bits)[None], row.mask.shape)
        ),
        f"`{fn}` needs packed masks without bits past their entries",
    )
    return rows


def _described(
    rows: list[_Row], structure: Any, where: Predicate, fn: str
) -> list[tuple[_Row, Param | None]]:
    """How each leaf is stored."""
    structures = _structures(rows, structure, fn)
    needed = [isinstance(s, NofM) and bool(_plan.roles_of(s)) for s in structures]
    checks.predicate(where, fn=fn)
    named = [(row.path, row.value) for row in rows]
    roles = axes.resolved(where, named, needed, fn=fn, why="for NofM")
    found, complaints = [], []
    for row, own, role in zip(rows, structures, roles, strict=True):
        param = None
        if row.value is not None:
            shape = tuple(map(int, row.value.shape))
            param = Param(row.value.dtype.name, shape)
        if param is not None and row.mask is not None:
            keep = _booleans(row.mask)
            pattern = _pattern(param.shape, keep, own, role)
            if isinstance(pattern, str):
                complaints.append(f"{row.path}: {pattern}")
                continue
            param = _sparse.described(param.dtype, param.shape, keep, pattern)
        found.append((row, param))
    checks.raise_all(complaints, f"`{fn}` needs masks that fit `structure`")
    return found


def _structures(rows: list[_Row], structure: Any, fn: str) -> list[Structure | None]:
    """The structure of each leaf with a mask, `None` for the others."""
    if isinstance(structure, Groups):
        return [None] * len(rows)
    if not is_tree(structure):
        checks.structure(structure, fn=fn)
        return [None if row.mask is None else structure for row in rows]
    checks.flat(structure, fn=fn)
    named, _ = trees.mask_leaves(structure)
    given = dict(named)
    own = {row.path for row in rows}
    checks.raise_all(
        (
            f"only in `structure`: {path}"
            for path, one in named
            if one is not None and path not in own
        ),
        f"`{fn}` needs `params` and `structure` of the same structure",
    )
    for path, one in named:
        if one is not None:
            checks.structure(one, fn=fn, name=f"structure[{path}]")
    return [None if row.mask is None else given.get(row.path) for row in rows]


def _pattern(
    shape: tuple[int, ...], keep: np.ndarray, structure: Any, roles: Any
) -> Pattern | str | None:
    """The pattern of a leaf, or why its mask has none; `None` if none is asked for."""
    if not isinstance(structure, NofM):
        return None
    plan = _plan.plan(shape, structure, roles, "leaf")
    if isinstance(plan, str):
        return plan
    parts, laid = list(plan.parts), plan.structure
    assert isinstance(laid, NofM)
    assert isinstance(laid.axis, int)
    last = parts.pop(laid.axis)
    order = (*itertools.chain(*parts), *last)
    rows = np.broadcast_to(keep, shape).transpose(order).reshape(-1, laid.m)
    off = int(np.count_nonzero(np.count_nonzero(rows, axis=-1) != laid.n))
    if off:
        return f"{off:,} of {len(rows):,} groups of {laid.m} do not keep {laid.n}"
    return Pattern(laid.n, laid.m, order)
