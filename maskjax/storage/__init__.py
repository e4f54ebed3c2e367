"""Masks on disk: one bit an entry, written whole or not at all, checked when read.

    >>> import tempfile
    >>> mask = {"w": jnp.array([[True, False], [False, True]]), "b": None}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     storage.save(f"{folder}/mask.safetensors", mask)
    ...     packing.unpack(storage.load(f"{folder}/mask.safetensors"))
    {'b': None, 'w': Array([[ True, False],
           [False,  True]], dtype=bool)}

Use `save` for one file. Use `append` for a bank that grows while it trains: the bank is
a folder, each call adds one file to it, and files that are there are never rewritten.
Loading a file never executes anything that is in it.
"""

from maskjax.storage._header import StorageError
from maskjax.storage._loading import Info, info, load
from maskjax.storage._saving import append, save

__all__ = ["Info", "StorageError", "append", "info", "load", "save"]
