"""MC-dropout: dropout kept on for predictions (Gal & Ghahramani, ICML 2016).

arXiv:1506.02142. One key is one mask on the units of a network, a tree: the network
under many of them is an ensemble.

Algorithm (numbers match the comments below):
  1. keep a unit with probability 1 - rate, and divide it by that (inverted dropout: no
     weight is scaled for predictions)
  2. train with a weight decay; the precision tau of the noise follows from it
  3. predict under T masks: the mean, and the variance of the T plus 1 / tau
  4. the log-likelihood of a target is that of the mixture of T normal distributions

Departure from the paper: as in the authors' code the weight decay is that of the paper,
whose weights are not divided and so 1 / (1 - rate) times ours.

Masks are drawn for features, as leaves of `layers` have them, or for the input rows of
kernels, leaves [..., C, 1], or any tree of shapes. In the paper dropout precedes every
kernel, the first too.

    >>> from maskjax.recipes import mc_dropout
    >>> net = lambda masks, x: (x * masks["hidden"]) @ jnp.ones((8, 1))
    >>> units = {"hidden": jax.ShapeDtypeStruct((8,), jnp.float32)}
    >>> x, keys = jnp.ones((1, 8)), jax.random.split(jax.random.key(0), 4)
    >>> outputs = mc_dropout.predict(net, units, x, rate=0.5, keys=keys)
    >>> outputs.ravel()  # of 8 units, twice those that are kept
    Array([...], dtype=float32)
    >>> mean, variance = mc_dropout.moments(outputs, precision=10.0)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskjax import metrics, stacking
from maskjax._core import checks, trees
from maskjax._core.trees import Array, SoftMask

__all__ = [
    "log_likelihood",
    "masks",
    "moments",
    "precision",
    "predict",
    "weight_decay",
]

_FN = "maskjax.recipes.mc_dropout"


def masks(
    units: Any, *, rate: Any, examples: int | None = None, key: Array
) -> SoftMask:
    """A mask on units, of 0 and 1 / (1 - rate): 1.

    Args:
        units: Tree of what has a shape and a dtype, or `None`: one entry for each unit,
            such as the masks of `layers`. Which numbers they hold does not matter.
        rate: The chance that a unit is dropped, in [0, 1): a number, a traced scalar,
            or a tree like `units` of them.
        examples: B, for a mask of its own for each of B. `None`: one for all, with
            which a member is one function.
        key: A typed key; every leaf gets its own.

    Returns:
        A soft mask, leaves like those of `units` or [B, 1, ...], floating: of their
        dtype where that is so, else float32.

    Raises:
        TypeError: If a rate is not a number, a unit has no shape, or the key is not
            typed.
        ValueError: If a rate is outside of [0, 1), rates do not fit the units,
            `examples` is below 1, or there are no units.

    Example:
        >>> units = {"hidden": jnp.ones(3), "input": None}
        >>> mc_dropout.masks(units, rate=0.0, key=jax.random.key(0))
        {'hidden': Array([1., 1., 1.], dtype=float32), 'input': None}
        >>> key = jax.random.key(0)
        >>> mc_dropout.masks(jnp.ones(3), rate=0.5, examples=2, key=key).shape
        (2, 1, 3)
    """
    fn = f"{_FN}.masks"
    checks.typed_key(key, fn=fn)
    if examples is not None:
        checks.at_least(examples, 1, fn=fn, name="examples")
    leaves, treedef = trees.mask_leaves(units)
    given = [(path, leaf) for path, leaf in leaves if leaf is not None]
    if not given:
        raise ValueError(f"`{fn}` needs `units` with at least one leaf, got none.")
    checks.raise_all(
        (f"{p}: {checks.kind_of(u)}" for p, u in given if not checks.shaped(u)),
        f"`{fn}` needs every leaf of `units` with a shape and a dtype, or None",
        TypeError,
    )
    rates, single = [rate] * len(leaves), trees.is_single(rate)
    if not single:
        how = {"names": ("units", "rate"), "is_leaf": trees.is_mask_leaf}
        rates = [each for *_, each in checks.matched(units, rate, fn=fn, **how)]
    for (path, unit), each in zip(leaves, rates, strict=True):
        if unit is not None:
            _below_one(each, fn=fn, name="rate" if single else f"rate of {path}")

    def of_leaf(leaf: Any, rate: Any, key: Array) -> Array | None:
        if leaf is None:
            return None
        dtype = leaf.dtype if checks.is_floating(leaf) else jnp.dtype("float32")
        shape = leaf.shape if examples is None else (examples, 1, *leaf.shape)
        keep = 1 - jnp.asarray(rate, "float32")
        kept = jax.random.bernoulli(key, keep, shape)
        return jnp.where(kept, 1 / keep, 0.0).astype(dtype)

    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    drawn = [
        of_leaf(leaf, *each)
        for (_, leaf), *each in zip(leaves, rates, keys, strict=True)
    ]
    return treedef.unflatten(drawn)


def predict(
    apply: Callable[..., Any],
    units: Any,
    *inputs: Any,
    rate: Any,
    keys: Array,
    examples: int | None = None,
    batch_size: int | None = None,
) -> Any:
    """What a network says under a mask for each key: 3.

    Args:
        apply: `(masks, *inputs) -> output`; it must not draw anything itself, and runs
            with statistics as they are.
        units: As in `masks`.
        *inputs: Passed on to `apply`, the same for every mask.
        rate: As in `masks`.
        keys: [T], typed: one for each member, `jax.random.split(key, T)`.
        examples: As in `masks`.
        batch_size: How many members at a time; only their masks are ever held. `None`:
            all. On a CPU 1 is the fastest.

    Returns:
        The outputs with a leading axis, [T, ...].

    Raises:
        TypeError: As in `masks`.
        ValueError: As in `masks`, if `batch_size` is below 1, or two members have one
            key, where keys are not traced.

    Example:
        >>> net = lambda masks, x: x * masks
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> x, how = jnp.ones((4, 3)), {"rate": 0.5, "keys": keys}
        >>> mc_dropout.predict(net, jnp.ones(3), x, **how).shape
        (2, 4, 3)
    """
    checks.own_keys(keys, fn=f"{_FN}.predict")

    def member(key: Array, *inputs: Any) -> Any:
        return apply(masks(units, rate=rate, examples=examples, key=key), *inputs)

    return stacking.map(member, keys, *inputs, batch_size=batch_size)


def moments(outputs: Array, *, precision: Any) -> tuple[Array, Array]:
    """The mean and the variance of what members predict: 3.

    Args:
        outputs: [T, ...], floating, of a regression.
        precision: tau, of the observations' noise; in the units of `outputs`, so that
            for targets divided by a deviation it is tau * deviation ** 2. `math.inf`:
            no noise.

    Returns:
        Two arrays [...]: the mean, and 1 / tau plus the variance of the T.

    Raises:
        TypeError: If the outputs are not floating.

    Example:
        >>> mc_dropout.moments(jnp.array([[1.0], [3.0]]), precision=2.0)
        (Array([2.], dtype=float32), Array([1.5], dtype=float32))

    References:
        Gal & Ghahramani, arXiv:1506.02142, section 4, equations 6 and following.
    """
    checks.floating(outputs, fn=f"{_FN}.moments", name="outputs")
    noise = (1 / jnp.asarray(precision)).astype(outputs.dtype)
    return jnp.mean(outputs, 0), noise + jnp.var(outputs, 0)


def log_likelihood(
    outputs: Array, targets: Array, *, precision: Any, event_ndim: int = 0
) -> Array:
    """The log-likelihood of targets under the mixture of all members: 4.

    Never less than the mean of the members' own.

    Args:
        outputs: [T, ...], floating.
        targets: [...], floating.
        precision: As in `moments`, but finite. For targets divided by a deviation the
            log-likelihood of the original ones is less by that deviation's logarithm.
        event_ndim: How many of the last axes are one sample's numbers, as in
            `metrics.mixture_nll`.

    Returns:
        [...], for each sample: the shape of the targets without the last `event_ndim`.

    Raises:
        TypeError: If the outputs or the targets are not floating.
        ValueError: If the shapes differ but for T, or as in `metrics.mixture_nll`.

    Example:
        >>> outputs, targets = jnp.zeros((5, 1)), jnp.zeros(1)
        >>> mc_dropout.log_likelihood(outputs, targets, precision=1.0)
        Array([-0.918...], dtype=float32)

    References:
        Gal & Ghahramani, arXiv:1506.02142, equation 8 of the appendix.
    """
    fn = f"{_FN}.log_likelihood"
    checks.floating(outputs, fn=fn, name="outputs")
    checks.floating(targets, fn=fn, name="targets")
    wanted = *outputs.shape[:1], *targets.shape
    checks.of_shape(outputs, wanted, fn=fn, name="outputs")
    variance = (1 / jnp.asarray(precision)).astype(outputs.dtype)
    variance = jnp.broadcast_to(variance, outputs.shape)
    return -metrics.mixture_nll(outputs, variance, targets, event_ndim=event_ndim)


def precision(*, rate: Any, length_scale: Any, samples: int, weight_decay: Any) -> Any:
    """The precision tau that a weight decay amounts to: 2.

    Args:
        rate: The chance that a unit is dropped, in [0, 1).
        length_scale: l, of the prior; the authors' code has 0.01.
        samples: N, of the training set.
        weight_decay: lambda, what a squared weight adds to the loss: the mean over the
            samples of (target - output) ** 2 / 2.

    Returns:
        (1 - rate) * l ** 2 / (2 * N * lambda).

    Raises:
        TypeError: If the rate is not a number.
        ValueError: If the rate is outside of [0, 1), or `samples` below 1.

    Example:
        >>> how = {"rate": 0.5, "length_scale": 1.0, "samples": 100}
        >>> mc_dropout.precision(**how, weight_decay=0.25)
        0.01

    References:
        Gal & Ghahramani, arXiv:1506.02142, section 4.
    """
    fn = f"{_FN}.precision"
    _below_one(rate, fn=fn)
    checks.at_least(samples, 1, fn=fn, name="samples", traceable=True)
    return (1 - rate) * length_scale**2 / (2 * samples * weight_decay)


def weight_decay(*, rate: Any, length_scale: Any, samples: int, precision: Any) -> Any:
    """The weight decay of a precision; the other way round of `precision`: 2.

    Args:
        rate: As in `precision`.
        length_scale: As in `precision`.
        samples: As in `precision`.
        precision: tau.

    Returns:
        (1 - rate) * l ** 2 / (2 * N * tau), for kernels; biases have none.

    Raises:
        TypeError: As in `precision`.
        ValueError: As in `precision`.

    Example:
        >>> how = {"rate": 0.5, "length_scale": 1.0, "samples": 100}
        >>> mc_dropout.weight_decay(**how, precision=0.01)
        0.25
    """
    fn = f"{_FN}.weight_decay"
    _below_one(rate, fn=fn)
    checks.at_least(samples, 1, fn=fn, name="samples", traceable=True)
    return (1 - rate) * length_scale**2 / (2 * samples * precision)


def _below_one(rate: Any, *, fn: str, name: str = "rate") -> None:
    """A rate in [0, 1), as far as that is known."""
    checks.unit_interval(rate, fn=fn, name=name)
    if checks.is_number(rate) and rate == 1:
        raise ValueError(f"`{fn}` needs `{name}` below 1, got {rate}.")
