"""Pictures of how far predictions can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from maskjax._core import checks
from maskjax.metrics._calibration import Reliability
from maskjax.metrics._detection import RiskCoverage
from maskjax.report import _drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LARGEST = 60.0  # area in points squared of the bin with the largest share of samples
_LEAST = 4.0


def plot_reliability(bins: Mapping[str, Reliability] | Reliability) -> Figure:
    """A reliability diagram: accuracy against confidence.

    Each bin that is not empty is a point; its area is proportional to its share of the
    samples. On the dashed line predictions are calibrated; below it they are
    overconfident.

    Args:
        bins: From `metrics.reliability`, with arrays [bins]: one of them, or a dict
            {label: bins}.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If values are traced, or anything else is given.
        ValueError: If the arrays are not [bins].

    Example:
        >>> probs = jnp.array([[0.75, 0.25], [0.875, 0.125], [0.5, 0.5]])
        >>> bins = metrics.reliability(probs, jnp.array([0, 1, 0]), bins=2)
        >>> figure = report.plot_reliability({"network": bins})
        >>> figure.axes[0].lines[1].get_ydata()  # the first is the dashed one
        array([1. , 0.5], dtype=float32)
    """
    fn = "maskjax.report.plot_reliability"
    lines = _lines(bins, Reliability, "bins", "[bins]", fn=fn)
    figure, axes = _drawing.figure(fn, "Reliability of predictions")
    _drawing.colors(axes, len(lines))
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    shares = {name: count / max(count.sum(), 1) for name, (count, *_) in lines.items()}
    most = max((share.max() for share in shares.values() if share.size), default=0)
    for label, (count, confidence, accuracy) in lines.items():
        some = count > 0
        sizes = np.maximum(_LARGEST * shares[label] / (most or 1), _LEAST)
        (line,) = axes.plot(confidence[some], accuracy[some], label=label)
        color, at = line.get_color(), (confidence[some], accuracy[some])
        axes.scatter(*at, s=sizes[some], color=color, clip_on=False)
    _drawing.legend(figure, axes, lines)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set(xlabel="confidence (probability)", ylabel="accuracy (fraction correct)")
    return figure


def plot_risk_coverage(curves: Mapping[str, RiskCoverage] | RiskCoverage) -> Figure:
    """Risk-coverage curves: the mean loss against the fraction of samples answered.

    Args:
        curves: From `metrics.risk_coverage`, for one set of samples: one of them, or a
            dict {label: curve}.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If values are traced, or anything else is given.
        ValueError: If the arrays are not [B].

    Example:
        >>> wrong = jnp.array([False, True])
        >>> curve = metrics.risk_coverage(jnp.array([0.75, 0.5]), wrong)
        >>> report.plot_risk_coverage(curve).axes[0].lines[0].get_xydata()
        array([[0.5, 0. ],
               [1. , 0.5]])
    """
    fn = "maskjax.report.plot_risk_coverage"
    lines = _lines(curves, RiskCoverage, "curves", "[B]", fn=fn)
    figure, axes = _drawing.figure(fn, "Risk of the most certain predictions")
    _drawing.colors(axes, len(lines))
    for label, (coverage, risk) in lines.items():
        axes.plot(coverage, risk, label=label)
    _drawing.legend(figure, axes, lines)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set(xlim=(0, 1), xlabel="coverage (fraction answered)")
    axes.set_ylabel("risk (mean loss of those answered)")
    return figure


def _lines(
    given: Any, kind: type, name: str, shape: str, *, fn: str
) -> dict[str, tuple[np.ndarray, ...]]:
    """Lines by their labels, as NumPy arrays of one axis."""
    named = _drawing.labeled(given)
    checks.raise_all(
        (
            f"{label or name}: {type(line).__name__}"
            for label, line in named.items()
            if not isinstance(line, kind)
        ),
        f"`{fn}` needs every line of `{name}` as `metrics.{kind.__name__}`",
        TypeError,
    )
    _drawing.concrete(named, fn=fn, what=f"`{name}` with values")
    lines = {
        label: tuple(np.asarray(array) for array in line)
        for label, line in named.items()
    }
    checks.raise_all(
        (
            f"{label or name}: shapes {', '.join(str(a.shape) for a in arrays)}"
            for label, arrays in lines.items()
            if arrays[0].ndim != 1 or len({a.shape for a in arrays}) > 1
        ),
        f"`{fn}` needs every line of `{name}` with arrays {shape}",
    )
    return lines
