"""Many masks at once: which of them fits this input?

A network under a weighted mean of masks says, by one backward pass, towards which of
them it would rather move. That finds the task that an input is from, among thousands.

    >>> params = {"w": jnp.array([[9.0, 0.0], [9.0, 9.0]])}
    >>> stack = {"w": jnp.array([[[True], [False]], [[False], [True]]])}  # rows of w
    >>> def objective(params, x):
    ...     return superposition.entropy(x @ params["w"])
    >>> tasks = bank.from_stack(stack)
    >>> superposition.one_shot(objective, params, tasks, jnp.ones((1, 2)))
    Array(0, dtype=int32)

An objective is low for the right mask: `entropy` of what the network says, or what it
gives to outputs that no label has (`superfluous`), or a function of your own.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import masking, packing, stacking
from maskjax._core import checks, dtypes, trees
from maskjax._core.trees import Array, Mask, Params, SoftMask
from maskjax.bank import MaskBank, capacity, is_used, mean

__all__ = [
    "binary",
    "entropy",
    "exhaustive",
    "gradient",
    "infer",
    "one_shot",
    "superfluous",
]

Objective = Callable[..., Array]
Method = Literal["one_shot", "binary", "exhaustive"]


def entropy(logits: Array) -> Array:
    """How unsure a network is: the entropy of its softmax, averaged.

    Args:
        logits: [..., outputs], one image or more.

    Returns:
        A scalar in nats, from 0 to log(outputs).

    Raises:
        ValueError: If there are no images, or no outputs.

    Example:
        >>> print(f"{superposition.entropy(jnp.zeros((1, 4))):.3f}")  # log 4
        1.386

    References:
        Wortsman et al., "Supermasks in Superposition", NeurIPS 2020. arXiv:2006.14769,
        section 3.3.
    """
    _outputs(logits, "maskjax.superposition.entropy")
    log = jax.nn.log_softmax(logits.astype(dtypes.at_least_float32(logits.dtype)))
    chance = jnp.exp(log)
    # An output of no chance adds nothing: its logarithm may be -inf.
    return -jnp.sum(chance * jnp.where(chance > 0, log, 0), axis=-1).mean()


def superfluous(logits: Array, *, labels: int) -> Array:
    """What a network gives to outputs that no label has: -log of the rest, averaged.

    Training lowers those outputs for its own task only. Its derivative by each of them
    is its softmax, and 0 by those of labels, as of the paper's G; the value, unlike
    the paper's, can be compared between masks.

    Args:
        logits: [..., outputs], one image or more; labels are the first of the outputs.
        labels: How many there are. With as many as outputs it says nothing: 0.

    Returns:
        A scalar, at least 0.

    Raises:
        TypeError: If `labels` is no whole number.
        ValueError: If there are no images, or not 1 to `outputs` labels.

    Example:
        >>> print(superposition.superfluous(jnp.zeros((1, 4)), labels=2))  # log 2
        0.6931472

    References:
        Wortsman et al., arXiv:2006.14769, section 3.6, and lemma 1.
    """
    fn = "maskjax.superposition.superfluous"
    outputs = _outputs(logits, fn)
    checks.at_least(labels, 1, fn=fn, name="labels")
    if labels > outputs:
        raise ValueError(
            f"`{fn}` needs at most as many `labels` as outputs, got {labels} of "
            f"{outputs}."
        )
    real = lax.stop_gradient(logits[..., :labels])
    every = jnp.concatenate([real, logits[..., labels:]], axis=-1)
    return (jax.nn.logsumexp(every, axis=-1) - jax.nn.logsumexp(real, axis=-1)).mean()


def gradient(
    objective: Objective, params: Params, stack: Mask, weights: Array, *data: Any
) -> Array:
    """How an objective changes with the weight of each mask in a weighted sum.

    One backward pass at the mixed mask, and one inner product with each mask: there is
    no graph through the stack, which is never unpacked as a whole.

    Args:
        objective: `(params, *data) -> scalar`.
        params: Tree of arrays.
        stack: A packed stack of K masks (`jax.vmap(packing.pack)`).
        weights: [K], floating: the point at which to look.
        *data: Passed on to `objective`.

    Returns:
        [K]: the derivatives by the weights.

    Raises:
        TypeError: If a leaf is not packed, or the weights are not floating.
        ValueError: If there are not K weights, or the masks do not fit `params`.

    Example:
        >>> params = {"w": jnp.array([2.0, 3.0])}
        >>> stack = {"w": jnp.array([[True, False], [True, True]])}
        >>> packed = jax.vmap(packing.pack)(stack)
        >>> total = lambda params: params["w"].sum()
        >>> superposition.gradient(total, params, packed, jnp.array([0.5, 0.5]))
        Array([2., 5.], dtype=float32)

    References:
        Wortsman et al., arXiv:2006.14769, section 3.3: the gradient by alpha.
    """
    fn = "maskjax.superposition.gradient"
    checks.packed_stack(stack, fn=fn)
    checks.coefficients(weights, stack, fn=fn)
    _fit(stack, params, fn)
    mixed = stacking.mix(stack, weights)
    return packing.dot(stack, _by_mask(objective, params, mixed, data))


def infer(
    apply: Callable[..., Array],
    params: Params,
    bank: MaskBank,
    images: Array,
    *,
    method: Method = "one_shot",
    labels: int | None = None,
    per: Literal["image", "batch"] = "image",
    batch_size: int = 1,
) -> Array:
    """Which task images are from.

    Args:
        apply: `(params, images) -> logits [B, outputs]`.
        params: Tree of arrays, the same for all tasks.
        bank: The masks to choose among.
        images: [B, ...].
        method: "one_shot", "binary" or "exhaustive".
        labels: How many of the outputs have labels, for `superfluous` to be the
            objective. `None`: `entropy` is.
        per: "image", one choice for each; or "batch", one for all, which are then known
            to be of one task.
        batch_size: How many images are looked at side by side, each with a network's
            gradient in memory.

    Returns:
        int32, [B] or a scalar: the task, of equals the first; -1 if none is learned.

    Raises:
        ValueError: If there are no images, or as in `one_shot`.

    Example:
        >>> params = {"w": jnp.array([[9.0, 0.0], [9.0, 9.0]])}
        >>> rows = {"w": jnp.array([[[True], [False]], [[False], [True]]])}
        >>> net = lambda params, x: x @ params["w"]
        >>> superposition.infer(net, params, bank.from_stack(rows), jnp.ones((3, 2)))
        Array([0, 0, 0], dtype=int32)

    References:
        Wortsman et al., arXiv:2006.14769, section 3.3.
    """
    fn = "maskjax.superposition.infer"
    checks.one_of(method, tuple(_METHODS), fn=fn, name="method")
    checks.one_of(per, ("image", "batch"), fn=fn, name="per")
    checks.at_least(batch_size, 1, fn=fn, name="batch_size")
    if not jnp.ndim(images) or not len(images):
        raise ValueError(
            f"`{fn}` needs at least one image, got an array of shape "
            f"{jnp.shape(images)}."
        )
    _ready(bank, params, fn)
    outputs = jax.eval_shape(apply, params, images[:1]).shape[-1]
    if labels is not None and labels == outputs:
        raise ValueError(
            f"`{fn}` needs fewer `labels` than outputs, got {labels} of {outputs}: "
            "without superfluous ones they say nothing. `entropy` does."
        )

    def objective(params: Params, images: Array) -> Array:
        logits = apply(params, images)
        return entropy(logits) if labels is None else superfluous(logits, labels=labels)

    def one(images: Array) -> Array:
        return _METHODS[method](objective, params, bank, images)

    if per == "batch":
        return one(images)
    each = jnp.asarray(images)[:, None]
    return stacking.map(one, each, batch_size=batch_size)


def one_shot(objective: Objective, params: Params, bank: MaskBank, *data: Any) -> Array:
    """The task whose mask one gradient at the mean of all recommends.

    Args:
        objective: `(params, *data) -> scalar`, low for the right mask.
        params: Tree of arrays, the same for all tasks.
        bank: The masks to choose among.
        *data: Passed on to `objective`: one image, or several of one task.

    Returns:
        A scalar, int32: the task, of equals the first; -1 if none is learned.

    Raises:
        ValueError: If none is learned (where that is not traced), or the masks do not
            fit `params`.

    Example:
        >>> tasks = bank.from_stack({"w": jnp.array([[True, False], [False, True]])})
        >>> norm = lambda params: (params["w"] ** 2).sum()
        >>> superposition.one_shot(norm, {"w": jnp.array([2.0, 1.0])}, tasks)
        Array(1, dtype=int32)

    References:
        Wortsman et al., arXiv:2006.14769, section 3.3, "One-Shot".
    """
    fn = "maskjax.superposition.one_shot"
    return _lowest(bank, _at_mean(objective, params, bank, data, fn))


def binary(
    objective: Objective, params: Params, bank: MaskBank, *data: Any, base: int = 2
) -> Array:
    """The task that is left when gradients at the mean of those left halve them.

    Args:
        objective: As in `one_shot`.
        params: As in `one_shot`.
        bank: As in `one_shot`.
        *data: As in `one_shot`.
        base: Of n tasks ceil(n / base) are left, of equals the first.

    Returns:
        As in `one_shot`. As many rounds are made as the bank's capacity may need.

    Raises:
        TypeError: If the base is no whole number.
        ValueError: As in `one_shot`, or if the base is below 2.

    Example:
        >>> tasks = bank.from_stack({"w": jnp.array([[True, False], [False, True]])})
        >>> norm = lambda params: (params["w"] ** 2).sum()
        >>> superposition.binary(norm, {"w": jnp.array([2.0, 1.0])}, tasks)
        Array(1, dtype=int32)

    References:
        Wortsman et al., arXiv:2006.14769, section 3.3, "Binary", and algorithm 1.
    """
    fn = "maskjax.superposition.binary"
    checks.at_least(base, 2, fn=fn, name="base")
    _ready(bank, params, fn)
    size = capacity(bank)
    first = _by_mask(objective, params, mean(bank), data)  # the first mean is known
    gradients = _dots(bank, first, used=bank.learned)
    # Sorted and cut by rank, so that as many are left under ties.
    order = jnp.lexsort((gradients, ~is_used(bank))).astype(jnp.int32)
    rows, most = order[: -(-size // base)], -(-size // base)

    def again(carry: tuple[Array, Array], _: None) -> tuple[Any, None]:
        rows, left = carry
        alive = jnp.arange(rows.shape[0], dtype=jnp.int32) < left
        weights = alive.astype(jnp.float32) / jnp.maximum(left, 1).astype(jnp.float32)
        mixed = trees.map_mask(
            lambda m: packing.mix_leaf(m, weights, rows=rows, used=left), bank.masks
        )
        by_mask = _by_mask(objective, params, mixed, data)
        gradients = _dots(bank, by_mask, rows=rows, used=left)
        rows = rows[jnp.lexsort((rows, gradients, ~alive))]
        return (rows, -(-left // base)), None

    rounds = 0
    while most > 1:
        rounds, most = rounds + 1, -(-most // base)
    (rows, _), _ = lax.scan(again, (rows, -(-bank.learned // base)), length=rounds)
    return jnp.where(bank.learned > 0, rows[0], -1).astype(jnp.int32)


def exhaustive(
    objective: Objective,
    params: Params,
    bank: MaskBank,
    *data: Any,
    batch_size: int = 1,
) -> Array:
    """The task under whose mask the objective is lowest: every mask is tried.

    Args:
        objective: As in `one_shot`.
        params: As in `one_shot`.
        bank: As in `one_shot`.
        *data: As in `one_shot`.
        batch_size: How many masks are tried side by side, at the cost of memory.

    Returns:
        As in `one_shot`.

    Raises:
        ValueError: As in `one_shot`, or if `batch_size` is below 1.

    Example:
        >>> tasks = bank.from_stack({"w": jnp.array([[True, False], [False, True]])})
        >>> norm = lambda params: (params["w"] ** 2).sum()
        >>> superposition.exhaustive(norm, {"w": jnp.array([2.0, 1.0])}, tasks)
        Array(1, dtype=int32)
    """
    fn = "maskjax.superposition.exhaustive"
    checks.at_least(batch_size, 1, fn=fn, name="batch_size")
    _ready(bank, params, fn)
    side_by_side = min(batch_size, capacity(bank))
    values = stacking.predict(
        lambda params: objective(params, *data),
        params,
        bank.masks,
        batch_size=side_by_side,
    )
    return _lowest(bank, values)


_METHODS = {"one_shot": one_shot, "binary": binary, "exhaustive": exhaustive}


def _at_mean(
    objective: Objective, params: Params, bank: MaskBank, data: Any, fn: str
) -> Array:
    """The gradient where all learned masks weigh the same."""
    _ready(bank, params, fn)
    by_mask = _by_mask(objective, params, mean(bank), data)
    return _dots(bank, by_mask, used=bank.learned)


def _dots(bank: MaskBank, tree: SoftMask, **which: Any) -> Array:
    """Inner products with some of a bank's masks, as many as are used."""
    sums = trees.map_mask(
        lambda m, v: packing.dot_leaf(m, v, **which), bank.masks, tree
    )
    return functools.reduce(jnp.add, jax.tree.leaves(sums))


def _by_mask(
    objective: Objective, params: Params, mixed: SoftMask, data: Any
) -> SoftMask:
    """The objective's gradient by a soft mask: parameters times their gradients."""
    return jax.grad(lambda m: objective(masking.apply(params, m), *data))(mixed)


def _lowest(bank: MaskBank, values: Array) -> Array:
    comparable = is_used(bank) & ~jnp.isnan(values)
    best = jnp.argmin(jnp.where(comparable, values, jnp.inf))
    return jnp.where(bank.learned > 0, best, -1).astype(jnp.int32)


def _outputs(logits: Array, fn: str) -> int:
    if not logits.size or not logits.ndim:
        raise ValueError(
            f"`{fn}` needs `logits` of at least one image and output, got shape "
            f"{logits.shape}."
        )
    return logits.shape[-1]


def _ready(bank: MaskBank, params: Params, fn: str) -> None:
    checks.packed_stack(bank.masks, fn=fn)
    _fit(bank.masks, params, fn)
    if checks.known(bank.learned) == 0:
        raise ValueError(f"`{fn}` needs a bank with at least one learned task.")


def _fit(stack: Mask, params: Params, fn: str) -> None:
    checks.mask_of(stack, params, fn=fn, names=("params", "stack"))
