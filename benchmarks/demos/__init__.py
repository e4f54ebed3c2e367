"""The demonstrations, one file each, in the order in which they are run."""

from benchmarks.demos import edge_popup, magnitude

DEMOS = (magnitude.DEMO, edge_popup.DEMO)
