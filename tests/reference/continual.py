"""Metrics of tasks that came one by one, a sum at a time, in NumPy.

`r[i][j]` is how well task j is done once task i was learned (arXiv:1706.08840, section
2; forgetting is arXiv:1801.10112, section 4.2).
"""

import numpy as np


def average_accuracy(r: np.ndarray) -> float:
    tasks = len(r)
    return sum(r[tasks - 1][j] for j in range(tasks)) / tasks


def backward_transfer(r: np.ndarray) -> float:
    tasks = len(r)
    return sum(r[tasks - 1][i] - r[i][i] for i in range(tasks - 1)) / (tasks - 1)


def forward_transfer(r: np.ndarray, untrained: np.ndarray) -> float:
    tasks = len(r)
    return sum(r[i - 1][i] - untrained[i] for i in range(1, tasks)) / (tasks - 1)


def forgetting(r: np.ndarray) -> float:
    tasks = len(r)
    lost = 0.0
    for j in range(tasks - 1):
        best = max(r[i][j] for i in range(j, tasks - 1))
        lost += best - r[tasks - 1][j]
    return lost / (tasks - 1)
