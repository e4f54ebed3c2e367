"""Its pictures."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import _pictures
from benchmarks._registry import Context
from benchmarks.demos.strong_ticket._errors import (
    BUDGETS,
    DIMENSIONS,
    FINDS,
    LABELS,
    NEURONS,
    block,
    is_sum,
    widths_of,
)
from maskjax.theory import gadget


def draw_errors(
    context: Context, errors: dict[str, np.ndarray], slopes: dict[str, np.ndarray]
) -> str:
    drawn = Figure(figsize=(11, 4.5), layout="constrained")
    powers, bits = drawn.subplots(1, 2)
    for name, values in errors.items():
        axes, unit = (bits, "bits a neuron") if is_sum(name) else (powers, "power")
        label = f"{LABELS[name]} ({unit}: {slopes[name].mean():.2f})"
        _pictures.band(axes, widths_of(context)[name], values, label)
    powers.set(xscale="log", ylabel="mean error of weights in [-1/2, 1/2]")
    bits.set(ylabel="median error of weights in [-1/2, 1/2]")
    for axes in (powers, bits):
        axes.set(yscale="log", xlabel="k, neurons in a block (half of them fire)")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    return _pictures.save(drawn, context.out / "strong_ticket_errors.png")


def draw_weight(context: Context) -> str:
    """The neurons that become one weight, in the plane of their two weights."""
    rng = np.random.default_rng(3)
    drawn = Figure(figsize=(12, 3.4), layout="constrained")
    panels: Sequence[Axes] = drawn.subplots(1, 4, sharey=True)
    for name, axes in zip(LABELS, panels, strict=True):
        v, u, _ = block(rng, name, 40, 1, 1)
        w = 0.35
        mask = gadget.choose(v, u, jnp.full((1, 1), w), construction=name)[0, :, 0]
        v, u = np.asarray(v[0]), np.asarray(u[0, :, 0])
        error = max(abs(v[side & mask] @ u[side & mask] - w) for side in (v > 0, v < 0))
        axes.scatter(v[~mask], u[~mask], s=12, color="lightgray", label="removed")
        axes.scatter(v[mask], u[mask], s=30, color="tab:blue", label="kept")
        line = np.linspace(w, 1, 50)
        for sign in (1, -1):
            axes.plot(sign * line, sign * w / line, "k:", linewidth=1)
        axes.set(title=f"{name}: off by {error:.1e}", xlabel="v, from the input")
    panels[0].set(ylabel="u, to the output")
    panels[0].legend(loc="lower right")
    drawn.suptitle("one weight of 0.35: on the dotted line u v = 0.35")
    return _pictures.save(drawn, context.out / "strong_ticket_weight.png")


def draw_neurons(context: Context, target: Any, made: dict[str, Any]) -> str:
    """Which neurons of each pixel's block one hidden unit keeps."""
    shape = context.data.shape
    pixels = shape[0] * shape[1]
    kernel = np.asarray(target[0]["kernel"])
    unit = int(np.linalg.norm(kernel, axis=0).argmax())
    drawn = Figure(figsize=(11, 5), layout="constrained")
    left, right = drawn.subfigures(1, 2, width_ratios=(1, 1.5))
    title = "a hidden unit's weights"
    _pictures.heat(left, kernel[:, unit].reshape(shape), title, "weight of a pixel")
    panels = right.subplots(1, 2, sharey=True)
    for name, axes in zip(("nearest", "fewest"), panels, strict=True):
        mask = np.asarray(made[name].ticket.mask[0]["outer"])[:pixels, :, unit]
        axes.imshow(mask, cmap="Blues", vmax=1.2, aspect="auto", interpolation="none")
        axes.set(title=f"{name}: {mask.sum():,} kept", xlabel="neuron of the block")
    panels[0].set(ylabel="pixel")
    right.suptitle("the neurons that make them (dark)")
    return _pictures.save(drawn, context.out / "strong_ticket_neurons.png")


def draw_missed(context: Context, missed: dict[str, np.ndarray]) -> str:
    drawn, axes = _pictures.figure(
        f"One ReLU neuron of {DIMENSIONS} inputs, of {NEURONS:,} random neurons"
    )
    for name in FINDS:
        label = "the first few, by regression" if name == "regression" else name
        _pictures.band(axes, BUDGETS, missed[name], label)
    axes.axhline(missed["ridge"].mean(), color="k", ls=":", label="all, by regression")
    axes.set(xscale="log", yscale="log", xlabel="neurons kept")
    axes.set_ylabel("squared error on new inputs, as a fraction")
    axes.legend()
    return _pictures.save(drawn, context.out / "strong_ticket_missed.png")
