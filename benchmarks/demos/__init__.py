"""The demonstrations, one file each, in the order in which they are run."""

import importlib

_NAMES = (
    "magnitude",
    "criteria",
    "pruning",
    "compaction",
    "sentence_encoder",
    "learned",
    "lottery_ticket",
    "deconstructing",
    "edge_popup",
    "supermask",
    "fedpm",
    "supsup",
    "hopsupsup",
    "packnet",
    "wsn",
    "merging",
    "pacnet",
    "meta_ticket",
    "strong_ticket",
    "uncertainty",
)
DEMOS = tuple(importlib.import_module(f"{__name__}.{name}").DEMO for name in _NAMES)
