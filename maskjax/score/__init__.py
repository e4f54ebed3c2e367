"""Scores: how much each parameter is worth. Higher is kept.

Every function returns a tree of the parameters' structure. Its leaves are floating
arrays of the parameter's shape, or `None` where `where` does not choose. Criteria that
need data take gradients in the parameters' dtypes and return float32, or float64 for
parameters in float64.

    >>> score.magnitude({"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.zeros(2)})
    {'bias': None, 'kernel': Array([[1., 2.]], dtype=float32)}
"""

from maskjax.score._gradients import fisher, grasp, snip, synflow, taylor
from maskjax.score._inputs import input_norms, wanda
from maskjax.score._values import magnitude, movement, random

__all__ = [
    "fisher",
    "grasp",
    "input_norms",
    "magnitude",
    "movement",
    "random",
    "snip",
    "synflow",
    "taylor",
    "wanda",
]
