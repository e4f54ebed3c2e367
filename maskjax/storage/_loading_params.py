"""From files to parameters and their mask, one leaf at a time."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, Sharding

from maskjax import packing
from maskjax._core import checks, dtypes, placement, trees
from maskjax._core.packed import PackedMask
from maskjax._core.trees import Mask, Params
from maskjax.storage import _disk, _sparse
from maskjax.storage._disk import StrPath
from maskjax.storage._header import Header, StorageError, built, order
from maskjax.storage._sparse import Param

# What a file may ask for beyond what it holds: so many bytes, or so many times its own.
# A bit of a mask can stand for 128 bits of a complex number.
_ROOM, _TIMES = 2**26, 256


def load_params(path: StrPath, *, like: Params | None = None) -> tuple[Params, Mask]:
    """The parameters of a file of `save_params`, and their mask.

    Kept values are those that were saved, to the bit; all others are 0. Masks that were
    saved with a `structure` need no `where` here: the file has the order of the axes.

    Leaves are read one at a time: beside what is returned, this takes memory for the
    kept values and the boolean mask of the largest, and for the leaf if it is put on
    other devices.

    Args:
        path: The file.
        like: A tree of the structure to return: arrays, or `jax.ShapeDtypeStruct`s.
            Leaves are found by path, and must have its shapes and dtypes. A leaf is put
            where the leaf of `like` was put, or where its sharding says; otherwise on
            the default device. `None`: dicts, lists and tuples come back as they were;
            any other container comes back as a dict of its paths' parts. Zeros that
            take over 64 MiB, and over 256 times the file, need a `like` that asks for
            them: a small file can't ask for all memory.

    Returns:
        A pair: the parameters, and a packed mask of the same structure, `None` where a
        leaf has no mask. The mask is on the devices of the parameters, sharded alike.

    Raises:
        TypeError: If `path` is no path, or the keys of a dict in `like` can't be
            sorted.
        ValueError: If a leaf has 64 bits and `jax_enable_x64` is off, or `like` names
            axes of a mesh but no devices.
        StorageError: If the file can't be read, is damaged, has another format version,
            holds no parameters, does not fit `like`, or asks for more memory than it
            may or there is.

    Example:
        >>> import tempfile
        >>> params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/net.safetensors"
        ...     storage.save_params(path, params, {"w": params["w"] > 2})
        ...     loaded, mask = storage.load_params(path, like=params)
        >>> packing.unpack(mask)
        {'w': Array([[False, False],
               [ True,  True]], dtype=bool)}
    """
    fn = "maskjax.storage.load_params"
    _disk.require_path(path, fn=fn)
    file = pathlib.Path(_disk.checked(path))
    if os.path.isdir(file):
        raise StorageError(
            f"{path} is a folder, not a file of parameters; `maskjax.storage.load` "
            "reads the bank in a folder."
        )
    with _disk.opened(file) as opened:
        header, _ = _disk.read_header(file, opened)
        if header.params is None:
            raise StorageError(
                f"{path} holds a {header.kind}, and no parameters; "
                "`maskjax.storage.load` reads it."
            )
        params = _sparse.parsed(header)
        rebuild, places = _matched(path, header, params, like, fn)
        _require_bits(path, header, params, fn)
        _require_room(path, params, like)
        arrays, masks = {}, {}
        for i, param in enumerate(params):
            if param is not None:
                arrays[i], masks[i] = _leaf(path, opened, header, i, param, places)
    return rebuild(arrays), rebuild(masks)


def _matched(
    path: StrPath, header: Header, params: Sequence[Param | None], like: Any, fn: str
) -> tuple[Callable[[dict[int, Any]], Any], dict[int, Any]]:
    """A function from leaves by number to the tree, and where each is to be put."""
    if like is None:
        return lambda leaves: built(header.tree, leaves.get), {}
    checks.flat(like, fn=fn)
    found, treedef = trees.mask_leaves(like)
    saved = [
        leaf._replace(shape=None if param is None else _kind(param))  # type: ignore[arg-type]
        for leaf, param in zip(header.leaves, params, strict=True)
    ]
    numbers = order(
        saved,
        [
            (name, None if leaf is None else checks.kind_of(leaf))
            for name, leaf in found
        ],
        lambda mine, its: mine == its,
        f"`{fn}` needs `like` of the structure, shapes and dtypes in {path}",
        "like",
    )
    wheres = [_where(leaf) for _, leaf in found]
    checks.raise_all(
        (
            f"{name}: {where}"
            for (name, _), where in zip(found, wheres, strict=True)
            if isinstance(where, NamedSharding) and isinstance(where.mesh, AbstractMesh)
        ),
        f"`{fn}` needs devices for the axes that `like` names: call it within "
        "`jax.set_mesh(mesh)`, or give shardings of that mesh",
    )
    places = dict(zip(numbers, wheres, strict=True))
    return lambda leaves: treedef.unflatten([leaves.get(i) for i in numbers]), places


def _kind(param: Param) -> str:
    """What a leaf is, in the words of `checks.kind_of`."""
    return f"{param.dtype} array of shape {param.shape}"


def _where(like: Any) -> Sharding | None:
    """Where a leaf is to be put, as far as its like says so."""
    if not isinstance(like, jax.ShapeDtypeStruct):
        return placement.known(like)
    where = like.sharding
    if isinstance(where, NamedSharding) and isinstance(where.mesh, AbstractMesh):
        mesh = jax.sharding.get_mesh()
        if not mesh.empty and mesh.shape == where.mesh.shape:
            return NamedSharding(mesh, where.spec)
    return where


def _require_bits(
    path: StrPath, header: Header, params: Sequence[Param | None], fn: str
) -> None:
    """Raise if JAX would cut values of 64 bits to 32."""
    if dtypes.wide_integers():
        return
    wide = ("int64", "uint64", "float64", "complex128")
    checks.raise_all(
        (
            f"{leaf.path}: {_kind(param)}"
            for leaf, param in zip(header.leaves, params, strict=True)
            if param is not None and param.dtype in wide
        ),
        f"`{fn}` needs `jax.enable_x64(True)` around it for these leaves of {path}",
    )


def _require_room(path: StrPath, params: Sequence[Param | None], like: Any) -> None:
    """Raise if a file asks for much more than it holds, and not the caller."""
    if like is not None:
        return
    masked = [param for param in params if param is not None]
    held = sum(size for p in masked for _, _, size in p.parts().values())
    asked = sum(param.nbytes for param in masked if param.mask is not None)
    if asked > max(_ROOM, _TIMES * held):
        raise StorageError(
            f"{path} asks for parameters of {asked / 2**20:,.0f} MiB, and holds "
            f"{held / 2**20:,.0f}. If that is right, pass `like`."
        )


def _leaf(
    path: StrPath,
    file: _disk.File,
    header: Header,
    i: int,
    param: Param,
    places: Mapping[int, Any],
) -> tuple[jax.Array, PackedMask | None]:
    """A leaf and its mask, read, checked and put where they belong."""
    octets, name = {}, header.leaves[i].path
    for part, (_, _, size) in param.parts().items():
        octets[part] = _zeros(path, (size,), np.uint8)
        tensor = _sparse.name_of(header, i, part)
        found = _disk.read_octets(path, file, tensor, octets[part])
        if found != (param.sha256 or {})[part]:
            raise StorageError(f"{path} is damaged: {name} is not what was saved.")
    out = None if param.mask is None else _zeros(path, param.shape, param.unit)
    try:
        array, keep = _sparse.decoded(param, octets, out)
    except ValueError as error:
        raise StorageError(f"{path} holds what makes no sense for {name}.") from error
    put = _put(array, places.get(i))
    return put, None if keep is None else _put_mask(_sparse.packed(keep), put)


def _zeros(path: StrPath, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    try:
        return _disk.aligned(shape, dtype)
    except (MemoryError, ValueError) as error:  # NumPy's words for more than there is
        raise StorageError(f"{path} needs more memory than there is.") from error


def _put(array: np.ndarray, where: Sharding | None) -> jax.Array:
    if not isinstance(where, NamedSharding):
        return jax.device_put(array, where)
    # Every process reads the same file: no process has to hear from another.
    return jax.make_array_from_callback(array.shape, where, array.__getitem__)


def _put_mask(mask: PackedMask, param: jax.Array) -> PackedMask:
    """A mask on the devices of its parameter, sharded as that is."""
    where = placement.known(param)
    if isinstance(where, NamedSharding):
        spec = packing.spec_of_bits(param) if mask.shape == param.shape else ()
        where = where.update(spec=PartitionSpec(*spec))
    elif where is not None and not where.is_fully_replicated:
        where = None
    return PackedMask(_put(np.asarray(mask.bits), where), mask.shape)
