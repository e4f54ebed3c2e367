"""Its pictures."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import _pictures
from benchmarks._registry import Context
from benchmarks.demos.strong_ticket import _errors
from benchmarks.demos.strong_ticket._errors import LABELS
from maskjax.theory import gadget


def draw_errors(
    context: Context, errors: dict[str, np.ndarray], slopes: dict[str, np.ndarray]
) -> str:
    drawn, panels = _pictures.page(columns=2, size=(11, 4.5))
    kinds = ("mean", "power", "log"), ("median", "bits a neuron", "linear")
    for i, (axes, (what, unit, scale)) in enumerate(zip(panels, kinds, strict=True)):
        x, found = {}, {}
        for name in errors:
            if _errors.is_sum(name) == bool(i):
                label = f"{LABELS[name]} ({unit}: {slopes[name].mean():.2f})"
                x[label] = _errors.widths_of(context)[name]
                found[label] = errors[name]
        how = {"xlabel": "k, neurons in a block (half of them fire)"}
        how["ylabel"] = f"{what} error of weights in [-1/2, 1/2]"
        _pictures.curves(axes, x, found, xscale=scale, yscale="log", **how)
    return _pictures.save(drawn, context, "strong_ticket_errors")


def draw_weight(context: Context, w: float = 0.35) -> str:
    """The neurons that become one weight, in the plane of their two weights."""
    rng = np.random.default_rng(3)
    drawn, panels = _pictures.page(columns=4, size=(12, 3.4), sharey=True)
    line = np.linspace(w, 1, 50)
    for name, axes in zip(LABELS, panels, strict=True):
        v, u, _ = _errors.block(rng, name, 40, 1, 1)
        mask = gadget.choose(v, u, jnp.full((1, 1), w), construction=name)[0, :, 0]
        v, u = np.asarray(v[0]), np.asarray(u[0, :, 0])
        error = max(abs(v[side & mask] @ u[side & mask] - w) for side in (v > 0, v < 0))
        axes.scatter(v[~mask], u[~mask], s=12, color="lightgray", label="removed")
        axes.scatter(v[mask], u[mask], s=30, color="tab:blue", label="kept")
        for sign in (1, -1):
            axes.plot(sign * line, sign * w / line, "k:", linewidth=1)
        axes.set(title=f"{name}: off by {error:.1e}", xlabel="v, from the input")
    panels[0].set(ylabel="u, to the output")
    panels[0].legend(loc="lower right")
    drawn.suptitle(f"one weight of {w}: on the dotted line u v = {w}")
    return _pictures.save(drawn, context, "strong_ticket_weight")


def draw_neurons(context: Context, target: Any, tickets: dict[str, Any]) -> str:
    """Which neurons of each pixel's block one hidden unit keeps."""
    kernel, shape = np.asarray(target[0]["kernel"]), context.data.shape
    unit = int(np.linalg.norm(kernel, axis=0).argmax())
    drawn = Figure(figsize=(11, 5), layout="constrained")
    left, right = drawn.subfigures(1, 2, width_ratios=(1, 1.5))
    image, title = kernel[:, unit].reshape(shape), "a hidden unit's weights"
    _pictures.heat(left, image, "weight of a pixel", title=title)
    panels = right.subplots(1, 2, sharey=True)
    for name, axes in zip(("nearest", "fewest"), panels, strict=True):
        mask = np.asarray(tickets[name].mask[0]["outer"])[: len(kernel), :, unit]
        axes.imshow(mask, **_pictures.BINARY, aspect="auto", interpolation="none")
        axes.set(title=f"{name}: {mask.sum():,} kept", xlabel="neuron of the block")
    panels[0].set(ylabel="pixel")
    right.suptitle("the neurons that make them (dark)")
    return _pictures.save(drawn, context, "strong_ticket_neurons")


def draw_missed(context: Context, missed: dict[str, np.ndarray]) -> str:
    title = f"One ReLU neuron of {_errors.DIMENSIONS} inputs, of {_errors.NEURONS:,} "
    labels = {name: name for name in _errors.FINDS}
    labels["regression"] = "the first few, by regression"
    how = {"xlabel": "neurons kept", "xscale": "log", "yscale": "log"}
    how["ylabel"] = "squared error on new inputs, as a fraction"
    return _pictures.plot(
        context,
        "strong_ticket_missed",
        f"{title}random neurons",
        _errors.budgets_of(context),
        {label: missed[name] for name, label in labels.items()},
        levels={"all, by regression": missed["ridge"]},
        **how,
    )
