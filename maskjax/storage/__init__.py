"""Masks, and masked parameters, on disk: written whole or not, checked when read.

    >>> import tempfile
    >>> mask = {"w": jnp.array([[True, False], [False, True]]), "b": None}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     storage.save(f"{folder}/mask.safetensors", mask)
    ...     packing.unpack(storage.load(f"{folder}/mask.safetensors"))
    {'b': None, 'w': Array([[ True, False],
           [False,  True]], dtype=bool)}

Masks take one bit an entry. Use `save` for one file. Use `append` for a bank that grows
while it trains: the bank is a folder, each call adds one file to it, and files that are
there are never rewritten. A boolean leaf is one mask, whatever its axes: save a stack
packed, that is, `jax.vmap(packing.pack)(stack)`, and masks of features [K, C] likewise.

`save` and `load` take a plan of `compaction` too: what loads it can shrink, expand and
narrow without the mask.

`save_params` and `load_params` are for masked parameters: the values that are kept, and
the mask. That is `density * bits + 1` bits an entry, in any dtype.

    >>> params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.zeros(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     storage.save_params(f"{folder}/net.safetensors", params, mask)
    ...     storage.load_params(f"{folder}/net.safetensors")[0]["w"]
    Array([[1., 0.],
           [0., 4.]], dtype=float32)

What can be relied on:

- A file is whole or not there, whenever the process or the machine stops. What a killed
  process leaves beside it (hidden files) is removed when the same is written again.
- Several processes may write the same file or folder: one after another. Who waits for
  more than a minute is told for which process. That takes a file system with locks; in
  others, appending processes try again, and what the killed left stays.
- A file is read, once, and not mapped: one that is cut meanwhile is an error. Loading
  takes the memory of the masks, and for a bank that of its counts. Parameters are
  written and read one leaf at a time.
- A file that is damaged or forged is refused; loading never executes what is in it, and
  never takes memory for what it only promises: room for tasks that takes over 64 MiB,
  and over 64 times what the file holds, is made where `load(capacity=)` asks for it,
  and zeros that take over 64 MiB, and over 256 times the file, where
  `load_params(like=)` does.

Files are those of safetensors, with one entry of metadata. Masks are uint32 words.
docs/storage.md has how to read parameters without maskjax.
`flax.serialization` and Orbax store packed masks, banks and states too (for Flax import
`maskjax.layers`), but without checksums.
"""

from maskjax.storage._header import StorageError
from maskjax.storage._loading import Info, info, load
from maskjax.storage._loading_params import load_params
from maskjax.storage._saving import append, save
from maskjax.storage._saving_params import save_params

__all__ = [
    "Info",
    "StorageError",
    "append",
    "info",
    "load",
    "load_params",
    "save",
    "save_params",
]
