"""The strong lottery ticket, constructed: a random network pruned until it is another.

Every layer of a ReLU network becomes two layers of a wide random network. A mask keeps
some of its weights and changes none. Malach et al., "Proving the Lottery Ticket
Hypothesis: Pruning is All You Need", ICML 2020, arXiv:2002.00585.

Construction (numbers match the comments below):
  1. draw the wide network without looking at the target: a block of k hidden neurons
     for each input of each layer, and one for a constant 1 if there are biases
  2. in the first layer, keep weights from an input to its own block only
  3. in the second layer, for each weight of the target, keep neurons of the input's
     block that together make that weight (`gadget` has four ways to choose them)

Networks are lists of layers, with ReLU between them. A dense layer is {"kernel": [n,
o]}, with or without "bias" [o]. A pair of layers is {"inner": [i, k], "outer": [i, k,
o]}, where "inner" holds the weights that step 2 keeps, and i is n, or n + 1 with the
constant. `dense` builds the network with all of its weights and the same output.

    >>> target = [{"kernel": jnp.array([[0.3], [-0.2]])}]
    >>> wide = strong_ticket.init((2, 1), k=32, key=jax.random.key(0))
    >>> ticket = strong_ticket.prune(wide, target, construction="subset_sum")
    >>> strong_ticket.predict(ticket, jnp.array([[1.0, 1.0]])).round(3)
    Array([[0.1]], dtype=float32)

Departures from the paper:
  * the neurons of a block serve all outputs
  * constructions other than "factor" consider only the products of two weights, and
    may sum several of them
  * a constant 1 makes biases
  * norms need no bounds: the bound on the error is computed from the weights
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maskjax import masking
from maskjax._core import checks, dtypes
from maskjax._core.stored import stored
from maskjax._core.trees import Array, Mask, Params
from maskjax.theory import _networks, _wide, gadget
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


@stored("maskjax.theory.strong_ticket.Report")
class Report(NamedTuple):
    """What pruning found, for each layer of the target; arrays are NumPy's.

    Attributes:
        error: [i, o] for each layer, float64: how far the pruned block is from the
            weight, the larger of the errors for positive and for negative inputs. The
            last row is that of the biases, if there are any.
        beyond: [i, o] for each layer, boolean: weights that the block can't reach.
        kept: The number of outer weights that each layer keeps.
        neurons: The number of hidden neurons (inner weights) that each layer keeps.
        size: The number of outer weights that each layer has.
        bound: The result of `bound`, for inputs in the unit ball.
    """

    error: tuple[np.ndarray, ...]
    beyond: tuple[np.ndarray, ...]
    kept: tuple[int, ...]
    neurons: tuple[int, ...]
    size: tuple[int, ...]
    bound: tuple[float, ...]


@stored("maskjax.theory.strong_ticket.Ticket")
@dataclasses.dataclass(frozen=True)
class Ticket:
    """A wide network and the mask that makes it the target; a pytree.

    Attributes:
        params: The wide network, as it was given to `prune`.
        mask: Its mask, for `maskjax.apply`.
        nonnegative: Whether inputs must not be negative.
        report: What pruning found.
        bias: Whether the target has biases. It is static: known while tracing.
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
    """The mask under which a wide random network approximates a given one.

    Args:
        params: A wide network, from `init`. It is not changed.
        target: The network to approximate, a list of dense layers: all with a bias, or
            none.
        construction: How neurons are chosen: "factor", "product", "subset_sum" or
            "greedy", explained in `gadget`.
        nonnegative: Whether inputs are never negative, as pixels are. Then half of the
            neurons are enough. (Inputs of later layers never are, because of the ReLU.)
        tolerance: The largest error of a weight.
        fewest: With "subset_sum" and a tolerance: choose the smallest subset within the
            tolerance instead of the nearest one.
        misses: What to do about weights that are out of reach, or off by more than the
            tolerance. "raise": raise an error that names them. "report": use the
            nearest weights there are, and say so in the report only.
        activation: The target's activation. Only ReLU is possible; anything else is an
            error.
        bins: With "greedy": the number of bins of magnitudes, see `subset_sum.greedy`.
        memory: With "subset_sum": how many bytes the search may use.

    Returns:
        The ticket.

    Raises:
        TypeError: If something is no layer, or a weight is traced.
        ValueError: If `target` does not fit `params`, only some layers have a bias, a
            weight is inf or nan, `activation` is not ReLU, a weight is missed, an
            option is not one of those above, or a search needs more than `memory`.

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
    _networks.require_relu(activation, fn=fn)
    wanted = _networks.weights(params, target, fn=fn)
    if fewest and tolerance is None:
        raise ValueError(f"`{fn}` needs a `tolerance` to find the fewest within it.")
    within = tolerance if fewest else None
    masks, errors, out = [], [], []
    for i, (pair, w) in enumerate(zip(params, wanted, strict=True)):
        v, u = pair["inner"], pair["outer"]
        never = np.full(len(v), i > 0 or nonnegative)
        never[len(target[i]["kernel"]) :] = True  # the constant
        how = {"construction": construction, "nonnegative": never}
        kept = gadget.choose(  # 3.
            v, u, w, tolerance=within, bins=bins, memory=memory, **how
        )
        used = np.asarray(kept).any(-1)
        masks.append({"inner": dtypes.as_array(used), "outer": kept})  # 2.
        error = [np.abs(x - np.float64(w)) for x in gadget.gains(v, u, kept)]
        errors.append(np.where(never[:, None], error[0], np.maximum(*error)))
        out.append(gadget.beyond(v, u, w, **how))
    if misses == "raise":
        _raise_missed(target, errors, out, tolerance, fn=fn)
    report = Report(
        error=tuple(errors),
        beyond=tuple(out),
        kept=tuple(int(np.count_nonzero(mask["outer"])) for mask in masks),
        neurons=tuple(int(np.count_nonzero(mask["inner"])) for mask in masks),
        size=tuple(pair["outer"].size for pair in params),
        bound=bound(target, errors),
    )
    return Ticket(params, masks, nonnegative, report, "bias" in target[0])


def predict(ticket: Ticket, x: Array) -> Array:
    """The output of the pruned network.

    Args:
        ticket: From `prune`.
        x: [..., n].

    Returns:
        [..., o]. Under `jit`, nan for inputs that are negative although the ticket was
        made for nonnegative ones.

    Raises:
        ValueError: If the ticket is for another number of inputs, or, outside of `jit`,
            inputs are negative although the ticket was made for nonnegative ones.

    Example:
        >>> wide = strong_ticket.init((1, 1), k=32, key=jax.random.key(0))
        >>> target = [{"kernel": jnp.array([[0.5]])}]
        >>> ticket = strong_ticket.prune(wide, target, construction="subset_sum")
        >>> strong_ticket.predict(ticket, jnp.array([[2.0], [-4.0]])).round(2)
        Array([[ 1.],
               [-2.]], dtype=float32)
    """
    fn = "maskjax.theory.strong_ticket.predict"
    _networks.require_inputs(ticket.params, x.shape, bias=ticket.bias, fn=fn)
    given = ticket.params, ticket.mask, ticket.nonnegative
    out, negative = _predict(*given, x, bias=ticket.bias)
    if not isinstance(negative, Tracer) and negative:
        raise ValueError(
            f"`{fn}` needs inputs that are never negative, as the ticket was promised, "
            f"but {int(negative)} of {x.size:,} are. Prune with `nonnegative=False`."
        )
    return out


@functools.partial(jax.jit, static_argnames="bias")
def _predict(
    params: Params, mask: Mask, nonnegative: Any, x: Array, *, bias: bool
) -> tuple[Array, Array]:
    """The output, nan where inputs may not be negative and are; how many these are."""
    out = _wide.run(masking.apply(params, mask), x, bias=bias)
    negative = (x < 0) & nonnegative
    out = jnp.where(negative.any(-1, keepdims=True), jnp.nan, out)
    return out, jnp.sum(negative, dtype=jnp.int32)


def bound(
    target: Params, errors: Sequence[Any], *, radius: float = 1.0
) -> tuple[float, ...]:
    """An upper bound on the change of the output if weights are wrong.

    Let a layer have kernel W and bias b. Let r bound the norm of its input, e the error
    of its input, and E the error of each weight. Then the error of its output is at
    most

        e' = |W| e + |E| sqrt((r + e)**2 + 1)

    and its norm at most r' = |W| r + |b|. Here |.| is the spectral norm, and the 1 is
    there only with biases. A ReLU increases neither.

    Args:
        target: A list of dense layers.
        errors: E of each layer: a number for all weights, or [i, o] as in
            `Report.error`, with a last row for the biases if there are any.
        radius: The largest norm of an input.

    Returns:
        e' of each layer, Python floats, in the Euclidean norm and for exact arithmetic.
        The last one is that of the network.

    Raises:
        TypeError: If something is no layer.
        ValueError: If the errors do not fit, or a number is inf or nan.

    Example:
        >>> target = [{"kernel": jnp.eye(2)}, {"kernel": jnp.ones((2, 1))}]
        >>> print([round(e, 4) for e in strong_ticket.bound(target, [0.01, 0.01])])
        [0.02, 0.0427]

    References:
        Malach et al., arXiv:2002.00585, appendix A (there for norms of at most 1).
    """
    fn = "maskjax.theory.strong_ticket.bound"
    _networks.require_target(target, fn=fn)
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


def _raise_missed(
    target: Params,
    errors: Sequence[np.ndarray],
    beyond: Sequence[np.ndarray],
    tolerance: float | None,
    *,
    fn: str,
) -> None:
    """Raise if weights are out of reach or not within the tolerance."""
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
