"""Which of a bank's masks fits an input: by one gradient, by a few, or tried."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from maskjax import masking, packing, stacking
from maskjax._core import batches, checks, placement, trees
from maskjax._core.trees import Array, Mask, Params, SoftMask
from maskjax.bank import MaskBank, capacity, is_used, mean
from maskjax.bank._bank import require_bank
from maskjax.superposition._objectives import logit_entropy, superfluous

Objective = Callable[..., Array]
Method = Literal["one_shot", "binary", "exhaustive"]


def gradient(
    objective: Objective, params: Params, stack: Mask, coefficients: Array, *data: Any
) -> Array:
    """The objective's derivative by each coefficient of a weighted sum of masks.

    It takes one backward pass at the mixed mask, and one inner product with each mask's
    bits. The stack is never unpacked as a whole.

    Args:
        objective: `(params, *data) -> scalar`.
        params: Tree of arrays.
        stack: A packed stack of K masks: a bank's `masks`, or
            `jax.vmap(packing.pack)(stack)`.
        coefficients: [K], floating: where to take the derivative.
        *data: Passed on to `objective`.

    Returns:
        [K], the derivatives.

    Raises:
        TypeError: If a leaf is not packed, or the coefficients are not floating.
        ValueError: If there are not K coefficients, or the masks do not fit `params`.

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
    checks.coefficients(coefficients, stack, fn=fn)
    checks.shaped_like(params, stack, fn=fn, names=("params", "stack"))
    given = {"params": params, "stack": stack, "coefficients": coefficients}
    checks.together(fn=fn, **given, data=data)
    mixed = stacking.mix(stack, coefficients)
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
    """The task that each image is from.

    Args:
        apply: `(params, images) -> logits [B, outputs]`. If it normalizes by statistics
            of the batch, decide per batch: one image alone is normalized to 0.
        params: Tree of arrays, the same for all tasks.
        bank: The masks to choose from.
        images: [B, ...].
        method: "one_shot" is the fastest. "binary" takes a few gradients.
            "exhaustive" runs the network under every mask.
        labels: How many outputs have a label; the objective is then `superfluous`.
            `None`: it is `logit_entropy`.
        per: "image" decides for each image. "batch" decides once, for images that are
            all of one task.
        batch_size: How many images are decided at once. Memory grows with it, by one
            network's gradient an image. "exhaustive" tries as many masks at once, too,
            so that its memory grows with the square; under `jit` on an Auto mesh, masks
            are gathered if it tries fewer at once than there are devices.
            Images on several devices are decided there, if masks are not sharded over
            the same mesh axis; under `jit` on an Auto mesh, only if as many at once as
            there are devices. Otherwise images are gathered.

    Returns:
        int32, [B] or a scalar: the task. Ties go to the lowest number; -1 if no task is
        learned.

    Raises:
        TypeError: If `bank` is not a bank.
        ValueError: If there are no images, no task is known to be learned, the masks do
            not fit `params`, or all outputs have a label.

    Warns:
        UserWarning: If `per="image"`, or there is one image, and `apply` mixes the
            images of a batch, as BatchNorm does in training mode. It is told while
            tracing.

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
    _ready(bank, params, images, fn, "images")
    _fewer_labels(apply, params, images, labels, fn)

    def objective(params: Params, images: Array) -> Array:
        logits = apply(params, images)
        if labels is None:
            return logit_entropy(logits)
        return superfluous(logits, labels=labels)

    how = {"batch_size": batch_size} if method == "exhaustive" else {}

    def one(images: Array) -> Array:
        return _METHODS[method](objective, params, bank, images, **how)

    if per == "image" or len(images) == 1:
        cure = 'Use running statistics, or `per="batch"` for images of one task.'
        gives = "`apply` one image at a time"
        batches.told_if_mixed(apply, params, [images], fn=fn, gives=gives, cure=cure)
    if per == "batch":
        return one(images)
    each = placement.clear_of(jnp.asarray(images), bank.masks)[:, None]
    return stacking.map(one, each, batch_size=batch_size)


def one_shot(objective: Objective, params: Params, bank: MaskBank, *data: Any) -> Array:
    """The task of the lowest derivative at the mean of all masks.

    Args:
        objective: `(params, *data) -> scalar`, low for the right mask.
        params: Tree of arrays, the same for all tasks.
        bank: The masks to choose from.
        *data: Passed on to `objective`: one image, or several of one task.

    Returns:
        A scalar, int32: the task. Ties go to the lowest number; -1 if no task is
        learned.

    Raises:
        TypeError: If `bank` is not a bank.
        ValueError: If no task is known to be learned, or the masks do not fit `params`.

    Example:
        >>> tasks = bank.from_stack({"w": jnp.array([[True, False], [False, True]])})
        >>> norm = lambda params: (params["w"] ** 2).sum()
        >>> superposition.one_shot(norm, {"w": jnp.array([2.0, 1.0])}, tasks)
        Array(1, dtype=int32)

    References:
        Wortsman et al., arXiv:2006.14769, section 3.3, "One-Shot".
    """
    _ready(bank, params, data, "maskjax.superposition.one_shot")
    return _lowest(bank, _at_mean(objective, params, bank, data))


def binary(
    objective: Objective, params: Params, bank: MaskBank, *data: Any, base: int = 2
) -> Array:
    """The task that is left after rounds that each keep half of the tasks.

    Each round takes the gradient at the mean of the masks that are left. The number of
    rounds depends on the bank's capacity only.

    Args:
        objective: `(params, *data) -> scalar`, low for the right mask.
        params: Tree of arrays, the same for all tasks.
        bank: The masks to choose from.
        *data: Passed on to `objective`: one image, or several of one task.
        base: A round keeps exactly ceil(n / base) of n tasks, the lowest numbers first
            under ties.

    Returns:
        A scalar, int32: the task; -1 if no task is learned.

    Raises:
        TypeError: If `bank` is not a bank, or `base` not a whole number.
        ValueError: If no task is known to be learned, the masks do not fit `params`, or
            `base` is below 2.

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
    _ready(bank, params, data, fn)
    # The first mean comes from the bank's counts: no pass over the masks.
    gradients = _at_mean(objective, params, bank, data)
    left = -(-bank.learned // base)
    alive = _lowest_of(gradients, is_used(bank), left)

    def again(carry: tuple[Array, Array], _: None) -> tuple[Any, None]:
        alive, left = carry
        share = alive.astype(jnp.float32) / jnp.maximum(left, 1).astype(jnp.float32)
        mixed = trees.map_mask(
            lambda m: packing.mix_leaf(m, share, alive=alive), bank.masks
        )
        by_mask = _by_mask(objective, params, mixed, data)
        gradients = _dots(bank, by_mask, alive=alive)
        left = -(-left // base)
        return (_lowest_of(gradients, alive, left), left), None

    most, rounds = -(-capacity(bank) // base), 0
    while most > 1:
        rounds, most = rounds + 1, -(-most // base)
    (alive, _), _ = lax.scan(again, (alive, left), length=rounds)
    last = jnp.argmax(alive).astype(jnp.int32)
    return jnp.where(bank.learned > 0, last, -1).astype(jnp.int32)


def exhaustive(
    objective: Objective,
    params: Params,
    bank: MaskBank,
    *data: Any,
    batch_size: int = 1,
) -> Array:
    """The task under whose mask the objective is lowest: every mask is tried.

    Args:
        objective: `(params, *data) -> scalar`, low for the right mask.
        params: Tree of arrays, the same for all tasks.
        bank: The masks to choose from.
        *data: Passed on to `objective`: one image, or several of one task.
        batch_size: How many masks are tried at once, as in `stacking.predict`. Memory
            grows with it.

    Returns:
        A scalar, int32: the task. Ties go to the lowest number; -1 if no task is
        learned.

    Raises:
        TypeError: If `bank` is not a bank.
        ValueError: If no task is known to be learned, the masks do not fit `params`, or
            `batch_size` is below 1.

    Example:
        >>> tasks = bank.from_stack({"w": jnp.array([[True, False], [False, True]])})
        >>> norm = lambda params: (params["w"] ** 2).sum()
        >>> superposition.exhaustive(norm, {"w": jnp.array([2.0, 1.0])}, tasks)
        Array(1, dtype=int32)
    """
    fn = "maskjax.superposition.exhaustive"
    checks.at_least(batch_size, 1, fn=fn, name="batch_size")
    _ready(bank, params, data, fn)
    values = stacking.predict(
        objective, params, bank.masks, *data, batch_size=min(batch_size, capacity(bank))
    )
    return _lowest(bank, values)


_METHODS = {"one_shot": one_shot, "binary": binary, "exhaustive": exhaustive}


def _at_mean(objective: Objective, params: Params, bank: MaskBank, data: Any) -> Array:
    """The derivative by each mask's coefficient where all learned ones are equal."""
    by_mask = _by_mask(objective, params, mean(bank), data)
    return _dots(bank, by_mask, used=bank.learned)


def _dots(bank: MaskBank, tree: SoftMask, **which: Any) -> Array:
    """Inner products of a tree with those masks that `packing.dot_leaf` is told."""
    sums = trees.map_mask(
        lambda m, v: packing.dot_leaf(m, v, **which), bank.masks, tree
    )
    return functools.reduce(jnp.add, jax.tree.leaves(sums))


def _by_mask(
    objective: Objective, params: Params, mixed: SoftMask, data: Any
) -> SoftMask:
    """The objective's gradient by a soft mask: parameters times their gradients."""
    leaves, treedef = jax.tree.flatten(params)
    masks = treedef.flatten_up_to(mixed)
    mixed = treedef.unflatten(map(_placed_as, masks, leaves))
    return jax.grad(lambda m: objective(masking.apply(params, m), *data))(mixed)


def _placed_as(mask: Array | None, param: Array) -> Array | None:
    """A soft mask where its parameter is, as its gradient is then."""
    if mask is None:
        return None
    return placement.place(mask, placement.spec_for(mask.shape, param), like=param)


@jax.jit
def _lowest_of(values: Array, alive: Array, many: Array) -> Array:
    """Which of those alive have the lowest values, exactly so many: [K], boolean.

    Ranks decide, so that ties do not change how many are kept.
    """
    values = placement.gathered(values, 0)
    rank = jnp.argsort(jnp.lexsort((values, ~alive))).astype(jnp.int32)
    return rank < many


@jax.jit
def _lowest(bank: MaskBank, values: Array) -> Array:
    values = placement.gathered(values, 0)
    comparable = is_used(bank) & ~jnp.isnan(values)
    best = jnp.argmin(jnp.where(comparable, values, jnp.inf))
    return jnp.where(bank.learned > 0, best, -1).astype(jnp.int32)


def _fewer_labels(
    apply: Callable[..., Array],
    params: Params,
    images: Array,
    labels: int | None,
    fn: str,
) -> None:
    """Raise if all outputs have a label."""
    if labels is None:
        return
    image = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    outputs = jax.eval_shape(apply, params, image).shape[-1]
    if labels == outputs:
        raise ValueError(
            f"`{fn}` needs fewer `labels` than outputs, got {labels} of {outputs}. If "
            "all outputs have a label, `labels=None` tells tasks by `logit_entropy`."
        )


def _ready(
    bank: MaskBank, params: Params, data: Any, fn: str, name: str = "data"
) -> None:
    """Raise unless there is a bank, of masks that fit, with a learned task."""
    require_bank(bank, fn=fn)
    checks.packed_stack(bank.masks, fn=fn)
    checks.shaped_like(params, bank.masks, fn=fn, names=("params", "stack"))
    checks.together(fn=fn, params=params, bank=bank, **{name: data})
    if checks.known(bank.learned) == 0:
        raise ValueError(f"`{fn}` needs a bank with at least one learned task.")
