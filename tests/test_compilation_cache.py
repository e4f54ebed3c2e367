"""What one process compiled for many devices, the next one reads from JAX's cache.

Nothing in a program may depend on the process that traced it: no address, no callback,
no order of a set.
"""

import pathlib

from tests import processes

_PROGRAM = """
import collections
import json

import jax
import numpy as np
import optax
from jax import monitoring
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskjax import bank, optim, packing, score, select

events = collections.Counter()
monitoring.register_event_listener(lambda event, **_: events.update([event]))
mesh = jax.make_mesh((4, 2), ("x", "y"), (AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
params = {
    "hidden": put(rng.normal(size=(128, 64)).astype("f"), "x", "y"),
    "out": put(rng.normal(size=(64, 8)).astype("f"), "x"),
}
prune = optax.chain(optax.sgd(0.1), optim.prune(0.5))


def every(params):
    scores = score.magnitude(params)
    mask = select.top_k(scores, density=0.3)
    tasks = bank.append(bank.empty(params, capacity=4), mask)
    return (
        select.top_k(scores, density=0.3, scope="global"),
        prune.update(params, prune.init(params), params),
        packing.unpack(bank.take(bank.put(tasks, 0, mask), 0)),
    )


mask = jax.jit(every)(params)[0]
tasks = bank.append(bank.empty(params, capacity=4), mask)  # and one by one
jax.block_until_ready(packing.dot(tasks.masks, params))
kinds = ("compile_requests_use_cache", "cache_hits")
print(json.dumps([events[f"/jax/compilation_cache/{kind}"] for kind in kinds]))
"""


def _run(cache: pathlib.Path) -> list[int]:
    """How many programs a new process needed, and how many it found in a cache."""
    return processes.run(
        "-c",
        _PROGRAM,
        JAX_COMPILATION_CACHE_DIR=str(cache),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )


def test_a_second_process_compiles_nothing(tmp_path):
    needed, found = _run(tmp_path)
    assert needed - found > 3
    assert _run(tmp_path) == [needed, needed]
