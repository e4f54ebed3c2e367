"""One density for the whole tree, divided into a density for each leaf.

`select`, and `optim`, take the resulting tree as `density`.

    >>> params = {"a": jnp.ones((100, 100)), "b": jnp.ones((100, 10))}
    >>> shares = allocation.erk(params, density=0.1)
    >>> {name: round(share, 4) for name, share in shares.items()}
    {'a': 0.071, 'b': 0.3903}
"""

from maskjax.allocation._outliers import owl
from maskjax.allocation._shapes import erk, matching, uniform

__all__ = ["erk", "matching", "owl", "uniform"]
