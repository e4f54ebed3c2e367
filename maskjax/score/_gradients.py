"""Scores from the gradient of a loss, or of a network's output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maskjax._core import batches, checks, trees, turns
from maskjax._core.trees import Array, Params, Predicate, Scores
from maskjax.score._objective import Objective, objective, sensitivities, total, wide
from maskjax.where import kernels


def snip(
    loss: Callable[..., Array], params: Params, *data: Any, where: Predicate = kernels
) -> Scores:
    """How sensitive the loss is to each parameter, |g * w|.

    Args:
        loss: `(params, *data) -> scalar`.
        params: Tree of arrays.
        *data: A batch, passed on to `loss`.
        where: Which leaves are scored.

    Returns:
        Scores |g * w|, where g is the gradient of the loss. The paper divides them by
        their sum, which ranks the same.

    Raises:
        TypeError: If a chosen leaf is not floating, or the loss is no floating scalar.
        ValueError: If `where` chooses nothing.

    Example:
        >>> loss = lambda params, x: jnp.sum(x @ params["w"])
        >>> params = {"w": jnp.array([[3.0], [-4.0]])}
        >>> score.snip(loss, params, jnp.array([[2.0, 1.0]]))["w"].ravel()
        Array([6., 4.], dtype=float32)

    References:
        Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
        ICLR 2019. arXiv:1810.02340.
    """
    f = objective(loss, params, where, fn="maskjax.score.snip")
    return f.tree([jnp.abs(x) for x in sensitivities(f, *data)])


def taylor(
    loss: Callable[..., Array], params: Params, *data: Any, where: Predicate = kernels
) -> Scores:
    """The squared first-order change of the loss if a parameter is removed, (g * w)**2.

    Entries rank as in `snip`. Use this one to score units: the squares add up.

    Args:
        loss: `(params, *data) -> scalar`.
        params: Tree of arrays.
        *data: A batch, passed on to `loss`.
        where: Which leaves are scored.

    Returns:
        Scores (g * w)**2, where g is the gradient of the loss.

    Raises:
        TypeError: If a chosen leaf is not floating, or the loss is no floating scalar.
        ValueError: If `where` chooses nothing.

    Example:
        >>> loss = lambda params, x: jnp.sum(x @ params["w"])
        >>> params = {"w": jnp.array([[3.0], [-4.0]])}
        >>> score.taylor(loss, params, jnp.array([[2.0, 1.0]]))["w"].ravel()
        Array([36., 16.], dtype=float32)

    References:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019.
        arXiv:1906.10771.
    """
    f = objective(loss, params, where, fn="maskjax.score.taylor")
    return f.tree([jnp.square(x) for x in sensitivities(f, *data)])


def grasp(
    loss: Callable[..., Array], params: Params, *data: Any, where: Predicate = kernels
) -> Scores:
    """How much of the gradient's norm is lost without each parameter, w * (H g).

    Args:
        loss: `(params, *data) -> scalar`.
        params: Tree of arrays.
        *data: A batch, passed on to `loss`.
        where: Which leaves are scored.

    Returns:
        Scores w * (H g), positive or negative, where g is the gradient and H the
        Hessian with respect to the chosen leaves. The paper scores -w * (H g) and
        removes the highest. Its authors divide the logits by 200, because saturated
        outputs have no gradient.

    Raises:
        TypeError: If a chosen leaf is not floating, or the loss is no floating scalar.
        ValueError: If `where` chooses nothing.

    Example:
        >>> loss = lambda params: jnp.sum(params["w"] ** 2) / 2
        >>> score.grasp(loss, {"w": jnp.array([[3.0, -4.0]])})
        {'w': Array([[ 9., 16.]], dtype=float32)}

    References:
        Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient
        Flow", ICLR 2020. arXiv:2002.07376.
    """
    f = objective(loss, params, where, fn="maskjax.score.grasp")
    gradient = jax.grad(lambda chosen: f.value(chosen, *data))
    _, product = jax.jvp(gradient, (f.chosen,), (gradient(f.chosen),))
    return f.tree([wide(w) * wide(x) for w, x in zip(f.chosen, product, strict=True)])


def fisher(
    loss: Callable[..., Array],
    params: Params,
    *data: Any,
    batch_size: int = 1,
    where: Predicate = kernels,
) -> Scores:
    """How much the loss rises without each parameter, by its Fisher information.

    Args:
        loss: `(params, *data) -> scalar`. It is called on one example at a time, with a
            leading axis of 1 (and once traced with more, to warn): use running
            statistics, not those of the batch. A batch of one is normalized to 0, and
            its scores are 0.
        params: Tree of arrays.
        *data: Arrays, or trees of them, whose leading axis counts N examples.
        batch_size: How many examples to differentiate together. Each of them takes the
            memory of a gradient. 1 is fastest for dense layers on CPU. If the examples
            are on several devices, use a multiple of the number of devices: with fewer
            they are gathered.
        where: Which leaves are scored.

    Returns:
        Scores w**2 / 2 * mean_n(g_n**2), where g_n is the gradient of the loss of
        example n.

    Raises:
        TypeError: If a chosen leaf is not floating, or the loss is no floating scalar.
        ValueError: If `where` chooses nothing, `batch_size` is less than 1, or the
            arrays of `data` do not share a leading axis of 1 or more.

    Warns:
        UserWarning: If `loss` mixes the examples of a batch, as BatchNorm does in
            training mode. It is told while tracing.

    Example:
        >>> loss = lambda params, x: jnp.sum(x @ params["w"])
        >>> x = jnp.array([[1.0, 0.0], [-1.0, 2.0]])
        >>> score.fisher(loss, {"w": jnp.array([[2.0], [1.0]])}, x)["w"].ravel()
        Array([2., 1.], dtype=float32)

    References:
        Theis et al., "Faster gaze prediction with dense networks and Fisher pruning",
        2018. arXiv:1801.05787.
    """
    fn = "maskjax.score.fisher"
    f = objective(loss, params, where, fn=fn)
    means = _mean_squares(f, data, batch_size, fn=fn)
    pairs = zip(f.chosen, means, strict=True)
    return f.tree([jnp.square(wide(w)) / 2 * mean for w, mean in pairs])


def synflow(
    apply: Callable[..., Any],
    params: Params,
    input_shape: Sequence[int],
    *,
    where: Predicate = kernels,
) -> Scores:
    """How much flows through each parameter of the network of |params|, without data.

    Prune in many small steps, because a single cut can remove whole layers:
    `select.iterative_top_k(lambda p: score.synflow(apply, p, shape), params, ...)`.

    Args:
        apply: `(params, input) -> output`, any tree of arrays.
        params: Tree of arrays. All floating leaves are made positive.
        input_shape: The shape of an input of ones, batch axis included.
        where: Which leaves are scored.

    Returns:
        Scores |w * dR/dw|, where R is the sum of the output. In a network of ReLUs
        without biases the scores of each layer sum to R. R grows with depth like the
        product of the layers' norms: very deep networks may need `jax_enable_x64`.

    Raises:
        TypeError: If a chosen leaf, or everything that `apply` returns, is not
            floating.
        ValueError: If `where` chooses nothing.

    Example:
        >>> params = {"w": jnp.array([[3.0], [-4.0]])}
        >>> score.synflow(lambda p, x: x @ p["w"], params, (1, 2))["w"].ravel()
        Array([3., 4.], dtype=float32)

    References:
        Tanaka et al., "Pruning neural networks without any data by iteratively
        conserving synaptic flow", NeurIPS 2020. arXiv:2006.05467.
    """
    fn = "maskjax.score.synflow"

    def flow(params: Params) -> Array:
        floating = filter(checks.is_floating, jax.tree.leaves(params))
        with jax.numpy_dtype_promotion("standard"):  # several dtypes are no mistake
            dtype = jnp.result_type(*(leaf.dtype for leaf in floating))
        return total(apply(params, jnp.ones(input_shape, dtype)), fn=fn)

    def positive(leaf: Any) -> Any:
        return jnp.abs(leaf) if checks.is_floating(leaf) else leaf

    f = objective(flow, jax.tree.map(positive, params), where, fn=fn)
    return f.tree([jnp.abs(x) for x in sensitivities(f)])


def _mean_squares(
    f: Objective, data: Sequence[Any], batch_size: int, *, fn: str
) -> list[Array]:
    """For each chosen leaf the mean over examples of its squared gradient."""
    checks.at_least(batch_size, 1, fn=fn, name="batch_size")
    data = jax.tree.map(jnp.asarray, data)
    examples = _examples(data, fn=fn)
    batches.told_if_mixed(
        f.value,
        f.chosen,
        data,
        fn=fn,
        gives="`loss` one example at a time",
        cure="Use running statistics.",
        stacklevel=4,
    )

    def summed(batch: Any) -> list[Array]:
        """From examples [B, ...] to sums over B."""
        gradient = jax.grad(f.value)
        batch = jax.tree.map(lambda x: x[:, None], batch)  # each a batch of its own
        each = jax.vmap(lambda example: gradient(f.chosen, *example))(batch)
        return [jnp.sum(jnp.square(wide(g)), axis=0) for g in each]

    def add(total: list[Array], batch: Any) -> tuple[list[Array], None]:
        return [a + b for a, b in zip(total, summed(batch), strict=True)], None

    full, rest = turns.batches(data, batch_size)
    sums = [jnp.zeros_like(wide(w)) for w in f.chosen]
    sums, _ = lax.scan(add, sums, full)
    if rest is not None:
        sums, _ = add(sums, rest)
    return [square / examples for square in sums]


def _examples(data: Any, *, fn: str) -> int:
    """The length of the leading axis, which all arrays share."""
    shapes = {path: x.shape for path, x in trees.named_leaves(data)}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or not all(map(math.prod, lengths)) or () in lengths:
        raise checks.listing(
            [f"{path}: shape {shape}" for path, shape in shapes.items()] or ["none"],
            f"`{fn}` needs arrays of `data` whose leading axis is that of the same "
            "examples, at least one",
        )
    return lengths.pop()[0]
