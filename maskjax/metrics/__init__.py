"""How good predictions are: accuracy, uncertainty, calibration, forgetting.

Predicted classes are probabilities [..., B, C] for B samples, with labels [B]. Leading
axes stay: probabilities [M, B, C] of M members give a metric for each member. For the
ensemble, pass the members' mean. Metrics that compare members take [M, ..., C].

All are JAX functions that run under `jit` and `vmap`. Values that break a promise (a
label outside the classes, probabilities that don't sum to 1) are an error outside of
`jit`, and make the result nan inside. Where some samples don't count, such as padding
or pixels without a label, say which do: `where=labels >= 0`. Pixels are samples:
`probs.reshape(-1, C)`. A mean over batches is weighted by how many samples count in
each; calibration is put together in bins, by `pooled`.

Gradients are finite where the result is; half precision is computed in float32. Samples
may be on several devices. Metrics that sort them gather one number for each sample:
those of detection (`auroc`, `aurc`, ...) and bins of equal mass. Metrics of an accuracy
matrix gather the matrix.

>>> probs = jnp.array([[[0.75, 0.25], [0.5, 0.5]], [[0.25, 0.75], [0.0, 1.0]]])
>>> labels = jnp.array([0, 1])
>>> print(metrics.accuracy(probs, labels), metrics.accuracy(probs.mean(0), labels))
[0.5 0.5] 1.0
>>> unsure = metrics.mutual_information(probs)
>>> print(metrics.auroc(unsure, jnp.array([False, True])))
1.0

For tasks learned one after the other, row i and column j of an accuracy matrix
[..., T, T] is the accuracy on task j after learning task i. Leading axes (seeds,
orders) stay. There may be more rows, as of an untrained network or of each epoch; then
`rows` are those just after each task was learned.

>>> accuracy = jnp.array([[1.0, 0.25], [0.75, 0.5]])
>>> print(metrics.average_accuracy(accuracy), metrics.forgetting(accuracy))
0.625 0.25
"""

from maskjax.metrics._calibration import (
    Reliability,
    calibration_error,
    expected_calibration_error,
    pooled,
    reliability,
    temperature,
)
from maskjax.metrics._classification import (
    accuracy,
    brier_score,
    negative_log_likelihood,
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
    interval_coverage,
    mixture_crps,
    mixture_nll,
)
from maskjax.metrics._uncertainty import (
    disagreement,
    entropy,
    expected_entropy,
    mutual_information,
    variation_ratio,
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
    "calibration_error",
    "disagreement",
    "entropy",
    "expected_calibration_error",
    "expected_entropy",
    "forgetting",
    "forward_transfer",
    "fpr_at_tpr",
    "gaussian_crps",
    "gaussian_nll",
    "interval_coverage",
    "mixture_crps",
    "mixture_nll",
    "mutual_information",
    "negative_log_likelihood",
    "pooled",
    "reliability",
    "risk_coverage",
    "temperature",
    "variation_ratio",
]
