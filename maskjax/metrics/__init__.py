"""What a person wants to know of predictions: right or not, how sure, and forgotten?

Classes are predicted as probabilities [..., B, C], of B samples, with labels [B].
Leading axes stay: of M members' [M, B, C] most metrics are for each member, and those
of the ensemble are of their mean. Those that compare members say [M, ..., C].

>>> probs = jnp.array([[[0.75, 0.25], [0.5, 0.5]], [[0.25, 0.75], [0.0, 1.0]]])
>>> labels = jnp.array([0, 1])
>>> print(metrics.accuracy(probs, labels), metrics.accuracy(probs.mean(0), labels))
[0.5 0.5] 1.0
>>> unsure = metrics.mutual_information(probs)
>>> print(metrics.auroc(unsure, jnp.array([False, True])))
1.0

An accuracy matrix [..., T, T] has in row i and column j how well task j is done once
task i was learned. Leading axes (seeds, orders) stay.

>>> accuracy = jnp.array([[1.0, 0.25], [0.75, 0.5]])
>>> print(metrics.average_accuracy(accuracy), metrics.forgetting(accuracy))
0.625 0.25
"""

from maskjax.metrics._calibration import (
    Reliability,
    expected_calibration_error,
    reliability,
    temperature,
)
from maskjax.metrics._classification import (
    accuracy,
    brier_score,
    disagreement,
    entropy,
    expected_entropy,
    mutual_information,
    negative_log_likelihood,
    variation_ratio,
)
from maskjax.metrics._continual import (
    average_accuracy,
    backward_transfer,
    bits_per_task,
    forgetting,
    forward_transfer,
)
from maskjax.metrics._detection import (
    RiskCoverage,
    aurc,
    auroc,
    average_precision,
    fpr_at_tpr,
    risk_coverage,
)
from maskjax.metrics._regression import (
    gaussian_crps,
    gaussian_nll,
    mixture_crps,
    mixture_nll,
)

__all__ = [
    "Reliability",
    "RiskCoverage",
    "accuracy",
    "aurc",
    "auroc",
    "average_accuracy",
    "average_precision",
    "backward_transfer",
    "bits_per_task",
    "brier_score",
    "disagreement",
    "entropy",
    "expected_calibration_error",
    "expected_entropy",
    "forgetting",
    "forward_transfer",
    "fpr_at_tpr",
    "gaussian_crps",
    "gaussian_nll",
    "mixture_crps",
    "mixture_nll",
    "mutual_information",
    "negative_log_likelihood",
    "reliability",
    "risk_coverage",
    "temperature",
    "variation_ratio",
]
