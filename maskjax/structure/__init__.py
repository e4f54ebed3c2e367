"""What is kept or removed together: entries, blocks, units, N of every M, or groups.

A structure is a frozen value. Most look at one leaf. Their axes are roles, which
`where` knows for each leaf, or integers, which count a leaf's axes as NumPy does.
`pool` turns scores into one score per decision, and `spread` turns decisions into a
mask; `select` does the rest. `Groups` are units that run through many leaves.

    >>> structure.Block((2, 2), axes=(0, 1)).pool(jnp.arange(8.0).reshape(2, 4))
    Array([[2.5, 4.5]], dtype=float32)
"""

from maskjax.structure._groups import Groups

# `... as ...`: what other modules share, and users should not need.
from maskjax.structure._groups import sums_of_units as sums_of_units
from maskjax.structure._leaf import Block, Entries, NofM, Structure, Units
from maskjax.structure._leaf import any_alive as any_alive
from maskjax.structure._members import Group, Member

__all__ = [
    "Block",
    "Entries",
    "Group",
    "Groups",
    "Member",
    "NofM",
    "Structure",
    "Units",
]
