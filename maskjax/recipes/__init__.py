"""One paper each: short compositions of the core that never own the training loop.

Each is imported when it is first used: `import maskjax; maskjax.recipes.supsup`.
"""

from typing import TYPE_CHECKING

from maskjax._core import lazy

if TYPE_CHECKING:
    from maskjax.recipes import (
        deconstructing,
        deep_ensemble,
        edge_popup,
        fedpm,
        hopsupsup,
        iterand,
        lottery_ticket,
        maskllm,
        masksembles,
        mc_dropout,
        merging,
        meta_ticket,
        packnet,
        pacnet,
        sparsegpt,
        supermask,
        supsup,
        supsup_stream,
        wsn,
    )

__all__ = [
    "deconstructing",
    "deep_ensemble",
    "edge_popup",
    "fedpm",
    "hopsupsup",
    "iterand",
    "lottery_ticket",
    "maskllm",
    "masksembles",
    "mc_dropout",
    "merging",
    "meta_ticket",
    "packnet",
    "pacnet",
    "sparsegpt",
    "supermask",
    "supsup",
    "supsup_stream",
    "wsn",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy.attributes(__name__, __all__)
