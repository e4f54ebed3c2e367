"""A masked network becomes a smaller one, exactly, for any JAX function.

>>> import jax
>>> params = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}
>>> apply = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
>>> mask = {"up": jnp.array([[True, False, True]]), "down": None}
>>> plan = compaction.plan(apply, params, mask, jnp.ones((1, 2)))
>>> small = compaction.shrink(maskjax.apply(params, mask), plan)
>>> jax.tree.map(jnp.shape, small)
{'down': (2, 1), 'up': (2, 2)}
>>> compaction.narrow(apply, plan)(small, jnp.ones((1, 2)))
Array([[4.]], dtype=float32)
"""

from maskjax.compaction._groups import groups
from maskjax.compaction._narrow import narrow
from maskjax.compaction._plan import Plan, expand, shrink
from maskjax.compaction._planning import plan

__all__ = ["Plan", "expand", "groups", "narrow", "plan", "shrink"]
