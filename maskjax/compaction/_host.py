"""Computes what a program knows: on the host, under any mesh, guard or check."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.core import eval_context  # which `shard_map` obeys too
from jax.sharding import AbstractMesh, use_abstract_mesh


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Compute here and now, so that a plan is the same wherever it is made.

    A mesh, a transfer guard or a check for nan would change what can be computed.
    """
    with contextlib.ExitStack() as stack:
        for manager in (
            eval_context(),
            use_abstract_mesh(AbstractMesh((), ())),
            jax.default_device(_cpu()),
            jax.transfer_guard("allow"),
            jax.debug_nans(False),
            jax.debug_infs(False),
        ):
            stack.enter_context(manager)
        yield


def _cpu() -> Any:
    """The host, if JAX may use it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
