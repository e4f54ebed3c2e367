"""SparseGPT: prune a trained network in one pass (Frantar & Alistarh, ICML 2023).

"SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
arXiv:2301.00774.

>>> x
"""

from maskjax.recipes.sparsegpt._prune import prune
from maskjax.recipes.sparsegpt._repair import repair
from maskjax.recipes.sparsegpt._result import Pruned

__all__ = ["Pruned", "prune", "repair"]
