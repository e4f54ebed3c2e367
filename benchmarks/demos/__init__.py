"""The demonstrations, one file each, in the order in which they are run."""

from benchmarks.demos import (
    criteria,
    deconstructing,
    edge_popup,
    lottery_ticket,
    magnitude,
    pruning,
)

DEMOS = (
    magnitude.DEMO,
    criteria.DEMO,
    pruning.DEMO,
    lottery_ticket.DEMO,
    deconstructing.DEMO,
    edge_popup.DEMO,
)
