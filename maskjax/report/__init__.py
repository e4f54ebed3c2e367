"""Tables and pictures of masks and of predictions, for people to read.

>>> params = {"dense": {"kernel": jnp.ones((10, 10)), "bias": jnp.ones(10)}}
>>> scores = score.random(params, key=jax.random.key(0))
>>> print(report.table(select.top_k(scores, density=0.1), params))
parameter     shape    kept  nonzero  total  density  sparsity
dense/bias    10          -       10     10        -         -
dense/kernel  10 x 10    10      100    100   0.1000    0.9000
all masked               10      100    100   0.1000    0.9000

Pictures are matplotlib figures that belong to no pyplot window: show one as the last
line of a notebook cell, or call its `savefig`.
"""

from maskjax.report._masks import overlaps, plot_density, plot_history, plot_overlap
from maskjax.report._predictions import plot_reliability, plot_risk_coverage
from maskjax.report._table import flops, table

__all__ = [
    "flops",
    "overlaps",
    "plot_density",
    "plot_history",
    "plot_overlap",
    "plot_reliability",
    "plot_risk_coverage",
    "table",
]
