"""What the compiler is asked to shard as another array is, also mapped and derived."""

from tests import processes

_PROGRAM = """
import json

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskjax import select
from maskjax._core.sharded import sharded_as

mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
like = jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh, PartitionSpec("x")))
zeros = jnp.zeros(like.shape)
asked = {
    "plain": lambda p: sharded_as(zeros, p),
    "mapped": lambda p: jax.vmap(sharded_as)(zeros, p),
    "one for all": lambda p: jax.vmap(sharded_as, (None, 0))(zeros[0], p),
    "for one": lambda p: jax.vmap(sharded_as, (0, None))(jnp.zeros((3, *p.shape)), p),
    "in a loop": lambda p: jax.lax.scan(
        lambda c, _: (c, sharded_as(zeros, p)), 0, length=3
    )[1],
    "along another axis": lambda p: jax.vmap(sharded_as, (1, 0), 1)(zeros.T, p),
    "derived": lambda p: jax.jvp(lambda x: sharded_as(x, p), (p,), (2 * p,))[1],
    "drawn": lambda p: select.random({"w": p}, density=0.5, key=jax.random.key(0))["w"],
}
found = {name: jax.jit(function)(like) for name, function in asked.items()}
print(json.dumps({
    "specs": {name: str(x.sharding.spec) for name, x in found.items()},
    "derived": float(found["derived"].min()),
    "plain": float(abs(found["plain"]).max()),
}))
"""


def test_arrays_are_sharded_as_another_one_on_an_auto_mesh():
    found = processes.run("-c", _PROGRAM)
    specs = found["specs"]
    second = {"for one", "in a loop", "along another axis"}
    for name, spec in specs.items():
        assert spec.replace(", None", "") == (
            "P(None, 'x')" if name in second else "P('x',)"
        ), name
    assert found["plain"] == 0  # the other array is not read
    assert found["derived"] == 2
