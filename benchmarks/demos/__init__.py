"""The demonstrations, one file each, in the order in which they are run."""

from benchmarks.demos import (
    criteria,
    deconstructing,
    edge_popup,
    hopsupsup,
    lottery_ticket,
    magnitude,
    meta_ticket,
    packnet,
    pacnet,
    pruning,
    strong_ticket,
    supermask,
    supsup,
    uncertainty,
)

DEMOS = (
    magnitude.DEMO,
    criteria.DEMO,
    pruning.DEMO,
    lottery_ticket.DEMO,
    deconstructing.DEMO,
    edge_popup.DEMO,
    supermask.DEMO,
    supsup.DEMO,
    hopsupsup.DEMO,
    packnet.DEMO,
    pacnet.DEMO,
    meta_ticket.DEMO,
    strong_ticket.DEMO,
    uncertainty.DEMO,
)
