"""The strong lottery ticket, constructed: a random network pruned until it is another.

Every layer of a ReLU network becomes two layers of a wide random one, of which a mask
keeps a few weights and changes none. Malach et al., "Proving the Lottery Ticket
Hypothesis: Pruning is All You Need", ICML 2020, arXiv:2002.00585.

Construction (numbers match the comments below):
  1. draw the wide network, whatever the target: a block of k hidden neurons for each
     input of each layer, and one for a constant 1 where there are biases
  2. of the first layer's weights keep those from an input to its own block
  3. of the second layer's keep, for each weight of the target, neurons of the input's
     block that together make that weight (`gadget`, which has four ways)

Networks are lists of layers, with ReLU between them. A layer is dense, {"kernel": [n,
o]} and maybe "bias" [o]; or a pair of layers, {"inner": [i, k], "outer": [i, k, o]}, of
which the first is what 2. leaves, and i is n, or n + 1 with the constant. `dense` has
all of its weights, and the same output.

    >>> target = [{"kernel": jnp.array([[0.3], [-0.2]])}]
    >>> wide = strong_ticket.init((2, 1), k=32, key=jax.random.key(0))
    >>> ticket = strong_ticket.prune(wide, target, construction="subset_sum")
    >>> strong_ticket.predict(ticket, jnp.array([[1.0, 1.0]])).round(3)
    Array([[0.1]], dtype=float32)

Departures from the paper: the neurons of a block serve all outputs; only products
count, but in "factor"; sums of many products; a constant 1 for biases; no bounds on
norms: the error's bound is computed from the weights.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maskjax import masking
from maskjax._core import checks
from maskjax._core.trees import Array, Mask, Params
from maskjax.theory import _wide, gadget
from maskjax.theory._wide import dense, forward, init

__all__ = [
    "Report",
    "Ticket",
    "bound",
    "dense",
    "forward",
    "init",
    "predict",
    "prune",
]


class Report(NamedTuple):
    """What pruning found, layer by layer of the target; arrays are NumPy's.

    Attributes:
        error: For each layer [i, o], float64: how far the pruned block is from the
            weight, for positive or negative inputs, whichever is more. The last row is
            the biases', if there are any.
        beyond: For each layer [i, o], boolean: weights that the block can't reach.
        kept: How many outer weights each layer keeps.
        neurons: How many hidden neurons each layer keeps, which are inner weights.
        size: How many outer weights each layer has.
        bound: As `bound` has it, for inputs in the unit ball.
    """

    error: tuple[np.ndarray, ...]
    beyond: tuple[np.ndarray, ...]
    kept: tuple[int, ...]
    neurons: tuple[int, ...]
    size: tuple[int, ...]
    bound: tuple[float, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ticket:
    """A wide network, and what is left of it; a pytree.

    Attributes:
        params: The network, as it was given to `prune`.
        mask: Which of its weights are kept, for `maskjax.apply`.
        nonnegative: Whether it is for inputs that are never negative only.
        report: What pruning found.
        bias: Whether the target has biases; known while tracing.
    """

    params: Params
    mask: Mask
    nonnegative: Any
    report: Report
    bias: bool = dataclasses.field(metadata={"static": True})


def prune(
    params: Params,
    target: Params,
    *,
    construction: gadget.Construction,
    nonnegative: bool = False,
    tolerance: float | None = None,
    fewest: bool = False,
    misses: Literal["raise", "report"] = "raise",
    activation: Callable[[Array], Array] = jax.nn.relu,
    bins: int = 14,
    memory: int = 2**30,
) -> Ticket:
    """The mask under which a wide random network is a given one, about.

    Args:
        params: A wide network, from `init`. It is not changed.
        target: The network wanted, a list of dense layers: all with a bias, or none.
        construction: How weights are made, as in `gadget`.
        nonnegative: Whether inputs are never negative (pixels, say), which takes half
            of the neurons. Those of later layers never are, after a ReLU.
        tolerance: The most that a weight may be off.
        fewest: With "subset_sum", the smallest subsets within the tolerance instead of
            the nearest.
        misses: What becomes of weights that are out of reach, or off by more than the
            tolerance: an error that names them ("raise"), or nothing but a line in the
            report ("report"): they get the nearest there is.
        activation: That of the target; only ReLU can be made.
        bins: With "greedy", as in `subset_sum.greedy`.
        memory: With "subset_sum", as in `subset_sum.nearest`.

    Returns:
        The ticket.

    Raises:
        TypeError: If a layer is not one, or a weight is traced.
        ValueError: If `target` does not fit `params`, some layers only have a bias, a
            weight is inf or nan, `activation` is not ReLU, a weight is missed, or as in
            `gadget.choose`.

    Example:
        >>> target = [{"kernel": jnp.array([[0.25]]), "bias": jnp.array([0.5])}]
        >>> wide = strong_ticket.init((1, 1), k=48, bias=True, key=jax.random.key(0))
        >>> ticket = strong_ticket.prune(
        ...     wide, target, construction="subset_sum", tolerance=0.01
        ... )
        >>> ticket.report.error[0].max() < 0.01
        np.True_
    """
    fn = "maskjax.theory.strong_ticket.prune"
    checks.one_of(misses, ("raise", "report"), fn=fn, name="misses")
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((params, target))):
        raise TypeError(
            f"`{fn}` needs networks whose weights are known, got traced ones. Call it "
            "outside `jit`; `gadget.choose` goes under it."
        )
    _relu(activation, fn=fn)
    wanted = _weights(params, target, fn=fn)
    if fewest and tolerance is None:
        raise ValueError(f"`{fn}` needs a `tolerance` to find the fewest within it.")
    masks, errors, out = [], [], []
    for i, (pair, w) in enumerate(zip(params, wanted, strict=True)):
        v, u = pair["inner"], pair["outer"]
        never = np.full(len(v), i > 0 or nonnegative)
        never[len(target[i]["kernel"]) :] = True  # the constant
        how = {"construction": construction, "nonnegative": never}
        within = tolerance if fewest else None
        kept = gadget.choose(
            v, u, w, tolerance=within, bins=bins, memory=memory, **how
        )  # 3.
        masks.append({"inner": kept.any(-1), "outer": kept})  # 2.
        error = [
            np.abs(x - np.asarray(w, np.float64)) for x in gadget.gains(v, u, kept)
        ]
        errors.append(np.where(never[:, None], error[0], np.maximum(*error)))
        out.append(gadget.beyond(v, u, w, **how))
    if misses == "raise":
        _missed(target, errors, out, tolerance, fn=fn)
    kept, neurons = (
        tuple(int(np.count_nonzero(mask[name])) for mask in masks)
        for name in ("outer", "inner")
    )
    size = tuple(pair["outer"].size for pair in params)
    size_of_error = bound(target, errors)
    report = Report(tuple(errors), tuple(out), kept, neurons, size, size_of_error)
    return Ticket(params, masks, nonnegative, report, "bias" in target[0])


def predict(ticket: Ticket, x: Array) -> Array:
    """What the pruned network says.

    Args:
        ticket: From `prune`.
        x: [..., n].

    Returns:
        [..., o]. If the ticket is for inputs that are never negative, but some are, and
        that can't be an error since they are traced: nan for these.

    Raises:
        ValueError: If the ticket is for another number of inputs, or for inputs that
            are never negative, and some are.

    Example:
        >>> wide = strong_ticket.init((1, 1), k=32, key=jax.random.key(0))
        >>> target = [{"kernel": jnp.array([[0.5]])}]
        >>> ticket = strong_ticket.prune(wide, target, construction="subset_sum")
        >>> strong_ticket.predict(ticket, jnp.array([[2.0], [-4.0]])).round(2)
        Array([[ 1.],
               [-2.]], dtype=float32)
    """
    fn = "maskjax.theory.strong_ticket.predict"
    layers = masking.apply(ticket.params, ticket.mask)
    out = _wide.run(layers, x, bias=ticket.bias, fn=fn)
    wrong = jnp.any(x < 0, -1, keepdims=True) & ticket.nonnegative
    if isinstance(wrong, Tracer):
        return jnp.where(wrong, jnp.nan, out)
    if wrong.any():
        raise ValueError(
            f"`{fn}` needs inputs that are never negative, as the ticket was promised, "
            f"but {int((x < 0).sum())} of {x.size:,} are. Prune with "
            "`nonnegative=False`."
        )
    return out


def bound(
    target: Params, errors: Sequence[Any], *, radius: float = 1.0
) -> tuple[float, ...]:
    """How far the outputs of a network can be from those of one with wrong weights.

    Let layer l of the target have W and b, its input norm at most r (that of the
    network with wrong weights then at most r + e), and its weights be wrong by at most
    E, entry by entry. Then its output is off by at most

        e' = |W| e + |E| sqrt((r + e)**2 + 1)

    where |.| are spectral norms, e is the same of the layer before, the 1 is there if
    there are biases, and r' = |W| r + |b|. A ReLU adds nothing.

    Args:
        target: A list of dense layers.
        errors: For each layer its E: a number for all weights, or [i, o] as in
            `Report.error`, with a last row for the biases if there are any.
        radius: The largest norm of an input.

    Returns:
        e' of each layer, Python numbers: the Euclidean norm of a difference, in exact
        arithmetic. The last is the network's.

    Raises:
        TypeError: If a layer is not one.
        ValueError: If the errors do not fit, or some number is inf or nan.

    Example:
        >>> target = [{"kernel": jnp.eye(2)}, {"kernel": jnp.ones((2, 1))}]
        >>> print([round(e, 4) for e in strong_ticket.bound(target, [0.01, 0.01])])
        [0.02, 0.0427]

    References:
        Malach et al., arXiv:2002.00585, appendix A (there for norms of at most 1).
    """
    fn = "maskjax.theory.strong_ticket.bound"
    _target(target, fn=fn)
    if len(errors) != len(target):
        raise ValueError(
            f"`{fn}` needs `errors` for each of {len(target)} layers, got "
            f"{len(errors)}."
        )
    found, e, r = [], 0.0, float(radius)
    for i, (layer, error) in enumerate(zip(target, errors, strict=True)):
        kernel = np.asarray(layer["kernel"]).astype(np.float64)
        b = np.asarray(layer.get("bias", np.zeros(0))).astype(np.float64)
        shape = len(kernel) + ("bias" in layer), kernel.shape[1]
        wrong = np.abs(np.asarray(error, np.float64))
        if wrong.shape not in ((), shape):
            raise ValueError(
                f"`{fn}` needs `errors` of layer {i} as a number, or {shape}, got "
                f"{wrong.shape}."
            )
        if not np.isfinite(wrong).all():
            first = wrong[~np.isfinite(wrong)][0]
            raise ValueError(f"`{fn}` needs `errors` of layer {i} finite, got {first}.")
        norm = np.linalg.norm(kernel, 2)
        off = np.linalg.norm(np.broadcast_to(wrong, shape), 2)
        e = norm * e + off * np.sqrt((r + e) ** 2 + ("bias" in layer))
        r = norm * r + np.linalg.norm(b)
        found.append(float(e))
    return tuple(found)


def _relu(activation: Any, *, fn: str) -> None:
    """Complain unless a function is ReLU, as far as some points can tell."""
    if not callable(activation):
        raise TypeError(
            f"`{fn}` needs `activation` as a function, got "
            f"{checks.kind_of(activation)}."
        )
    z = np.linspace(-16, 16, 65, dtype=np.float32)
    with jax.ensure_compile_time_eval():  # wherever it is called
        out = np.asarray(activation(jnp.asarray(z)))
    wrong = out != np.maximum(z, 0)
    if wrong.any():
        at = int(np.argmax(wrong))
        name = getattr(activation, "__name__", repr(activation))
        raise ValueError(
            f"`{fn}` needs a target with ReLU as its `activation`, got {name}, which "
            f"is {out[at]:.3g} at {z[at]:g}."
        )


def _target(target: Any, *, fn: str) -> None:
    """Complain unless a target is a list of dense layers, and fit one another."""
    names = [set(layer) if isinstance(layer, Mapping) else None for layer in target]
    checks.raise_all(
        (
            f"{i}: {checks.kind_of(layer) if has is None else sorted(has)}"
            for i, (layer, has) in enumerate(zip(target, names, strict=True))
            if has not in ({"kernel"}, {"kernel", "bias"})
        ),
        f"`{fn}` needs every layer of `target` as a mapping with 'kernel', and 'bias' "
        "in all or none",
        TypeError,
    )
    width = None
    complaints = []
    for i, layer in enumerate(target):
        w, b = layer["kernel"], layer.get("bias")
        shapes = np.shape(w), np.shape(b) if b is not None else np.shape(w)[1:]
        fits = checks.is_floating(w) and (b is None or checks.is_floating(b))
        fits &= len(shapes[0]) == 2 and shapes[0][1:] == shapes[1]
        if not fits or width not in (None, shapes[0][0]):
            complaints.append(f"{i}: {checks.kind_of(w)}, after {width}")
        width = shapes[0][-1] if shapes[0] else None
    checks.raise_all(
        complaints,
        f"`{fn}` needs every kernel of `target` floating, [n, o], n as many as the "
        "layer before has outputs, and biases [o]",
    )
    if not names or len({"bias" in has for has in names if has}) > 1:
        raise ValueError(
            f"`{fn}` needs a `target` of at least one layer, with a bias in all or "
            f"none, got {[sorted(has) for has in names if has]}."
        )
    _wide.finite(target, fn=fn, name="target")


def _weights(params: Params, target: Params, *, fn: str) -> list[Array]:
    """The target's weights [i, o], biases last, if they fit a wide network."""
    _target(target, fn=fn)
    weights = []
    for layer in target:
        rows = [jnp.asarray(layer["kernel"])]
        if "bias" in layer:
            rows.append(jnp.asarray(layer["bias"])[None])
        weights.append(jnp.concatenate(rows))
    for i, pair in enumerate(params):
        _wide.pair(pair, i, fn=fn)
    have = [(len(p["inner"]), p["outer"].shape[2]) for p in params]
    if have != [w.shape for w in weights]:
        raise ValueError(
            f"`{fn}` needs `params` for the target's weights, biases as one more row: "
            f"{[w.shape for w in weights]}, got {have}."
        )
    _wide.finite(params, fn=fn, name="params")
    return weights


def _missed(
    target: Params,
    errors: Sequence[np.ndarray],
    beyond: Sequence[np.ndarray],
    tolerance: float | None,
    *,
    fn: str,
) -> None:
    """Complain of weights that a ticket does not have, layer by layer."""
    complaints = []
    for i, (layer, error, out) in enumerate(zip(target, errors, beyond, strict=True)):
        missed = out if tolerance is None else out | ~(error <= tolerance)
        if not missed.any():
            continue
        row, column = np.unravel_index(
            np.argmax(np.where(missed, error, -1)), error.shape
        )
        n = len(layer["kernel"])
        name = f"kernel[{row}, {column}]" if row < n else f"bias[{column}]"
        w = float(layer["kernel"][row, column] if row < n else layer["bias"][column])
        complaints.append(
            f"{i}: {missed.sum():,} of {missed.size:,} missed, {out.sum():,} of them "
            f"out of reach; the worst {name} = {w:.4g}, off by {error[row, column]:.4g}"
        )
    within = "" if tolerance is None else f", and within {tolerance:g}"
    checks.raise_all(
        complaints,
        f"`{fn}` needs blocks that reach every weight{within} (try a larger `k`, or a "
        "wider range of outer weights; `misses='report'` makes do)",
    )
