"""Calibration: what a network's kernels meet, summed over batches.

>>> apply = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
>>> params = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 2))}
>>> batches = [jnp.array([[3.0, 1.0]]), jnp.array([[4.0, 0.0]])]
>>> stats = calibration.init(apply, params, batches[0])
>>> for x in batches:
...     stats = calibration.update(apply, stats, params, x)
>>> stats["up"].sums
Array([[25.,  3.],
       [ 3.,  1.]], dtype=float32)
>>> calibration.norms(stats)["up"].ravel()
Array([5., 1.], dtype=float32)
"""

from maskjax.calibration._collect import collect
from maskjax.calibration._norms import check, norms
from maskjax.calibration._plan import Memory
from maskjax.calibration._sequential import Sequential, sequential
from maskjax.calibration._statistics import Statistics
from maskjax.calibration._update import init, memory, update

__all__ = [
    "Memory",
    "Sequential",
    "Statistics",
    "check",
    "collect",
    "init",
    "memory",
    "norms",
    "sequential",
    "update",
]
