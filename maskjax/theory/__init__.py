"""Constructions from proofs: what a mask alone can make of random weights.

They sort and search over whole arrays. Arguments on several devices are gathered.
Each is imported when it is first used: `import maskjax; maskjax.theory.gadget`.
"""

from typing import TYPE_CHECKING

from maskjax._core import lazy

if TYPE_CHECKING:
    from maskjax.theory import (
        gadget,
        neuron,
        strong_ticket,
        subset_sum,
    )

__all__ = [
    "gadget",
    "neuron",
    "strong_ticket",
    "subset_sum",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy.attributes(__name__, __all__)
